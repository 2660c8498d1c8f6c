"""For XLA:CPU, which vectorizes elementwise work and few reductions.

It computes the sum of an expression one number at a time, four times as slowly,
or writes the expression out; two sums of one tensor are two passes; loops over
four axes take half as long again as over three; and what is made of small
tensors it computes again for each element that uses it. So:

  - neighbouring axes are made one (`layout.merged`),
  - columns are added up slice to slice, which is elementwise work, and two of
    them as one tensor of complex numbers,
  - rows are added up by a product with ones,
  - and small tensors are materialized (`xla.materialized`).

Group norm (16,56,56,256) takes 5.9 ms forward so, and 23.8 ms as Keras has it,
compiled.
All bounds below are those of a CPU with two cores.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

from tfgroupnorm.kernel import layout as layouts
from tfgroupnorm.kernel import near, orders
from tfgroupnorm.kernel.forms import xla
from tfgroupnorm.kernel.forms.sums import Sums
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.operands import Operands

# Most slices of a sum: 8 take half the time of 4, and 16 more time than 8.
_SLICES = 8

# Fewest rows in a slice of whose sum XLA:CPU makes a loop of its own.
_SLICE_ROWS = 33

# Lengths of columns that XLA:CPU adds up faster in two passes of numbers than
# in one of complex numbers, which it does not always vectorize: a step of
# 16 x 60 x 1024 takes 1.8 ms, not 5.1; of 16 x 100 x 2048 7.9, not 10.8.
_TWO_SUMS = range(56, 5 * _SLICE_ROWS)

# Longest row that is summed fastest as a product with ones: up to there XLA:CPU
# fuses into it what is summed.
_PRODUCT = 3968

# Pieces into which longer rows are cut, if they are a power of two.
_PIECE = 512

# Longest row whose sum LLVM reorders.
_SHORT = 64


class TwoPass(orders.TwoPass):
  """The mean first, with an element that XLA:CPU does not pick again."""

  def element(self, o: Operands) -> xp.Array:
    """max(min(a, b), min(c, d)) of four elements: no outlier, if one is.

    By reductions: what these bring XLA keeps, else it picks anew for each
    element of the row. In rows of 3, 5, 6 and 9 a low outlier in the middle
    decides it. There it does no harm: in a short row it is most of the
    deviation.
    """
    few = near.elements_of_row(o, None, None, -(-o.layout.dims[-1] // 4))
    half = -(-few.shape[-1] // 2)
    pairs = xp.stack([few[..., :half], few[..., -half:]], -1)
    return xp.max(xp.min(pairs, -1), -1, keepdims=True)


class OnePass(orders.OnePass):
  """Both sums at once, of x less a materialized k."""

  def value_near(self, o: Operands) -> xp.Array:
    """XLA:CPU would compute k again in the loops of the sums and of y.

    GroupNorm (16,56,56,256) in bfloat16 takes 3.7 ms forward so, and not 5.6.
    """
    return xla.materialized(super().value_near(o))


class _SideBySide(layouts.SideBySide):
  """Groups of adjacent channels, looked up once for each channel."""

  def materialized(self, tensors: list[xp.Array]) -> list[xp.Array]:
    """XLA:CPU would look up the group of each element.

    Of (4,64,64,320) a step takes 5.4 ms so, and not 10.2; forward alone, where
    it would compute all that is made of the sums again, (16,56,56,256) 6 ms,
    and not 31.
    """
    together = xla.materialized(xp.stack(tensors, 0))
    return [together[i] for i in range(len(tensors))]


groups = functools.partial(layouts.groups, side_by_side=_SideBySide)


def _add_up(tensors, axes: Sequence[int]) -> list[xp.Array]:
  """Sums with the axes kept, of one tensor or two."""
  if not axes:
    return list(tensors)
  sizes = [tensors[0].shape[i] for i in axes]
  length = 0 if None in sizes else math.prod(sizes)  # 0 if it is unknown, too.
  last = list(axes) == list(range(axes[0], len(tensors[0].shape)))
  if last and None not in sizes:
    return _row_sums(tensors, axes[0], length)
  if len(tensors) == 1 or length in _TWO_SUMS:
    return [_column_sum(t, axes) for t in tensors]
  # As one complex tensor: XLA:CPU gives each reduction a pass of its own.
  both = _column_sum(xp.join_complex(*tensors), axes)
  return [xp.real(both), xp.imag(both)]


SUMS = Sums(add_up=_add_up, opaque=xla.opaque)


# --- Columns -----------------------------------------------------------------


def _column_sum(t: xp.Array, axes: Sequence[int]) -> xp.Array:
  """Sums over any axes, kept."""
  dims = xp.shape(t)
  ones = [1 if i in axes else n for i, n in enumerate(dims)]
  first, last = axes[0], axes[-1]
  sizes = t.shape[first : last + 1]
  if len(sizes) == len(axes) and None not in list(sizes):
    t = xp.reshape(t, [*dims[:first], math.prod(sizes), *dims[last + 1 :]])
    axes = [first]
  return xp.reshape(_folded_sum(t, axes), ones)


def _folded_sum(t: xp.Array, axes: Sequence[int]) -> xp.Array:
  """`xp.sum(t, axes)`, of slices of one of `axes`.

  The shorter chains of additions are more exact besides.
  """
  axis = next((i for i in axes if (t.shape[i] or 0) >= 4), None)
  if axis is None:
    return xp.sum(t, axes)
  length = t.shape[axis]
  count = min(length, _SLICES)
  if 10 <= length // count < _SLICE_ROWS:
    # Of so few rows a sum is one expression with that of the slices, which is
    # not vectorized: 5.9 ms for 16 x 196 x 1024, 2.2 with slices of 39 rows.
    count = length // _SLICE_ROWS
  size, rest = divmod(length, count)
  slices = xp.split(t, [size] * count + [rest] * (rest > 0), axis)
  sum_ = xp.sum(functools.reduce(xp.add, slices[:count]), axes)
  return sum_ + xp.sum(slices[-1], axes) if rest else sum_


# --- Rows --------------------------------------------------------------------


def _row_sums(tensors, first: int, length: int) -> list[xp.Array]:
  """Sums over axes `first` to last, `length` elements, kept."""
  before = xp.shape(tensors[0])[:first]
  after = [1] * (len(tensors[0].shape) - first)
  rows = functools.reduce(operator.mul, before, 1)
  flat = [xp.reshape(t, [rows, length]) for t in tensors]
  if length > _PRODUCT and len(flat) == 2:
    both = _folded_sum(xp.join_complex(*flat), [1])
    sums = [xp.real(both), xp.imag(both)]
  else:
    sums = [_row_sum(t) for t in flat]
  return [xp.reshape(t, [*before, *after]) for t in sums]


def _row_sum(t: xp.Array) -> xp.Array:
  """(rows, length) -> (rows).

  Of 4096 squares, in ms and in relative error: 1.3 and 3e-7 by products with
  pieces of a row, which XLA fuses if there is a power of two of them; 3.1 and
  8e-6 with all of it; 2.4 and 5e-7 folded.
  """
  length = t.shape[1]
  if length > _PIECE and not length & (length - 1):
    pieces = _row_sum(xp.reshape(t, [-1, _PIECE]))
    return xp.sum(xp.reshape(pieces, [-1, length // _PIECE]), 1)
  if length > _PRODUCT:
    return _folded_sum(t, [1])
  if length <= _SHORT:
    # Short sums of a difference take twice as long where LLVM changes the order
    # of their additions: 2.0 ms for 98304 of 64, not 0.9.
    t = xla.opaque(t)
  return xp.matvec(t, xp.ones([length], t.dtype))
