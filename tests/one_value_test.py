"""A group of one value is its own mean: the result says nothing of the input.

What then comes out is beta, exactly, and no gradient flows. A layer that is
built so says it, once.
"""

import warnings

import numpy as np
import pytest

import cases
import frameworks
from tfgroupnorm import functional

# (layer, options, shape whose groups hold one value each)
CONSTANT = [
  ('GroupNorm', {'groups': 12}, (3, 12)),
  ('GroupNorm', {'group_size': 1}, (3, 1, 1, 12)),
  ('InstanceNorm', {}, (3, 1, 1, 12)),
  ('InstanceNorm', {}, (3, 12)),
  ('LayerNorm', {}, (3, 5, 1)),
  ('LayerNorm', {'axis': [1, 2]}, (3, 1, 1, 12)),
  ('HeadNorm', {'num_heads': 12}, (3, 5, 12)),
  ('HeadNorm', {'head_axis': 1}, (3, 4, 5, 1)),
]
constant = pytest.mark.parametrize('kind, options, shape', CONSTANT)


@cases.both_kerases
@constant
def test_one_warning(generation, kind, options, shape):
  layer = getattr(cases.layers_of(generation), kind)(**options, name='norm')
  message = f"Each group of {kind} 'norm' holds one value of an input of shape"
  x = np.random.default_rng(0).normal(3, 2, shape).astype('float32')
  with pytest.warns(UserWarning, match=message) as said:
    y = layer(x)
  assert len(said) == 1
  np.testing.assert_array_equal(y, np.zeros(shape))
  layer(x)  # Nothing is said again.


@cases.both_kerases
@pytest.mark.parametrize(
  'kind, options, shape',
  [
    ('GroupNorm', {'groups': 6}, (None, 12)),
    ('GroupNorm', {'groups': 12}, (None, None, None, 12)),
    ('InstanceNorm', {}, (None, 1, 2, 12)),
    ('LayerNorm', {'rms': True}, (None, 5, 1)),
    ('LayerNorm', {}, (1, 1, 2)),
    ('HeadNorm', {'num_heads': 6}, (None, 5, 12)),
  ],
)
def test_no_warning(generation, kind, options, shape):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    getattr(cases.layers_of(generation), kind)(**options).build(shape)


@constant
@cases.compiled_or_plain
def test_the_gradient_is_zero(kind, options, shape, jit_compile):
  """Exactly: nothing is left of a difference that should not be there."""
  rng = np.random.default_rng(0)
  x, dy = rng.normal(1e4, 3, (2, *shape)).astype('float32')
  y, dx = frameworks.gradients(
    lambda x: cases.FUNCTIONS[kind](x, **options, jit_compile=jit_compile),
    [frameworks.tensor(x)],
    dy,
  )
  np.testing.assert_array_equal(y, np.zeros(shape))
  np.testing.assert_array_equal(dx, np.zeros(shape))


@cases.compiled_or_plain
def test_beta_comes_out(jit_compile):
  beta = np.arange(12, dtype='float32')
  x = np.random.default_rng(0).normal(1e4, 3, (3, 12)).astype('float32')
  y = functional.group_norm(
    x, 2 * beta, beta, groups=12, jit_compile=jit_compile
  )
  np.testing.assert_array_equal(y, np.broadcast_to(beta, x.shape))
