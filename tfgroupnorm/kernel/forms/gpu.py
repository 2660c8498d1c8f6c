"""For XLA:GPU, which writes out what two kernels share.

Memory traffic is all that counts there; T is the size of x. What it does with
sums, and what that cost on an H100, by the counts of `benchmarks/xla_cost.py`,
above all of blocks of networks:

  - A long column of a reduction it pads and copies in pieces: more traffic than
    all the rest. Here it is added up in two stages (`SUMS`).
  - It may write out what two reductions read, above all in bfloat16: a step of
    a U-Net's block then moves 85 T, not 65; or, if in the statistics alone, one
    of a whole ResNet-50 4.0 GB, not 3.6. So one reduction of complex numbers
    adds up two tensors (`_sums`). Not timed: by its source XLA loads what makes
    complex numbers one by one.
  - The same goes for an x - k that both passes read: for the gradient it is
    made once more from x (`_Remakes`).
  - Several reductions in sequence, each of what the last one left, become one
    kernel that holds a row in registers: 2 T forward, not 4 (`Chain`).
  - What has more axes than a matrix it may transpose between products of
    matrices (`lay_out`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tfgroupnorm.kernel import formula, near, orders
from tfgroupnorm.kernel import layout as layouts
from tfgroupnorm.kernel.forms import xla
from tfgroupnorm.kernel.forms.sums import Sums
from tfgroupnorm.kernel.formula import Cotangents, Order
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.layout import Layout
from tfgroupnorm.kernel.line import Line
from tfgroupnorm.kernel.operands import Operands

# Longest column, or piece of one, that is added up in one stage: it pads and
# copies columns of 4096, depending on how many there are.
_COLUMN = 800


def _sums(tensors: Sequence[xp.Array], axes: Sequence[int]) -> list[xp.Array]:
  """Of one tensor or two, by one reduction: complex numbers hold two.

  Not of float64, whose complex numbers XLA writes out: 14 T forward, not 8.
  """
  if len(tensors) == 1 or tensors[0].dtype == xp.float64:
    return [xp.sum(t, axes, keepdims=True) for t in tensors]
  both = xp.sum(xp.join_complex(*tensors), axes, keepdims=True)
  return [xp.real(both), xp.imag(both)]


def _add_up(tensors: Sequence[xp.Array], axes: Sequence[int]) -> list[xp.Array]:
  """Sums with the axes kept, in two stages where a column is long."""
  if not axes:
    return list(tensors)
  dims = list(tensors[0].shape)
  first, last = axes[0], axes[-1]
  size = [dims[i] for i in axes]
  column = last < len(dims) - 1 and len(size) == last - first + 1
  if column and all(isinstance(n, int) for n in dims):
    length = math.prod(size)
    divisors = (n for n in range(1, length) if not length % n)
    pieces = next((n for n in divisors if length // n <= _COLUMN), 1)
    if pieces > 1:
      before, after = dims[:first], dims[last + 1 :]
      cut = [*before, pieces, length // pieces, *after]
      # The factor between the stages keeps XLA from making one of the two.
      parts = _sums([xp.reshape(t, cut) for t in tensors], [first + 1])
      whole = _sums([t / 2 for t in parts], [first])
      kept = [*before, *[1] * len(size), *after]
      return [xp.reshape(t * 2, kept) for t in whole]
  return _sums(tensors, axes)


SUMS = Sums(add_up=_add_up, opaque=xla.opaque)


def lay_out(layout: Layout) -> Layout:
  """Neighbouring axes made one where groups are rows, else as it comes.

  Products of matrices return two axes, and transpose what has more. Between the
  projections of queries and keys and their product, a step of heads moves 7 T
  so and 23 T with four axes.
  """
  rows = layouts.merged(layout)
  return rows if rows.groups_are_rows else layouts.viewed(layout)


class _Remakes(Order):
  """xhat from x again, behind dy: what the sums made of x is dearer to read."""

  def remake(self, back: Cotangents) -> Cotangents:
    x = xla.after(back.o.x, back.dy)
    xhat = self.xhat(back.o, x, back.statistics)
    return dataclasses.replace(back, xhat=xhat)


class _Rows(_Remakes):
  """Both means and dx of the same x made again: one kernel."""

  def dx(self, back: Cotangents, means):
    return super().dx(super().remake(back), means)

  def remake(self, back: Cotangents) -> Cotangents:
    return back


class AboutZero(_Rows, formula.AboutZero):
  """RMS normalization with x read again for its gradient."""


class OnePass(_Remakes, orders.OnePass):
  """Both sums at once, and x - k made again for the gradient."""


class Chain(_Rows, orders.TwoPass):
  """A row by reductions one after the other, in one kernel.

  It keeps nothing: returned statistics would break the kernel into five. The
  gradient takes its own, by one pass over x.
  """

  def standardize(self, o: Operands):
    """The mean is taken as an element plus the mean distance to it.

    Which is exact for equal numbers; a largest one is found by a reduction, as
    the rest is. Should it be an outlier, the rest is still found to its digits.
    """
    largest = near.clipped(xp.max(o.x, o.axes, keepdims=True))
    d = o.x - near.bounded(largest + o.mean(o.x - largest))
    d -= near.bounded(o.mean(d))
    return Line(d, xp.rsqrt(o.mean(d * d) + o.epsilon)), ()

  def statistics(self, o: Operands):
    k = o.valid(xp.stop_gradient(near.element_and_mean(o, near.part(o))))
    d, size = o.x - k, o.channel_size
    # Divided first: dividing their sums would be one more kernel.
    means = o.add_up(d / size, d * (d / size))
    rest, var = orders.rest_and_variance(*means)
    return (k, rest, xp.rsqrt(var + o.epsilon)), None
