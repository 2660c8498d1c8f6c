"""What is measured: the same work by this package and by `keras.layers`.

A case names a layer, a shape and a dtype; `ours` and `theirs` turn it into
functions of `(x, gamma, beta)`. Run as a program it writes each of them, and a
training step with it, as StableHLO: what TensorFlow hands to XLA, from where
another process can go on that has compilers or devices which TensorFlow has
not.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['KERAS_BACKEND'] = 'tensorflow'


@dataclasses.dataclass(frozen=True)
class Case:
  """One layer on one input.

  Attributes:
    kind: A name in `tfgroupnorm`.
    shape: Of `x`.
    options: Arguments of the function in `tfgroupnorm.functional`.
    dtype: Of `x`; the parameters are float32.
    label: What is special, for the name.
  """

  kind: str
  shape: tuple[int, ...]
  options: dict[str, Any]
  dtype: str = 'float32'
  label: str = ''

  @property
  def name(self) -> str:
    short = {
      'GroupNorm': 'GN',
      'InstanceNorm': 'IN',
      'LayerNorm': 'LN',
      'HeadNorm': 'Head',
    }[self.kind]
    shape = ','.join(map(str, self.shape))
    if self.kind == 'HeadNorm':
      heads = self.options['num_heads']
      *front, size = self.shape
      shape = ','.join(map(str, front)) + f',{heads}x{size // heads}'
    label = f' {self.label}' if self.label else ''
    return f'{short} ({shape}){label} {self.dtype}'

  @property
  def bytes(self) -> int:
    """T: the size of `x`."""
    return math.prod(self.shape) * (2 if self.dtype == 'bfloat16' else 4)

  @property
  def parameter_shape(self) -> tuple[int, ...]:
    axis = self.options.get('axis', -1)
    return (self.shape[axis],)

  @property
  def rms(self) -> bool:
    return self.options.get('rms', False)

  def with_dtype(self, dtype: str) -> Case:
    return dataclasses.replace(self, dtype=dtype)


def group(*shape, groups=32, axis=-1, **more) -> Case:
  label = 'channels first' if axis == 1 else ''
  label = ' '.join([label, *map(str, more.values())]).strip()
  options = {'groups': groups, 'axis': axis, **more}
  return Case('GroupNorm', shape, options, label=label)


def instance(*shape, axis=-1) -> Case:
  label = 'channels first' if axis == 1 else ''
  return Case('InstanceNorm', shape, {'axis': axis}, label=label)


def layer(*shape, **more) -> Case:
  return Case('LayerNorm', shape, more, label=' '.join(more))


def head(*shape, heads=12, **more) -> Case:
  options = {'num_heads': heads, **more}
  return Case('HeadNorm', shape, options, label=' '.join(more))


def ours(case: Case, jit_compile: bool | str = 'auto') -> Callable:
  from tfgroupnorm import functional

  function = {
    'GroupNorm': functional.group_norm,
    'InstanceNorm': functional.instance_norm,
    'LayerNorm': functional.layer_norm,
    'HeadNorm': functional.head_norm,
  }[case.kind]
  run = functools.partial(function, **case.options, jit_compile=jit_compile)
  return (lambda x, gamma, _: run(x, gamma)) if case.rms else run


def theirs(case: Case, generation: str = 'keras') -> Callable:
  """The same by the layers of Keras; heads are reshaped to an axis."""
  import tensorflow as tf

  keras = importlib.import_module(generation)
  layers = keras.layers
  axis = case.options.get('axis', -1)
  shape = case.shape
  activation = keras.activations.get(case.options.get('activation'))
  if case.kind == 'GroupNorm':
    layer = layers.GroupNormalization(
      case.options['groups'], axis=axis, dtype=_policy(case.dtype)
    )
  elif case.kind == 'InstanceNorm':
    layer = layers.GroupNormalization(-1, axis=axis, dtype=_policy(case.dtype))
  elif case.rms:
    layer = layers.RMSNormalization(axis=axis, dtype=_policy(case.dtype))
  else:
    layer = layers.LayerNormalization(axis=axis, dtype=_policy(case.dtype))
  if case.kind == 'HeadNorm':
    heads = case.options['num_heads']
    shape = (*shape[:-1], heads, shape[-1] // heads)
  layer.build(shape)

  def run(x, gamma, beta):
    if case.kind == 'HeadNorm':  # It has one gamma for all heads.
      size = shape[-1]
      y = call(tf.reshape(x, shape), gamma[:size], beta[:size])
      return tf.reshape(y, case.shape)
    return activation(call(x, gamma, beta))

  def call(x, gamma, beta):
    if generation == 'tf_keras':
      # It is not asked to cast, as it would its own weights.
      layer.gamma, layer.beta = (tf.cast(p, x.dtype) for p in (gamma, beta))
      return layer.call(x)
    parameters = [gamma] if case.rms else [gamma, beta]
    return layer.stateless_call(parameters, [], x)[0]

  return run


def _policy(dtype: str) -> str:
  return dtype if dtype == 'float32' else f'mixed_{dtype}'


def step(function: Callable) -> Callable:
  """`(x, gamma, beta, dy) -> (y, dx, dgamma, dbeta)`.

  As in training, the gradient cannot begin before `y` is finished.
  """
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla

  def run(x, gamma, beta, dy):
    with tf.GradientTape() as tape:
      tape.watch([x, gamma, beta])
      y = function(x, gamma, beta)
    finished, dy = xla.optimization_barrier(y, dy)
    gradients = tape.gradient(y, [x, gamma, beta], dy)
    return [finished, *(g for g in gradients if g is not None)]

  return run


# --- StableHLO ----------------------------------------------------------------


def lower(function: Callable, arguments, platform: str) -> str:
  """`function`, traced as for `platform`, in the text form of StableHLO."""
  import tensorflow as tf

  @tf.function(jit_compile=True, autograph=False)
  def placed(*arguments):
    # Nothing runs there; the kernel chooses its form by where its input is.
    with tf.device(f'/device:{platform}:0'):
      return function(*(tf.identity(a) for a in arguments))

  return placed.experimental_get_compiler_ir(*arguments)(stage='stablehlo')


def write_stablehlo(cases, platforms, folder: pathlib.Path) -> None:
  """Writes PLATFORM/OWNER/PASS/NAME.mlir of all `cases` into `folder`."""
  import tensorflow as tf

  for case in cases:
    x = tf.zeros(case.shape, case.dtype)
    p = tf.zeros(case.parameter_shape)
    for platform in platforms:
      for owner, function in (
        ('ours', ours(case)),
        ('keras', theirs(case)),
      ):
        for name, traced, arguments in (
          ('forward', function, (x, p, p)),
          ('step', step(function), (x, p, p, x)),
        ):
          path = folder / platform / owner / name / f'{case.name}.mlir'
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_text(lower(traced, arguments, platform))
