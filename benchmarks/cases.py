"""What is measured: the same work by this package and by `keras.layers`.

A case names a layer, a shape and a dtype; `ours` and `theirs` turn it into
functions of `(x, gamma, beta)`. `write_stablehlo` writes each of them, and a
training step with it, as StableHLO: what TensorFlow hands to XLA, from where
another process can go on that has compilers or devices which TensorFlow has
not.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['KERAS_BACKEND'] = 'tensorflow'

EPSILON = 1e-3  # The default of Keras, and so of this package.


@dataclasses.dataclass(frozen=True)
class Case:
  """One layer on one input.

  Attributes:
    kind: A name in `tfgroupnorm`.
    shape: Of `x`.
    options: Arguments of the function in `tfgroupnorm.functional`.
    dtype: Of `x`; the parameters are float32.
    label: What is special, for the name.
    masked: Half of the positions are padding. Keras has no such layer; it is
      compared without a mask.
    per_sample: `gamma` and `beta` of each sample.
  """

  kind: str
  shape: tuple[int, ...]
  options: dict[str, Any]
  dtype: str = 'float32'
  label: str = ''
  masked: bool = False
  per_sample: bool = False

  @property
  def name(self) -> str:
    short = {
      'GroupNorm': 'GN',
      'InstanceNorm': 'IN',
      'LayerNorm': 'LN',
      'HeadNorm': 'Head',
    }[self.kind]
    shape = ','.join(map(str, self.shape))
    if 'num_heads' in self.options:
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
    samples = self.shape[:1] if self.per_sample else ()
    if 'head_axis' in self.options:
      return (self.shape[self.options['head_axis']], self.shape[axis])
    return (*samples, self.shape[axis])

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


def masked(case: Case) -> Case:
  return dataclasses.replace(case, masked=True, label='masked')


def adaptive(case: Case) -> Case:
  return dataclasses.replace(case, per_sample=True, label='per sample')


def instance(*shape, axis=-1) -> Case:
  label = 'channels first' if axis == 1 else ''
  return Case('InstanceNorm', shape, {'axis': axis}, label=label)


def layer(*shape, **more) -> Case:
  return Case('LayerNorm', shape, more, label=' '.join(more))


def head(*shape, heads=12, **more) -> Case:
  options = {'num_heads': heads, **more}
  return Case('HeadNorm', shape, options, label=' '.join(more))


def heads_apart(*shape, **more) -> Case:
  """Heads on their own axis, (batch, time, heads, features)."""
  return Case('HeadNorm', shape, {'head_axis': -2, **more}, label='apart')


def functional_of(case: Case) -> Callable:
  """Ours, as it comes."""
  from tfgroupnorm import functional

  return {
    'GroupNorm': functional.group_norm,
    'InstanceNorm': functional.instance_norm,
    'LayerNorm': functional.layer_norm,
    'HeadNorm': functional.head_norm,
  }[case.kind]


def ours(case: Case, jit_compile: bool | str = 'auto') -> Callable:
  run = functools.partial(
    functional_of(case), **case.options, jit_compile=jit_compile
  )
  if case.masked:
    return lambda x, gamma, beta: run(x, gamma, beta, mask=_mask(case, gamma))
  return (lambda x, gamma, _: run(x, gamma)) if case.rms else run


def _mask(case: Case, gamma):
  """Samples are valid up to half of their positions, or a little more."""
  import tensorflow as tf

  length = math.prod(case.shape[1:-1])
  zero = tf.cast(0 * gamma[0], tf.int32)  # Lest the mask be a constant.
  lengths = length // 2 + zero + tf.range(case.shape[0])
  return tf.reshape(tf.sequence_mask(lengths, length), case.shape[:-1])


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
  if 'num_heads' in case.options:
    heads = case.options['num_heads']
    shape = (*shape[:-1], heads, shape[-1] // heads)
  layer.build(shape)

  def run(x, gamma, beta):
    if case.kind == 'HeadNorm':  # It has one gamma for all heads.
      gamma, beta = (tf.reshape(p, [-1])[: shape[-1]] for p in (gamma, beta))
      return tf.reshape(call(tf.reshape(x, shape), gamma, beta), case.shape)
    return activation(call(x, gamma, beta))

  def call(x, gamma, beta):
    if case.per_sample:
      shape = [case.shape[0], *[1] * (len(case.shape) - 2), case.shape[-1]]
      ones = tf.ones(case.shape[-1])
      y = layer.stateless_call([ones, 0 * ones], [], x)[0]
      gamma, beta = (
        tf.cast(tf.reshape(p, shape), y.dtype) for p in (gamma, beta)
      )
      return y * gamma + beta
    if generation == 'tf_keras':
      # It is not asked to cast, as it would its own weights.
      layer.gamma, layer.beta = (tf.cast(p, x.dtype) for p in (gamma, beta))
      return layer.call(x)
    parameters = [gamma] if case.rms else [gamma, beta]
    return layer.stateless_call(parameters, [], x)[0]

  return run


def _policy(dtype: str) -> str:
  return dtype if dtype == 'float32' else f'mixed_{dtype}'


def by_flax(case: Case) -> Callable | None:
  """The same by flax, which wants the channels last; else `None`."""
  from flax import linen

  if case.options.get('axis', -1) != -1:
    return None
  options = {'epsilon': EPSILON, 'dtype': case.dtype}
  if case.kind == 'GroupNorm':
    module = linen.GroupNorm(case.options['groups'], **options)
  elif case.kind == 'InstanceNorm':
    module = linen.GroupNorm(None, group_size=1, **options)
  elif case.rms:
    module = linen.RMSNorm(**options)
  else:
    module = linen.LayerNorm(**options)
  shape, size = case.shape, case.shape[-1]
  if 'num_heads' in case.options:
    size //= case.options['num_heads']
    shape = (*shape[:-1], -1, size)

  def run(x, gamma, beta):
    # Of heads: it has one gamma for all of them.
    gamma, beta = gamma.ravel()[:size], beta.ravel()[:size]
    parameters = (
      {'scale': gamma} if case.rms else {'scale': gamma, 'bias': beta}
    )
    return module.apply({'params': parameters}, x.reshape(shape)).reshape(
      case.shape
    )

  return run


def by_torch(case: Case) -> Callable:
  """The same by torch; channels of images come first, see `torch_layout`."""
  from torch.nn import functional as F

  def run(x, gamma, beta):
    if case.kind == 'GroupNorm':
      return F.group_norm(x, case.options['groups'], gamma, beta, EPSILON)
    if case.kind == 'InstanceNorm':
      return F.instance_norm(x, weight=gamma, bias=beta, eps=EPSILON)
    if case.kind == 'HeadNorm':  # It has one gamma for all heads.
      size = x.shape[-1] // case.options['num_heads']
      gamma, beta = gamma[:size], beta[:size]
      heads = x.unflatten(-1, (-1, size))
      return F.layer_norm(heads, (size,), gamma, beta, EPSILON).flatten(-2)
    return F.layer_norm(x, x.shape[-1:], gamma, beta, EPSILON)

  return run


def torch_layout(case: Case, x):
  """`x` with the axis of the channels where torch wants it."""
  if case.kind not in ('GroupNorm', 'InstanceNorm'):
    return x
  return x.movedim(case.options['axis'], 1)


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


def alone(function: Callable, *arguments):
  """`function(*arguments)` in a fresh process."""
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(function, arguments)


# --- StableHLO ----------------------------------------------------------------


def lower(function: Callable, arguments, platform: str) -> str:
  """`function`, traced as for `platform`, in the text form of StableHLO."""
  import tensorflow as tf

  @tf.function(jit_compile=True, autograph=False)
  def placed(*arguments):
    # Nothing runs there; the kernel chooses its form by where its input is.
    with tf.device(f'/device:{platform}:0'):
      return function(*(tf.identity(a) for a in arguments))

  text = placed.experimental_get_compiler_ir(*arguments)(stage='stablehlo')
  # Booleans of constants: TensorFlow packs eight of them into a byte.
  text = re.sub(
    r'dense<"0x([0-9A-F]+)"> : tensor<[\dx]+xi1>',
    lambda m: m[0].replace(m[1], _unpacked(bytes.fromhex(m[1]))),
    text,
  )
  # What becomes of variables; no part of StableHLO.
  return re.sub(
    r'mhlo\.copy (%\w+) : (tensor<\S+>)',
    r'stablehlo.reshape \1 : (\2) -> \2',
    text,
  )


def _unpacked(data: bytes) -> str:
  return ''.join(f'0{byte >> i & 1}' for byte in data for i in range(8))


def path_of(
  folder: pathlib.Path, platform: str, owner: str, which: str, name: str
) -> pathlib.Path:
  """The file of one pass, `which`, of a case or block of that name."""
  return folder / platform / owner / which / f'{name}.mlir'


def write(text: str, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def write_stablehlo(
  cases, platforms, folder: pathlib.Path, owners=('ours', 'keras')
) -> None:
  """Writes PLATFORM/OWNER/PASS/NAME.mlir of all `cases` into `folder`.

  In a process of its own: TensorFlow and JAX do not share one.
  """
  alone(_write_stablehlo, list(cases), platforms, folder, owners)


def _write_stablehlo(cases, platforms, folder, owners):
  # The text must not depend on whether there is a GPU where it is made.
  os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
  import tensorflow as tf

  for case in cases:
    x = tf.zeros(case.shape, case.dtype)
    p = tf.zeros(case.parameter_shape)
    for platform in platforms:
      for owner in owners:
        function = {'ours': ours, 'keras': theirs}[owner](case)
        for name, traced, arguments in (
          ('forward', function, (x, p, p)),
          ('step', step(function), (x, p, p, x)),
        ):
          path = path_of(folder, platform, owner, name, case.name)
          write(lower(traced, arguments, platform), path)


def compiled(text: str, device, absent: bool = False):
  """StableHLO, compiled by JAX for `device`; one that is absent cannot run."""
  import numpy as np
  from jax._src import compiler
  from jax._src.interpreters import mlir
  from jax._src.lib import xla_client
  from jax._src.lib.mlir import ir

  client = device.client
  options = compiler.get_compile_options(
    num_replicas=1,
    num_partitions=1,
    device_assignment=np.array([[device.id]]),
  )
  build = client.compile if absent else client.compile_and_load
  with mlir.make_ir_context():
    return build(
      ir.Module.parse(text),
      executable_devices=xla_client.DeviceList((device,)),
      compile_options=options,
    )
