"""Values near the mean of a channel, found without reading all of it.

A k from here is equal to the channel if that is constant, so that a constant
input gives exactly beta, and not far off whatever the values are.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.operands import Operands

# One part in 16 of an axis, in 31 where that does not divide it, gives a first
# estimate of the mean. Whatever the values are, it is then off by at most
# sqrt(31) standard deviations, and the variance loses at most 5 of its 24 bits.
_SAMPLING = 16


# --- Beside the largest numbers ----------------------------------------------
#
# Where squares of deviations overflow, rstd is 0, and so is xhat if what it is
# multiplied by is finite. So it must be, without a pass over x to see to it.


def _most(t: xp.Array) -> float:
  """Taken from any finite number, it leaves one: the largest rounds to itself.

  Numbers with a mean beyond it are equal, or their last digits so large that
  squares of these overflow.
  """
  return xp.largest_number(t.dtype) ** 0.75


def clipped(k: xp.Array) -> xp.Array:
  """`k`, so that x - k is finite."""
  return xp.clip(k, -_most(k), _most(k))


def bounded(mean: xp.Array) -> xp.Array:
  """`mean`, likewise; or 0, also where it is NaN because sums overflow.

  If it is because x has NaN, rstd is NaN too. `clipped` leaves NaN, but costs a
  TPU no kernel of its own.
  """
  zero = xp.zeros([], mean.dtype)
  return xp.where(xp.abs(mean) <= _most(mean), mean, zero)


# --- From a part of each channel ---------------------------------------------


def part(o: Operands) -> xp.Array:
  """One part in `_SAMPLING` of `x` as it came, along its first long axis.

  Where all are short, one element along the first.
  """
  sizes = o.narrow.shape
  places = [slice(None)] * len(sizes)
  long = [i for i in o.axes if sizes[i] is None or sizes[i] >= _SAMPLING]
  axis = next((i for i in [*long, *o.axes] if sizes[i] != 1), None)
  if axis is not None:
    length = o.layout.dims[axis]
    # An unknown size may be a small one.
    least = max if isinstance(length, int) else xp.maximum
    places[axis] = slice(0, least(length // _SAMPLING, 1))
  # No more: a graph of unknown sizes has two nodes for each.
  return o.narrow[tuple(places[: (axis or 0) + 1])]


def element_and_mean(o: Operands, some: xp.Array) -> xp.Array:
  """The mean of a part, as an element plus the average difference from it.

  These are exact zeros if the channel is constant.
  """
  one, wide = (xp.astype(t, o.dtype) for t in (first(o, some), some))
  return clipped(one + bounded(o.add_up(wide - one)[0] / o.size(wide)))


def first(o: Operands, t: xp.Array) -> xp.Array:
  """The first element of each channel; 0 where there is none."""
  rank = len(t.shape)
  one = t[tuple(slice(0, 1 if i in o.axes else None) for i in range(rank))]
  if all(t.shape[i] for i in o.axes):
    return one
  # An unknown size may be 0.
  return xp.sum(one, o.axes, keepdims=True)


def clamped_mean(o: Operands, x: xp.Array, counted=None) -> xp.Array:
  """The mean of each channel of `x`, exact if all that counts is equal.

  A sum of equal numbers is off by rounding errors; between their least and
  their largest the mean is not. On a TPU these two cost nothing beside a sum.
  """
  low = high = x
  zero = xp.zeros([], o.dtype)
  if counted is not None:
    limit = xp.asarray(xp.largest_number(o.dtype), o.dtype)
    low, high = xp.where(counted, x, limit), xp.where(counted, x, -limit)
    x = xp.where(counted, x, zero)
  (mean,) = o.add_up(x / o.size(x, counted))
  low = xp.min(low, o.axes, keepdims=True)
  high = xp.max(high, o.axes, keepdims=True)
  mean = clipped(xp.minimum(xp.maximum(mean, low), high))
  if counted is None and all(x.shape[i] for i in o.axes):
    return mean
  return xp.where(low > high, zero, mean)  # Of nothing it is 0.


# --- From the part that a mask leaves fullest --------------------------------


def masked_axis(o: Operands) -> int:
  """The first axis along which a mask leaves out some of a group."""
  return next(i for i in o.layout.spec.mask_axes if i in o.axes)


def fullest_part(o: Operands) -> tuple[xp.Array, xp.Array]:
  """One part in `_SAMPLING` of `x`, and which of it the mask leaves in.

  Of each sample the part with most of its valid positions: at least their
  share, wherever the padding is.
  """
  axis, mask = masked_axis(o), o.layout.spec.mask_axes
  if not all(i in o.axes for i in mask if i > axis):
    # Later positions are not reduced: the fullest part may differ among them.
    return o.x, o.counted
  dims, counted = o.layout.dims, xp.shape(o.counted)
  before, length = dims[:axis], dims[axis]
  samples = functools.reduce(operator.mul, before, 1)
  # The last of the parts may overlap.
  size = (length + _SAMPLING - 1) // _SAMPLING
  begins = xp.minimum(xp.arange(_SAMPLING) * size, length - size)
  places = begins[:, None] + xp.arange(size)
  share = _share(o.counted, places, axis)
  fullest = xp.take(places, xp.argmax(share, -1))
  fullest = xp.reshape(
    xp.broadcast_to(fullest, [*before, size]), [samples, size]
  )

  def cut_out(t: xp.Array, after: Sequence) -> xp.Array:
    t = xp.reshape(t, [samples, length, *after])
    return xp.reshape(xp.take_each(t, fullest), [*before, size, *after])

  valid = xp.broadcast_to(o.counted, [*before, *counted[axis:]])
  x = cut_out(o.narrow, dims[axis + 1 :])
  valid = cut_out(valid, counted[axis + 1 :])
  return xp.astype(x, o.dtype), valid


def _share(counted: xp.Array, places: xp.Array, axis: int) -> xp.Array:
  """How many positions count in each of the parts of `axis`."""
  counted = xp.astype(counted, xp.int32)
  counted = xp.sum(counted, list(range(axis + 1, len(counted.shape))))
  return xp.sum(xp.take(counted, places, axis), -1)


# --- From single elements of a row -------------------------------------------


def elements_of_row(o: Operands, *which: int | None) -> xp.Array:
  """Elements `slice(*which)` of each row."""
  every = [slice(None)] * (len(o.narrow.shape) - 1)
  return xp.astype(o.narrow[(*every, slice(*which))], o.dtype)


def three_of_row(o: Operands) -> list[xp.Array]:
  """The first element of each row, one in the middle, and the last."""
  size = o.layout.dims[-1]
  return [elements_of_row(o, i, i + 1) for i in (0, size // 2, size - 1)]


def middle_one(a: xp.Array, b: xp.Array, c: xp.Array) -> xp.Array:
  """That of three which is between the others: no outlier, if one is."""
  return xp.maximum(xp.minimum(a, b), xp.minimum(xp.maximum(a, b), c))
