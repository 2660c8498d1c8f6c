"""Masked positions count for nothing, come out as 0 and get no gradient."""

import numpy as np
import pytest

import cases
import frameworks
import reference
from tfgroupnorm import functional


def problem(case, garbage=0.0):
  x, gamma, beta = case.data()
  mask = case.mask()
  dirty = np.where(case.lay(mask), x, np.float32(garbage))
  return x, dirty, gamma, beta, mask


@cases.all_cases
@cases.compiled_or_plain
@pytest.mark.parametrize('garbage', [np.nan, 3e38])
def test_values(case, jit_compile, garbage):
  x, dirty, gamma, beta, mask = problem(case, garbage)
  y = case.function(dirty, gamma, beta, mask=mask, jit_compile=jit_compile)
  wanted = case.reference(*cases.wide(x, gamma, beta), mask=mask)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)
  assert not np.any(np.asarray(y)[~case.lay(mask)])


@cases.all_cases
@cases.compiled_or_plain
@pytest.mark.parametrize('garbage', [np.nan])
def test_gradients(case, jit_compile, garbage):
  x, dirty, gamma, beta, mask = problem(case, garbage)
  dy = np.random.default_rng(5).normal(1, 1, x.shape).astype('float32')
  # Nothing that a later layer makes of padding may come back.
  dirty_dy = np.where(case.lay(mask), dy, np.float32(garbage))
  arguments = [
    frameworks.tensor(a) for a in (dirty, gamma, beta) if a is not None
  ]
  _, *got = frameworks.gradients(
    lambda *a: case.function(*a, mask=mask, jit_compile=jit_compile),
    arguments,
    dirty_dy,
  )
  wide = cases.wide(*(a for a in (x, gamma, beta) if a is not None))
  wanted = reference.vjp(
    lambda *a: case.reference(*a, mask=mask), wide, dy * case.lay(mask)
  )
  for g, w in zip(got, wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=2e-5)
  assert not np.any(np.asarray(got[0])[~case.lay(mask)])


@cases.one_of_each
@cases.compiled_or_plain
def test_fully_masked_sample(case, jit_compile):
  x, gamma, beta = case.data()
  mask = case.mask()
  mask[0] = False
  x = frameworks.tensor(np.where(case.lay(mask), x, np.float32(np.nan)))
  y, dx = frameworks.gradients(
    lambda x: case.function(x, gamma, beta, mask=mask, jit_compile=jit_compile),
    [x],
  )
  assert not np.any(y[0])
  assert np.all(np.isfinite(y)) and np.any(y[1])
  assert not np.any(dx[0])


@cases.one_of_each
@cases.compiled_or_plain
def test_second_order(case, jit_compile):
  """What padding holds does not come back by a gradient of a gradient."""
  x, dirty, gamma, _, mask = problem(case, np.nan)
  dy, along = np.random.default_rng(5).normal(1, 1, (2, *x.shape)).astype('f')
  results = [
    frameworks.second_order(
      lambda *a: case.function(*a, mask=mask, jit_compile=jit_compile) ** 2,
      [frameworks.tensor(a), frameworks.tensor(gamma)],
      dy,
      [along, np.ones_like(gamma)],
    )
    for a in (x, dirty)
  ]
  for clean, got in zip(*results, strict=True):
    assert np.any(clean)
    # TensorFlow may add up in another order.
    scale = max(1.0, np.abs(clean).max())
    np.testing.assert_allclose(got, clean, rtol=0, atol=2e-6 * scale)
  assert not np.any(np.asarray(results[1][0])[~case.lay(mask)])


def squares(x, **options):
  return functional.layer_norm(x, axis=[1, 2], rms=True, **options)


def gated(x, gate, **options):
  return functional.head_norm(
    x, num_heads=2, gate=gate, gate_activation='silu', **options
  )


@cases.compiled_or_plain
@pytest.mark.parametrize('normalize, tensors', [(squares, 1), (gated, 2)])
def test_second_order_of_squares_and_gates(normalize, tensors, jit_compile):
  """As above: statistics about zero, and what a gate holds."""
  rng = np.random.default_rng(0)
  mask = np.array([[True] * 5 + [False] * 2, [False] + [True] * 6])
  clean = rng.normal(1, 1, (tensors, 2, 7, 8)).astype('float32')
  dirty = np.where(mask[..., np.newaxis], clean, np.float32(np.nan))
  dy, *along = rng.normal(1, 1, (tensors + 1, 2, 7, 8)).astype('float32')
  results = [
    frameworks.second_order(
      lambda *a: normalize(*a, mask=mask, jit_compile=jit_compile) ** 2,
      [frameworks.tensor(t) for t in given],
      dy,
      along,
    )
    for given in (clean, dirty)
  ]
  for wanted, got in zip(*results, strict=True):
    assert np.any(wanted)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@cases.compiled_or_plain
def test_an_outlier_behind_padding(jit_compile):
  """As exact as without the padding."""
  rng = np.random.default_rng(0)
  x = rng.normal(0, 1, (1, 8192, 2)).astype('float32')
  x[0, 1024] = 1e4
  mask = np.arange(8192)[None] >= 1024
  wide = x[:, 1024:].astype('float64')
  wanted = (wide - wide.mean(1)) / np.sqrt(wide.var(1) + 1e-5)
  y = functional.instance_norm(
    x, mask=mask, epsilon=1e-5, jit_compile=jit_compile
  )
  error = np.abs(y[:, 1024:] - wanted) / np.maximum(np.abs(wanted), 1e-3)
  assert error.max() <= 2e-4


