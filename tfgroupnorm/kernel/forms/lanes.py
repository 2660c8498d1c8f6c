"""For XLA:TPU, heads side by side on the last axis: sums by products.

A TPU adds up along its registers' lanes only with effort, and half fills them
with heads of 64 features on an axis of their own. Here a product with a matrix
of zeros and ones adds up the features of each head, and its transpose brings a
number of a head back to each of them: 460 kilocycles forward on a v5e, not 740;
1040 with heads of 256 features, not 5000.

TensorFlow's products round their operands to bfloat16 on a TPU, to 8 bits. So
they are cut into pieces: three hold a float32, two of them 16 bits. NaN in
one group reaches the others of its row, by 0 * NaN.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfgroupnorm.kernel import near, orders
from tfgroupnorm.kernel.forms import tpu, xla
from tfgroupnorm.kernel.formula import Cotangents, Order
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.layout import Grouping, Layout
from tfgroupnorm.kernel.line import Line, scaled
from tfgroupnorm.kernel.operands import Operands
from tfgroupnorm.kernel.spec import Spec

# Most groups that are added up by products: a matrix has a column for each.
_MOST_GROUPS = 256


# --- How x lies --------------------------------------------------------------


def fit(layout: Layout) -> bool:
  """Whether the groups of a view lie on the last axis, and not too many."""
  spec, last = layout.spec, len(layout.dims) - 1
  if spec.view is None or layout.dtype == xp.float64:
    return False
  axis, groups = spec.view
  return (
    axis == last
    and spec.axes == (axis + 1,)
    and 1 < groups <= min(_MOST_GROUPS, layout.dims[axis] // 2)
  )


def side_by_side(layout: Layout) -> Layout:
  """`x` as it is, where `fit`: its last axis is split, and none reduced."""
  axis = len(layout.dims) - 1
  spec = layout.moved(
    lambda i: min(i, axis), view=None, split=layout.spec.view, axes=()
  )
  return dataclasses.replace(layout, spec=spec)


def repeated(spec: Spec, gamma, beta) -> tuple[Spec, Any, Any]:
  """`gamma` and `beta` repeated where all groups share them, where `fit`."""
  axis, groups = spec.view  # type: ignore[misc]
  spans, results = [], []
  for p, axes in ((gamma, spec.gamma_axes), (beta, spec.beta_axes)):
    if p is not None and axis not in axes:
      p = xp.tile(p, [*[1] * (len(axes) - 1), groups])
      axes = (*axes[:-1], axis, axis + 1)
    spans.append(axes)
    results.append(p)
  spec = dataclasses.replace(spec, gamma_axes=spans[0], beta_axes=spans[1])
  return spec, *results


# --- Channels <-> groups, by products ----------------------------------------


class Lanes(Grouping):
  """The way from the features of each head to one number for it, and back."""

  def __init__(self, layout: Layout):
    axis, self.groups = layout.spec.split  # type: ignore[misc]
    self.size = layout.dims[axis] // self.groups
    # On the device: constants of this size would swell every graph.
    self._channel = xp.arange(self.groups * self.size)[:, None]
    of_group = self._channel // self.size == xp.arange(self.groups)
    self._of_group = xp.astype(of_group, xp.float32)

  def _product(self, t, matrix, number):
    return xp.add_all(
      [xp.tensordot(piece, matrix, 1) for piece in pieces(t, number)]
    )

  def mean_of_channels(self, t: xp.Array, number: int = 2) -> xp.Array:
    """Channels -> groups, by their mean, from a `number` of pieces.

    Two are enough for squares and gradients: what they leave out is random.
    """
    # What is infinite in one group would make the others NaN.
    t = xp.clip(t, -3e38, 3e38)
    return self._product(t, self._of_group, number) / self.size

  def mean_square(self, t: xp.Array) -> xp.Array:
    """Of the squares: infinite again where one of them was."""
    mean = self.mean_of_channels(t * t)
    return xp.where(mean > 2.9e38 / self.size, math.inf, mean)

  def three_of_each(self, t: xp.Array) -> list[xp.Array]:
    """(..., groups * size) -> 3 elements of each group, (..., groups) each."""
    begin = self.size * xp.arange(self.groups)
    places = [begin, begin + self.size // 2, begin + self.size - 1]
    matrix = xp.astype(self._channel == xp.concatenate(places, 0), xp.float32)
    # The largest numbers would be rounded to infinity.
    t = xp.clip(t, -3.38e38, 3.38e38)
    return xp.split(self._product(t, matrix, 3), 3, -1)

  def spread(self, s: xp.Array) -> xp.Array:
    """Groups -> channels: (..., groups) -> (..., groups * size)."""
    # All pieces in one product, not side by side by a concatenation: XLA takes
    # the product of one apart, and writes out each part.
    three = pieces(xp.concatenate([s] * 3, -1), 3)
    place = xp.arange(3 * self.groups) // self.groups
    side_by_side = xp.add_all(
      [t * xp.astype(place == i, t.dtype) for i, t in enumerate(three)]
    )
    matrix = xp.tile(xp.transpose(self._of_group), [3, 1])
    return xp.tensordot(side_by_side, matrix, 1)


def pieces(t: xp.Array, number: int) -> list[xp.Array]:
  """A `number` of tensors that add up to `t`, all but the last of 8 bits."""
  result = []
  for _ in range(number - 1):
    result.append(xp.to_8_bits(t))
    t -= result[-1]
  return [*result, t]


# --- Orders of computation ---------------------------------------------------


class _InLanes(Order):
  """What the orders below share: statistics wait for dy, dx by products."""

  def __init__(self):
    super().__init__(tpu.SUMS)

  def wait(self, statistics, dy):
    # XLA shares products: it would keep x - k from the forward pass.
    return tuple(xla.small_after(s, dy) for s in statistics)

  def sums_of_gradients(self, back: Cotangents):
    xhat = back.xhat.value
    return *back.o.sums_for_parameters(back.dz * xhat, back.dz), None

  def dx(self, back: Cotangents, means):
    o, xhat, scale = back.o, back.xhat.value, back.xhat.scale
    mean_xhat = o.mean(back.dxhat * xhat)
    dx = back.dxhat - xhat * o.spread(mean_xhat) - o.spread(o.mean(back.dxhat))
    # Spread again, not kept, where there is an offset: a step of heads takes a
    # v5e 1650 kilocycles, not 1730. Kept where there is none, in bfloat16:
    # 1070, not 1190.
    if back.xhat.offset is not None:
      scale = o.spread(xla.small_after(back.statistics[-1], mean_xhat))
    return dx * scale


class AboutZero(_InLanes):
  """RMS normalization."""

  def statistics(self, o: Operands):
    return (xp.rsqrt(o.groups.mean_square(o.x) + o.epsilon),), None

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    (rstd,) = statistics
    return Line(o.valid(x), o.spread(rstd))

  def dx(self, back: Cotangents, means):
    # Of x, and not of xhat: 675 kilocycles for a step on a v5e, not 804.
    o, (rstd,), scale = back.o, back.statistics, back.xhat.scale
    mean_xhat = scaled(o.mean(back.dxhat * back.xhat.d), rstd)
    return (back.dxhat - back.xhat.d * o.spread(rstd * mean_xhat)) * scale


class OfBfloat16(_InLanes):
  """The textbook's order: float32 holds the mean of bfloat16 values.

  To 1e-4 of a deviation, and that of equal ones exactly; so there is no k, one
  tensor less to spread.
  """

  def statistics(self, o: Operands):
    mean = near.bounded(o.groups.mean_of_channels(o.x, 1))
    d = o.x - o.spread(mean)
    return (mean, xp.rsqrt(o.groups.mean_square(d) + o.epsilon)), d


class OnePass(_InLanes):
  """About one element of each head; k, rest and rstd belong to a head."""

  def statistics(self, o: Operands):
    k = near.middle_one(*o.groups.three_of_each(o.x))
    k = near.clipped(xp.stop_gradient(k))
    d = o.x - o.spread(k)
    rest, var = orders.rest_and_variance(
      o.groups.mean_of_channels(d, 3), o.groups.mean_square(d)
    )
    return (k, rest, xp.rsqrt(var + o.epsilon)), d

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    k, rest, rstd = statistics
    scale, offset = o.spread(rstd), o.spread(-rest * rstd)
    d = x - o.spread(k) if d is None else d
    return Line(o.valid(d), scale, offset)
