"""What the kernel does to a tensor, known before it sees one."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
  """What the kernel does to a tensor `x`, known before it sees one.

  Hashable and compared by value, so that one trace serves one (spec, dtypes,
  shapes). `slots` leaves no room for weak references, without which
  `tf.function` keys its cache on the value, not on an object that may be gone.

  Attributes:
    axes: Axes of `x` reduced as a whole, ascending.
    split: `(axis, groups)`: each of `groups` equal runs along this axis is
      reduced together with `axes`. `None`: no axis is split.
    view: `(axis, groups)`: before anything else this axis, of size C, becomes
      two, `(groups, C / groups)`; all other attributes speak of the result.
      `None`: `x` is taken as it is.
    gamma_axes: Axes of `x` that `gamma` spans, ascending; empty: no `gamma`.
    beta_axes: The same for `beta`.
    mask_axes: The same for `mask`; never the split axis.
    epsilon: Added to the variance, inside the root.
    rms: Statistics about zero instead of about the mean.
    activation: A name in `activations.ACTIVATIONS`, or `None`.
    gate_activation: The same for the gate.
    wide: Leave the result in the dtype of the computation.
    platform: Whose XLA compiles this, a name in `forms.PLATFORMS`. `None`: it
      runs op by op, or for a device that has no form.
      `'quantizable'`: op by op, in programs that round each tensor to 8 or 16
      bits.
  """

  axes: tuple[int, ...]
  split: tuple[int, int] | None = None
  view: tuple[int, int] | None = None
  gamma_axes: tuple[int, ...] = ()
  beta_axes: tuple[int, ...] = ()
  mask_axes: tuple[int, ...] = ()
  epsilon: float
  rms: bool = False
  activation: str | None = None
  gate_activation: str | None = None
  wide: bool = False
  platform: str | None = None
