"""The kernel's arguments as tensors laid out, and what is summed over them.

All have the rank of x. A tensor is as large as x (elements), or has a number
for each channel, with size 1 on the reduced axes: both broadcast with each
other. Or it has a number for each group: on a split axis as many as there are
groups, and `spread` brings them to the channels.
"""

from __future__ import annotations

import functools
from typing import Any

from tfgroupnorm.kernel.activations import ACTIVATIONS
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.layout import Layout, divisor


def compute_dtype(dtype: xp.DType) -> xp.DType:
  """The dtype of all arithmetic on a tensor of `dtype`."""
  return xp.float64 if dtype == xp.float64 else xp.float32


class Operands:
  """The kernel's arguments, widened and laid out to broadcast with `x`.

  Attributes:
    layout: How they lie; `axes` and `epsilon` are those of its spec.
    groups: The way from channels to groups and back.
    dtype: Of all arithmetic.
    source: The caller's `x`.
    narrow: `x` laid out, but not widened. Parts of `x` are cut out of this: XLA
      would write out a wide copy of the whole.
    x: `x` laid out and widened, without what a mask hides from whole groups.
    gamma, beta, gate, mask: Laid out too, or `None`.
    counted: The mask where it leaves out some elements of a group; else `None`,
      as such a mask does not touch the group's statistics.
  """

  def __init__(self, form, sums, x, gamma, beta, gate, mask):
    self.layout: Layout = form.layout
    self._sums = sums
    spec = self.layout.spec
    self.axes, self.epsilon = spec.axes, spec.epsilon
    self.activation = ACTIVATIONS[spec.activation]
    self.gate_activation = ACTIVATIONS[spec.gate_activation]
    self.dtype = compute_dtype(x.dtype)
    self.groups = form.groups(form.layout)
    self.source = x
    self.narrow = self._reshaped(x)
    self.x = xp.astype(self.narrow, self.dtype)
    self.gamma = self._lay(gamma, spec.gamma_axes, self.dtype)
    self.beta = self._lay(beta, spec.beta_axes, self.dtype)
    self.mask = self._lay(mask, spec.mask_axes, xp.bool_)
    self.counted = self.mask if self.layout.partly_masked else None
    if self.counted is None:
      # Nor may what it hides stay in x: NaN would come back by gradients of
      # gradients.
      self.x = self.valid(self.x)
    self.gate = None if gate is None else self.valid(self.enter(gate))
    if self.counted is not None:
      # Here: XLA orders operations by when they were made.
      _ = self.channel_size

  @functools.cached_property
  def channel_size(self) -> xp.Array:
    """How many elements count in each channel; a scalar but for a mask."""
    return self._count(self.layout.dims, self.counted)

  def _reshaped(self, t: xp.Array) -> xp.Array:
    return xp.reshape(t, self.layout.dims) if self.layout.reshaped else t

  def enter(self, t: xp.Array) -> xp.Array:
    """A tensor shaped as the caller's `x` -> as the kernel sees it."""
    return xp.astype(self._reshaped(t), self.dtype)

  def leave(self, t: xp.Array, dtype: xp.DType) -> xp.Array:
    """Undoes `enter`; what the mask hides comes out as 0."""
    t = xp.astype(self.valid(t), dtype)
    return xp.reshape(t, xp.shape(self.source)) if self.layout.reshaped else t

  def _lay(self, p, axes, dtype):
    """Reshapes `p` to the rank of x: its sizes on `axes`, 1 elsewhere."""
    if p is None:
      return None
    dims = self.layout.dims
    last = tuple(range(len(dims) - len(axes), len(dims)))
    if self._sums.broadcasts and axes == last and xp.rank(p) == len(axes):
      return xp.astype(p, dtype)
    shape = [n if i in axes else 1 for i, n in enumerate(dims)]
    return xp.astype(xp.reshape(p, shape), dtype)

  # --- Masks ------------------------------------------------------------------

  def valid(self, t: xp.Array) -> xp.Array:
    """`t`, with zeros where the mask is False even if `t` is NaN there."""
    if self.mask is None:
      return t
    return xp.where(self.mask, t, xp.zeros([], t.dtype))

  def counted_only(self, t: xp.Array) -> xp.Array:
    """`valid`, where the mask leaves out some elements of a group."""
    return t if self.counted is None else self.valid(t)

  def size(self, t: xp.Array, counted: xp.Array | None = None) -> xp.Array:
    """How many elements one channel of `t`, laid out as `x`, has on `axes`.

    A scalar but for `counted`, the mask of what counts.
    """
    return self._count(xp.shape(t), counted)

  def _count(self, dims: list, counted: xp.Array | None) -> xp.Array:
    if counted is None:
      return divisor([dims[i] for i in self.axes], self.dtype)
    masked = [i for i in self.axes if i in self.layout.spec.mask_axes]
    free = [dims[i] for i in self.axes if i not in masked]
    counted = xp.sum(xp.astype(counted, self.dtype), masked, keepdims=True)
    # Where there is no valid position there are no statistics; 1 keeps them
    # finite.
    return xp.maximum(counted * divisor(free, self.dtype), 1)

  # --- Elements -> channels -> groups -> channels -----------------------------

  def add_up(self, *tensors: xp.Array) -> list[xp.Array]:
    """Sums over `axes`, of one tensor or two: elements -> channels."""
    return self._sums.add_up(tensors, self.axes)

  def mean(self, t: xp.Array) -> xp.Array:
    """E[t]: elements -> groups."""
    if self.counted is None:
      t = self._sums.mean(t, self.axes, lambda: self.channel_size)
    else:
      t = self.add_up(t)[0] / self.channel_size
    return self.groups.mean_of_channels(t)

  def spread(self, s: xp.Array) -> xp.Array:
    """Groups -> channels: the result broadcasts with `x`."""
    return self.groups.spread(s)

  def materialized(self, *tensors: xp.Array | None) -> list[xp.Array | None]:
    """Channels, before they are multiplied with elements or added to them."""
    given = [t for t in tensors if t is not None]
    made = iter(self.groups.materialized(given))
    return [None if t is None else next(made) for t in tensors]

  # --- gamma and beta ---------------------------------------------------------

  def times_gamma(self, t: xp.Array) -> xp.Array:
    return t if self.gamma is None else t * self.gamma

  def sums_for_parameters(self, for_gamma, for_beta) -> list[Any]:
    """Elements -> gamma, beta: over the axes that each does not span."""
    spec, layout = self.layout.spec, self.layout
    if spec.gamma_axes and spec.gamma_axes == spec.beta_axes:
      axes = layout.without(spec.gamma_axes)
      return self._sums.add_up((for_gamma, for_beta), axes)
    return [
      self._sums.add_up([t], layout.without(axes))[0] if axes else None
      for t, axes in (
        (for_gamma, spec.gamma_axes),
        (for_beta, spec.beta_axes),
      )
    ]

  def channels_to_parameters(self, for_gamma, for_beta) -> list[Any]:
    """Channels -> gamma, beta: their sums over what else each leaves out."""
    # XLA would make one sum of the two that are nested here, and one more pass
    # over x: it is shown another expression of beta's.
    for_beta = self._sums.opaque(for_beta)
    spec = self.layout.spec
    return [
      xp.sum(t, self.layout.without(axes)) if axes else None
      for t, axes in (
        (for_gamma, spec.gamma_axes),
        (for_beta, spec.beta_axes),
      )
    ]


def like(p: xp.Array | None, gradient: Any) -> xp.Array | None:
  """`gradient` in the shape and dtype of the parameter `p`."""
  if p is None:
    return None
  return xp.astype(xp.reshape(gradient, xp.shape(p)), p.dtype)