@cases.all_cases
def test_a_full_mask_changes_nothing(case):
  x, gamma, beta = case.data()
  mask = np.ones_like(case.mask())
  case.check(case.function(x, gamma, beta, mask=mask), x, gamma, beta)


@pytest.mark.parametrize('dtype', ['bool', 'int32', 'int64', 'uint8'])
def test_numbers_as_a_mask(dtype):
  case = cases.KINDS['GroupNorm']
  x, gamma, beta = case.data()
  mask = case.mask()
  y = case.function(x, gamma, beta, mask=mask.astype(dtype))
  wanted = case.reference(*cases.wide(x, gamma, beta), mask=mask)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)


@cases.all_cases
@cases.both_kerases
def test_a_one_where_there_are_no_positions(case, generation):
  """(batch, height, width, 1), as masks of images come; it travels without."""
  x, _, _ = case.data()
  ones = [-1]
  if case.kind in ('GroupNorm', 'InstanceNorm'):
    ones = [case.options['axis']]
  elif 'head_axis' in case.options:
    ones.append(case.options['head_axis'])
  shape = list(x.shape)
  for axis in ones:
    shape[axis] = 1
  mask = np.random.default_rng(1).random(shape) < 0.6
  squeezed = mask.squeeze(tuple(ones))
  wanted = case.function(x, mask=squeezed)
  np.testing.assert_array_equal(case.function(x, mask=mask), wanted)
  layer = case.layer(generation)
  y = layer(x, mask=mask)
  np.testing.assert_array_equal(y, layer(x, mask=squeezed))
  np.testing.assert_array_equal(y._keras_mask, squeezed)


def padded_batch(generation):
  """A model's input of tokens, 0 for padding, and what it embeds to."""
  keras = __import__(generation)
  tokens = np.array([[3, 1, 2, 0, 0], [4, 4, 0, 0, 0], [1, 2, 3, 4, 2]])
  return keras, tokens, keras.layers.Embedding(5, 8, mask_zero=True)


@cases.both_kerases
@pytest.mark.parametrize('kind', ['GroupNorm', 'LayerNorm', 'HeadNorm'])
def test_keras_passes_the_mask_on(generation, kind):
  keras, tokens, embedding = padded_batch(generation)
  layer = cases.KINDS[kind].layer(
    generation,
    **{
      'GroupNorm': {'groups': 2, 'axis': -1},
      'LayerNorm': {'axis': -1},
      'HeadNorm': {'num_heads': 2},
    }[kind],
  )
  inputs = keras.Input((None,), dtype='int32')
  hidden = layer(embedding(inputs))
  pooled = keras.layers.GlobalAveragePooling1D()(hidden)
  model = keras.Model(inputs, [hidden, pooled])
  hidden, pooled = model(tokens)
  valid = tokens != 0
  hidden = np.asarray(hidden)
  assert not np.any(hidden[~valid]) and np.any(hidden)
  # The pooling leaves masked steps out only if the mask has reached it.
  wanted = hidden.sum(1) / valid.sum(1, keepdims=True)
  np.testing.assert_allclose(pooled, wanted, rtol=1e-5, atol=1e-6)
  # And padding has had no influence.
  alone = model(tokens[1:2, :2])[0]
  np.testing.assert_allclose(hidden[1:2, :2], alone, rtol=0, atol=2e-6)


@cases.both_kerases
def test_an_explicit_mask_travels_on(generation):
  keras, tokens, _ = padded_batch(generation)
  x = np.random.default_rng(0).normal(1, 1, (3, 5, 8)).astype('float32')
  valid = tokens != 0
  y = cases.KINDS['GroupNorm'].layer(generation, groups=2)(x, mask=valid)
  pooled = keras.layers.GlobalAveragePooling1D()(y)
  wanted = np.asarray(y).sum(1) / valid.sum(1, keepdims=True)
  np.testing.assert_allclose(pooled, wanted, rtol=1e-5, atol=1e-6)


@cases.both_kerases
def test_the_mask_is_used_beside_other_tensors(generation):
  keras, tokens, embedding = padded_batch(generation)
  layer = cases.KINDS['GroupNorm'].layer(generation, groups=2, scale=False)
  inputs = keras.Input((None,), dtype='int32')
  gamma = keras.Input((8,))
  model = keras.Model([inputs, gamma], layer(embedding(inputs), gamma=gamma))
  y = np.asarray(model([tokens, np.full((3, 8), 2.0, 'float32')]))
  assert not np.any(y[tokens == 0]) and np.any(y)


@pytest.mark.parametrize('gate_activation', ['sigmoid', 'tanh'])
def test_a_gate_behind_the_mask(gate_activation):
  x = np.random.default_rng(0).normal(1, 1, (1, 2, 8)).astype('float32')
  gate = x + np.array([[[0.0], [np.nan]]], 'float32')

  def gated(gate):
    return functional.head_norm(
      x,
      num_heads=2,
      gate=gate,
      gate_activation=gate_activation,
      mask=np.array([[True, False]]),
    )

  y, dgate = map(
    np.asarray, frameworks.gradients(gated, [frameworks.tensor(gate)])
  )
  assert np.all(np.isfinite(y)) and np.all(y[:, 1] == 0)
  assert np.all(dgate[:, 0] != 0) and np.all(dgate[:, 1] == 0)
