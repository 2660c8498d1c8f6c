"""Shapes and options that nobody thought of, against float64."""

import numpy as np
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cases
import reference

# One seed for all: a failure on one machine is a failure on all.
profile = settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
sizes = st.integers(1, 4)


@st.composite
def problems(draw):
  """`(function, formula, x, options)` of any layer, any shape."""
  kind = draw(st.sampled_from(sorted(cases.FUNCTIONS)))
  rank = draw(st.integers(2, 5))
  shape = draw(st.lists(sizes, min_size=rank, max_size=rank))
  options = {'epsilon': draw(st.sampled_from([1e-6, 1e-3, 0.1]))}
  if kind == 'GroupNorm':
    axis = draw(st.integers(1, rank - 1))
    groups, shape[axis] = draw(sizes), 1
    shape[axis] = groups * draw(sizes)
    options |= {'axis': draw(st.sampled_from([axis, axis - rank]))}
    options |= {'groups': groups}
    formula = reference.group_norm
    parameter = [shape[axis]]
  elif kind == 'InstanceNorm':
    axis = draw(st.integers(1, rank - 1))
    options |= {'axis': axis}

    def formula(x, g, b, **o):
      return reference.group_norm(x, g, b, groups=x.shape[axis], **o)

    parameter = [shape[axis]]
  elif kind == 'LayerNorm':
    axes = draw(st.sets(st.integers(1, rank - 1), min_size=1))
    options |= {'axis': sorted(axes), 'rms': draw(st.booleans())}
    formula = reference.layer_norm
    parameter = [shape[a] for a in sorted(axes)]
  else:
    options |= {'rms': draw(st.booleans()), 'per_head': draw(st.booleans())}
    formula = reference.head_norm
    if rank > 2 and draw(st.booleans()):
      axis = draw(st.integers(1, rank - 2))
      options |= {'head_axis': axis}
      parameter = [shape[axis], shape[-1]]
    else:
      heads, features = draw(sizes), shape[-1]
      shape[-1] *= heads
      options |= {'num_heads': heads}
      parameter = [heads * features]
    if not options['per_head']:
      parameter = [features if 'num_heads' in options else shape[-1]]
  if draw(st.booleans()):
    parameter = [shape[0], *parameter]  # One for each sample.
    if kind == 'HeadNorm':
      parameter = parameter[1:]
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  mean, std = draw(
    st.sampled_from([(0.0, 1.0), (3.0, 2.0), (-1e3, 1.0), (0.0, 1e-4)])
  )
  x = rng.normal(mean, std, shape)
  gamma = rng.normal(1, 0.3, parameter) if draw(st.booleans()) else None
  beta = rng.normal(0, 0.3, parameter) if draw(st.booleans()) else None
  if options.get('rms'):
    beta = None
  return cases.FUNCTIONS[kind], formula, (x, gamma, beta), options


@profile
@given(problems(), st.sampled_from(['float32', 'float64']), st.booleans())
def test_values(problem, dtype, jit_compile):
  function, formula, arrays, options = problem
  arrays = [None if a is None else a.astype(dtype) for a in arrays]
  y = function(*arrays, jit_compile=jit_compile, **options)
  atol = 2e-5 if dtype == 'float32' else 1e-10
  np.testing.assert_allclose(
    y, formula(*cases.wide(*arrays), **options), rtol=0, atol=atol
  )


@profile
@given(problems(), st.booleans())
def test_gradients(problem, jit_compile):
  function, formula, arrays, options = problem
  present = [a for a in arrays if a is not None]

  def fill(values):
    values = iter(values)
    return [None if a is None else next(values) for a in arrays]

  tensors = [tf.constant(a) for a in present]
  dy = np.random.default_rng(0).normal(1, 1, arrays[0].shape)
  with tf.GradientTape() as tape:
    tape.watch(tensors)
    y = function(*fill(tensors), jit_compile=jit_compile, **options)
  wanted = reference.vjp(lambda *a: formula(*fill(a), **options), present, dy)
  for g, w in zip(tape.gradient(y, tensors, dy), wanted, strict=True):
    scale = max(1.0, np.abs(w).max())
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-7 * scale)
