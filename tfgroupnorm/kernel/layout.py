"""Where groups, parameters and masks lie in a tensor: sizes, no tensors.

Three ways to lay out the caller's `x` before anything is computed: as it is or
with an axis cut in two (`viewed`), and with neighbouring axes made one
(`merged`). Forms may have others.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.spec import Spec

# Longest row that is read twice for its statistics: it stays in the cache.
_ROW = 8192


@dataclasses.dataclass(frozen=True)
class Layout:
  """How `x` lies before the kernel.

  Attributes:
    spec: What to do, in the terms of `dims`.
    dims: Sizes, each an int, or a scalar tensor where a graph does not know it.
    dtype: Of `x`.
    reshaped: Whether these are other sizes than the caller's.
  """

  spec: Spec
  dims: list[Any]
  dtype: xp.DType
  reshaped: bool = False

  @property
  def partly_masked(self) -> bool:
    """Whether a mask leaves out some elements of a group, and not all."""
    return not set(self.spec.mask_axes).isdisjoint(self.spec.axes)

  @property
  def per_channel(self) -> bool:
    """Whether gamma and beta are constant along the reduced axes."""
    spans = self.spec.gamma_axes + self.spec.beta_axes
    return set(spans).isdisjoint(self.spec.axes)

  @property
  def groups_are_rows(self) -> bool:
    """Whether each group is a row of memory, and not too long a one."""
    size = self.dims[-1]
    return (
      self.spec.axes == (len(self.dims) - 1,)
      and self.spec.split is None
      and not self.partly_masked
      and isinstance(size, int)
      and 0 < size <= _ROW
    )

  def without(self, axes) -> list[int]:
    """The axes that are not among `axes`."""
    return [i for i in range(len(self.dims)) if i not in axes]

  def moved(self, place: Callable[[int], int], **changes) -> Spec:
    """`spec` with axis i at `place(i)`."""

    def places(axes):
      return tuple(sorted({place(i) for i in axes}))

    spec = self.spec
    changes = {
      'split': (place(spec.split[0]), spec.split[1]) if spec.split else None,
      'axes': places(spec.axes),
      'gamma_axes': places(spec.gamma_axes),
      'beta_axes': places(spec.beta_axes),
      'mask_axes': places(spec.mask_axes),
      **changes,
    }
    return dataclasses.replace(spec, **changes)


def viewed(layout: Layout) -> Layout:
  """`x` with the axis of `spec.view`, if any, cut in two."""
  if layout.spec.view is None:
    return layout
  dims = cut(layout.dims, *layout.spec.view)
  return dataclasses.replace(layout, dims=dims, reshaped=True)


def merged(layout: Layout) -> Layout:
  """The same with neighbouring axes of one kind made one axis."""
  layout = viewed(layout)
  spec = layout.spec
  alone = spec.split[0] if spec.split else None
  kinds = [
    (
      i == alone,
      i in spec.axes,
      i in spec.gamma_axes,
      i in spec.beta_axes,
      i in spec.mask_axes,
    )
    for i in range(len(layout.dims))
  ]
  place: list[int] = []
  dims: list[Any] = []
  for i, n in enumerate(layout.dims):
    if i and kinds[i] == kinds[i - 1]:
      dims[-1] = dims[-1] * n
    else:
      dims.append(n)
    place.append(len(dims) - 1)
  return Layout(
    spec=layout.moved(place.__getitem__, view=None),
    dims=dims,
    dtype=layout.dtype,
    reshaped=layout.reshaped or len(dims) < len(place),
  )


def cut(dims: list[Any], axis: int, groups: int) -> list[Any]:
  """(..., C, ...) -> (..., groups, C / groups, ...)."""
  return [*dims[:axis], groups, dims[axis] // groups, *dims[axis + 1 :]]


def divisor(dims: list[Any], dtype: xp.DType) -> xp.Array:
  """How many elements `dims` hold, at least 1, so that it can be divided by.

  As a float: it does not overflow where an int32 would.
  """
  known = math.prod(n for n in dims if isinstance(n, int))
  unknown = [n for n in dims if not isinstance(n, int)]
  if not unknown:
    return xp.asarray(max(known, 1), dtype)
  factors = (xp.astype(n, dtype) for n in unknown)
  product = functools.reduce(xp.multiply, factors, xp.asarray(known, dtype))
  return xp.maximum(product, 1)


class Grouping:
  """How channels form groups: the way to these, back, and on to elements."""

  def materialized(self, tensors: list[xp.Array]) -> list[xp.Array]:
    """Tensors of channels, of one shape, before they meet elements.

    A platform may materialize them, lest its compiler make them again for each
    element.
    """
    return tensors


class Alone(Grouping):
  """Each channel is a group by itself."""

  def mean_of_channels(self, t: xp.Array) -> xp.Array:
    """Channels -> groups, by their mean; all have the same size."""
    return t

  def first(self, t: xp.Array) -> xp.Array:
    """Channels -> groups, by the first of each."""
    return t

  def spread(self, s: xp.Array) -> xp.Array:
    """Groups -> channels: the result broadcasts with x."""
    return s


class SideBySide(Grouping):
  """Groups of adjacent channels.

  The big tensor is not reshaped into groups: sums are taken per channel and
  channels are combined on that small result, which spares a TPU a relayout.
  """

  def __init__(self, axis: int, groups: int, size: int):
    self.axis, self.groups, self.size = axis, groups, size

  def _apart(self, t: xp.Array) -> xp.Array:
    return xp.reshape(t, cut(xp.shape(t), self.axis, self.groups))

  def mean_of_channels(self, t: xp.Array) -> xp.Array:
    """Channels -> groups, by their mean; all have the same size."""
    # Divided first: dividing their sum would be one more kernel on a TPU.
    quotients = self._apart(t) / divisor([self.size], t.dtype)
    return xp.sum(quotients, self.axis + 1)

  def first(self, t: xp.Array) -> xp.Array:
    """Channels -> groups, by the first of each."""
    return xp.take(self._apart(t), 0, self.axis + 1)

  def spread(self, s: xp.Array) -> xp.Array:
    """Groups -> channels: the result broadcasts with x."""
    axis, dims = self.axis, xp.shape(s)
    # A function that repeats elements takes ten times as long eagerly, a third
    # of a small call.
    multiples = [1] * (len(dims) + 1)
    multiples[axis + 1] = self.size
    s = xp.tile(xp.expand_dims(s, axis + 1), multiples)
    return xp.reshape(
      s, [*dims[:axis], self.groups * self.size, *dims[axis + 1 :]]
    )


def groups(
  layout: Layout, side_by_side: type[SideBySide] = SideBySide
) -> Grouping:
  """The way from channels to groups and back, in `layout`."""
  if layout.spec.split is None:
    return Alone()
  axis, number = layout.spec.split
  return side_by_side(axis, number, layout.dims[axis] // number)
