"""`functional.moments`: the mean and the variance of each group, exactly."""

import numpy as np
import pytest

import cases
import frameworks
import reference
from tfgroupnorm import functional

CASES = [
  case for case in cases.CASES if case.kind in ('GroupNorm', 'InstanceNorm')
]
of_groups = pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)


def options(case):
  names = ('groups', 'group_size', 'axis')
  return {k: v for k, v in case.options.items() if k in names}


def formula(case, x, mask=None):
  """In float64: two arrays, with 1 in place of the positions."""
  axis = case.options['axis'] % x.ndim
  channels = x.shape[axis]
  size = case.options.get('group_size')
  groups = case.options.get('groups', -1)
  count = channels // size if size else channels if groups == -1 else groups
  rows = np.moveaxis(x, axis, 1).reshape(len(x), count, channels // count, -1)
  valid = np.ones(x.shape, bool) if mask is None else case.lay(mask)
  valid = np.moveaxis(valid, axis, 1).reshape(rows.shape)
  number = np.maximum(valid.sum((2, 3), keepdims=True), 1)
  mean = np.where(valid, rows, 0).sum((2, 3), keepdims=True) / number
  squares = np.where(valid, rows - mean, 0) ** 2
  var = squares.sum((2, 3), keepdims=True) / number
  shape = [n if i in (0, axis) else 1 for i, n in enumerate(x.shape)]
  return [
    np.broadcast_to(t, (*rows.shape[:3], 1)).reshape(shape) for t in (mean, var)
  ]


@of_groups
@pytest.mark.parametrize('masked', [False, True], ids=['whole', 'masked'])
def test_values(case, masked):
  x, _, _ = case.data()
  mask = case.mask() if masked else None
  dirty = x if mask is None else np.where(case.lay(mask), x, np.float32('nan'))
  got = functional.moments(dirty, **options(case), mask=mask)
  for t, wanted in zip(got, formula(case, *cases.wide(x), mask), strict=True):
    assert t.dtype.name == 'float32' and t.shape == wanted.shape
    np.testing.assert_allclose(t, wanted, rtol=2e-6, atol=2e-6)


@of_groups
def test_they_are_those_of_the_norm(case):
  x, _, _ = case.data()
  mean, var = functional.moments(x, **options(case))
  y = (x - mean) / np.sqrt(var + 1e-3)
  wanted = cases.FUNCTIONS[case.kind](x, **options(case))
  np.testing.assert_allclose(y, wanted, rtol=0, atol=8e-6)


@frameworks.on_tensorflow
@of_groups
def test_unknown_sizes(case):
  import tensorflow as tf

  shape = case.unknown_shape()

  @tf.function(input_signature=[tf.TensorSpec(shape)], autograph=False)
  def run(x):
    return functional.moments(x, **options(case))

  x, _, _ = case.data()
  for t, wanted in zip(run(x), formula(case, *cases.wide(x)), strict=True):
    np.testing.assert_allclose(t, wanted, rtol=2e-6, atol=2e-6)


def gradient(case, x, upstream):
  """Of both moments by `x`, in float64."""

  def loss(x):
    return np.array(
      sum(
        np.sum(t * u) for t, u in zip(formula(case, x), upstream, strict=True)
      )
    )

  (found,) = reference.vjp(loss, [x], np.array(1.0))
  return found


@frameworks.on_jax
@of_groups
def test_gradients_of_jax(case):
  import jax

  x = case.data('float64')[0]
  rng = np.random.default_rng(1)
  upstream = [rng.normal(1, 1, t.shape) for t in formula(case, x)]
  _, back = jax.vjp(lambda x: functional.moments(x, **options(case)), x)

  wanted = gradient(case, x, upstream)
  np.testing.assert_allclose(*back(tuple(upstream)), wanted, rtol=0, atol=1e-8)


@frameworks.on_tensorflow
@of_groups
@pytest.mark.parametrize('jit_compile', [None, True], ids=['plain', 'compiled'])
def test_gradients(case, jit_compile):
  import tensorflow as tf

  x = case.data('float64')[0]
  rng = np.random.default_rng(1)
  upstream = [rng.normal(1, 1, t.shape) for t in formula(case, x)]

  @tf.function(jit_compile=jit_compile, autograph=False)
  def run(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      moments = functional.moments(x, **options(case))
    return tape.gradient(moments, x, [tf.constant(t) for t in upstream])

  wanted = gradient(case, x, upstream)
  np.testing.assert_allclose(run(tf.constant(x)), wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize('groups', [1, 4, -1])
def test_exact_at_large_means(groups):
  x = np.random.default_rng(0).normal(1e4, 1e-2, (2, 32, 32, 8))
  x = x.astype('float32')
  mean, var = functional.moments(x, groups=groups)
  case = cases.KINDS['GroupNorm']
  of = {'groups': groups, 'axis': -1}
  case = type(case)(**{**vars(case), 'options': of})
  wanted = formula(case, *cases.wide(x))
  np.testing.assert_allclose(mean, wanted[0], rtol=1e-7)
  np.testing.assert_allclose(var, wanted[1], rtol=1e-5)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'int32', 'float64'])
def test_dtypes(dtype):
  """float64 for float64, and float32 for all else."""
  x = frameworks.tensor(np.arange(24).reshape(2, 3, 4), dtype)
  mean, var = functional.moments(x)
  wanted = 'float64' if dtype == 'float64' else 'float32'
  assert mean.dtype.name == var.dtype.name == wanted
  np.testing.assert_array_equal(mean[0, 0], [4, 5, 6, 7])
  np.testing.assert_allclose(var[0, 0], np.full(4, 32 / 3), rtol=1e-6)


def test_a_style():
  """AdaIN: content with the mean and the deviation of a style."""
  rng = np.random.default_rng(0)
  content = rng.normal(3, 2, (2, 8, 8, 4)).astype('float32')
  style = rng.normal(-7, 0.5, (1, 5, 5, 4)).astype('float32')
  mean, var = functional.moments(style)
  y = functional.instance_norm(
    content, np.sqrt(var)[:, 0, 0], mean[:, 0, 0], epsilon=1e-8
  )
  for got, wanted in zip(functional.moments(y), (mean, var), strict=True):
    np.testing.assert_allclose(
      got, np.broadcast_to(wanted, got.shape), rtol=1e-5
    )


def test_options():
  x = np.ones((2, 3, 8), 'float32')
  with pytest.raises(ValueError, match='Give `groups` or `group_size`'):
    functional.moments(x, groups=-1, group_size=2)
  with pytest.raises(ValueError, match='must be a multiple of `groups`'):
    functional.moments(x, groups=3)
  with pytest.raises(TypeError, match='`mask` must be of bools'):
    functional.moments(x, mask=np.ones((2, 3), 'float32'))
