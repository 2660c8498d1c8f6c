"""Activations: fused where the kernel can, applied after where it cannot."""

import functools
import importlib

import numpy as np
import pytest
from scipy import special

import cases
import frameworks
from reference import ACTIVATIONS
from tfgroupnorm import functional, kernel

X = np.random.default_rng(0).normal(1, 2, (2, 5, 8)).astype('float32')
# The framework's own functions: two of them are inside the kernel.
if frameworks.NAME == 'jax':
  from jax import nn
  from jax.numpy import cosh as COSH

  OWN = [(nn.gelu, ACTIVATIONS['gelu_tanh']), (nn.silu, ACTIVATIONS['silu'])]
else:
  from tensorflow import nn
  from tensorflow.math import cosh as COSH

  OWN = [(nn.gelu, ACTIVATIONS['gelu']), (nn.silu, ACTIVATIONS['silu'])]
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
  """Keras' functions, the framework's, a layer, one's own."""
  keras = importlib.import_module(generation)
  layer = cases.layers_of(generation).LayerNorm
  for activation, formula in [
    (keras.activations.relu, ACTIVATIONS['relu']),
    *OWN,
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
  results = [
    *(
      cases.layers_of(generation).LayerNorm(activation=name)(X)
      for generation in cases.GENERATIONS
    ),
    functional.layer_norm(X, activation=name),
  ]
  for y in results:
    np.testing.assert_allclose(y, wanted(name), rtol=0, atol=4e-6)
  assert [spec.activation for spec in seen] == [name] * len(results)
  assert not any(spec.wide for spec in seen)


@pytest.mark.parametrize(
  'activation, formula',
  [
    ('sigmoid', ACTIVATIONS['sigmoid']),
    ('softmax', functools.partial(special.softmax, axis=-1)),
    (COSH, np.cosh),
  ],
)
def test_masked_positions_are_0_after_any_activation(activation, formula):
  mask = np.arange(5)[None] < np.array([[2], [5]])
  y = np.asarray(functional.layer_norm(X, activation=activation, mask=mask))
  np.testing.assert_allclose(y[mask], formula(wanted(None))[mask], rtol=4e-6)
  assert not np.any(y[~mask])


def test_far_out():
  """No overflow where exp would."""
  x = np.array([[-1e4, 1e4] * 4], 'float32')
  gamma = np.full(8, 1e4, 'float32')
  for name in ('relu', 'silu', 'gelu', 'gelu_tanh', 'sigmoid'):
    y, dx = frameworks.gradients(
      functools.partial(functional.layer_norm, gamma=gamma, activation=name),
      [frameworks.tensor(x)],
    )
    largest = 1 if name == 'sigmoid' else 1e4
    atol = 1e-7 * gamma[0]  # The last place of erf(-1e4) times 1e4.
    np.testing.assert_allclose(y, [[0, largest] * 4], rtol=1e-6, atol=atol)
    assert np.all(np.isfinite(dx))
