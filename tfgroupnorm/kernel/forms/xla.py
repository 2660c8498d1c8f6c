"""What keeps XLA from sharing work, or from doing it again, on any platform."""

from __future__ import annotations

from tfgroupnorm.kernel.framework import xp


def opaque(t: xp.Array) -> xp.Array:
  """`t`; but XLA does not see that."""
  return xp.maximum(t, -xp.abs(t))


def _zero(t: xp.Array, dtype: xp.DType) -> xp.Array:
  """0, of which XLA sees only that it is made of `t`."""
  first = xp.reshape(t, [-1])[:1]
  return xp.sum(xp.floor(xp.astype(first != 0, dtype) * 0.5))


def after(t: xp.Array, other: xp.Array) -> xp.Array:
  """`t`, but not before `other` is there: `t + 0`, by a zero made of `other`.

  Keeps XLA from sharing work on `t` between the forward and the backward pass
  of one compiled step, for which it writes a tensor of the size of `t` between
  them.
  """
  return t + _zero(other, t.dtype)


def small_after(t: xp.Array, other: xp.Array) -> xp.Array:
  """`after`, for a small `t`: by a barrier, where the framework has one.

  It makes `t` a result of its own, which costs a pass if that is large.
  """
  if xp.barrier is None:
    return after(t, other)
  return xp.barrier((t, other))[0]


def materialized(t: xp.Array) -> xp.Array:
  """A small `t`, as a result of its own: `t / 1`, by a one made of `t`.

  XLA:CPU computes what is cheap again for each element that uses it, but not a
  quotient.
  """
  return t / (_zero(t, t.dtype) + 1)
