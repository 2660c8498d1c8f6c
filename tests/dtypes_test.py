"""Dtype policies: what goes in, what comes out, and rounded how often."""

import dataclasses

import numpy as np
import pytest

import cases
import frameworks

POLICIES = {
  'float32': ('float32', 'float32'),
  'float64': ('float64', 'float64'),
  'float16': ('float16', 'float16'),
  'mixed_float16': ('float16', 'float32'),
  'mixed_bfloat16': ('bfloat16', 'float32'),
}
HALF_ULP = {'float16': 2.0**-11, 'bfloat16': 2.0**-8}
INPUTS = ['float16', 'bfloat16', 'float32', 'float64']


@cases.one_of_each
@cases.both_kerases
@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('dtype', INPUTS)
def test_policy(case, generation, policy, dtype):
  """The result is rounded once, to the policy's dtype; inputs not at all."""
  compute, variable = POLICIES[policy]
  x, gamma, beta = case.data(dtype)
  layer = case.layer(generation, dtype=policy)
  layer.build(x.shape)
  gamma, beta = (
    None if p is None else p.astype(variable) for p in (gamma, beta)
  )
  layer.set_weights([gamma] if beta is None else [gamma, beta])
  assert {str(np.dtype(w.numpy().dtype)) for w in layer.weights} == {variable}

  x = frameworks.tensor(x)
  y, *gradients = cases.gradients_of_layer(layer, x)
  assert y.dtype.name == compute
  assert [g.dtype.name for g in gradients] == [
    dtype,
    *(variable for _ in layer.weights),
  ]

  wanted = case.reference(*cases.wide(x, gamma, beta))
  if compute == 'float64' and dtype == 'float64':
    tolerance = {'atol': 1e-12, 'rtol': 0}
  else:
    tolerance = {'atol': 4e-6, 'rtol': 1.01 * HALF_ULP.get(compute, 0)}
  got = frameworks.wide(y)
  np.testing.assert_allclose(got, wanted, **tolerance)


@cases.one_of_each
@cases.both_kerases
@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16', 'float64'])
@pytest.mark.parametrize('dtype', ['int32', 'uint8', 'int64', 'bool'])
def test_integers(case, generation, policy, dtype):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2 if dtype == 'bool' else 100, case.shape).astype(dtype)
  y = case.layer(generation, dtype=policy, epsilon=1e-2)(frameworks.tensor(x))
  compute = POLICIES[policy][0]
  assert y.dtype.name == compute
  wanted = case.reference(x.astype('float64'), epsilon=1e-2)
  np.testing.assert_allclose(
    frameworks.wide(y),
    wanted,
    atol=4e-6,
    rtol=1.01 * HALF_ULP.get(compute, 0),
  )


@cases.one_of_each
def test_integers_in_a_function(case):
  x = np.random.default_rng(0).integers(0, 100, case.shape)
  y = case.function(x)
  assert y.dtype.name == 'float32'
  np.testing.assert_allclose(
    y, case.reference(x.astype('float64')), rtol=0, atol=4e-6
  )


@cases.one_of_each
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('activation', ['silu', 'tanh'])
def test_an_activation_is_computed_before_the_rounding(case, dtype, activation):
  name = 'gate_activation' if case.kind == 'HeadNorm' else 'activation'
  x, gamma, beta = case.data(dtype)
  gate = case.data(dtype, seed=4)[0] if case.kind == 'HeadNorm' else None
  more = {name: activation}
  if gate is not None:
    more['gate'] = gate
  y = case.function(x, gamma, beta, **more)
  assert y.dtype.name == dtype
  twin = dataclasses.replace(case, options={**case.options, name: activation})
  wanted = twin.reference(*cases.wide(x, gamma, beta), *cases.wide(gate))
  np.testing.assert_allclose(
    frameworks.wide(y), wanted, atol=4e-6, rtol=1.01 * HALF_ULP[dtype]
  )
