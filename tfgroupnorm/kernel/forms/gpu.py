"""For XLA:GPU, which writes out what two kernels share.

Memory traffic is all that counts there; T is the size of x. What it does with
sums, and what that cost, by the counts of `benchmarks/xla_cost.py` on an H100:

  - A long column of a reduction it pads and copies in pieces: more traffic than
    all the rest. Here it is added up in two stages (`SUMS`).
  - An x - k that several kernels want it writes out for all of them: a step
    moves 10 to 12 T, not 8. So x - k is made twice, of either sign
    (`TwoSigns`), and for the gradient once more from x (`_Remakes`).
  - Several reductions in sequence, each of what the last one left, become one
    kernel that holds a row in registers: 2 T forward, not 4 (`Chain`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from tfgroupnorm.kernel import formula, near, orders
from tfgroupnorm.kernel.forms import xla
from tfgroupnorm.kernel.forms.sums import Sums
from tfgroupnorm.kernel.formula import Cotangents, Order
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.line import Line
from tfgroupnorm.kernel.operands import Operands

# Longest column that is added up in one stage: of the two sums of masked
# columns of 784 it makes two passes.
_COLUMN = 256

# Longest piece of a column in two stages: it pads and copies columns of 4096,
# depending on how many there are.
_PIECE = 800


def _staged(reduce: Callable, t: xp.Array, axes: Sequence[int]) -> xp.Array:
  """`reduce(t, axes, keepdims=True)`, in two stages where a column is long."""
  if not axes:
    return t
  dims = list(t.shape)
  first, last = axes[0], axes[-1]
  size = [dims[i] for i in axes]
  column = last < len(dims) - 1 and len(size) == last - first + 1
  if column and None not in dims:
    length = math.prod(size)
    pieces = next(
      (n for n in range(2, length) if not length % n and length // n <= _PIECE),
      1,
    )
    if length > _COLUMN and pieces > 1:
      before, after = dims[:first], dims[last + 1 :]
      t = xp.reshape(t, [*before, pieces, length // pieces, *after])
      # The factor between the stages keeps XLA from making one of the two.
      t = reduce(t, first + 1, keepdims=True) / 2
      t = reduce(t, first, keepdims=True) * 2
      return xp.reshape(t, [*before, *[1] * len(size), *after])
  return reduce(t, axes, keepdims=True)


SUMS = Sums(
  add_up=lambda tensors, axes: [_staged(xp.sum, t, axes) for t in tensors],
  extreme=_staged,
  opaque=xla.opaque,
)


class _Remakes(Order):
  """xhat from x again, behind dy: what the sums made of x is dearer to read."""

  def remake(self, back: Cotangents) -> Cotangents:
    x = xla.after(back.o.x, back.dy)
    xhat = self.xhat(back.o, x, back.statistics)
    return dataclasses.replace(back, xhat=xhat)


class AboutZero(_Remakes, formula.AboutZero):
  """RMS normalization with x read again for its gradient."""


class _Reversed(Line):
  """A line of k - x: its scale is negative."""

  @property
  def rstd(self):
    return -self.scale


class TwoSigns(_Remakes, orders.OnePass):
  """Both sums at once, the mean's of x - k, that of squares of k - x."""

  def differences(self, x, k):
    return x - k, k - x

  def statistics(self, o: Operands):
    statistics, _ = super().statistics(o)
    return statistics, None  # k - x is made again where it is wanted.

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    line = super().xhat(o, x, statistics, d)
    return _Reversed(line.d, -line.scale, line.offset)


class Chain(orders.TwoPass):
  """A row by reductions one after the other, in one kernel.

  It keeps nothing: returned statistics would break the kernel into five. The
  gradient's sums take their own, by one pass over x, and dx the chain again.
  """

  def _chain(self, o: Operands, x: xp.Array) -> tuple[xp.Array, xp.Array]:
    """`(xhat, rstd)`.

    The mean is taken as an element plus the mean distance to it, which is exact
    for equal numbers; a largest one is found by a reduction, as the rest is.
    """
    largest = xp.max(x, o.axes, keepdims=True)
    d = x - (largest + o.mean(x - largest))
    d -= o.mean(d)
    rstd = xp.rsqrt(o.mean(d * d) + o.epsilon)
    return d * rstd, rstd

  def standardize(self, o: Operands):
    return Line(self._chain(o, o.x)[0]), ()

  def statistics(self, o: Operands):
    k = o.valid(xp.stop_gradient(_near_mean(o)))
    rest, square = orders.of_quotients(o, o.x - k, k - o.x)
    var = orders.variance(rest, square)
    return (k, rest, xp.rsqrt(var + o.epsilon)), None

  def dx(self, back: Cotangents, means):
    o = back.o
    xhat, rstd = self._chain(o, xla.after(o.x, back.dy))
    dxhat = dataclasses.replace(back, xhat=Line(xhat)).dxhat
    return (dxhat - o.mean(dxhat) - xhat * o.mean(dxhat * xhat)) * rstd


def _near_mean(o: Operands) -> xp.Array:
  """For each row a value near its mean; a hint will do for sums."""
  if o.layout.spec.view is None:
    return near.element_and_mean(o, near.part(o))
  # Cut out before x is laid out: XLA:GPU reads all of a tensor of another shape
  # for a part of it. A step of heads of 64 moves 8.20 times the size of x, and
  # 8.26 times if a reduction finds the middle of the two.
  axis, _ = o.layout.spec.view
  before, size = [slice(None)] * axis, o.layout.dims[axis + 1]
  a, b = (o.source[(*before, slice(i, None, size))] for i in (0, size // 2))
  a, b = (xp.astype(xp.expand_dims(t, axis + 1), o.dtype) for t in (a, b))
  return a / 2 + b / 2
