"""What `build` has seen need not be known again: batches of unknown sizes."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

import cases
from tfgroupnorm import replace_batch_norm


def pairs():
  rng = np.random.default_rng(0)
  for _ in range(3):
    yield rng.normal(3, 2, (4, 8)).astype('float32'), np.ones((4, 1), 'float32')


def sizes_unknown():
  data = tf.data.Dataset.from_generator(
    pairs,
    output_signature=(
      tf.TensorSpec((None, None)),
      tf.TensorSpec((None, None)),
    ),
  )
  # Keras 3 asks for as many batches as it wants.
  return data.repeat()


def first_norm(generation, kind):
  """A model whose first layer is a norm, for (batch, 8)."""
  layers = cases.layers_of(generation)
  norm = {
    'GroupNorm': lambda: layers.GroupNorm(2),
    'InstanceNorm': lambda: layers.InstanceNorm(),
    'LayerNorm': lambda: layers.LayerNorm(),
    'HeadNorm': lambda: layers.HeadNorm(2),
  }[kind]()
  keras = importlib.import_module(generation)
  model = keras.Sequential([keras.Input((8,)), norm, keras.layers.Dense(1)])
  model.compile('sgd', 'mse')
  return model


@cases.both_kerases
@pytest.mark.parametrize('kind', ['GroupNorm', 'LayerNorm', 'HeadNorm'])
@pytest.mark.parametrize('data', [pairs, sizes_unknown])
def test_fit_on_a_generator(generation, kind, data):
  model = first_norm(generation, kind)
  before = model.get_weights()
  model.fit(data(), steps_per_epoch=3, shuffle=False, verbose=0)
  assert any(
    np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)
  )
  x = np.concatenate([x for x, _ in pairs()])
  y = model.predict(((x,) for x, _ in pairs()), steps=3, verbose=0)
  np.testing.assert_allclose(y, model(x), rtol=0, atol=2e-5)


@cases.both_kerases
@cases.all_cases
@pytest.mark.parametrize('rank', ['sizes', 'rank'])
def test_built_layer_of_unknown(generation, case, rank):
  """As of the sizes that are known: value, static shape and gradient."""
  layer = case.layer(generation)
  x, gamma, beta = case.data()
  layer.build(x.shape)
  layer.set_weights([gamma] if beta is None else [gamma, beta])
  shape = None if rank == 'rank' else [None] * x.ndim

  @tf.function(input_signature=[tf.TensorSpec(shape)], autograph=False)
  def run(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x)
      loss = tf.sin(y)
    assert y.shape.rank == len(case.shape)
    return y, tape.gradient(loss, x)

  y, dx = run(tf.constant(x))
  case.check(y, x, gamma, beta)
  assert np.all(np.isfinite(dx))
  known = layer.compute_output_shape([None] * x.ndim)
  assert tf.TensorShape(known).is_compatible_with(x.shape)


@cases.both_kerases
def test_other_sizes_are_refused(generation):
  layer = cases.layers_of(generation).GroupNorm(4)
  layer.build((None, 5, 8))
  message = (
    r'This GroupNorm was built for size 8 on axis -1, and its weights have '
    r'that size\. Received: size 12, in an input of shape \(2, 5, 12\)\. Give'
  )
  with pytest.raises(ValueError, match=message):
    layer(np.ones((2, 5, 12), 'float32'))

  @tf.function(
    input_signature=[tf.TensorSpec((None, None, None))], autograph=False
  )
  def run(x):
    return layer(x)

  for channels in (1, 4, 12):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r'\[\?,\?,8\]'):
      run(tf.ones((2, 5, channels)))
  # Without weights any size that can be divided will do, as it is known.
  layer = cases.layers_of(generation).GroupNorm(4, scale=False, center=False)
  layer.build((None, 5, 8))
  assert layer(np.ones((2, 5, 12), 'float32')).shape == (2, 5, 12)


@cases.both_kerases
def test_another_rank_than_at_build(generation):
  """The axis counts from the end, as the constructor has it."""
  layer = cases.layers_of(generation).LayerNorm()
  layer.build((None, 8))

  @tf.function(
    input_signature=[tf.TensorSpec((None, None, None))], autograph=False
  )
  def run(x):
    return layer(x)

  x = np.random.default_rng(0).normal(3, 2, (2, 5, 8)).astype('float32')
  np.testing.assert_allclose(run(x), layer(x), rtol=0, atol=2e-6)


@cases.both_kerases
def test_after_replacing_batch_norm(generation):
  keras = importlib.import_module(generation)
  model = keras.Sequential(
    [
      keras.Input((8,)),
      keras.layers.BatchNormalization(),
      keras.layers.Dense(1),
    ]
  )
  with pytest.warns(UserWarning, match='fine-tune'):
    model = replace_batch_norm(model, groups=2, verbose=False)
  model.compile('sgd', 'mse')
  model.fit(pairs(), steps_per_epoch=3, shuffle=False, verbose=0)
