"""Exact at large means; constant groups give beta; outliers do no harm.

Run this file with `-s` to see the table, beside Keras and, where it is
installed, PyTorch.
"""

import functools
import importlib.util

import keras
import numpy as np
import pytest

import cases
import frameworks
from tfgroupnorm import functional

# mean, std -> largest error allowed, for groups of 8192 values.
TABLE = {
  (1e2, 1.0): 2e-6,
  (1e4, 1.0): 5e-6,
  (1e4, 1e-2): 2e-5,
  (1e6, 1.0): 2e-5,
}
GROUPS = 8


def sample(mean, std, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(mean, std, (4, 32, 32, 8 * GROUPS)).astype('float32')


def exact(x):
  n, h, w, c = x.shape
  x = x.astype('float64').reshape(n, h, w, GROUPS, c // GROUPS)
  mean = x.mean((1, 2, 4), keepdims=True)
  variance = ((x - mean) ** 2).mean((1, 2, 4), keepdims=True)
  return ((x - mean) / np.sqrt(variance + 1e-5)).reshape(n, h, w, c)


def exact_gradient(x, dy):
  n, h, w, c = x.shape
  x, dy = (
    a.astype('float64').reshape(n, h, w, GROUPS, c // GROUPS) for a in (x, dy)
  )
  axes = {'axis': (1, 2, 4), 'keepdims': True}
  d = x - x.mean(**axes)
  sigma = np.sqrt((d**2).mean(**axes) + 1e-5)
  xhat = d / sigma
  dx = dy - dy.mean(**axes) - xhat * (dy * xhat).mean(**axes)
  return (dx / sigma).reshape(n, h, w, c)


def error(y, x):
  return np.abs(np.asarray(y, 'float64') - exact(x)).max()


def through_torch(x):
  import torch

  x = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  y = torch.nn.functional.group_norm(x, GROUPS, eps=1e-5)
  return np.moveaxis(y.numpy(), 1, -1)


@cases.compiled_or_plain
@pytest.mark.parametrize('mean, std', TABLE)
def test_large_means(mean, std, jit_compile):
  x = sample(mean, std)
  y = functional.group_norm(
    x, groups=GROUPS, epsilon=1e-5, jit_compile=jit_compile
  )
  assert error(y, x) <= TABLE[mean, std]


@cases.compiled_or_plain
@pytest.mark.parametrize('mean, std', TABLE)
def test_large_means_under_a_mask(mean, std, jit_compile):
  x = sample(mean, std)
  padded = np.concatenate([x, np.full_like(x, np.nan)], 1)
  y = functional.group_norm(
    padded,
    groups=GROUPS,
    epsilon=1e-5,
    mask=np.arange(64)[None] < np.full((4, 1), 32),
    jit_compile=jit_compile,
  )
  assert error(y[:, :32], x) <= TABLE[mean, std]


@cases.compiled_or_plain
@pytest.mark.parametrize('mean, std', TABLE)
def test_large_means_of_layers_and_heads(mean, std, jit_compile):
  x = sample(mean, std).reshape(-1, 8192)
  wanted = exact(x.reshape(-1, 1, 1, 8 * 8192)).reshape(x.shape)
  y = functional.layer_norm(x, epsilon=1e-5, jit_compile=jit_compile)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=TABLE[mean, std])
  y = functional.head_norm(
    x.reshape(-1, 2 * 8192), num_heads=2, epsilon=1e-5, jit_compile=jit_compile
  )
  np.testing.assert_allclose(
    np.reshape(y, x.shape), wanted, rtol=0, atol=TABLE[mean, std]
  )


@cases.compiled_or_plain
@pytest.mark.parametrize('mean, std', TABLE)
def test_gradients_at_large_means(mean, std, jit_compile):
  """dx of float32 against its formula in float64."""

  x, dy = sample(mean, std), sample(1.0, 1.0, seed=1)
  _, got = frameworks.gradients(
    lambda x: functional.group_norm(
      x, groups=GROUPS, epsilon=1e-5, jit_compile=jit_compile
    ),
    [frameworks.tensor(x)],
    dy,
  )
  wide = exact_gradient(x, dy)
  scale = np.abs(wide).max()
  np.testing.assert_allclose(got, wide, rtol=0, atol=TABLE[mean, std] * scale)


def errors(mean, std) -> dict[str, float]:
  """Largest error of each library that is installed, by its name."""
  x = sample(mean, std)

  def ours(jit_compile):
    return functional.group_norm(
      x, groups=GROUPS, epsilon=1e-5, jit_compile=jit_compile
    )

  outputs = {
    'compiled': ours(True),
    'plain': ours(False),
    'keras': keras.layers.GroupNormalization(GROUPS, epsilon=1e-5)(x),
  }
  if importlib.util.find_spec('torch') is not None:
    outputs['torch'] = through_torch(x)
  return {name: float(error(y, x)) for name, y in outputs.items()}


def test_print_the_table(capsys):
  """Ours beside others, as `benchmarks/exactness.py` writes them."""
  rows = ['mean, std       compiled    plain       keras       torch']
  for mean, std in TABLE:
    found = errors(mean, std)
    assert max(found['compiled'], found['plain']) < found['keras']
    name = f'{mean:g}, {std:g}'
    cells = (f'{value:<12.1e}' for value in found.values())
    rows.append(f'{name:16}' + ''.join(cells))
  with capsys.disabled():
    print('\n\nlargest error against float64, groups of 8192 values')
    print('\n'.join(rows))


@pytest.mark.parametrize(
  'case',
  [case for case in cases.CASES if not case.rms],
  ids=lambda case: case.name,
)
@cases.compiled_or_plain
@pytest.mark.parametrize('value', [10000.1])
def test_a_constant_group_gives_beta(case, jit_compile, value):
  x, gamma, beta = case.data()
  y = case.function(
    np.full_like(x, value), gamma, beta, jit_compile=jit_compile
  )
  wanted = case.function(
    np.zeros_like(x), np.zeros_like(gamma), beta, jit_compile=False
  )
  np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=0)
  if case.activation is None:
    np.testing.assert_array_equal(y, wanted)


@cases.compiled_or_plain
def test_a_large_constant_gives_beta(jit_compile):
  x = np.full((2, 57, 61, 16), 10000.1, 'float32')
  beta = np.linspace(-1, 1, 16).astype('float32')
  y = functional.group_norm(x, beta=beta, groups=4, jit_compile=jit_compile)
  np.testing.assert_array_equal(y, np.broadcast_to(beta, x.shape))


@cases.compiled_or_plain
@pytest.mark.parametrize('where', ['first', 'last'])
@pytest.mark.parametrize('kind', ['group', 'layer', 'row', 'mask'])
def test_an_outlier_in_a_million(kind, where, jit_compile):
  x = np.random.default_rng(0).normal(0, 1, (1, 128, 128, 64)).astype('f')
  x[(0,) * 4 if where == 'first' else (-1,) * 4] = 1e4
  run = {
    'group': lambda: functional.group_norm(
      x, groups=1, epsilon=1e-5, jit_compile=jit_compile
    ),
    'layer': lambda: functional.layer_norm(
      x, axis=[1, 2, 3], epsilon=1e-5, jit_compile=jit_compile
    ),
    'row': lambda: functional.layer_norm(
      x.reshape(1, -1), epsilon=1e-5, jit_compile=jit_compile
    ),
    'mask': lambda: functional.group_norm(
      x,
      groups=1,
      epsilon=1e-5,
      mask=np.ones((1, 128), bool),
      jit_compile=jit_compile,
    ),
  }[kind]
  wide = x.astype('float64')
  wanted = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
  got = np.reshape(run(), x.shape)
  # Relative to each value, and to one thousandth of a deviation near zero.
  relative = np.abs(got - wanted) / np.maximum(np.abs(wanted), 1e-3)
  assert relative.max() <= 1e-4


@cases.compiled_or_plain
def test_squares_that_overflow(jit_compile):
  """The deviation is infinite to float32, and the result 0, not NaN."""
  x = np.random.default_rng(0).normal(0, 1e30, (2, 64, 64, 8)).astype('f')
  y = functional.group_norm(x, groups=2, jit_compile=jit_compile)
  np.testing.assert_array_equal(y, np.zeros_like(x))


@cases.compiled_or_plain
def test_float16_range(jit_compile):
  """Float32 inputs beyond float16's range are no trouble to mixed_float16."""
  x = np.random.default_rng(0).uniform(6e4, 7e4, (2, 6, 6, 16)).astype('f')
  for generation in cases.GENERATIONS:
    layer = cases.layers_of(generation).GroupNorm(
      4, epsilon=1e-5, dtype='mixed_float16', jit_compile=jit_compile
    )
    y = layer(x)
    assert y.dtype.name == 'float16'
    case = cases.KINDS['GroupNorm']
    wanted = case.formula(x.astype('float64'), None, None, epsilon=1e-5)
    np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=1e-3)


@cases.compiled_or_plain
@pytest.mark.parametrize(
  'function',
  [
    functional.layer_norm,
    functools.partial(functional.layer_norm, rms=True),
    functools.partial(functional.group_norm, groups=2),
    functools.partial(functional.head_norm, num_heads=2),
  ],
)
def test_where_squares_overflow(function, jit_compile):
  """As documented: right up to there, then 0 and finite with its gradient."""
  signs = np.random.default_rng(0).choice([-1.0, 1.0], (4, 64))
  wanted = function(frameworks.tensor(signs), epsilon=1e-12)
  for size in (1e17, 1e18, 1e20, 1e30, 1e36):
    x = frameworks.tensor(size * signs, 'float32')
    dy = np.cos(wanted).astype('float32')
    y, dx = frameworks.gradients(
      functools.partial(function, jit_compile=jit_compile), [x], dy
    )
    assert np.all(np.isfinite(dx))
    right = wanted if size <= 1e18 else np.zeros_like(wanted)
    np.testing.assert_allclose(y, right, rtol=0, atol=1e-5)
