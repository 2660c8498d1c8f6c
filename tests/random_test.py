"""Shapes and options that nobody thought of, against float64."""

import functools

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cases
import frameworks
import reference

# One seed for all: a failure on one machine is a failure on all.
profile = settings(
  # JAX compiles each of them, for a second.
  max_examples=15 if frameworks.NAME == 'jax' else 80,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
sizes = st.integers(1, 4)
activations = st.sampled_from(
  [name for name in reference.ACTIVATIONS if name != 'tanh'] + [None] * 3
)


def group(draw, shape):
  axis = draw(st.integers(1, len(shape) - 1))
  groups, size = draw(sizes), draw(sizes)
  shape[axis] = groups * size
  named = draw(
    st.sampled_from([{'groups': groups}, {'group_size': size}])
    if groups * size > 1
    else st.just({'groups': -1})
  )
  formula = functools.partial(reference.group_norm, groups=groups)
  return named, {'axis': axis}, formula, (axis,)


def instance(draw, shape):
  axis = draw(st.integers(1, len(shape) - 1))
  formula = functools.partial(reference.group_norm, groups=shape[axis])
  return {}, {'axis': axis}, formula, (axis,)


def layer(draw, shape):
  axes = draw(st.sets(st.integers(1, len(shape) - 1), min_size=1))
  rms = draw(st.booleans())
  formula = functools.partial(reference.layer_norm, rms=rms)
  return {'rms': rms}, {'axis': sorted(axes)}, formula, ()


def head(draw, shape):
  options = {'rms': draw(st.booleans()), 'per_head': draw(st.booleans())}
  axis = {}
  if len(shape) > 2 and draw(st.booleans()):
    axis = {'head_axis': draw(st.integers(1, len(shape) - 2))}
  else:
    options['num_heads'] = draw(sizes)
    shape[-1] *= options['num_heads']
  formula = functools.partial(reference.head_norm, **options)
  return options, axis, formula, tuple(axis.values())


def parameter_shape(kind, shape, options, axis):
  if kind == 'LayerNorm':
    return [shape[a] for a in axis['axis']]
  if kind != 'HeadNorm':
    return [shape[axis['axis']]]
  if not axis:
    shared = shape[-1] // options['num_heads']
    return [shape[-1] if options['per_head'] else shared]
  heads = [shape[axis['head_axis']]] if options['per_head'] else []
  return [*heads, shape[-1]]


@st.composite
def problems(draw):
  """`(function, wanted, arrays)`, both of `x`, `gamma`, `beta`, `gate`."""
  kind, draw_options = draw(
    st.sampled_from(
      [
        ('GroupNorm', group),
        ('InstanceNorm', instance),
        ('LayerNorm', layer),
        ('HeadNorm', head),
      ]
    )
  )
  shape = draw(st.lists(sizes, min_size=2, max_size=5))
  rank = len(shape)
  options, axis, formula, taken = draw_options(draw, shape)
  parameter = parameter_shape(kind, shape, options, axis)
  if draw(st.booleans()):
    parameter = [shape[0], *parameter]  # One for each sample.
  more = {'epsilon': draw(st.sampled_from([1e-4, 1e-3, 0.1]))}
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  if draw(st.booleans()):
    if kind == 'LayerNorm':
      free = shape
    else:
      last = (rank - 1,) if kind == 'HeadNorm' else ()
      free = [n for i, n in enumerate(shape) if i not in (*taken, *last)]
    more['mask'] = rng.random(free[: draw(st.integers(1, len(free)))]) < 0.7

  mean, std = draw(
    st.sampled_from([(0.0, 1.0), (3.0, 2.0), (-1e3, 1.0), (0.0, 1e-4)])
  )
  x = rng.normal(mean, std, shape)
  gamma = rng.normal(1, 0.3, parameter) if draw(st.booleans()) else None
  beta = rng.normal(0, 0.3, parameter) if draw(st.booleans()) else None
  if options.get('rms'):
    beta = None
  gate = None
  if kind == 'HeadNorm' and draw(st.booleans()):
    gate = rng.normal(0, 2, shape)
  activation = reference.ACTIVATIONS[name := draw(activations)]
  if kind != 'HeadNorm':
    options['activation'] = name
  elif gate is not None:
    options['gate_activation'] = name

  def signed(value):
    return value - rank if draw(st.booleans()) else value

  signs = {
    k: list(map(signed, v)) if isinstance(v, list) else signed(v)
    for k, v in axis.items()
  }

  def function(x, gamma, beta, gate, **how):
    gated = {} if gate is None else {'gate': gate}
    function = cases.FUNCTIONS[kind]
    return function(x, gamma, beta, **options, **signs, **more, **gated, **how)

  def wanted(x, gamma, beta, gate):
    y = formula(x, gamma, beta, **axis, **more)
    if kind == 'HeadNorm':
      return y if gate is None else y * activation(gate)
    # 1, and 0 where masked: the activation of 0 need not be 0.
    ones = np.ones(parameter)
    valid = formula(np.zeros(shape), None, ones, **axis, **more)
    return activation(y) * valid

  return function, wanted, (x, gamma, beta, gate)


def without_none(arrays, function):
  """The arrays that are there, and `function` of these alone."""

  def of_present(*present, **how):
    present = iter(present)
    full = [None if a is None else next(present) for a in arrays]
    return function(*full, **how)

  return [a for a in arrays if a is not None], of_present


@profile
@given(problems(), st.sampled_from(['float32', 'float64']), st.booleans())
def test_values(problem, dtype, jit_compile):
  function, wanted, arrays = problem
  arrays = [None if a is None else a.astype(dtype) for a in arrays]
  y = function(*arrays, jit_compile=jit_compile)
  atol = 2e-5 if dtype == 'float32' else 1e-10
  np.testing.assert_allclose(y, wanted(*cases.wide(*arrays)), rtol=0, atol=atol)


@profile
@given(problems(), st.sampled_from(['float32', 'float64']), st.booleans())
def test_gradients(problem, dtype, jit_compile):
  function, formula, arrays = problem
  arrays = [None if a is None else a.astype(dtype) for a in arrays]
  present, function = without_none(arrays, function)
  formula = without_none(arrays, formula)[1]
  tensors = [frameworks.tensor(a) for a in present]
  dy = np.random.default_rng(0).normal(1, 1, arrays[0].shape).astype(dtype)
  _, *got = frameworks.gradients(
    functools.partial(function, jit_compile=jit_compile), tensors, dy
  )
  wanted = reference.vjp(formula, cases.wide(*present), dy)
  tolerance = 2e-5 if dtype == 'float32' else 1e-7
  for g, w in zip(got, wanted, strict=True):
    scale = max(1.0, np.abs(w).max())
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale)
