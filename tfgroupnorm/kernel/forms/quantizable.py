"""For programs that round activations to 8 or 16 bits, as LiteRT does.

Such a program finds out, from a few samples, between which bounds each tensor
lies, and rounds it to steps between these. So what `orders.py` does for the
last digits does harm:

  - A part of x, the least of some of its elements and the like must have the
    bounds of x, and x then gets theirs: what lies beyond is cut off.
  - A sum in 16 bits is cut off at the bounds of what is summed; a mean is not.
  - Each small tensor on the way is one more rounding.

The textbook's order, by means, has no more of these than it must: with three
convolutions, GroupNorm and ReLU on digits, logits are off by 0.03 of their
deviation in 8 bits, as with the layers of Keras, and not by 0.4.
"""

from __future__ import annotations

from tfgroupnorm.kernel.forms.sums import Sums
from tfgroupnorm.kernel.formula import AboutZero, Order
from tfgroupnorm.kernel.framework import xp


class _Means(Sums):
  def mean(self, t, axes, size):
    if all(t.shape[i] for i in axes):
      return xp.mean(t, axes, keepdims=True)
    return super().mean(t, axes, size)  # A mean of nothing is NaN.


SUMS = _Means()
ABOUT_ZERO, OTHERS = AboutZero(SUMS), Order(SUMS)
