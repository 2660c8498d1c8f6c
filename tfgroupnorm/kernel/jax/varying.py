"""Under `shard_map`: over which axes of the mesh an array differs.

JAX notes it in the type of an array, and how has changed between its versions.
"""

from __future__ import annotations

from typing import Any

import jax

Axes = frozenset


def _noted(kind: Any) -> dict[str, Any]:
  for name in ('manual_axis_type', 'vma'):
    if hasattr(kind, name):
      return {name: getattr(kind, name)}
  return {}


def _axes(kind: Any) -> Axes:
  for noted in _noted(kind).values():
    return getattr(noted, 'varying', noted)
  return Axes()


def struct(kind: Any) -> jax.ShapeDtypeStruct:
  """Shape, dtype and axes of a type of JAX'."""
  if not _axes(kind):
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype)
  noted = {'sharding': kind.sharding, **_noted(kind)}
  return jax.ShapeDtypeStruct(kind.shape, kind.dtype, **noted)


def alike(operands: list[Any]) -> list[Any]:
  """All of them as different on each device, over the axes of any.

  What JAX does for a sum of two, it cannot do for an operation of ours.
  """
  own = [Axes() if t is None else _axes(jax.typeof(t)) for t in operands]
  axes = Axes().union(*own)
  if not axes:
    return operands
  return [
    t if t is None else _cast(t, axes - has)
    for t, has in zip(operands, own, strict=True)
  ]


def _cast(t: jax.Array, axes: Axes) -> jax.Array:
  if not axes:
    return t
  if hasattr(jax.lax, 'pcast'):
    return jax.lax.pcast(t, tuple(axes), to='varying')
  return jax.lax.pvary(t, tuple(axes))
