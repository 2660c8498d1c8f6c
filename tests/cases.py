"""The registry: each layer in each of its forms once, swept by many tests."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import frameworks
import reference
from tfgroupnorm import functional

# Module of each Keras generation -> module with its layers.
GENERATIONS = {'keras': 'tfgroupnorm.layers'}
if frameworks.NAME == 'tensorflow':
  GENERATIONS['tf_keras'] = 'tfgroupnorm.tf_keras'

FUNCTIONS = {
  'GroupNorm': functional.group_norm,
  'InstanceNorm': functional.instance_norm,
  'LayerNorm': functional.layer_norm,
  'HeadNorm': functional.head_norm,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One form of one layer.

  Attributes:
    name: For test ids.
    kind: The name of the layer.
    options: Its arguments, beyond the ones common to all.
    shape: A small input.
    parameter: Shape of gamma and beta for that input.
    formula: `(x, gamma, beta, **) -> y` of `reference`, before activation.
    mask_shape: Shape of a mask over the positions of that input.
  """

  name: str
  kind: str
  options: dict[str, Any]
  shape: tuple[int, ...]
  parameter: tuple[int, ...]
  formula: Callable[..., np.ndarray]
  mask_shape: tuple[int, ...]

  @property
  def rms(self) -> bool:
    return self.options.get('rms', False)

  @property
  def activation(self) -> str | None:
    return self.options.get('activation')

  def layer(self, generation: str = 'keras', **more):
    options = {**self.options, **more}
    return getattr(layers_of(generation), self.kind)(**options)

  def function(self, x, gamma=None, beta=None, **more) -> Any:
    """The functional form."""
    options = {**self.options, **more}
    return FUNCTIONS[self.kind](x, gamma, beta, **options)

  def reference(self, x, gamma=None, beta=None, gate=None, **more):
    """What `function` and `layer` should return."""
    y = self.formula(x, gamma, beta, **more)
    y = reference.ACTIVATIONS[self.activation](y)
    if gate is not None:
      name = self.options.get('gate_activation')
      y = y * reference.ACTIVATIONS[name](gate)
    return y

  def check(self, y, x, gamma=None, beta=None):
    """Asserts that float32 `y` is the layer's result for these."""
    wanted = self.reference(*wide(x, gamma, beta))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)

  def data(self, dtype='float32', mean=3.0, std=2.0, seed=0):
    """`x, gamma, beta` of `dtype`; beta is `None` where there is none."""
    rng = np.random.default_rng(seed)
    x = rng.normal(mean, std, self.shape)
    gamma = rng.normal(1.0, 0.3, self.parameter)
    beta = None if self.rms else rng.normal(0.0, 0.3, self.parameter)
    dtype = frameworks.numpy_dtype(dtype)
    return [None if a is None else a.astype(dtype) for a in (x, gamma, beta)]

  def unknown_shape(self) -> list[int | None]:
    """`shape`, with every size unknown that the layer does not need to know."""
    shape: list[int | None] = []
    for axis, size in enumerate(self.shape):
      trial = [*self.shape[:axis], None, *self.shape[axis + 1 :]]
      try:
        self.layer().compute_output_shape(trial)
        shape.append(None)
      except ValueError:
        shape.append(size)
    return shape

  def mask(self, seed=1) -> np.ndarray:
    """Some positions of each sample, the first one of sample 0 not."""
    mask = np.random.default_rng(seed).random(self.mask_shape) < 0.6
    mask.reshape(mask.shape[0], -1)[:, -1] = True
    mask[(0,) * mask.ndim] = False
    return mask

  def lay(self, mask: np.ndarray) -> np.ndarray:
    """A mask of positions in the shape of the input."""
    channels = self.options.get(
      'head_axis' if self.kind == 'HeadNorm' else 'axis'
    )
    taken = list(mask.shape)
    shape = []
    for i in range(len(self.shape)):
      excluded = (
        self.kind != 'LayerNorm'
        and channels is not None
        and i == channels % len(self.shape)
      )
      shape.append(taken.pop(0) if taken and not excluded else 1)
    return np.broadcast_to(mask.reshape(shape), self.shape)


