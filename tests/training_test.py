"""The layers in models: built in every way, trained in every way."""

import functools
import importlib

import numpy as np
import pytest

import cases
import reference

HOW = {
  'graph': {'jit_compile': False},
  'compiled': {'jit_compile': True},
  'auto': {'jit_compile': 'auto'},
  'eager': {'run_eagerly': True},
}


def data():
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (32, 6, 6, 3)).astype('float32')
  return x, x[:, :3].mean((1, 2, 3))[:, None] - x[:, 3:].mean((1, 2, 3))[
    :, None
  ]


def blocks(generation, jit_compile='auto'):
  """Layers of a small network with each of ours in it."""
  keras = importlib.import_module(generation)
  ours = cases.layers_of(generation)
  more = {'jit_compile': jit_compile}
  return [
    keras.layers.Conv2D(8, 3, padding='same'),
    ours.GroupNorm(4, activation='silu', **more),
    keras.layers.Conv2D(8, 3),
    ours.InstanceNorm(activation='relu', **more),
    keras.layers.Flatten(),
    keras.layers.Dense(12),
    ours.LayerNorm(**more),
    ours.HeadNorm(3, **more),
    ours.LayerNorm(rms=True, **more),
    keras.layers.Dense(1),
  ]


def sequential(generation, **options):
  keras = importlib.import_module(generation)
  return keras.Sequential(
    [keras.Input((6, 6, 3)), *blocks(generation, **options)]
  )


def functional(generation, **options):
  keras = importlib.import_module(generation)
  inputs = x = keras.Input((6, 6, 3))
  for layer in blocks(generation, **options):
    x = layer(x)
  return keras.Model(inputs, x)


def subclassed(generation, **options):
  keras = importlib.import_module(generation)

  class Model(keras.Model):
    def __init__(self):
      super().__init__()
      self.blocks = blocks(generation, **options)

    def call(self, x):
      for layer in self.blocks:
        x = layer(x)
      return x

  return Model()


def normalizes(model):
  """Asserts that the InstanceNorm of its `blocks` does what it should."""
  kinds = [type(layer).__qualname__ for layer in model.layers]
  norm = model.layers[kinds.index('InstanceNorm')]
  keras = importlib.import_module(norm._keras.__name__)
  x, _ = data()
  y = keras.Model(model.inputs[0], norm.output)(x)
  given = keras.Model(model.inputs[0], norm.input)(x)
  gamma, beta = norm.get_weights()
  given = np.asarray(given).astype('float64')
  wanted = reference.group_norm(given, gamma, beta, groups=8)
  np.testing.assert_allclose(y, np.maximum(wanted, 0), rtol=0, atol=1e-5)


def fit(generation, model, epochs=1, **how):
  keras = importlib.import_module(generation)
  if generation == 'tf_keras' and how.get('jit_compile') == 'auto':
    how = {}  # Keras 2 knows no "auto".
  model.compile(keras.optimizers.SGD(0.02), 'mse', **how)
  x, y = data()
  history = model.fit(
    x, y, epochs=epochs, batch_size=8, shuffle=False, verbose=0
  )
  return history.history['loss']


@cases.both_kerases
@pytest.mark.parametrize('make', [sequential, functional, subclassed])
def test_learns(generation, make):
  importlib.import_module(generation).utils.set_random_seed(0)
  losses = fit(generation, make(generation), epochs=15)
  assert losses[-1] < 0.5 * losses[0]


@functools.cache
def without_compilation(generation):
  """Weights, and the losses of a training from there, op by op."""
  importlib.import_module(generation).utils.set_random_seed(0)
  model = functional(generation, jit_compile=False)
  start = model.get_weights()
  return start, fit(generation, model, epochs=2, run_eagerly=True)


@cases.both_kerases
@pytest.mark.parametrize(
  'how, jit_compile',
  [
    *((how, 'auto') for how in HOW),
    ('graph', True),
    ('compiled', True),
    ('compiled', False),
  ],
)
def test_every_way_to_fit_agrees(generation, how, jit_compile):
  """The same losses, whoever compiles what."""
  start, wanted = without_compilation(generation)
  model = functional(generation, jit_compile=jit_compile)
  model.set_weights(start)
  losses = fit(generation, model, epochs=2, **HOW[how])
  np.testing.assert_allclose(losses, wanted, rtol=1e-4)
  assert losses[1] != losses[0] and np.all(np.isfinite(losses))
  normalizes(model)


@cases.both_kerases
def test_gradients_reach_every_weight(generation):
  importlib.import_module(generation).utils.set_random_seed(0)
  model = functional(generation)
  before = model.get_weights()
  fit(generation, model)
  for old, new, weight in zip(
    before, model.get_weights(), model.weights, strict=True
  ):
    assert np.any(old != new), weight.name


@cases.both_kerases
def test_clone_model(generation):
  keras = importlib.import_module(generation)
  for make in (sequential, functional):
    model = make(generation)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x, _ = data()
    np.testing.assert_array_equal(model(x), clone(x))
    normalizes(clone)
    assert clone.layers[1].get_config() == model.layers[1].get_config()
    assert clone.layers[-2] is not model.layers[-2]
    assert type(clone.layers[-2]) is type(model.layers[-2])


@cases.both_kerases
@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
def test_mixed_precision(generation, policy):
  keras = importlib.import_module(generation)
  previous = (
    keras.mixed_precision.global_policy()
    if hasattr(keras.mixed_precision, 'global_policy')
    else keras.config.dtype_policy()
  )
  set_policy = (
    keras.mixed_precision.set_global_policy
    if hasattr(keras.mixed_precision, 'set_global_policy')
    else keras.config.set_dtype_policy
  )
  set_policy(policy)
  try:
    keras.utils.set_random_seed(0)
    losses = fit(generation, functional(generation), epochs=8)
  finally:
    set_policy(previous)
  assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


@cases.both_kerases
def test_a_shared_layer(generation):
  """One layer on inputs of two sizes and two ranks."""
  keras = importlib.import_module(generation)
  layer = cases.layers_of(generation).GroupNorm(2)
  a, b = keras.Input((5, 8)), keras.Input((3, 4, 8))
  model = keras.Model([a, b], [layer(a), layer(b)])
  rng = np.random.default_rng(0)
  x = [rng.normal(3, 2, s).astype('f') for s in ((2, 5, 8), (2, 3, 4, 8))]
  formula = cases.KINDS['GroupNorm'].formula.func
  for y, x_ in zip(model(x), x, strict=True):
    wanted = formula(x_.astype('float64'), None, None, groups=2)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)
  assert len(model.weights) == 2


@cases.both_kerases
def test_training_and_inference_are_the_same(generation):
  model = functional(generation)
  x, _ = data()
  np.testing.assert_array_equal(
    model(x, training=True), model(x, training=False)
  )
  normalizes(model)
