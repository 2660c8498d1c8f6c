"""What devices have of an array, where its type says so.

Under `shard_map` that is over which axes of the mesh it differs, in a mesh with
explicit axes how it is cut. How JAX notes it has changed between its versions.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType

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
  """Shape, dtype and what devices have of it, of a type of JAX'."""
  if kind.sharding.mesh.empty:
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype)
  noted = {'sharding': kind.sharding, **_noted(kind)}
  return jax.ShapeDtypeStruct(kind.shape, kind.dtype, **noted)


def explicit(x: jax.Array) -> bool:
  """Whether each operation on `x` must say how its result is cut."""
  return AxisType.Explicit in (jax.typeof(x).sharding.mesh.axis_types or ())


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
