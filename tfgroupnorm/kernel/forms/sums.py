"""How a compiler wants numbers added up: what each platform says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfgroupnorm.kernel.framework import xp


def add_up(tensors: Sequence[xp.Array], axes: Sequence[int]) -> list[xp.Array]:
  return [xp.sum(t, axes, keepdims=True) for t in tensors]


def as_it_is(t: xp.Array) -> xp.Array:
  return t


@dataclasses.dataclass(frozen=True)
class Sums:
  """How a platform adds up tensors as large as x; small ones are just summed.

  By default as the framework has it.

  Attributes:
    add_up: (tensors, axes) -> sums with the axes kept. One tensor or two, which
      a platform may add up together.
    opaque: t -> t, which the compiler does not see to be the same.
    broadcasts: Whether gamma and beta on the last axes of x may come without
      the axes before these.
  """

  add_up: Callable[[Sequence[xp.Array], Sequence[int]], Any] = add_up
  opaque: Callable[[xp.Array], xp.Array] = as_it_is
  broadcasts: bool = False

  def mean(self, t: xp.Array, axes: Sequence[int], size: Callable) -> xp.Array:
    """Of `size()` elements on `axes`, which are kept."""
    return self.add_up([t], axes)[0] / size()
