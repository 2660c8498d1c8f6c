"""Blocks of networks: what stands around a norm where it is used.

A norm alone misleads. In a network XLA fuses its passes with their neighbours,
keeps tensors on chip and shares what forward and backward have in common. So
here are blocks, each twice in a row, forward and as a training step: gradients
of the input and of all weights. Each is made with our norms, with those of
`keras.layers`, and with nothing in their place; what a norm costs in its place
is the difference to the last.

`xla_cost.py --blocks` compiles them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cases as c

OWNERS = ('nothing', 'ours', 'keras')
PASSES = ('forward', 'step')
TIMES = 2  # How often a block stands in a row.


@dataclasses.dataclass(frozen=True)
class Block:
  """Some layers, among them norms.

  Attributes:
    label: What it computes.
    shape: Of its input, and of its output.
    weights: Shapes of its weights but for those of the norms.
    norms: Its norms.
    body: `(x, weights, norms)` -> y, where each of the norms is a function of
      its input.
    dtype: Of all but the parameters of the norms, which are float32.
  """

  label: str
  shape: tuple[int, ...]
  weights: tuple[tuple[int, ...], ...]
  norms: tuple[c.Case, ...]
  body: Callable[[Any, Any, Any], Any]
  dtype: str = 'float32'

  @property
  def name(self) -> str:
    shape = ','.join(map(str, self.shape))
    return f'{self.label} ({shape}) {self.dtype}'

  @property
  def bytes(self) -> int:
    """T: the size of the input."""
    return math.prod(self.shape) * (2 if self.dtype == 'bfloat16' else 4)

  def with_dtype(self, dtype: str) -> Block:
    norms = tuple(norm.with_dtype(dtype) for norm in self.norms)
    return dataclasses.replace(self, dtype=dtype, norms=norms)


# --- What blocks are made of -------------------------------------------------


def _nn():
  """Operations of the framework that this process is for."""
  if os.environ.get('KERAS_BACKEND') == 'jax':
    import jax
    from jax import numpy as jnp

    def conv(x, weight):
      layouts = 'NHWC', 'HWIO', 'NHWC'
      return jax.lax.conv_general_dilated(
        x, weight, (1, 1), 'SAME', dimension_numbers=layouts
      )

    return types.SimpleNamespace(
      conv=conv,
      tensordot=jnp.tensordot,
      einsum=jnp.einsum,
      reshape=jnp.reshape,
      softmax=jax.nn.softmax,
      activation=lambda name: getattr(jax.nn, name),
    )
  import tensorflow as tf

  return types.SimpleNamespace(
    conv=lambda x, weight: tf.nn.conv2d(x, weight, 1, 'SAME'),
    tensordot=tf.tensordot,
    einsum=tf.einsum,
    reshape=tf.reshape,
    softmax=tf.nn.softmax,
    activation=lambda name: getattr(tf.nn, name),
  )


def _conv(x, weight):
  return _nn().conv(x, weight)


def _dense(x, weight):
  return _nn().tensordot(x, weight, 1)


def _attention(q, k, v):
  """Of (batch, time, heads, features)."""
  nn = _nn()
  scores = nn.einsum('bthd,bshd->bhts', q, k) / math.sqrt(q.shape[-1])
  return nn.einsum('bhts,bshd->bthd', nn.softmax(scores), v)


# --- The blocks --------------------------------------------------------------


def bottleneck(*shape: int, product: bool = False) -> Block:
  """Of a ResNet, without its skip; as convolutions or as products."""
  mix = _dense if product else _conv

  def body(x, weights, norms):
    (norm,), (a, b) = norms, weights
    return mix(norm(mix(x, a)), b)

  size = shape[-1]
  kind = 'product' if product else 'conv 1x1'
  return Block(
    f'{kind}, GN, ReLU, {kind}',
    shape,
    ((*((1, 1) if not product else ()), size, size),) * 2,
    (c.group(*shape, activation='relu'),),
    body,
  )


def detection_head(*shape: int) -> Block:
  def body(x, weights, norms):
    for weight, norm in zip(weights, norms, strict=True):
      x = norm(_conv(x, weight))
    return x

  size = shape[-1]
  return Block(
    'conv 3x3, GN, ReLU',
    shape,
    ((3, 3, size, size),),
    (c.group(*shape, activation='relu'),),
    body,
  )


def residual(*shape: int) -> Block:
  """Of a U-Net."""

  def body(x, weights, norms):
    y = x
    for weight, norm in zip(weights, norms, strict=True):
      y = _conv(norm(y), weight)
    return x + y

  size = shape[-1]
  return Block(
    'x + (GN, SiLU, conv 3x3) twice',
    shape,
    ((3, 3, size, size),) * 2,
    (c.group(*shape, activation='silu'),) * 2,
    body,
  )


def style(*shape: int) -> Block:
  """Of a network that transfers style: parameters of each sample."""

  def body(x, weights, norms):
    (norm,), (weight,) = norms, weights
    return _nn().activation('relu')(norm(_conv(x, weight)))

  size = shape[-1]
  return Block(
    'conv 3x3, IN per sample, ReLU',
    shape,
    ((3, 3, size, size),),
    (c.adaptive(c.instance(*shape)),),
    body,
  )


def feed_forward(*shape: int, **options) -> Block:
  """Of a Transformer."""

  def body(x, weights, norms):
    (norm,), (a, b) = norms, weights
    gelu = _nn().activation('gelu')
    return x + _dense(gelu(_dense(norm(x), a), approximate=True), b)

  size = shape[-1]
  kind = 'RMS' if options.get('rms') else 'LN'
  return Block(
    f'x + gelu({kind}(x) a) b',
    shape,
    ((size, 4 * size), (4 * size, size)),
    (c.layer(*shape, **options),),
    body,
  )


def retention(*shape: int, heads: int = 12) -> Block:
  """What is around the norm of a RetNet's heads."""

  def body(x, weights, norms):
    (norm,), (a, b) = norms, weights
    return x + _dense(norm(_dense(x, a)), b)

  size = shape[-1]
  return Block(
    'x + Head(x a) b',
    shape,
    ((size, size),) * 2,
    (c.head(*shape, heads=heads),),
    body,
  )


