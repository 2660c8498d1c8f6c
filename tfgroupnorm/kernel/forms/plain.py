"""Op by op, uncompiled: each operation is one pass over memory.

So fewer operations on large tensors count, and exactness: the framework adds up
a row from its first element to its last. In two stages a sum of 8000 squares is
off by 4e-7 of it, in one by 3e-6.

And each operation costs a microsecond or two, however small: of (1,7,7,512)
that is most of the time. So small tensors get a mean, one operation where a sum
and its division are three; a size that the graph does not know it need not find
out; and with a k for each group channels need not be brought together first.
"""

from __future__ import annotations

import functools

from tfgroupnorm.kernel import layout as layouts
from tfgroupnorm.kernel import near, orders
from tfgroupnorm.kernel.forms.sums import Sums, add_up
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.layout import SideBySide
from tfgroupnorm.kernel.line import Line
from tfgroupnorm.kernel.operands import Operands

# Shortest row that is added up in two stages, and most pieces of it.
_LONG, _PIECES = 1024, 16


def _row_sum(t: xp.Array) -> xp.Array:
  """Sums over the last axis, in two stages if it is long."""
  *before, length = xp.shape(t)
  pieces = max(n for n in range(1, _PIECES + 1) if length % n == 0)
  if length >= _LONG and pieces > 1:
    t = xp.reshape(t, [*before, pieces, length // pieces])
    t = xp.sum(t, -1)
  return xp.sum(t, -1, keepdims=True)


def _rows(tensors, axes) -> list[xp.Array]:
  if tuple(axes) == (len(tensors[0].shape) - 1,):
    return [_row_sum(t) for t in tensors]
  return add_up(tensors, axes)


SUMS = Sums(broadcasts=True)
# Where groups are rows.
ROWS = Sums(add_up=_rows, broadcasts=True)


class _SideBySide(SideBySide):
  def mean_of_channels(self, t: xp.Array) -> xp.Array:
    return xp.mean(self._apart(t), self.axis + 1)


groups = functools.partial(layouts.groups, side_by_side=_SideBySide)


class OnePass(orders.OnePass):
  """About one k for each group, unless a mask leaves out some of it.

  Statistics: (k, rest, rstd), of a group each.
  """

  def statistics(self, o: Operands):
    if o.counted is not None:
      return super().statistics(o)
    k = o.valid(xp.stop_gradient(_near_group(o)))
    d = o.x - o.spread(k)
    rest, square = o.mean(d), o.mean(d * d)
    # As `orders.rest_and_variance`, by fewer operations; on a GPU XLA makes one
    # more kernel of these.
    rest = xp.where(xp.isinf(square), xp.zeros([], o.dtype), rest)
    var = xp.maximum(square - rest * rest, 0)
    return (k, rest, xp.rsqrt(var + o.epsilon)), d

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    if o.counted is not None:
      return super().xhat(o, x, statistics, d)
    k, rest, rstd = statistics
    d = x - o.spread(k) if d is None else d
    return Line(o.valid(d), o.spread(rstd), o.spread(-rest * rstd))


def _near_group(o: Operands) -> xp.Array:
  """The mean of a part of each group, as an element plus what is left."""
  some = xp.astype(near.part(o), o.dtype)
  first = o.groups.first(near.first(o, some))
  rest = xp.mean(some - o.spread(first), o.axes, keepdims=True)
  return near.bounded(first + o.groups.mean_of_channels(rest))
