"""`convert_torch_norm`: what PyTorch computes, with the weights it has.

Where PyTorch is not installed, a stand-in has its classes, by the attributes
and formulas of its manual.
"""

import importlib.util
import sys
import types

import numpy as np
import pytest

import cases
import tfgroupnorm

CHANNELS = 6


class Weight:
  def __init__(self, array):
    self.array, self.requires_grad = np.asarray(array, 'float32'), True
    self.dtype = 'torch.float32'

  def detach(self):
    return self

  cpu = double = detach

  def numpy(self):
    return self.array.astype('float64')


class Module:
  """Parameters as PyTorch names them."""

  def __init__(self, sizes, eps, affine, bias=True):
    self.eps = eps
    self.weight = Weight(np.ones(sizes)) if affine else None
    self.bias = Weight(np.zeros(sizes)) if affine and bias else None

  def normalized(self, x, axes, shape, rms=False):
    mean = 0 if rms else x.mean(axes, keepdims=True)
    square = ((x - mean) ** 2).mean(axes, keepdims=True)
    eps = np.finfo('float32').eps if self.eps is None else self.eps
    y = (x - mean) / np.sqrt(square + eps)
    if self.weight is not None:
      y = y * self.weight.numpy().reshape(shape)
    return y if self.bias is None else y + self.bias.numpy().reshape(shape)


class GroupNorm(Module):
  def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
    super().__init__(num_channels, eps, affine)
    self.num_groups, self.num_channels = num_groups, num_channels

  def __call__(self, x):
    grouped = x.reshape(len(x), self.num_groups, -1)
    plain = Module((), self.eps, False).normalized(grouped, (2,), ())
    ones = [1] * (x.ndim - 2)
    y = plain.reshape(x.shape)
    if self.weight is None:
      return y
    weight, bias = (
      w.numpy().reshape(-1, *ones) for w in (self.weight, self.bias)
    )
    return y * weight + bias


class InstanceNorm2d(Module):
  def __init__(
    self, num_features, eps=1e-5, affine=False, track_running_stats=False
  ):
    super().__init__(num_features, eps, affine)
    self.num_features = num_features
    self.track_running_stats = track_running_stats

  def __call__(self, x):
    return self.normalized(x, (2, 3), (-1, 1, 1))


class OverAxes(Module):
  rms = False

  def __init__(
    self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True
  ):
    sizes = np.ravel(normalized_shape)
    super().__init__(sizes, eps, elementwise_affine, bias)
    self.normalized_shape = tuple(sizes)

  def __call__(self, x):
    axes = tuple(range(-len(self.normalized_shape), 0))
    return self.normalized(x, axes, self.normalized_shape, self.rms)


class LayerNorm(OverAxes):
  pass


class RMSNorm(OverAxes):
  rms = True

  def __init__(self, normalized_shape, eps=None, elementwise_affine=True):
    super().__init__(normalized_shape, eps, elementwise_affine, bias=False)


@pytest.fixture
def torch(monkeypatch):
  if importlib.util.find_spec('torch'):
    return importlib.import_module('torch')
  module = types.ModuleType('torch')
  kinds = (GroupNorm, InstanceNorm2d, LayerNorm, RMSNorm)
  module.nn = types.SimpleNamespace(
    Linear=Module,
    InstanceNorm1d=(),
    InstanceNorm3d=(),
    **{kind.__name__: kind for kind in kinds},
  )
  module.finfo = lambda dtype: np.finfo('float32')
  module.float32 = 'torch.float32'
  monkeypatch.setitem(sys.modules, 'torch', module)
  return module


def scrambled(module):
  rng = np.random.default_rng(1)
  for weight in (module.weight, getattr(module, 'bias', None)):
    if isinstance(weight, Weight):
      weight.array = rng.uniform(0.5, 2, weight.array.shape).astype('float32')
    elif weight is not None:
      values = rng.uniform(0.5, 2, tuple(weight.shape))
      weight.data.copy_(sys.modules['torch'].from_numpy(values))
  return module


def run(torch, module, x):
  if isinstance(module, Module):
    return module(x)
  with torch.no_grad():
    return module.double()(torch.from_numpy(x)).numpy()


