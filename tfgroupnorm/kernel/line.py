"""A tensor as large as x, written as d * scale + offset."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tfgroupnorm.kernel.framework import xp


def _times(t, factor):
  return t if factor is None else t * factor


def _plus(t, other):
  return t if other is None else t + other


def scaled(sum_with_d: xp.Array, scale: xp.Array) -> xp.Array:
  """Their product; 0 where squares of d overflow, and so may the sum."""
  return xp.where(scale == 0, xp.zeros([], scale.dtype), sum_with_d * scale)


@dataclasses.dataclass(frozen=True)
class Line:
  """d * scale + offset, of which only `d` is as large as x.

  What can be done to `scale` and `offset` costs no pass over x. Either may be
  `None`: then it is left out.
  """

  d: xp.Array
  scale: Any = None
  offset: Any = None

  @functools.cached_property
  def value(self) -> xp.Array:
    return _plus(_times(self.d, self.scale), self.offset)

  def affine(self, gamma, beta) -> Line:
    """gamma * line + beta, again a line; both are small tensors or `None`."""
    scale, offset = self.scale, self.offset
    if gamma is not None:
      scale = gamma if scale is None else scale * gamma
      offset = None if offset is None else offset * gamma
    if beta is not None:
      offset = beta if offset is None else offset + beta
    return dataclasses.replace(self, scale=scale, offset=offset)

  def sum_of_products(self, sum_, sum_with_d) -> xp.Array:
    """sum(t * line) for any t, from sum(t) and sum(t * d)."""
    product = scaled(sum_with_d, self.scale)
    return product if self.offset is None else product + sum_ * self.offset
