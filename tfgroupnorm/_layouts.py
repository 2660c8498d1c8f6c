"""Where groups and parameters lie in a shape: what the four norms differ in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

from tfgroupnorm import _checks, kernel
from tfgroupnorm._checks import Shape


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a normalization finds its groups and parameters in a given shape.

  Attributes:
    spec: The kernel's description, without parameters and options.
    parameter_shape: Shape of `gamma` and `beta`.
    parameter_axes: Where they lie, in the terms of `spec`.
    position_axes: Axes of the input that a mask may span, in order.
  """

  spec: kernel.Spec
  parameter_shape: tuple[int, ...]
  parameter_axes: tuple[int, ...]
  position_axes: tuple[int, ...]

  def group_size(self, shape: Shape) -> int | None:
    """How many values of `shape` a group holds; `None` if it is not known."""
    sizes, spec = list(shape), self.spec
    if spec.view is not None:
      axis, groups = spec.view
      size = _checks.check_size(shape, axis, 'channels')
      sizes[axis : axis + 1] = [groups, size // groups]
    spanned = [sizes[i] for i in spec.axes]
    if spec.split is not None:
      axis, groups = spec.split
      spanned.append(_checks.check_size(shape, axis, 'channels') // groups)
    known = [n for n in spanned if n is not None]
    return math.prod(known) if len(known) == len(spanned) else None


def group_layout(
  shape: Shape,
  *,
  groups: int = _checks.DEFAULT_GROUPS,
  group_size: int | None = None,
  axis: int = -1,
) -> Layout:
  """Layout of group normalization; arguments as for `group_norm`."""
  groups, group_size = _checks.check_groups(groups, group_size)
  axis = _checks.check_channel_axis(axis)
  _checks.check_rank(shape, 2, 'Group normalization')
  axis = _checks.check_axis_of(shape, axis, 'axis')
  channels = _checks.check_size(shape, axis, 'channels')
  groups = _checks.check_division(channels, groups, group_size)
  spatial = tuple(i for i in range(1, len(shape)) if i != axis)
  parameter_axes: tuple[int, ...] = (axis,)
  split = view = None
  if groups == 1:
    axes = tuple(sorted((*spatial, axis)))
  elif groups == channels:
    axes = spatial
  elif spatial:
    axes, split = spatial, (axis, groups)
  else:
    axes, view, parameter_axes = (axis + 1,), (axis, groups), (axis, axis + 1)
  return Layout(
    spec=kernel.Spec(axes=axes, split=split, view=view, epsilon=1.0),
    parameter_shape=(channels,),
    parameter_axes=parameter_axes,
    position_axes=(0, *spatial),
  )


def layer_layout(shape: Shape, *, axis: int | Sequence[int] = -1) -> Layout:
  """Layout of layer normalization; arguments as for `layer_norm`."""
  axis = _checks.check_axis(axis)
  _checks.check_rank(shape, 2, 'Layer normalization')
  axes = _checks.check_distinct_axes(
    shape, axis if isinstance(axis, tuple) else (axis,)
  )
  return Layout(
    spec=kernel.Spec(axes=axes, epsilon=1.0),
    parameter_shape=tuple(
      _checks.check_size(shape, i, 'features on a normalized axis')
      for i in axes
    ),
    parameter_axes=axes,
    position_axes=tuple(range(len(shape))),
  )


def head_layout(
  shape: Shape,
  *,
  num_heads: int | None = None,
  head_axis: int | None = None,
  per_head: bool = True,
) -> Layout:
  """Layout of head normalization; `per_head`: parameters for each head."""
  num_heads, head_axis = _checks.check_heads(num_heads, head_axis)
  per_head = _checks.check_bool('per_head', per_head)
  if head_axis is None:
    # `check_heads` lets only one of the two be None.
    return _flat_heads(shape, cast(int, num_heads), per_head)
  _checks.check_rank(shape, 3, 'Head normalization with `head_axis`')
  axis = _checks.check_head_axis_of(shape, head_axis, num_heads)
  last = len(shape) - 1
  features = _checks.check_size(shape, last, 'features')
  parameter_shape: tuple[int, ...] = (features,)
  if per_head:
    heads = num_heads or _checks.check_size(shape, axis, 'heads')
    parameter_shape = (heads, features)
  return Layout(
    spec=kernel.Spec(axes=(last,), epsilon=1.0),
    parameter_shape=parameter_shape,
    parameter_axes=(axis, last) if per_head else (last,),
    position_axes=tuple(i for i in range(last) if i != axis),
  )


def _flat_heads(shape: Shape, heads: int, per_head: bool) -> Layout:
  """Layout of heads that share the last axis."""
  _checks.check_rank(shape, 2, 'Head normalization')
  last = len(shape) - 1
  size = _checks.check_size(shape, last, 'features')
  features = _checks.check_equal_heads(size, heads)
  return Layout(
    spec=kernel.Spec(axes=(last + 1,), view=(last, heads), epsilon=1.0),
    parameter_shape=(size,) if per_head else (features,),
    parameter_axes=(last, last + 1) if per_head else (last + 1,),
    position_axes=tuple(range(last)),
  )