MODULES = {
  'GroupNorm': lambda nn: nn.GroupNorm(3, CHANNELS),
  'GroupNorm eps': lambda nn: nn.GroupNorm(2, CHANNELS, eps=0.1),
  'GroupNorm plain': lambda nn: nn.GroupNorm(2, CHANNELS, affine=False),
  'InstanceNorm2d': lambda nn: nn.InstanceNorm2d(CHANNELS, affine=True),
  'InstanceNorm2d plain': lambda nn: nn.InstanceNorm2d(CHANNELS, eps=0.1),
  'LayerNorm': lambda nn: nn.LayerNorm(5),
  'LayerNorm axes': lambda nn: nn.LayerNorm((4, 5), eps=1e-3),
  'LayerNorm no bias': lambda nn: nn.LayerNorm(5, bias=False),
  'LayerNorm plain': lambda nn: nn.LayerNorm(5, elementwise_affine=False),
  'RMSNorm': lambda nn: nn.RMSNorm(5, eps=1e-6),
  'RMSNorm axes': lambda nn: nn.RMSNorm((4, 5), eps=0.1),
}


@pytest.mark.parametrize('name', MODULES)
@cases.both_kerases
def test_it_computes_what_torch_does(generation, name, torch):
  module = scrambled(MODULES[name](torch.nn))
  layer = tfgroupnorm.convert_torch_norm(module, generation=generation)
  assert type(layer).__module__ == cases.layers_of(generation).__name__
  x = np.random.default_rng(0).normal(1, 2, (2, CHANNELS, 4, 5))
  y = np.asarray(layer(x.astype('float32')))
  x = x.astype('float32').astype('float64')
  np.testing.assert_allclose(y, run(torch, module, x), rtol=0, atol=5e-6)


@cases.both_kerases
def test_channels_last(generation, torch):
  for name in ('GroupNorm', 'InstanceNorm2d'):
    module = scrambled(MODULES[name](torch.nn))
    layer = tfgroupnorm.convert_torch_norm(
      module, axis=-1, generation=generation
    )
    x = np.random.default_rng(0).normal(1, 2, (2, 4, 5, CHANNELS))
    y = np.asarray(layer(x.astype('float32')))
    x = np.moveaxis(x.astype('float32').astype('float64'), -1, 1)
    wanted = np.moveaxis(run(torch, module, x), 1, -1)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=5e-6)
    y = layer(np.ones((2, 3, CHANNELS), 'float32'))  # Of any rank.
    assert y.shape == (2, 3, CHANNELS)


@pytest.mark.parametrize('axis', [4, -4])
def test_channels_on_any_axis(axis, torch):
  """Of volumes: the last, and the second as counted from the end."""
  module = scrambled(torch.nn.GroupNorm(3, CHANNELS))
  layer = tfgroupnorm.convert_torch_norm(module, axis=axis)
  x = np.random.default_rng(0).normal(1, 2, (2, CHANNELS, 3, 4, 5))
  x = x.astype('float32')
  y = np.asarray(layer(np.moveaxis(x, 1, axis)))
  wanted = np.moveaxis(run(torch, module, x.astype('float64')), 1, axis)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=5e-6)


def test_what_else_is_kept(torch):
  module = torch.nn.RMSNorm(5)
  module.weight.requires_grad = False
  layer = tfgroupnorm.convert_torch_norm(module)
  assert layer.rms and layer.epsilon == np.finfo('float32').eps
  assert not layer.trainable_variables


def fails(kind, *words, module, **options):
  with pytest.raises(kind) as error:
    tfgroupnorm.convert_torch_norm(module, **options)
  for word in ('Received: ', *words):
    assert word in str(error.value), error.value


def test_errors(torch):
  nn = torch.nn
  running = nn.InstanceNorm2d(4, track_running_stats=True)
  fails(ValueError, 'running statistics', 'fold', module=running)
  fails(TypeError, 'one of GroupNorm', 'named_modules', module=object())
  good = nn.LayerNorm(4)
  fails(ValueError, '"tf_keras"', module=good, generation='keras2')
  fails(ValueError, '`axis` cannot be 0', module=good, axis=0)


def test_without_torch(monkeypatch):
  monkeypatch.delitem(sys.modules, 'torch', raising=False)
  fails(TypeError, 'pip install torch', 'set_weights', module=object())
