"""For XLA:TPU, to which each small kernel costs 1.8 kilocycles.

A reduction is fused with whatever is made of x on the way, so that least and
largest cost nothing beside a sum; but what is done to a small result is a
kernel of its own. So k is the mean of a part kept between its extremes, or of
bfloat16 in that precision, which needs no element picked apart; and squares are
divided by their count before they are added up.

Heads side by side on the last axis have a form of their own, `lanes.py`.
"""

from __future__ import annotations

from tfgroupnorm.kernel import near, orders
from tfgroupnorm.kernel.forms import xla
from tfgroupnorm.kernel.forms.sums import Sums
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.operands import Operands

SUMS = Sums(opaque=xla.opaque)


class OnePass(orders.OnePass):
  """Both sums at once, with few small kernels."""

  def mean_and_square(self, o: Operands, d):
    # Not d too: beside a convolution whose images it cuts into pieces, XLA
    # would write out the quotients: 5000 kilocycles forward through a U-Net's
    # blocks, not 4100.
    sum_, square = o.add_up(d, d * (d / o.channel_size))
    return [sum_ / o.channel_size, square]

  def value_near(self, o: Operands) -> xp.Array:
    if o.counted is None:
      some = xp.astype(near.part(o), o.dtype)
      if o.narrow.dtype != xp.bfloat16:
        return near.clamped_mean(o, some)
      # Of equal ones it is their value.
      (mean,) = o.add_up(some / o.size(some))
      return near.clipped(xp.to_8_bits(mean))
    axis = near.masked_axis(o)
    if o.layout.spec.mask_axes[:axis] != tuple(range(axis)):
      # It copies what it picks from, unless that lies together: channels first,
      # 1660 kilocycles for (16,256,56,56), and 770 with all of it.
      return near.clamped_mean(o, o.x, o.counted)
    return super().value_near(o)
