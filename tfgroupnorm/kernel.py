"""The one kernel: statistics, normalize, affine, activation; their gradient.

    rstd = rsqrt(var + epsilon)
    xhat = ((x - k) - (mean - k)) * rstd            k near the mean
    y    = activation(xhat * gamma + beta) * gate_activation(gate)

`forward` and `backward` below are the only maths of this package. They run
plain, op by op, or compiled by XLA; `normalize` chooses and attaches the
hand-written gradient. What is reduced, and how `gamma`, `beta` and `mask` lie
on `x`, is described by a `Spec`; there is no Keras here.

References:
  - Group Normalization, Wu & He, 2018, https://arxiv.org/abs/1803.08494
  - Root Mean Square Layer Normalization, Zhang & Sennrich, 2019,
    https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

# One part in 16 of an axis, in 31 where that does not divide it, gives a first
# estimate of the mean. Whatever the values are, it is then off by at most
# sqrt(31) standard deviations, and the variance loses at most 5 of its 24 bits.
_SAMPLING = 16

# Most slices that `_folded_sum` adds up: 8 take half the time of 4, and 16 more
# time than 8.
_SLICES = 8

# Fewest rows in a slice of whose sum XLA:CPU makes a loop of its own.
_SLICE_ROWS = 33

# Lengths of columns that XLA:CPU adds up faster in two passes of numbers than
# in one of complex numbers, which it does not always vectorize: a step of
# 16 x 60 x 1024 takes 1.8 ms, not 5.1; of 16 x 100 x 2048 7.9, not 10.8.
_TWO_SUMS = range(56, 5 * _SLICE_ROWS)

# What a compilation costs under "auto", in elements that eager calls normalize
# op by op, and what such a call costs whatever its size. Where a shape comes
# once or ten times it is not worth its time on a CPU, by `first_call.py`.
_COMPILATION, _CALL = 20_000_000, 1_000_000

# How many elements, of 2 or 4 bytes, "auto" leaves op by op in a CPU's graph.
# XLA cuts the loops over so many for its threads and waits for them longer than
# that saves: a step of LN (2,64,512) takes 0.61 ms compiled, 0.44 op by op, of
# (1,128,768) 0.63 and 0.76. Of fewer it cuts few loops.
_NO_GAIN = {2: range(2**13, 2**16 + 1), 4: range(2**15, 2**16 + 1)}

# Most shapes that eager calls compile one kind of layer for; most not compiled
# yet whose calls are counted.
_MOST_SHAPES, _MOST_COUNTED = 8, 1000

# Longest row that XLA:CPU sums fastest as a product with ones, up to there it
# fuses what is summed into it; and how it cuts rows that are powers of two.
_PRODUCT, _PIECE = 3968, 512

# Longest row whose statistics are taken from itself in two steps, and not from
# a part of it first.
_ROW = 8192

# Most groups that a TPU adds up by products: a matrix has a column for each.
_MOST_GROUPS = 256

# Longest column that XLA:GPU is left to add up in one stage, and longest piece
# of one in two. It pads and copies columns of 4096, depending on how many there
# are; of the two sums of masked columns of 784 it makes two passes.
_COLUMN, _COLUMN_PIECE = 256, 800


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
  """What the kernel does to a tensor `x`, known before it sees one.

  Hashable and compared by value, so that one trace serves one (spec, dtypes,
  shapes). `slots` leaves no room for weak references, without which
  `tf.function` keys its cache on the value, not on an object that may be gone.

  Attributes:
    axes: Axes of `x` reduced as a whole, ascending.
    split: `(axis, groups)`: each of `groups` equal runs along this axis is
      reduced together with `axes`. `None`: no axis is split.
    view: `(axis, groups)`: before anything else this axis, of size C, becomes
      two, `(groups, C / groups)`; all other attributes speak of the result.
      `None`: `x` is taken as it is.
    gamma_axes: Axes of `x` that `gamma` spans, ascending; empty: no `gamma`.
    beta_axes: The same for `beta`.
    mask_axes: The same for `mask`.
    epsilon: Added to the variance, inside the root.
    rms: Statistics about zero instead of about the mean.
    activation: A name in `ACTIVATIONS`, or `None`.
    gate_activation: A name in `ACTIVATIONS`, or `None`.
    wide: Leave the result in the dtype of the computation.
    platform: `'CPU'`, `'GPU'` or `'TPU'`: whose XLA compiles this. `None`: it
      runs op by op.
  """

  axes: tuple[int, ...]
  split: tuple[int, int] | None = None
  view: tuple[int, int] | None = None
  gamma_axes: tuple[int, ...] = ()
  beta_axes: tuple[int, ...] = ()
  mask_axes: tuple[int, ...] = ()
  epsilon: float
  rms: bool = False
  activation: str | None = None
  gate_activation: str | None = None
  wide: bool = False
  platform: str | None = None


# --- Activations that run inside the kernel ----------------------------------


def _d_silu(z):
  s = tf.sigmoid(z)
  return s * (1 + z * (1 - s))


def _d_sigmoid(z):
  s = tf.sigmoid(z)
  return s * (1 - s)


def _gelu(z):
  return 0.5 * z * (1 + tf.math.erf(z * math.sqrt(0.5)))


def _d_gelu(z):
  cdf = 0.5 * (1 + tf.math.erf(z * math.sqrt(0.5)))
  return cdf + z * tf.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _tanh_of_cubic(z):
  return tf.tanh(math.sqrt(2 / math.pi) * z * (1 + 0.044715 * z * z))


def _gelu_tanh(z):
  return 0.5 * z * (1 + _tanh_of_cubic(z))


def _d_gelu_tanh(z):
  z = tf.clip_by_value(z, -100.0, 100.0)  # Beyond it is 0 or 1, and z * z inf.
  t = _tanh_of_cubic(z)
  slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
  return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * slope


# name: (function, derivative), both of the pre-activation z, so that the
# gradient can rebuild z from x and no tensor of its size is kept.
ACTIVATIONS: dict[str | None, tuple[Callable, Callable]] = {
  None: (tf.identity, tf.ones_like),
  'relu': (tf.nn.relu, lambda z: tf.cast(z > 0, z.dtype)),
  'sigmoid': (tf.sigmoid, _d_sigmoid),
  'silu': (lambda z: z * tf.sigmoid(z), _d_silu),
  'gelu': (_gelu, _d_gelu),
  'gelu_tanh': (_gelu_tanh, _d_gelu_tanh),
}


def compute_dtype(dtype: tf.DType) -> tf.DType:
  """The dtype of all arithmetic on a tensor of `dtype`."""
  return tf.float64 if dtype == tf.float64 else tf.float32


# --- Shapes ------------------------------------------------------------------


def _dims(t: tf.Tensor) -> list[Any]:
  """The shape of `t`: an int where it is known, a scalar tensor where not."""
  static = t.shape.as_list()
  if None not in static:
    return static
  dynamic = tf.shape(t)
  return [dynamic[i] if n is None else n for i, n in enumerate(static)]


def _cut(t: tf.Tensor, axis: int, groups: int) -> tf.Tensor:
  """(..., C, ...) -> (..., groups, C / groups, ...)."""
  dims = _dims(t)
  cut = [groups, dims[axis] // groups]
  return tf.reshape(t, dims[:axis] + cut + dims[axis + 1 :])


def _merged(spec: Spec, dims: list[Any]) -> tuple[Spec, list[Any]]:
  """`spec` and `dims` with neighbouring axes of one kind made one axis.

  XLA:CPU vectorizes loops over few axes; at four it takes half as long again.
  """
  alone = spec.split[0] if spec.split else None
  kinds = [
    (
      i == alone,
      i in spec.axes,
      i in spec.gamma_axes,
      i in spec.beta_axes,
      i in spec.mask_axes,
    )
    for i in range(len(dims))
  ]
  place: list[int] = []
  merged: list[Any] = []
  for i, n in enumerate(dims):
    if i and kinds[i] == kinds[i - 1]:
      merged[-1] = merged[-1] * n
    else:
      merged.append(n)
    place.append(len(merged) - 1)

  def moved(axes):
    return tuple(sorted({place[i] for i in axes}))

  spec = dataclasses.replace(
    spec,
    view=None,
    split=(place[spec.split[0]], spec.split[1]) if spec.split else None,
    axes=moved(spec.axes),
    gamma_axes=moved(spec.gamma_axes),
    beta_axes=moved(spec.beta_axes),
    mask_axes=moved(spec.mask_axes),
  )
  return spec, merged


def _count(dims: Sequence[Any], dtype: tf.DType) -> tf.Tensor:
  """How many elements `dims` hold, at least 1, so that it can be divided by.

  As a float: it does not overflow where an int32 would.
  """
  known = math.prod(n for n in dims if isinstance(n, int))
  unknown = [n for n in dims if not isinstance(n, int)]
  if not unknown:
    return tf.constant(max(known, 1), dtype)
  result = tf.constant(known, dtype)
  for n in unknown:
    result *= tf.cast(n, dtype)
  return tf.maximum(result, 1)


def _folded_sum(t: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
  """`tf.reduce_sum(t, axes)` for XLA:CPU, of slices of one of `axes`.

  Adding slices is elementwise work, which XLA:CPU vectorizes; it does not
  vectorize a reduction of an expression, which takes 4 times as long. The
  shorter chains of additions are more exact besides.
  """
  axis = next((i for i in axes if (t.shape[i] or 0) >= 4), None)
  if axis is None:
    return tf.reduce_sum(t, axes)
  length = t.shape[axis]
  count = min(length, _SLICES)
  if 10 <= length // count < _SLICE_ROWS:
    # Of so few rows a sum is one expression with that of the slices, which is
    # not vectorized: 5.9 ms for 16 x 196 x 1024, 2.2 with slices of 39 rows.
    count = length // _SLICE_ROWS
  size, rest = divmod(length, count)
  sizes = [size] * count + [rest] * (rest > 0)
  slices = tf.split(t, sizes, axis)
  sum_ = tf.reduce_sum(functools.reduce(tf.add, slices[:count]), axes)
  return sum_ + tf.reduce_sum(slices[-1], axes) if rest else sum_


def _cpu_sums(tensors, axes: Sequence[int]) -> list[tf.Tensor]:
  """`tf.reduce_sum(t, axes, keepdims=True)` of each, for XLA:CPU."""
  if not axes:
    return list(tensors)
  sizes = tensors[0].shape[axes[0] :]
  if list(axes) == list(range(axes[0], tensors[0].shape.rank)) and (
    sizes.is_fully_defined()
  ):
    return _row_sums(tensors, axes[0], sizes.num_elements())
  sizes = [tensors[0].shape[i] for i in axes]
  if len(tensors) == 1 or (None not in sizes and math.prod(sizes) in _TWO_SUMS):
    return [_column_sum(t, axes) for t in tensors]
  # As one complex tensor: XLA:CPU gives each reduction a pass of its own.
  t = _column_sum(tf.complex(*tensors), axes)
  return [tf.math.real(t), tf.math.imag(t)]


def _column_sum(t: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
  """Sums over any axes for XLA:CPU."""
  dims = _dims(t)
  ones = [1 if i in axes else n for i, n in enumerate(dims)]
  first, last = axes[0], axes[-1]
  sizes = t.shape[first : last + 1]
  if len(sizes) == len(axes) and sizes.is_fully_defined():
    length = sizes.num_elements()
    t = tf.reshape(t, [*dims[:first], length, *dims[last + 1 :]])
    axes = [first]
  return tf.reshape(_folded_sum(t, axes), ones)


def _row_sums(tensors, first: int, length: int) -> list[tf.Tensor]:
  """Sums over axes `first` to last, `length` elements, for XLA:CPU.

  It adds up short rows element by element; a product with ones it vectorizes,
  even of an expression if the rows are of a middle length.
  """
  before = _dims(tensors[0])[:first]
  after = [1] * (tensors[0].shape.rank - first)
  rows = functools.reduce(operator.mul, before, 1)
  flat = [tf.reshape(t, [rows, length]) for t in tensors]
  if length > _PRODUCT and len(flat) == 2:
    both = _folded_sum(tf.complex(*flat), [1])
    sums = [tf.math.real(both), tf.math.imag(both)]
  else:
    sums = [_row_sum(t) for t in flat]
  return [tf.reshape(t, [*before, *after]) for t in sums]


def _row_sum(t: tf.Tensor) -> tf.Tensor:
  """(rows, length) -> (rows) for XLA:CPU.

  Of 4096 squares, in ms and in relative error: 1.3 and 3e-7 by products with
  pieces of a row, which XLA fuses if there is a power of two of them; 3.1 and
  8e-6 with all of it; 2.4 and 5e-7 folded.
  """
  length = t.shape[1]
  if length > _PIECE and not length & (length - 1):
    pieces = _row_sum(tf.reshape(t, [-1, _PIECE]))
    return tf.reduce_sum(tf.reshape(pieces, [-1, length // _PIECE]), 1)
  if length > _PRODUCT:
    return _folded_sum(t, [1])
  if length <= 64:
    # It is t. Short sums of a difference take twice as long, since LLVM changes
    # the order of their additions: 2.0 ms for 98304 of 64, not 0.9.
    t = tf.maximum(t, -tf.abs(t))
  return tf.linalg.matvec(t, tf.ones([length], t.dtype))


def _plain_row_sum(t: tf.Tensor) -> tf.Tensor:
  """Sums over the last axis, in two stages if it is long, op by op.

  In one, a sum of 8000 squares is off by 3e-6 of it; in two, by 4e-7.
  """
  *before, length = _dims(t)
  pieces = max(n for n in range(1, 17) if length % n == 0)
  if length >= 512 and pieces > 1:
    t = tf.reshape(t, [*before, pieces, length // pieces])
    t = tf.reduce_sum(t, -1)
  return tf.reduce_sum(t, -1, keepdims=True)


def _staged(reduce: Callable, t: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
  """`reduce(t, axes, keepdims=True)`, in two stages where that is long.

  A column that XLA:GPU finds too long it pads and copies in pieces, which is
  more traffic than all the rest. The factor between the stages keeps it from
  making one of the two again.
  """
  if not axes:
    return t
  dims = t.shape.as_list()
  first, last = axes[0], axes[-1]
  size = [dims[i] for i in axes]
  if (
    last < len(dims) - 1
    and None not in dims
    and list(axes) == list(range(first, last + 1))
  ):
    length = math.prod(size)
    pieces = next(
      (
        p
        for p in range(2, length)
        if length % p == 0 and length // p <= _COLUMN_PIECE
      ),
      1,
    )
    if length > _COLUMN and pieces > 1:
      cut = [pieces, length // pieces]
      t = tf.reshape(t, dims[:first] + cut + dims[last + 1 :])
      t = reduce(t, first + 1, keepdims=True) / 2
      t = reduce(t, first, keepdims=True) * 2
      return tf.reshape(t, dims[:first] + [1] * len(size) + dims[last + 1 :])
  return reduce(t, axes, keepdims=True)


class _Lanes:
  """Groups that lie side by side on the last axis, by products, for a TPU.

  A TPU adds up along its registers only with effort, and half fills them with
  heads of 64 features on an axis of their own. Here a product with a matrix of
  zeros and ones adds up the features of each head, and its transpose brings a
  number of a head back to each of them: 460 kilocycles forward on a v5e, not
  740; 1040 with heads of 256 features, not 5000.

  TensorFlow's products round their operands to bfloat16 on a TPU, to 8 bits. So
  they are cut into pieces: three hold a float32, two of them 16 bits. NaN or
  infinity in one group reaches the others of its row, by 0 * NaN.
  """

  def __init__(self, groups: int, size: int):
    self.groups, self.size = groups, size
    # On the device: constants of this size would swell every graph.
    self._channel = tf.range(groups * size)[:, tf.newaxis]
    of_group = self._channel // size == tf.range(groups)
    self._of_group = tf.cast(of_group, tf.float32)

  @staticmethod
  def pieces(t: tf.Tensor, count: int) -> list[tf.Tensor]:
    """`count` tensors that add up to `t`, all but the last of 8 bits.

    By masks: XLA takes a cast to bfloat16 and back for nothing.
    """
    result = []
    for _ in range(count - 1):
      bits = tf.bitcast(t, tf.uint32) + tf.constant(0x8000, tf.uint32)
      bits = tf.bitwise.bitwise_and(bits, tf.constant(0xFFFF0000, tf.uint32))
      result.append(tf.bitcast(bits, tf.float32))
      t -= result[-1]
    return [*result, t]

  def _product(self, t, matrix, count):
    return tf.add_n(
      [tf.tensordot(piece, matrix, 1) for piece in self.pieces(t, count)]
    )

  def mean(self, t: tf.Tensor, count: int = 2) -> tf.Tensor:
    """(..., groups * size) -> (..., groups), of `count` pieces.

    Two are enough for squares and gradients: what they leave out is random.
    """
    # What is infinite in one group would make the others NaN.
    t = tf.clip_by_value(t, -3e38, 3e38)
    return self._product(t, self._of_group, count) / self.size

  def mean_square(self, t: tf.Tensor) -> tf.Tensor:
    """As `mean`, of the squares: infinite again where one of them was."""
    mean = self.mean(t * t)
    return tf.where(mean > 2.9e38 / self.size, math.inf, mean)

  def three(self, t: tf.Tensor) -> list[tf.Tensor]:
    """(..., groups * size) -> 3 elements of each group, (..., groups) each."""
    begin = self.size * tf.range(self.groups)
    places = [begin, begin + self.size // 2, begin + self.size - 1]
    matrix = tf.cast(self._channel == tf.concat(places, 0), tf.float32)
    # The largest numbers would be rounded to infinity.
    t = tf.clip_by_value(t, -3.38e38, 3.38e38)
    return tf.split(self._product(t, matrix, 3), 3, -1)

  def spread(self, s: tf.Tensor) -> tf.Tensor:
    """(..., groups) -> (..., groups * size)."""
    # All pieces in one product, not side by side by a concatenation: XLA takes
    # the product of one apart, and writes out each part.
    pieces = self.pieces(tf.concat([s] * 3, -1), 3)
    place = tf.range(3 * self.groups) // self.groups
    side_by_side = tf.add_n(
      [t * tf.cast(place == i, t.dtype) for i, t in enumerate(pieces)]
    )
    matrix = tf.tile(tf.transpose(self._of_group), [3, 1])
    return tf.tensordot(side_by_side, matrix, 1)


def _after(t: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
  """`t`, but not before `other` is there: `t + 0`, by a zero made of `other`.

  Keeps XLA from sharing work on `t` between the forward and the backward pass
  of one compiled step, for which it writes a tensor of the size of `t` between
  them. XLA does not see that the number is always zero.
  """
  first = tf.reshape(other, [-1])[:1]
  zero = tf.floor(tf.cast(first != 0, t.dtype) * 0.5)
  return t + tf.reduce_sum(zero)


def _in_lanes(spec: Spec, x: tf.Tensor) -> tuple[int, int] | None:
  """`spec.view` if its groups lie on the last axis as `_Lanes` wants them."""
  if spec.platform != 'TPU' or spec.view is None or x.dtype == tf.float64:
    return None
  axis, groups = spec.view
  if axis != x.shape.rank - 1 or spec.axes != (axis + 1,):
    return None
  if not 1 < groups <= min(_MOST_GROUPS, x.shape[axis] // 2):
    return None
  return axis, groups


class _Operands:
  """The kernel's arguments, widened and laid out to broadcast with `x`.

  Also the reductions over a group, and the way from a group's statistics back
  to its elements. Statistics have the rank of `x`, size 1 on `axes` and
  `groups` on a split axis. The big tensor is not reshaped into groups where
  there is an axis to reduce first: sums over `axes` are taken per channel and
  channels are combined on that small result, which spares a TPU a relayout.
  """

  def __init__(self, spec: Spec, x, gamma, beta, gate, mask):
    self.dtype = compute_dtype(x.dtype)
    self.source = x
    self.dims = dims = _dims(x)
    self.lanes: _Lanes | None = None
    lanes = _in_lanes(spec, x)
    if lanes:
      spec = self._enter_lanes(spec, *lanes)
    viewed = spec.view is not None
    if spec.view:
      axis, groups = spec.view
      cut = [groups, self.dims[axis] // groups]
      self.dims = self.dims[:axis] + cut + self.dims[axis + 1 :]
    if spec.platform == 'CPU':
      spec, self.dims = _merged(spec, self.dims)
    self.spec = spec
    self.same = not viewed and len(self.dims) == len(dims)
    # Parts of x are cut out before they are widened: XLA would write out a wide
    # copy of the whole.
    self.narrow = self._reshaped(x)
    self.x = tf.cast(self.narrow, self.dtype)
    self.gamma = self._lay(gamma, spec.gamma_axes, self.dtype)
    self.beta = self._lay(beta, spec.beta_axes, self.dtype)
    self.mask = self._lay(mask, spec.mask_axes, tf.bool)
    # A mask that is the same for all of a group does not touch its statistics.
    partial = set(spec.mask_axes) & set(spec.axes)
    self.counted = self.mask if partial else None
    if self.counted is None:
      # Nor may what it hides: NaN would come back by gradients of gradients.
      self.x = self.valid(self.x)
    self.gate = None if gate is None else self.valid(self.enter(gate))
    self.channel_size = self.size(self.x, self.counted)

  def _enter_lanes(self, spec: Spec, axis: int, groups: int) -> Spec:
    """`spec` of `x` as it is: its last axis is split, and none reduced."""
    self.lanes = _Lanes(groups, self.dims[axis] // groups)

    def moved(axes):
      return tuple(sorted({min(i, axis) for i in axes}))

    return dataclasses.replace(
      spec,
      view=None,
      split=(axis, groups),
      axes=(),
      gamma_axes=moved(spec.gamma_axes),
      beta_axes=moved(spec.beta_axes),
    )

  def _reshaped(self, t: tf.Tensor) -> tf.Tensor:
    return t if self.same else tf.reshape(t, self.dims)

  def enter(self, t: tf.Tensor) -> tf.Tensor:
    """A tensor shaped as the caller's `x` -> as the kernel sees it."""
    return tf.cast(self._reshaped(t), self.dtype)

  def leave(self, t: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Undoes `enter`."""
    t = tf.cast(t, dtype)
    return t if self.same else tf.reshape(t, _dims(self.source))

  def _lay(self, p, axes, dtype):
    """Reshapes `p` to the rank of x: its sizes on `axes`, 1 elsewhere."""
    if p is None:
      return None
    dims = _dims(self.x)
    shape = [n if i in axes else 1 for i, n in enumerate(dims)]
    return tf.cast(tf.reshape(p, shape), dtype)

  def size(self, t: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
    """How many elements one channel of `t`, laid out as `x`, has on `axes`.

    A scalar but for `valid`, the mask of what counts.
    """
    axes, dims = self.spec.axes, _dims(t)
    if valid is None:
      return _count([dims[i] for i in axes], self.dtype)
    masked = [i for i in axes if i in self.spec.mask_axes]
    free = [dims[i] for i in axes if i not in masked]
    valid = tf.reduce_sum(tf.cast(valid, self.dtype), masked, keepdims=True)
    # Where there is no valid position there are no statistics; 1 keeps them
    # finite.
    return tf.maximum(valid * _count(free, self.dtype), 1)

  def valid(self, t: tf.Tensor) -> tf.Tensor:
    """`t`, with zeros where the mask is False even if `t` is NaN there."""
    if self.mask is None:
      return t
    return tf.where(self.mask, t, tf.zeros([], t.dtype))

  def part_of_group(self, t: tf.Tensor) -> tf.Tensor:
    """`valid`, where the mask leaves out some elements of a group."""
    return t if self.counted is None else self.valid(t)

  def combine(self, t: tf.Tensor) -> tf.Tensor:
    """Channels -> groups, by their mean; all have the same size."""
    if self.spec.split is None:
      return t
    if self.lanes:
      return self.lanes.mean(t)
    axis, groups = self.spec.split
    t = _cut(t, axis, groups)
    # Divided first: a TPU would do it in a kernel of its own.
    return tf.reduce_sum(t / _count([_dims(t)[axis + 1]], t.dtype), axis + 1)

  def first_channel(self, t: tf.Tensor) -> tf.Tensor:
    """Channels -> groups, by the first of each."""
    if self.spec.split is None:
      return t
    axis, groups = self.spec.split
    return tf.gather(_cut(t, axis, groups), 0, axis=axis + 1)

  def _sums(self, tensors, axes: Sequence[int]) -> list[tf.Tensor]:
    if self.spec.platform == 'CPU':
      return _cpu_sums(tensors, axes)
    if self.spec.platform == 'GPU':
      return [_staged(tf.reduce_sum, t, axes) for t in tensors]
    if self.centred_row and tuple(axes) == self.spec.axes:
      return [_plain_row_sum(t) for t in tensors]
    return [tf.reduce_sum(t, axes, keepdims=True) for t in tensors]

  def add_up(self, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Sums over `axes`, of one tensor or two: elements -> channels."""
    return self._sums(tensors, self.spec.axes)

  def extreme(self, reduce: Callable, t: tf.Tensor) -> tf.Tensor:
    """The least or the largest: elements -> channels."""
    if self.spec.platform == 'GPU':
      return _staged(reduce, t, self.spec.axes)
    return reduce(t, self.spec.axes, keepdims=True)

  def means(self, d: tf.Tensor, e: tf.Tensor) -> list[tf.Tensor]:
    """Of `d` and of the squares of `e`: elements -> channels."""
    size = self.channel_size
    if self.spec.platform == 'TPU' or self.chain:
      # Divided first, or each quotient would be a kernel of its own.
      return self.add_up(d / size, e * (e / size))
    return [t / size for t in self.add_up(d, e * e)]

  def mean(self, t: tf.Tensor) -> tf.Tensor:
    """Elements -> groups."""
    return self.combine(self.add_up(t)[0] / self.channel_size)

  def spread(self, s: tf.Tensor) -> tf.Tensor:
    """Groups -> channels: the result broadcasts with `x`."""
    if self.spec.split is None:
      return s
    if self.lanes:
      return self.lanes.spread(s)
    axis, groups = self.spec.split
    size = _dims(self.x)[axis] // groups
    before, after = _dims(s)[:axis], _dims(s)[axis + 1 :]
    # `tf.repeat` takes ten times as long eagerly: a third of a small call.
    multiples = [1] * (s.shape.rank + 1)
    multiples[axis + 1] = size
    s = tf.tile(tf.expand_dims(s, axis + 1), multiples)
    return tf.reshape(s, [*before, groups * size, *after])

  def without(self, axes) -> list[int]:
    """The axes of `x` that a parameter on `axes` does not span."""
    return [i for i in range(self.x.shape.rank) if i not in axes]

  def parameter_sums(self, tensors, parameters, spans):
    """Sums each tensor over the axes that its parameter does not span."""
    given = [i for i, p in enumerate(parameters) if p is not None]
    if len(given) == 2 and spans[0] == spans[1]:
      return self._sums(tensors, self.without(spans[0]))
    results = [None, None]
    for i in given:
      (results[i],) = self._sums([tensors[i]], self.without(spans[i]))
    return results

  @property
  def constant_affine(self) -> bool:
    """Whether gamma and beta are constant along `axes`."""
    spec = self.spec
    return not set(spec.gamma_axes + spec.beta_axes) & set(spec.axes)

  def differences(self, x, k):
    """x - k twice, of either sign.

    On a GPU they have two signs, or XLA would find that they are the same and
    write them out for all who want them.
    """
    d = x - k
    return d, k - x if self.spec.platform == 'GPU' else d

  def first(self, t: tf.Tensor) -> tf.Tensor:
    """The first element of each channel; 0 where there is none."""
    axes = self.spec.axes
    rank = t.shape.rank
    one = tuple(slice(0, 1 if i in axes else None) for i in range(rank))
    if all(t.shape[i] for i in axes):
      return t[one]
    # An unknown size may be 0.
    return tf.reduce_sum(t[one], axes, keepdims=True)

  @property
  def row(self) -> bool:
    """Whether each group is a row of memory, and not too long a one."""
    spec = self.spec
    if not spec.axes:
      return False
    sizes = self.x.shape[spec.axes[0] :]
    return (
      not spec.rms
      and self.counted is None
      and spec.split is None
      and len(spec.axes) == len(sizes) == 1
      and sizes.is_fully_defined()
      and 0 < sizes.num_elements() <= _ROW
    )

  @property
  def centred_row(self) -> bool:
    """Whether the mean is taken off a row before its squares are added up."""
    return self.row and self.spec.platform in ('CPU', None)

  @property
  def subtracts_rest(self) -> bool:
    """Whether what is left of the mean is taken off x - k, and not scaled."""
    return self.centred_row or self.chain

  @property
  def chain(self) -> bool:
    """Whether XLA:GPU computes each group in one kernel, see `_row`."""
    return self.row and self.spec.platform == 'GPU'


# --- The maths ---------------------------------------------------------------


def _fullest_part(o: _Operands) -> tuple[tf.Tensor, tf.Tensor]:
  """One part in `_SAMPLING` of `x`, and which of it a mask leaves in.

  Of each sample the part with most of its valid positions: at least their
  share, wherever the padding is.
  """
  mask, axes = o.spec.mask_axes, o.spec.axes
  axis = next(i for i in mask if i in axes)
  dims, counted = _dims(o.narrow), _dims(o.counted)
  before, after, length = dims[:axis], dims[axis + 1 :], dims[axis]
  # What is reduced may differ from position to position. A TPU copies what it
  # picks from, unless that lies together: channels first, 1660 kilocycles for
  # (16,256,56,56), and 770 with all of it.
  together = mask[:axis] == tuple(range(axis))
  if not all(i in axes for i in mask if i > axis) or (
    o.spec.platform == 'TPU' and not together
  ):
    return o.x, o.counted
  # The last of the parts may overlap.
  size = (length + _SAMPLING - 1) // _SAMPLING
  begins = tf.minimum(tf.range(_SAMPLING) * size, length - size)
  places = begins[:, tf.newaxis] + tf.range(size)
  valid = tf.cast(o.counted, tf.int32)
  valid = tf.reduce_sum(valid, list(range(axis + 1, len(dims))))
  share = tf.reduce_sum(tf.gather(valid, places, axis=axis), -1)
  fullest = tf.gather(places, tf.argmax(share, -1, tf.int32))
  samples = functools.reduce(operator.mul, before, 1)
  fullest = tf.reshape(
    tf.broadcast_to(fullest, [*before, size]), [samples, size]
  )

  def part(t, after):
    t = tf.reshape(t, [samples, length, *after])
    t = tf.gather(t, fullest, axis=1, batch_dims=1)
    return tf.reshape(t, [*before, size, *after])

  valid = tf.broadcast_to(o.counted, [*before, *counted[axis:]])
  x, valid = part(o.narrow, after), part(valid, counted[axis + 1 :])
  return tf.cast(x, o.dtype), valid


def _mean_of(o: _Operands, x: tf.Tensor, valid=None) -> tf.Tensor:
  """The mean of each channel of `x`, exact if all that is valid is equal.

  A sum of equal numbers is off by rounding errors; between their least and
  their largest the mean is not. On a TPU these two cost nothing beside a sum.
  """
  low = high = x
  zero = tf.zeros([], o.dtype)
  if valid is not None:
    limit = tf.constant(o.dtype.max, o.dtype)
    low, high = tf.where(valid, x, limit), tf.where(valid, x, -limit)
    x = tf.where(valid, x, zero)
  (mean,) = o.add_up(x / o.size(x, valid))
  low, high = o.extreme(tf.reduce_min, low), o.extreme(tf.reduce_max, high)
  mean = tf.minimum(tf.maximum(mean, low), high)
  if valid is None and x.shape.num_elements():
    return mean
  return tf.where(low > high, zero, mean)  # Of nothing it is 0.


def _row_element(o: _Operands) -> tf.Tensor:
  """An element of each row, which one outlier does not decide.

  In rows of 3, 5, 6 and 9 a low one in the middle does, on a CPU. There it does
  no harm: in a short row an outlier is most of the deviation.
  """
  size, rank = o.narrow.shape[-1], o.narrow.shape.rank

  def elements(*which):
    every = [slice(None)] * (rank - 1)
    return tf.cast(o.narrow[(*every, slice(*which))], o.dtype)

  if o.spec.platform == 'CPU':
    # The larger of two that are the smaller of two. By reductions: what these
    # bring XLA keeps, else it picks anew for each element of the row.
    few = elements(None, None, -(-size // 4))
    half = -(-few.shape[-1] // 2)
    pairs = tf.stack([few[..., :half], few[..., -half:]], -1)
    return tf.reduce_max(tf.reduce_min(pairs, -1), -1, keepdims=True)
  if o.lanes:
    a, b, c = o.lanes.three(o.x)
  else:
    a, b, c = (elements(i, i + 1) for i in (0, size // 2, size - 1))
  return tf.maximum(tf.minimum(a, b), tf.minimum(tf.maximum(a, b), c))


def _near_mean(o: _Operands) -> tf.Tensor:
  """For each channel a value near its mean, and equal to it if it is constant.

  The mean of a part of it. Op by op and on a CPU or GPU that is an element plus
  the average difference from it, exact zeros if the channel is constant.
  """
  axes = o.spec.axes
  if o.counted is not None:
    return _mean_of(o, *_fullest_part(o))
  sizes = o.narrow.shape
  if o.spec.view and o.chain:
    # Two elements of a row do; most is in `_row`. Cut out before the axis is:
    # XLA:GPU reads all of a tensor of another shape for a part of it. A step of
    # heads of 64 moves 8.20 times the size of x, and 8.26 times if a reduction
    # finds the middle of the two.
    at, _ = o.spec.view
    before, size = [slice(None)] * at, sizes[at + 1]
    a, b = (o.source[(*before, slice(i, None, size))] for i in (0, size // 2))
    a, b = (tf.cast(tf.expand_dims(t, at + 1), o.dtype) for t in (a, b))
    return a / 2 + b / 2
  part = [slice(None)] * o.x.shape.rank
  long = [i for i in axes if sizes[i] is None or sizes[i] >= _SAMPLING]
  axis = next((i for i in [*long, *axes] if sizes[i] != 1), None)
  if axis is not None:
    length = _dims(o.narrow)[axis]
    # An unknown size may be a small one.
    least = max if isinstance(length, int) else tf.maximum
    part[axis] = slice(0, least(length // _SAMPLING, 1))
  some = o.narrow[tuple(part)]
  first, wide = tf.cast(o.first(some), o.dtype), tf.cast(some, o.dtype)
  if o.spec.platform == 'TPU':
    return _mean_of(o, wide)
  return first + o.add_up(wide - first)[0] / o.size(wide)


def _variance(mean: tf.Tensor, square: tf.Tensor) -> tf.Tensor:
  """Of the mean of numbers and of their squares."""
  variance = tf.maximum(square - mean * mean, 0)
  # Where squares overflow, infinite and not inf - inf: the result is then 0.
  return tf.where(tf.math.is_inf(square), square, variance)


def _statistics(o: _Operands) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None]:
  """`(k, rest, rstd)` with xhat = ((x - k) - rest) * rstd; `(rstd,)` for RMS.

  Beside them what `_standard` calls `d`, if it is there: op by op it would be
  one more pass over `x` to compute it again.

  `k` and `rest` belong to a channel, `rstd` to a group; in lanes all belong to
  a group, and `rest` is left out where it is 0. For x near k the difference
  x - k is exact, so nothing is lost where float32 cannot hold the mean: at mean
  1e4 and deviation 1e-2, rounding the mean to float32 moves the result by 5e-2.
  Channels are combined on small tensors, so that what passes over `x` sees one
  number for each of them.
  """
  epsilon = o.spec.epsilon
  if o.spec.rms:
    if o.lanes:
      return (tf.math.rsqrt(o.lanes.mean_square(o.x) + epsilon),), None
    x = o.part_of_group(o.x)
    square = o.mean(x * x)
    return (tf.math.rsqrt(square + epsilon),), None
  # In exact arithmetic the result does not depend on k: no gradient through it.
  if o.lanes and o.source.dtype == tf.bfloat16:
    # float32 holds the mean of such values to 1e-4 of a deviation, and that of
    # equal ones exactly: one tensor less to spread.
    mean = o.lanes.mean(o.x, 1)
    d = o.x - o.spread(mean)
    return (mean, tf.math.rsqrt(o.lanes.mean_square(d) + epsilon)), d
  if o.lanes:
    k = tf.stop_gradient(_row_element(o))
    d = o.x - o.spread(k)
    delta, square = o.lanes.mean(d, 3), o.lanes.mean_square(d)
    return (k, delta, tf.math.rsqrt(_variance(delta, square) + epsilon)), d
  if o.centred_row:
    # It is read twice, but so it is by these platforms for two sums.
    k = o.valid(tf.stop_gradient(_row_element(o)))
    d = o.x - k
    rest = o.mean(d)
    d -= rest
    return (k, rest, tf.math.rsqrt(o.mean(d * d) + epsilon)), d
  k = tf.stop_gradient(_near_mean(o))
  if o.counted is None:
    k = o.valid(k)
  differences = o.differences(o.x, k)
  delta, square = o.means(*map(o.part_of_group, differences))
  d = None if o.spec.platform == 'GPU' else differences[1]
  variance = _variance(delta, square)
  if o.spec.split is None:
    return (k, delta, tf.math.rsqrt(variance + epsilon)), d
  # Means as distances from one number for the group, and the variance between.
  mean = delta + (k - o.spread(o.first_channel(k)))
  away = mean - o.spread(o.combine(mean))
  rstd = tf.math.rsqrt(o.combine(variance + away * away) + epsilon)
  return (k, delta - away, rstd), d


def _line(t, scale, offset):
  """`t * scale + offset`, either of which may be `None`."""
  if scale is not None:
    t = t * scale
  return t if offset is None else t + offset


def _standard(o: _Operands, x, statistics, d=None):
  """`(d, scale, offset)` with xhat = d * scale + offset.

  A given `d` came from `_statistics` with just these `statistics`, of `o.x`.
  `scale` and `offset` have the size of the channels, so that a product with
  gamma costs no pass over `x` where gamma is one number for a channel.
  """
  if o.spec.rms:
    return o.valid(x), o.spread(statistics[0]), None
  k, *rest, rstd = statistics
  if o.subtracts_rest:
    # What the squares were taken of. An offset would be one more pass.
    return o.valid((x - k) - rest[0] if d is None else d), rstd, None
  scale = o.spread(rstd)
  if o.lanes:
    offset = o.spread(-rest[0] * rstd) if rest else None
  else:
    offset = -rest[0] * scale
  if d is None:
    _, d = o.differences(x, o.spread(k) if o.lanes else k)
  return o.valid(d), -scale if o.spec.platform == 'GPU' else scale, offset


def _affine(o: _Operands, d, scale, offset) -> tf.Tensor:
  """gamma * (d * scale + offset) + beta."""
  if not o.constant_affine:
    return _line(_line(d, scale, offset), o.gamma, o.beta)
  if o.gamma is not None:
    scale = scale * o.gamma
    offset = None if offset is None else offset * o.gamma
  if o.beta is not None:
    offset = o.beta if offset is None else offset + o.beta
  return _line(d, scale, offset)


def _row(o: _Operands, x: tf.Tensor):
  """`(xhat, rstd)` by reductions one after the other, each of what came before.

  XLA:GPU makes one kernel of such a chain, which reads `x` once and holds it in
  registers; it does not where two sums are taken of one tensor. For k of
  `_statistics` this takes the largest element plus the mean distance from it.
  """
  largest = tf.reduce_max(x, o.spec.axes, keepdims=True)
  d = x - (largest + o.mean(x - largest))
  d -= o.mean(d)
  rstd = tf.math.rsqrt(o.mean(d * d) + o.spec.epsilon)
  return d * rstd, rstd


def forward(spec: Spec, x, gamma, beta, gate, mask):
  """Returns `y`, shaped as `x`, and the statistics that `backward` wants."""
  o = _Operands(spec, x, gamma, beta, gate, mask)
  spec = o.spec
  if o.chain:
    statistics = ()
    y = _line(_row(o, o.x)[0], o.gamma, o.beta)
  else:
    statistics, d = _statistics(o)
    y = _affine(o, *_standard(o, o.x, statistics, d))
  y = ACTIVATIONS[spec.activation][0](y)
  if o.gate is not None:
    y *= ACTIVATIONS[spec.gate_activation][0](o.gate)
  y = o.leave(o.valid(y), o.dtype if spec.wide else x.dtype)
  y.set_shape(x.shape)
  return y, statistics


def backward(spec: Spec, x, gamma, beta, gate, mask, statistics, dy):
  """Gradients with respect to `x`, `gamma`, `beta` and `gate`.

  With z the pre-activation, rebuilt from `x`, and means over a group:

      dz     = dy * activation'(z) * gate_activation(gate)
      dx     = rstd * (dz * gamma - mean(dz * gamma)
                       - xhat * mean(dz * gamma * xhat))
      dgamma = sum(dz * xhat)
      dbeta  = sum(dz)

  and without mean(dz * gamma) for RMS statistics.

  Args:
    spec, x, gamma, beta, gate, mask: As for `forward`.
    statistics: As `forward` returned them; or `None` to compute them from `x`,
      so that this function may itself be differentiated.
    dy: Gradient with respect to the result of `forward`.

  Returns:
    Four gradients, `None` for an argument that was `None`.
  """
  o, dtype = _Operands(spec, x, gamma, beta, gate, mask), x.dtype
  spec = o.spec
  d = None
  if not statistics:
    statistics, d = _statistics(o)
  activation, slope = ACTIVATIONS[spec.activation]
  gating, gate_slope = ACTIVATIONS[spec.gate_activation]
  upstream = o.valid(o.enter(dy))

  def times_gamma(t):
    return t if o.gamma is None else t * o.gamma

  def until_affine(z):
    """dz, the gradient with respect to the pre-activation z."""
    dz = upstream
    if o.gate is not None:
      dz *= gating(o.gate)
    return dz if spec.activation is None else dz * slope(z)

  def times_xhat(sum_, sum_with_d):
    """sum(t * xhat), of sum(t) and sum(t * d)."""
    product = sum_with_d * scale
    return product if offset is None else product + sum_ * offset

  x = o.x
  if o.lanes:
    # XLA shares products: it would keep x - k from the forward pass.
    statistics = [_after(s, dy) for s in statistics]
  d, scale, offset = _standard(o, x, statistics, d)
  z = dgate = None
  if spec.activation or o.gate is not None:
    # Op by op it would be computed even if nobody asked for it.
    z = _affine(o, d, scale, offset)
  dz = until_affine(z)
  if o.gate is not None:
    dgate = upstream * activation(z) * gate_slope(o.gate)
    dgate = o.leave(o.valid(dgate), gate.dtype)
  parameters = gamma, beta
  spans = spec.gamma_axes, spec.beta_axes
  if o.constant_affine and not o.lanes:
    # The same two sums per channel give dgamma, dbeta and both means: one pass
    # over x and dy, not two.
    dbeta, dgamma = o.add_up(dz, dz * d)
    dgamma = times_xhat(dbeta, dgamma)
    mean, mean_xhat = (
      o.spread(o.combine(times_gamma(t) / o.channel_size))
      for t in (dbeta, dgamma)
    )
    if spec.platform:
      # It is dbeta. Of the two sums that are nested here XLA would make one,
      # and one more pass.
      dbeta = tf.maximum(dbeta, -tf.abs(dbeta))
    dgamma, dbeta = (
      tf.reduce_sum(t, o.without(axes))
      for t, axes in zip((dgamma, dbeta), spans, strict=True)
    )
  else:
    xhat = _line(d, scale, offset)
    dgamma, dbeta = o.parameter_sums((dz * xhat, dz), parameters, spans)
    if not o.chain and not o.lanes:
      dxhat = times_gamma(dz)
      mean = o.mean(dxhat)
      mean_xhat = times_xhat(mean, o.mean(dxhat * d))

  if spec.platform == 'GPU':
    # What the sums have made of x is cheaper made again than read.
    x = _after(x, dy)
  if o.chain:
    xhat, rstd = _row(o, x)
    dxhat = times_gamma(until_affine(_line(xhat, o.gamma, o.beta)))
    dx = (dxhat - o.mean(dxhat) - xhat * o.mean(dxhat * xhat)) * rstd
  elif o.lanes and spec.rms:
    # Of x, and not of xhat: 675 kilocycles for a step on a v5e, not 804.
    (rstd,) = statistics
    dxhat = times_gamma(dz)
    mean_xhat = rstd * o.mean(dxhat * d)
    dx = (dxhat - d * o.spread(rstd * mean_xhat)) * scale
  elif o.lanes:
    dxhat = times_gamma(dz)
    mean_xhat = o.mean(dxhat * xhat)
    dx = dxhat - xhat * o.spread(mean_xhat) - o.spread(o.mean(dxhat))
    # Spread anew where there is an offset: a step of heads takes a v5e 1650
    # kilocycles, not 1730. Where there is none, in bfloat16, 1070, not 1190.
    if offset is not None:
      scale = o.spread(_after(statistics[-1], mean_xhat))
    dx *= scale
  else:
    if spec.platform == 'GPU':
      d, scale, offset = _standard(o, x, statistics)
      dz = until_affine(_affine(o, d, scale, offset))
      dxhat = times_gamma(dz)
    # On a GPU `d` is k - x, and `scale` negative.
    rstd = -scale if spec.platform == 'GPU' and not spec.rms else scale
    # With gamma on the small side where it is one number for a channel.
    dx = dz * times_gamma(rstd) if o.constant_affine else dxhat * rstd
    dx -= d * (scale * rstd * mean_xhat)
    if not spec.rms:
      dx -= rstd * (mean if offset is None else mean + offset * mean_xhat)
  dgamma, dbeta = (
    None if p is None else tf.cast(tf.reshape(t, _dims(p)), p.dtype)
    for t, p in zip((dgamma, dbeta), parameters, strict=True)
  )
  return o.leave(o.valid(dx), dtype), dgamma, dbeta, dgate


# --- Plain or compiled -------------------------------------------------------


@functools.partial(tf.function, jit_compile=True, autograph=False)
def compiled(body, *args):
  """`body(*args)`, compiled by XLA: the only compilation in this package."""
  return body(*args)


# TensorFlow warns of a function that is traced again and again. This one serves
# every layer of a model, each of which is traced once.
compiled._omit_frequent_tracing_warning = True


def plain(body, *args):
  """`body(*args)`, op by op."""
  return body(*args)


def _in_save_context() -> bool:
  """Whether a SavedModel is being traced in this thread.

  TensorFlow tells this to its own private module only.
  """
  try:
    from tensorflow.python.saved_model import save_context
  except ImportError:
    return False
  return save_context.in_save_context()


def _in_xla_trace() -> bool:
  """Whether the graph being traced will be compiled as a whole anyway.

  True inside an outer `tf.function(jit_compile=True)`. Should a TensorFlow no
  longer tell, the compiled call is merely nested there, and XLA inlines it.
  """
  if tf.executing_eagerly():
    return False
  graph = tf.compat.v1.get_default_graph()
  while graph is not None:
    get_context = getattr(graph, '_get_control_flow_context', lambda: None)
    context = get_context()
    while context is not None:
      if context.IsXLAContext():
        return True
      context = context.outer_context
    graph = getattr(graph, 'outer_graph', None)
  return False


def _in_tpu_replica() -> bool:
  """Whether a TPUStrategy is in charge: it compiles the whole step."""
  return type(tf.distribute.get_strategy()).__name__.startswith('TPUStrategy')


@functools.cache
def _device_compiles(device_type: str) -> bool:
  """Whether XLA compiles for this kind of device, found out by trying once.

  tensorflow-tpu, for one, has no compiler for its host CPU.
  """
  with tf.init_scope(), tf.device(f'/device:{device_type}:0'):
    try:
      compiled(tf.identity, tf.zeros([]))
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
      logging.info('XLA does not compile for %s: %s', device_type, error)
      return False
  return True


def _device_types(x: tf.Tensor) -> set[str]:
  """The kinds of device on which `x` may be computed."""
  placed = tf.DeviceSpec.from_string(x.device or '').device_type
  if placed:
    return {placed}
  types = {device.device_type for device in tf.config.list_logical_devices()}
  return types & {'CPU', 'GPU', 'TPU'}


# (spec, dtype, channels): shapes that eager calls compile.
_compiled_shapes: dict[tuple, set[tuple]] = {}
# The same and a shape: elements that eager calls have brought, until then.
_eager_work: dict[tuple, int] = {}


def _worth_compiling(spec: Spec, x: tf.Tensor) -> bool:
  """Whether eager calls have brought the shape of `x` often enough.

  And not too many other shapes. What has been compiled stays so.
  """
  axes = {i for i in spec.gamma_axes if i} if spec.view is None else set()
  axes |= {at[0] for at in (spec.split, spec.view) if at}
  kind = spec, x.dtype, tuple(x.shape[i] for i in sorted(axes))
  shape = tuple(x.shape)
  shapes = _compiled_shapes.setdefault(kind, set())
  if shape in shapes:
    return True
  if len(shapes) >= _MOST_SHAPES:
    return False
  if len(_eager_work) >= _MOST_COUNTED:
    _eager_work.clear()  # Those that come often are soon back.
  work = _eager_work.get((kind, shape), 0) + math.prod(shape) + _CALL
  _eager_work[kind, shape] = work
  if work < _COMPILATION:
    return False
  shapes.add(shape)
  return True


def _runner(jit_compile: bool | str, spec: Spec, x: tf.Tensor) -> Callable:
  """`compiled` or `plain`, by the rules of `jit_compile`."""
  if jit_compile is False or _in_xla_trace() or _in_tpu_replica():
    return plain
  if jit_compile is True:
    return compiled
  # Each new shape costs a compilation, some 0.1 s for forward and backward; a
  # size unknown to the graph is one that changes. A new batch size is rare.
  if None in x.shape[1:]:
    return plain
  types = _device_types(x)
  if tf.executing_eagerly():
    worth = _worth_compiling(spec, x)
  else:
    size = x.shape.num_elements()
    worth = (
      types != {'CPU'}
      or size is None
      or (size not in _NO_GAIN.get(x.dtype.size, ()))
    )
  return compiled if worth and all(map(_device_compiles, types)) else plain


def _form(spec: Spec, run: Callable, x: tf.Tensor) -> Spec:
  """`spec`, with the platform whose XLA compiles what `run` runs."""
  platform = None
  if _in_tpu_replica():
    platform = 'TPU'
  elif run is compiled or _in_xla_trace():
    # Where there is a choice, TensorFlow takes the accelerator.
    types = _device_types(x)
    platform = next((t for t in ('TPU', 'GPU', 'CPU') if t in types), None)
  return dataclasses.replace(spec, platform=platform)


def _for_each_group(spec: Spec, axis: int, groups: int, gamma, beta):
  """`spec`, `gamma` and `beta`, these repeated where all groups share them."""
  spans, results = [], []
  for p, axes in ((gamma, spec.gamma_axes), (beta, spec.beta_axes)):
    if p is not None and axis not in axes:
      p = tf.tile(p, [*[1] * (len(axes) - 1), groups])
      axes = (*axes[:-1], axis, axis + 1)
    spans.append(axes)
    results.append(p)
  spec = dataclasses.replace(spec, gamma_axes=spans[0], beta_axes=spans[1])
  return spec, *results


@functools.partial(tf.function, autograph=False)
def _backward_of_backward(spec, arguments, mask, dy, upstream):
  """Gradients of `backward` with respect to `dy` and the given `arguments`.

  Rebuilt from `x` by differentiable ops, so that any order follows. A
  `tf.function` for its graph: a `ForwardAccumulator` at work stops the tapes
  that would do this eagerly, but not symbolic gradients.
  """
  # As op by op: slices would come back as a concatenation, whose own gradient
  # XLA does not compile inside a loop.
  spec = dataclasses.replace(spec, platform=None)
  wanted = [dy, *(t for t in arguments if t is not None)]
  with tf.GradientTape() as tape:
    tape.watch(wanted)
    first = backward(spec, *arguments, mask, None, dy)
    first = [t for t in first if t is not None]
  if tf.executing_eagerly():  # Only under `tf.config.run_functions_eagerly`.
    return tape.gradient(first, wanted, upstream)
  return tf.gradients(first, wanted, upstream)


def _differentiable(run, spec, mask, *arguments):
  """`forward` through `run`, with `backward` as its gradient, of any order."""
  given = [t is not None for t in arguments]
  masks = [] if mask is None else [mask]

  def fill(present):
    present = iter(present)
    return [next(present) if g else None for g in given]

  def only_mask(masks):
    return masks[0] if masks else None

  def hidden(*tensors):
    # From gradient tapes: one would differentiate `compiled` by itself, which
    # then returns, and keeps, every intermediate tensor. In a graph no tape
    # sees inside the function that this is part of.
    if not tf.executing_eagerly():
      return tensors
    return [None if t is None else tf.stop_gradient(t) for t in tensors]

  @tf.custom_gradient
  def first_order(dy, statistics, masks, *present):
    operands = hidden(*fill(present), only_mask(masks))
    gradients = run(backward, spec, *operands, hidden(*statistics), *hidden(dy))

    def second_order(*upstream):
      results = _backward_of_backward(
        spec, fill(present), only_mask(masks), dy, list(upstream)
      )
      nothing = [None for _ in (*statistics, *masks)]
      return [results[0], *nothing, *results[1:]]

    return [t for t in gradients if t is not None], second_order

  @tf.custom_gradient
  def zeroth_order(*present):
    operands = hidden(*fill(present), mask)
    y, statistics = run(forward, spec, *operands)
    # Their part is in `backward`. TensorFlow would derive them once more for
    # gradients of gradients, only to multiply by zero.
    statistics = [tf.stop_gradient(s) for s in statistics]

    def gradient(dy):
      # Copies, because the graph of a gradient's gradient can reach tensors of
      # the graph of the gradient, but not those one further out.
      copies = tf.nest.map_structure(tf.identity, (statistics, masks, *present))
      return first_order(dy, *copies)

    return y, gradient

  return zeroth_order(*(t for t in arguments if t is not None))


# In a graph it is a function of its own, into which tapes cannot see. Forward
# mode needs that too: TensorFlow ignores a custom gradient in the very graph
# where a `ForwardAccumulator` is at work. Eagerly it must not be one, because
# TensorFlow's gradients of functions are not thread-safe at the first call.
differentiable = tf.function(_differentiable, autograph=False)
differentiable._omit_frequent_tracing_warning = True


@tf.autograph.experimental.do_not_convert
def normalize(
  x: tf.Tensor,
  gamma: tf.Tensor | None = None,
  beta: tf.Tensor | None = None,
  *,
  spec: Spec,
  gate: tf.Tensor | None = None,
  mask: tf.Tensor | None = None,
  jit_compile: bool | str = 'auto',
) -> tf.Tensor:
  """Normalizes `x` as `spec` says, with a gradient of any order.

  Between forward and backward it keeps its arguments and the statistics of each
  group, no other tensor of the size of `x`.

  Args:
    x: A floating tensor of known rank.
    gamma: Scale, spanning `spec.gamma_axes`, or `None`.
    beta: Offset, spanning `spec.beta_axes`, or `None`.
    spec: What to do. Nothing is validated here; `functional` does that.
    gate: Shaped as `x`, or `None`.
    mask: bool, spanning `spec.mask_axes`, or `None`. Where it is False, `x` is
      not in the statistics, the result is 0 and so is the gradient.
    jit_compile: `True`: compiled by XLA; `False`: plain; `'auto'`: compiled
      where that works, no size but the batch's is unknown, and, in a graph for
      a CPU, `x` has not one of the few sizes that gain nothing; eagerly when a
      shape has come often enough. A function that is being saved stays plain,
      and so does one that is compiled as a whole.

  Returns:
    A tensor of the shape of `x`, and of its dtype unless `spec.wide`.
  """
  if _in_save_context():
    # A server without XLA must be able to run it, and a reloaded model to
    # differentiate it: ordinary ops with their ordinary gradients.
    y, _ = forward(spec, x, gamma, beta, gate, mask)
  else:
    run = _runner(jit_compile, spec, x)
    spec = _form(spec, run, x)
    lanes = _in_lanes(spec, x)
    if lanes:
      spec, gamma, beta = _for_each_group(spec, *lanes, gamma, beta)
    attach = _differentiable if tf.executing_eagerly() else differentiable
    y = attach(run, spec, mask, x, gamma, beta, gate)
  return y