def _group(name, shape, *, groups, axis=-1, **options):
  channels = shape[axis]
  size = options.get('group_size')
  count = channels // size if size else channels if groups == -1 else groups
  if size is None:
    options['groups'] = groups
  positions = [n for i, n in enumerate(shape) if i != axis % len(shape)]
  formula = functools.partial(reference.group_norm, groups=count, axis=axis)
  return Case(
    f'group_{name}',
    'GroupNorm',
    {**options, 'axis': axis},
    shape,
    (channels,),
    formula,
    tuple(positions),
  )


def _instance(name, shape, axis=-1):
  case = _group(name, shape, groups=-1, axis=axis)
  return dataclasses.replace(
    case,
    name=f'instance_{name}',
    kind='InstanceNorm',
    options={'axis': axis},
  )


def _layer(name, shape, axis=-1, **options):
  axes = (axis,) if isinstance(axis, int) else axis
  axes = sorted(a % len(shape) for a in axes)
  rms = {'rms': True} if options.get('rms') else {}
  return Case(
    f'layer_{name}',
    'LayerNorm',
    {**options, 'axis': axis},
    shape,
    tuple(shape[a] for a in axes),
    functools.partial(reference.layer_norm, axis=axis, **rms),
    shape[:2] if len(shape) > 2 else shape[:1],
  )


def _head(name, shape, parameter, **options):
  formula = {k: v for k, v in options.items() if k != 'gate_activation'}
  head_axis = options.get('head_axis', len(shape) - 1) % len(shape)
  return Case(
    f'head_{name}',
    'HeadNorm',
    options,
    shape,
    parameter,
    functools.partial(reference.head_norm, **formula),
    tuple(n for i, n in enumerate(shape[:-1]) if i != head_axis),
  )


CASES = [
  _group('image', (2, 5, 3, 8), groups=4),
  _group('channels_first', (2, 8, 5, 3), groups=4, axis=1),
  _group('channels_in_the_middle', (2, 3, 8, 4), groups=2, axis=-2),
  _group('sequence', (3, 6, 8), groups=2),
  _group('vector', (3, 12), groups=3),
  _group('video', (2, 2, 4, 3, 6), groups=3),
  _group('long', (2, 32, 2, 4), groups=2),
  _group('one_group', (2, 5, 3, 6), groups=1),
  _group('one_channel', (2, 5, 3, 6), groups=-1),
  _group('size', (2, 5, 3, 8), groups=None, group_size=4),
  _group('relu', (2, 5, 3, 8), groups=4, activation='relu'),
  _group('silu', (2, 5, 3, 8), groups=4, activation='silu'),
  _group('gelu', (2, 5, 3, 8), groups=4, activation='gelu'),
  _group('gelu_tanh', (2, 5, 3, 8), groups=4, activation='gelu_tanh'),
  _group('tanh', (2, 5, 3, 8), groups=4, activation='tanh'),
  _instance('image', (2, 5, 3, 6)),
  _instance('channels_first', (2, 6, 5, 3), axis=1),
  _layer('last', (2, 5, 8)),
  _layer('vector', (4, 8)),
  _layer('middle', (2, 5, 8), axis=1),
  _layer('image', (2, 4, 3, 5), axis=[1, 2, 3]),
  _layer('two_axes', (2, 4, 3, 5), axis=[-1, 1]),
  _layer('rms', (2, 5, 8), rms=True),
  _layer('rms_two_axes', (2, 4, 3, 5), axis=[2, 3], rms=True),
  _layer('silu', (2, 5, 8), activation='silu'),
  _head('flat', (2, 5, 12), (12,), num_heads=3),
  _head('flat_shared', (2, 5, 12), (4,), num_heads=3, per_head=False),
  _head('flat_vector', (3, 12), (12,), num_heads=3),
  _head('time_first', (2, 5, 3, 4), (3, 4), head_axis=-2),
  _head('heads_first', (2, 3, 5, 4), (3, 4), head_axis=1),
  _head('shared', (2, 3, 5, 4), (4,), head_axis=1, per_head=False),
  _head('rms', (2, 5, 3, 4), (3, 4), head_axis=2, rms=True),
  _head('rms_flat', (2, 5, 12), (12,), num_heads=3, rms=True),
]


