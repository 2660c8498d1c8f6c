"""Any rank, any axis, empty and unknown sizes; static shapes are kept."""

import functools

import numpy as np
import pytest

import cases
import frameworks
from tfgroupnorm import functional


@cases.all_cases
@cases.compiled_or_plain
def test_an_empty_batch(case, jit_compile):
  _, gamma, beta = case.data()
  x = np.zeros((0, *case.shape[1:]), 'float32')
  arguments = [frameworks.tensor(a) for a in (x, gamma, beta) if a is not None]
  y, dx, *others = frameworks.gradients(
    lambda *a: case.function(*a, jit_compile=jit_compile), arguments
  )
  assert y.shape == x.shape
  assert dx.shape == x.shape
  for gradient in others:
    np.testing.assert_array_equal(gradient, np.zeros(case.parameter))


@cases.compiled_or_plain
@pytest.mark.parametrize(
  'shape', [(2, 0, 8), (2, 0, 3, 8), (2, 3, 0, 8), (2, 0, 0, 8)]
)
def test_an_empty_axis(shape, jit_compile):
  x = frameworks.tensor(np.zeros(shape, 'float32'))
  for function, options in [
    (functional.group_norm, {'groups': 4}),
    (functional.group_norm, {'groups': 1}),
    (functional.instance_norm, {}),
    (functional.layer_norm, {}),
    (functional.head_norm, {'num_heads': 2}),
  ]:
    gamma = frameworks.tensor(np.ones(8, 'float32'))
    y, dx, dgamma = frameworks.gradients(
      functools.partial(function, jit_compile=jit_compile, **options),
      [x, gamma],
    )
    assert y.shape == dx.shape == shape
    np.testing.assert_array_equal(dgamma, np.zeros(8))


@cases.compiled_or_plain
def test_a_group_of_one_element_gives_beta(jit_compile):
  x = np.random.default_rng(0).normal(5, 3, (3, 8)).astype('float32')
  beta = np.arange(8, dtype='float32')
  y = functional.instance_norm(x, beta=beta, jit_compile=jit_compile)
  np.testing.assert_array_equal(y, np.broadcast_to(beta, x.shape))


@cases.compiled_or_plain
@pytest.mark.parametrize('rank', [2, 3, 4, 5, 6])
def test_any_channel_axis(rank, jit_compile):
  formula = cases.KINDS['GroupNorm'].formula.func
  for axis in [*range(1, rank), *range(1 - rank, 0)]:
    shape = [2, 3, 2, 4, 3, 2][:rank]
    shape[axis] = 6
    x = np.random.default_rng(rank).normal(3, 2, shape)
    y = functional.group_norm(x, groups=3, axis=axis, jit_compile=jit_compile)
    wanted = formula(x, None, None, groups=3, axis=axis)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)


@cases.all_cases
@cases.both_kerases
def test_output_shape(case, generation):
  keras = __import__(generation)
  unknown = case.unknown_shape()
  layer = case.layer(generation)
  assert tuple(layer.compute_output_shape(case.shape)) == case.shape
  output = layer(keras.Input(unknown[1:]))
  assert tuple(output.shape) == tuple(unknown)
  x = case.data()[0]
  case.check(layer(x), x)


@cases.all_cases
@cases.both_kerases
def test_a_model_of_unknown_sizes(case, generation):
  """One model, several sizes; each agrees with float64."""
  keras = __import__(generation)
  unknown = case.unknown_shape()
  inputs = keras.Input(unknown[1:])
  model = keras.Model(inputs, case.layer(generation)(inputs))
  _, gamma, beta = case.data()
  model.set_weights([gamma] if beta is None else [gamma, beta])
  for grow in (0, 1, 4):
    shape = [
      n + grow if u is None else n
      for n, u in zip(case.shape, unknown, strict=True)
    ]
    x = np.random.default_rng(grow).normal(3, 2, shape).astype('float32')
    y = model.predict(x, verbose=0)
    wanted = case.reference(*cases.wide(x, gamma, beta))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)


def test_special_cases_coincide():
  """GN with one group normalizes as LN over all; one channel a group is IN."""
  x = np.random.default_rng(0).normal(3, 2, (2, 5, 3, 8)).astype('float32')
  np.testing.assert_allclose(
    functional.group_norm(x, groups=1),
    functional.layer_norm(x, axis=[1, 2, 3]),
    rtol=0,
    atol=2e-6,
  )
  assert np.all(functional.layer_norm(x) != x)
  np.testing.assert_array_equal(
    functional.group_norm(x, group_size=1), functional.instance_norm(x)
  )
  np.testing.assert_allclose(
    functional.head_norm(x, num_heads=1),
    functional.layer_norm(x),
    rtol=0,
    atol=2e-6,
  )