def attention(*shape: int, heads: int = 12, flat: bool = True) -> Block:
  """Of a Transformer that normalizes queries and keys."""
  size = shape[-1]
  apart = (*shape[:-1], heads, size // heads)

  def body(x, weights, norms):
    reshape = _nn().reshape
    q, k, v = (_dense(x, weight) for weight in weights[:3])
    if flat:
      q, k = (norm(t) for norm, t in zip(norms, (q, k), strict=True))
    q, k, v = (reshape(t, apart) for t in (q, k, v))
    if not flat:
      q, k = (norm(t) for norm, t in zip(norms, (q, k), strict=True))
    y = reshape(_attention(q, k, v), shape)
    return x + _dense(y, weights[3])

  norm = c.head(*shape, heads=heads) if flat else c.heads_apart(*apart)
  return Block(
    f'attention of Head(q), Head(k) {"flat" if flat else "apart"}',
    shape,
    ((size, size),) * 4,
    (norm,) * 2,
    body,
  )


_BLOCKS = [
  bottleneck(16, 56, 56, 256),
  bottleneck(16, 14, 14, 1024),
  bottleneck(16, 56, 56, 256, product=True),
  bottleneck(16, 14, 14, 1024, product=True),
  detection_head(2, 100, 152, 256),
  residual(4, 64, 64, 320),
  style(8, 128, 128, 64),
  feed_forward(32, 512, 768),
  feed_forward(2, 2048, 4096),
  feed_forward(2, 2048, 4096, rms=True),
  retention(32, 512, 768),
  attention(8, 512, 768, flat=True),
  attention(8, 512, 768, flat=False),
]
ALL = [
  block.with_dtype(t) for block in _BLOCKS for t in ('float32', 'bfloat16')
]


# --- Blocks in a row ---------------------------------------------------------


def _nothing(case: c.Case) -> Callable:
  """What is left without a norm: its activation."""
  activation = case.options.get('activation')
  function = _nn().activation(activation) if activation else lambda x: x
  return lambda x, gamma, beta: function(x)


def in_a_row(block: Block, make: Callable | None) -> Callable:
  """`(x, weights, parameters)` -> y, through the block `TIMES` in a row.

  `make` makes a function `(x, gamma, beta)` -> y of a case; `None`: nothing is
  in the place of the norms.
  """
  functions = [(make or _nothing)(norm) for norm in block.norms]

  def bound(function, gamma, beta):
    return lambda x: function(x, gamma, beta)

  def run(x, weights, parameters):
    for own, parameters_of_norms in zip(weights, parameters, strict=True):
      norms = [
        bound(function, *pair)
        for function, pair in zip(functions, parameters_of_norms, strict=True)
      ]
      x = block.body(x, own, norms)
    return x

  return run


# --- As functions of TensorFlow ----------------------------------------------


def _step(forward: Callable) -> Callable:
  """`(x, weights, parameters, dy)` -> y and all gradients."""
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla

  def run(x, weights, parameters, dy):
    wanted = tf.nest.flatten((x, weights, parameters))
    with tf.GradientTape() as tape:
      tape.watch(wanted)
      y = forward(x, weights, parameters)
    finished, dy = xla.optimization_barrier(y, dy)
    gradients = tape.gradient(y, wanted, dy)
    return [finished, *(g for g in gradients if g is not None)]

  return run


def _arguments(block: Block) -> tuple:
  import tensorflow as tf

  x = tf.zeros(block.shape, block.dtype)
  weights = [
    [tf.zeros(shape, block.dtype) for shape in block.weights]
    for _ in range(TIMES)
  ]
  parameters = [
    [
      [tf.zeros(norm.parameter_shape), tf.zeros(norm.parameter_shape)]
      for norm in block.norms
    ]
    for _ in range(TIMES)
  ]
  return x, weights, parameters


def texts(
  block: Block, platform: str, owners: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
  """Yields (owner, pass, StableHLO)."""
  import tensorflow as tf

  x, weights, parameters = _arguments(block)
  places = tf.nest.map_structure(lambda _: None, (x, weights, parameters))
  flat = tf.nest.flatten((x, weights, parameters))

  def of_flat(function):
    count = len(flat)

    def run(*tensors):
      packed = tf.nest.pack_sequence_as(places, tensors[:count])
      return function(*packed, *tensors[count:])

    return run

  makers = {'nothing': None, 'ours': c.ours, 'keras': c.theirs}
  for owner in owners:
    forward = in_a_row(block, makers[owner])
    yield owner, 'forward', c.lower(of_flat(forward), flat, platform)
    step = of_flat(_step(forward))
    yield owner, 'step', c.lower(step, [*flat, x], platform)


def write_stablehlo(
  blocks, platforms, folder: pathlib.Path, owners: Sequence[str] = OWNERS
) -> None:
  """Writes PLATFORM/OWNER/PASS/NAME.mlir of all `blocks` into `folder`."""
  c.alone(_write, [block.name for block in blocks], platforms, folder, owners)


def _write(names, platforms, folder, owners):
  os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
  for block in (block for block in ALL if block.name in names):
    for platform in platforms:
      for owner, name, text in texts(block, platform, owners):
        c.write(text, c.path_of(folder, platform, owner, name, block.name))