def layers_of(generation: str):
  """The module with the layers for a generation of Keras."""
  return importlib.import_module(GENERATIONS[generation])


def everything(generation: str, steps: int | None = None, **options):
  """A model with each layer and random weights, for (batch, steps, 8)."""
  module = importlib.import_module(generation)
  layers = layers_of(generation)

  def norm(kind, *args, **more):
    return getattr(layers, kind)(*args, **more, **options)

  inputs = module.Input((steps, 8), name='x')
  x = norm('GroupNorm', 2, activation='silu')(inputs)
  x = norm('GroupNorm', group_size=2, activation='gelu_tanh')(x)
  x = norm('InstanceNorm')(x)
  x = module.layers.Conv1D(8, 3, padding='same')(x)
  x = norm('LayerNorm')(x)
  x = norm('LayerNorm', rms=True, activation='tanh')(x)
  x = norm('HeadNorm', 2)(x, gate=x)
  heads = {'rms': True, 'per_head': False, 'gate_activation': 'silu'}
  x = norm('HeadNorm', 4, **heads)(x, gate=x)
  model = module.Model(inputs, x)
  rng = np.random.default_rng(0)
  model.set_weights(
    [rng.normal(0.7, 0.3, w.shape) for w in model.get_weights()]
  )
  return model


def compiled_in_saved_model(path) -> list[str]:
  """Names of the saved functions that XLA must compile."""
  from tensorflow.core.protobuf import saved_model_pb2

  saved = saved_model_pb2.SavedModel()
  saved.ParseFromString((pathlib.Path(path) / 'saved_model.pb').read_bytes())
  (meta_graph,) = saved.meta_graphs
  graph = meta_graph.graph_def
  return [
    name
    for name, nodes, attributes in [
      ('', graph.node, {}),
      *((f.signature.name, f.node_def, f.attr) for f in graph.library.function),
    ]
    if '_XlaMustCompile' in attributes
    or any('_XlaMustCompile' in node.attr for node in nodes)
  ]


all_cases = pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
# One of each layer, for what does not depend on the form.
KINDS = {case.kind: case for case in reversed(CASES)}
one_of_each = pytest.mark.parametrize(
  'case', KINDS.values(), ids=lambda case: case.kind
)
both_kerases = pytest.mark.parametrize('generation', GENERATIONS)
# JAX compiles each operation by itself for each shape, a second a case: op by
# op it is tested by `test_op_by_op`, and its form, compiled, by `TestPlain`.
compiled_or_plain = pytest.mark.parametrize(
  'jit_compile',
  [True] if frameworks.NAME == 'jax' else [True, False],
  ids=['compiled'] if frameworks.NAME == 'jax' else ['compiled', 'plain'],
)


def wide(*arrays):
  """Float64 copies, exact."""
  return [
    None if a is None else np.asarray(a).astype('float64') for a in arrays
  ]


def tf_variables(layer) -> list[Any]:
  """The weights of a layer of either Keras, as TensorFlow's variables."""
  if layer._keras.__name__ == 'tf_keras':
    return layer.trainable_variables
  return [weight.value for weight in layer.trainable_variables]


def gradients_of_layer(layer, x, dy=None) -> list[Any]:
  """`[layer(x), gradient of x, gradients of its weights]`."""
  if frameworks.NAME == 'tensorflow':
    weights = tf_variables(layer)
    y, *got = frameworks.gradients(lambda x, *_: layer(x), [x, *weights], dy)
    return [y, *got]
  return frameworks.gradients(
    lambda x, *weights: layer.stateless_call(list(weights), [], x)[0],
    [x, *(weight.value for weight in layer.trainable_variables)],
    dy,
  )
