"""Activations: fused where the kernel can, applied after where it cannot."""

import functools
import importlib

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

import cases
from reference import ACTIVATIONS
from tfgroupnorm import functional, kernel

X = np.random.default_rng(0).normal(1, 2, (2, 5, 8)).astype('float32')
# What a layer may be given -> the formula.
NAMES = {
  None: None,
  'linear': None,
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_tanh',
  'sigmoid': 'sigmoid',
  'tanh': 'tanh',
}


def wanted(name, epsilon=1e-3):
  x = X.astype('float64')
  return ACTIVATIONS[name](
    cases.KINDS['LayerNorm'].formula.func(x, None, None, epsilon=epsilon)
  )


@cases.both_kerases
@pytest.mark.parametrize('name', NAMES)
def test_names(generation, name):
  y = cases.layers_of(generation).LayerNorm(activation=name)(X)
  np.testing.assert_allclose(y, wanted(NAMES[name]), rtol=0, atol=4e-6)


@pytest.mark.parametrize('name', NAMES)
def test_names_in_a_function(name):
  y = functional.layer_norm(X, activation=name)
  np.testing.assert_allclose(y, wanted(NAMES[name]), rtol=0, atol=4e-6)


@cases.both_kerases
def test_callables(generation):
  """Keras' functions, TensorFlow's, a layer, one's own."""
  keras = importlib.import_module(generation)
  layer = cases.layers_of(generation).LayerNorm
  for activation, formula in [
    (keras.activations.relu, ACTIVATIONS['relu']),
    (tf.nn.gelu, ACTIVATIONS['gelu']),
    (tf.nn.silu, ACTIVATIONS['silu']),
    (keras.layers.ReLU(max_value=1.0), lambda z: np.clip(z, 0, 1)),
    (lambda z: z * 2 + 1, lambda z: z * 2 + 1),
    (keras.activations.elu, lambda z: np.where(z > 0, z, np.expm1(z))),
    ('elu', lambda z: np.where(z > 0, z, np.expm1(z))),
  ]:
    y = layer(activation=activation)(X)
    np.testing.assert_allclose(y, formula(wanted(None)), rtol=0, atol=8e-6)


@pytest.mark.parametrize(
  'name', ['relu', 'silu', 'gelu', 'gelu_tanh', 'sigmoid']
)
def test_fused_ones_run_inside_the_kernel(monkeypatch, name):
  """Nothing is left to do after the kernel."""
  seen = []
  inner = kernel.normalize

  def spy(*args, spec, **kwargs):
    seen.append(spec)
    return inner(*args, spec=spec, **kwargs)

  monkeypatch.setattr(kernel, 'normalize', spy)
  for y in (
    cases.layers_of('keras').LayerNorm(activation=name)(X),
    cases.layers_of('tf_keras').LayerNorm(activation=name)(X),
    functional.layer_norm(X, activation=name),
  ):
    np.testing.assert_allclose(y, wanted(name), rtol=0, atol=4e-6)
  assert [spec.activation for spec in seen] == [name] * 3
  assert not any(spec.wide for spec in seen)


@pytest.mark.parametrize(
  'activation, formula',
  [
    ('sigmoid', ACTIVATIONS['sigmoid']),
    ('softmax', functools.partial(special.softmax, axis=-1)),
    (tf.math.cosh, np.cosh),
  ],
)
def test_masked_positions_are_0_after_any_activation(activation, formula):
  mask = np.arange(5)[None] < np.array([[2], [5]])
  y = functional.layer_norm(X, activation=activation, mask=mask).numpy()
  np.testing.assert_allclose(y[mask], formula(wanted(None))[mask], rtol=4e-6)
  assert not np.any(y[~mask])


def test_far_out():
  """No overflow where exp would."""
  x = np.array([[-1e4, 1e4] * 4], 'float32')
  gamma = np.full(8, 1e4, 'float32')
  for name in ('relu', 'silu', 'gelu', 'gelu_tanh', 'sigmoid'):
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
      tape.watch(tensor)
      y = functional.layer_norm(tensor, gamma, activation=name)
    largest = 1 if name == 'sigmoid' else 1e4
    atol = 1e-7 * gamma[0]  # The last place of erf(-1e4) times 1e4.
    np.testing.assert_allclose(y, [[0, largest] * 4], rtol=1e-6, atol=atol)
    assert np.all(np.isfinite(tape.gradient(y, tensor)))
