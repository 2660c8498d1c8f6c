"""For XLA:TPU, to which each small kernel costs 1.8 kilocycles.

A reduction is fused with whatever is made of x on the way, so that least and
largest cost nothing beside a sum; but what is done to a small result is a
kernel of its own. So sums are divided by their count before they are taken, and
k is the mean of a part kept between its extremes, which needs no element picked
apart.

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

  mean_and_square = staticmethod(orders.of_quotients)

  def value_near(self, o: Operands) -> xp.Array:
    if o.counted is None:
      return near.clamped_mean(o, xp.astype(near.part(o), o.dtype))
    axis = near.masked_axis(o)
    if o.layout.spec.mask_axes[:axis] != tuple(range(axis)):
      # It copies what it picks from, unless that lies together: channels first,
      # 1660 kilocycles for (16,256,56,56), and 770 with all of it.
      return near.clamped_mean(o, o.x, o.counted)
    return super().value_near(o)
