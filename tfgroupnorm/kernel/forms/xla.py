"""What keeps XLA from sharing work, on whatever platform."""

from __future__ import annotations

from tfgroupnorm.kernel.framework import xp


def opaque(t: xp.Array) -> xp.Array:
  """`t`; but XLA does not see that."""
  return xp.maximum(t, -xp.abs(t))


def after(t: xp.Array, other: xp.Array) -> xp.Array:
  """`t`, but not before `other` is there: `t + 0`, by a zero made of `other`.

  Keeps XLA from sharing work on `t` between the forward and the backward pass
  of one compiled step, for which it writes a tensor of the size of `t` between
  them. XLA does not see that the number is always zero.
  """
  first = xp.reshape(other, [-1])[:1]
  zero = xp.floor(xp.astype(first != 0, t.dtype) * 0.5)
  return t + xp.sum(zero)


def small_after(t: xp.Array, other: xp.Array) -> xp.Array:
  """`after`, for a small `t`: by a barrier, where the framework has one.

  It makes `t` a result of its own, which costs a pass if that is large.
  """
  if xp.barrier is None:
    return after(t, other)
  return xp.barrier((t, other))[0]
