"""Orders of computation that keep all digits of x, on any platform.

Each overrides some steps of the textbook's, `formula.Order`. Where a mean is
subtracted it is as an unevaluated sum, k and what is left of it,

    xhat = ((x - k) - rest) * rstd

with k a value near the mean. For x near k the difference x - k is exact, so
nothing is lost where float32 cannot hold the mean: at mean 1e4 and deviation
1e-2, rounding the mean to float32 moves the result by 5e-2. In exact arithmetic
the result does not depend on k: no gradient goes through it.
"""

from __future__ import annotations

from tfgroupnorm.kernel import near
from tfgroupnorm.kernel.formula import Order
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.layout import SideBySide
from tfgroupnorm.kernel.line import Line
from tfgroupnorm.kernel.operands import Operands


class TwoPass(Order):
  """The mean first, then the squares of what is left: for groups in a row.

  Reads x twice for its statistics, which a row that is in the cache does not
  notice. Statistics: (k, rest, rstd), of a group each.
  """

  def element(self, o: Operands) -> xp.Array:
    """An element of each row, which one outlier does not decide."""
    return near.middle_one(*near.three_of_row(o))

  def statistics(self, o: Operands):
    k = o.valid(near.clipped(xp.stop_gradient(self.element(o))))
    d = o.x - k
    rest = near.bounded(o.mean(d))
    d -= rest
    return (k, rest, xp.rsqrt(o.mean(d * d) + o.epsilon)), d

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    k, rest, rstd = statistics
    # What the squares were taken of. An offset would be one more pass.
    return Line(o.valid((x - k) - rest if d is None else d), rstd)


class OnePass(Order):
  """Both sums at once, of x - k: reads x once, whatever its size.

  Statistics: (k, rest, rstd), the first two of a channel, rstd of a group.
  Channels are combined on small tensors, so that what passes over x sees one
  number for each of them.

  References:
    - Chan, Golub & LeVeque, 1983, Algorithms for computing the sample variance
  """

  def value_near(self, o: Operands) -> xp.Array:
    """k: for each channel a value near its mean."""
    if o.counted is not None:
      return near.clamped_mean(o, *near.fullest_part(o))
    return near.element_and_mean(o, near.part(o))

  def mean_and_square(self, o: Operands, d) -> list[xp.Array]:
    """Of `d` and of its squares: elements -> channels."""
    return [t / o.channel_size for t in o.add_up(d, d * d)]

  def statistics(self, o: Operands):
    k = xp.stop_gradient(self.value_near(o))
    if o.counted is None:
      k = o.valid(k)
    d = o.x - k
    delta, square = self.mean_and_square(o, o.counted_only(d))
    return self.combined(o, k, delta, square), d

  def combined(self, o: Operands, k, delta, square) -> tuple:
    """Statistics of the groups, from those of their channels."""
    delta, var = rest_and_variance(delta, square)
    away, var = self.of_groups(o, k, delta, var)
    rstd = xp.rsqrt(var + o.epsilon)
    return k, delta if away is None else delta - away, rstd

  def of_groups(self, o: Operands, k, delta, var) -> tuple:
    """How far a channel's mean is from its group's, and a group's variance."""
    if not isinstance(o.groups, SideBySide):
      return None, var
    # Means as distances from one number of the group; the variance between.
    mean = delta + (k - o.spread(o.groups.first(k)))
    away = mean - o.spread(o.groups.mean_of_channels(mean))
    return away, o.groups.mean_of_channels(var + away * away)

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    k, rest, rstd = statistics
    scale = o.spread(rstd)
    offset = -rest * scale
    return Line(o.valid(x - k if d is None else d), scale, offset)


class Moments(OnePass):
  """Mean and variance themselves, for each channel those of its group."""

  def combined(self, o: Operands, k, delta, square) -> tuple:
    _, var = rest_and_variance(delta, square)
    away, var = self.of_groups(o, k, delta, var)
    rest = delta if away is None else delta - away
    return k + rest, o.spread(var)


def rest_and_variance(rest: xp.Array, square: xp.Array) -> tuple:
  """The mean of x - k, and the variance, from that of squares too.

  Where squares overflow the variance is infinite, so that xhat is 0 if all else
  is finite: the sum for the mean may not be.
  """
  var = xp.maximum(square - rest * rest, 0)
  return near.bounded(rest), xp.where(xp.isinf(square), square, var)
