"""Forms: how each platform's compiler wants the maths, chosen once.

A form is a layout of x, an order of computation (`orders.py`, or a platform's
own) and the sums of the platform, which its order holds. A new platform is a
file beside these and a line in `_PLATFORMS`.

References to what each platform's compiler does, and what that cost, stand in
its file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tfgroupnorm.kernel import layout as layouts
from tfgroupnorm.kernel import orders
from tfgroupnorm.kernel.forms import cpu, gpu, lanes, plain, tpu
from tfgroupnorm.kernel.formula import Order
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.layout import Layout
from tfgroupnorm.kernel.spec import Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Platform:
  """The forms of one platform.

  Attributes:
    lay_out: How it wants x.
    about_zero: The order for RMS statistics.
    rows: The order where each group is a row of memory.
    others: The order for all other groups.
    groups: The way from channels to groups and back.
    parameters: (spec, gamma, beta) -> these as it wants them.
  """

  lay_out: Callable[[Layout], Layout] = layouts.viewed
  about_zero: Order
  rows: Order
  others: Order
  groups: Callable[[Layout], Any] = layouts.groups
  parameters: Callable[..., tuple] = lambda *given: given


def _in_lanes(one_pass: Order) -> Platform:
  return Platform(
    lay_out=lanes.side_by_side,
    about_zero=lanes.AboutZero(),
    rows=one_pass,
    others=one_pass,
    groups=lanes.Lanes,
    parameters=lanes.repeated,
  )


_PLATFORMS = {
  None: Platform(
    about_zero=orders.AboutZero(plain.SUMS),
    rows=orders.TwoPass(plain.ROWS),
    others=orders.OnePass(plain.SUMS),
  ),
  'CPU': Platform(
    lay_out=layouts.merged,
    about_zero=orders.AboutZero(cpu.SUMS),
    rows=cpu.TwoPass(cpu.SUMS),
    others=orders.OnePass(cpu.SUMS),
  ),
  'GPU': Platform(
    about_zero=gpu.AboutZero(gpu.SUMS),
    rows=gpu.Chain(gpu.SUMS),
    others=gpu.TwoSigns(gpu.SUMS),
  ),
  'TPU': Platform(
    about_zero=orders.AboutZero(tpu.SUMS),
    rows=tpu.OnePass(tpu.SUMS),
    others=tpu.OnePass(tpu.SUMS),
  ),
  'TPU, lanes': _in_lanes(lanes.OnePass()),
  'TPU, lanes of bfloat16': _in_lanes(lanes.OfBfloat16()),
}


def _platform(layout: Layout) -> Platform:
  name = layout.spec.platform
  if name == 'TPU' and lanes.fit(layout):
    narrow = layout.dtype == xp.bfloat16
    name = 'TPU, lanes of bfloat16' if narrow else 'TPU, lanes'
  return _PLATFORMS[name]


@dataclasses.dataclass(frozen=True)
class Form:
  """How x lies and in which order to compute, for one call."""

  layout: Layout
  order: Order
  groups: Callable[[Layout], Any]


def choose(spec: Spec, x: xp.Array) -> Form:
  """The form for `x`, by the platform and by how its groups lie."""
  layout = Layout(spec, xp.shape(x), x.dtype)
  platform = _platform(layout)
  layout = platform.lay_out(layout)
  if spec.rms:
    order = platform.about_zero
  else:
    order = platform.rows if layout.groups_are_rows else platform.others
  return Form(layout, order, platform.groups)


def parameters(spec: Spec, x: xp.Array, gamma, beta) -> tuple[Spec, Any, Any]:
  """`gamma` and `beta` as the form for `x` wants them, and their spec."""
  layout = Layout(spec, list(x.shape), x.dtype)
  return _platform(layout).parameters(spec, gamma, beta)
