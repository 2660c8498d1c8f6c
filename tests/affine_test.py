"""Scale and offset per sample: AdaIN, FiLM, diffusion's scale and shift."""

import numpy as np
import pytest

import cases
import frameworks
import reference


def per_sample(case, seed=0):
  rng = np.random.default_rng(seed)
  shape = (case.shape[0], *case.parameter)
  gamma = rng.normal(1, 0.3, shape).astype('float32')
  beta = None if case.rms else rng.normal(0, 0.3, shape).astype('float32')
  return case.data()[0], gamma, beta


def one_by_one(case, x, gamma, beta):
  """The reference with shared parameters, a sample at a time."""
  return np.concatenate(
    [
      case.reference(x[i : i + 1], gamma[i], None if beta is None else beta[i])
      for i in range(len(x))
    ]
  )


@cases.all_cases
@cases.compiled_or_plain
def test_function(case, jit_compile):
  x, gamma, beta = per_sample(case)
  y = case.function(x, gamma, beta, jit_compile=jit_compile)
  wanted = one_by_one(case, *cases.wide(x, gamma, beta))
  np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)


@cases.all_cases
def test_gradients(case):
  arrays = [a.astype('float64') for a in per_sample(case) if a is not None]
  dy = np.random.default_rng(1).normal(1, 1, case.shape)
  tensors = [frameworks.tensor(a) for a in arrays]
  _, *got = frameworks.gradients(case.function, tensors, dy)

  def formula(x, g, b=None):
    return one_by_one(case, x, g, b)

  wanted = reference.vjp(formula, arrays, dy)
  for g, w in zip(got, wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-9)


@cases.one_of_each
@cases.both_kerases
@pytest.mark.parametrize('how', ['both', 'gamma', 'beta', 'neither'])
def test_layer(case, generation, how):
  """What the layer does not own may be passed, or left out."""
  x, gamma, beta = per_sample(case)
  layer = case.layer(
    generation,
    scale=how not in ('both', 'gamma', 'neither'),
    center=how not in ('both', 'beta', 'neither'),
  )
  gamma = gamma if how in ('both', 'gamma') else None
  beta = beta if how in ('both', 'beta') else None
  passed = {'gamma': gamma, 'beta': beta}
  y = layer(x, **{k: v for k, v in passed.items() if v is not None})
  wide = cases.wide(x, gamma, beta)
  if gamma is None:
    wide[1] = np.ones((len(x), *case.parameter))
  wanted = one_by_one(case, *wide)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)


@cases.both_kerases
def test_a_style_network(generation):
  """AdaIN in a functional model, gradients to the style included."""
  keras = __import__(generation)
  ours = cases.layers_of(generation)
  image, style = keras.Input((None, None, 3)), keras.Input((4,))
  x = keras.layers.Conv2D(6, 3)(image)
  x = ours.InstanceNorm(scale=False, center=False)(
    x, gamma=keras.layers.Dense(6)(style), beta=keras.layers.Dense(6)(style)
  )
  model = keras.Model([image, style], keras.layers.GlobalMaxPooling2D()(x))
  model.compile('sgd', 'mse')
  rng = np.random.default_rng(0)
  inputs = [
    rng.normal(1, 1, (4, 8, 8, 3)).astype('float32'),
    rng.normal(1, 1, (4, 4)).astype('float32'),
  ]
  before = model.get_weights()
  model.fit(inputs, np.ones((4, 6), 'float32'), verbose=0)
  changed = [
    np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)
  ]
  # All but the convolution's bias, which the normalization removes.
  assert sum(changed) >= len(changed) - 1


@cases.all_cases
@cases.both_kerases
def test_one_for_all_samples(case, generation):
  """(1, channels), as a network of one style has it, is (channels,)."""
  x, gamma, beta = case.data()
  layer = case.layer(generation, scale=False, center=False)
  given = {'gamma': gamma, 'beta': beta}
  given = {k: v for k, v in given.items() if v is not None}
  y = layer(x, **{k: v[None] for k, v in given.items()})
  np.testing.assert_array_equal(y, layer(x, **given))
  case.check(y, x, gamma, beta)
  tensors = [frameworks.tensor(v[None]) for v in given.values()]
  _, *got = frameworks.gradients(lambda *t: case.function(x, *t), tensors)
  for gradient, tensor in zip(got, tensors, strict=True):
    assert gradient.shape == tensor.shape
