"""Forms: how each platform's compiler wants the maths, chosen once.

A form is a layout of x, an order of computation (of `formula.py`, `orders.py`
or a platform's own) and the sums of the platform, which its order holds.
`plain.py`, `cpu.py`, `ynn.py`, `gpu.py` and `tpu.py` have what is a platform's
own, and what its compiler does that asks for it; `lanes.py` is a TPU's form for
heads, `quantizable.py` one for programs that round activations to integers,
`sums.py` what a platform says of its sums, `xla.py` what serves all that XLA
compiles for.

A new platform is a file beside these and an entry in `_FORMS`.
`tests/form_textbook_test.py` makes one of the textbook's order and plain sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tfgroupnorm.kernel import formula, orders
from tfgroupnorm.kernel import layout as layouts
from tfgroupnorm.kernel.forms import (
  cpu,
  gpu,
  lanes,
  plain,
  quantizable,
  tpu,
  ynn,
)
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


# By platform, in the order in which a framework that has several takes them.
_FORMS: dict[str | None, Platform] = {
  'TPU': Platform(
    about_zero=formula.AboutZero(tpu.SUMS),
    rows=tpu.OnePass(tpu.SUMS),
    others=tpu.OnePass(tpu.SUMS),
  ),
  'GPU': Platform(
    lay_out=gpu.lay_out,
    about_zero=gpu.AboutZero(gpu.SUMS),
    rows=gpu.Chain(gpu.SUMS),
    others=gpu.OnePass(gpu.SUMS),
  ),
  'CPU': Platform(
    lay_out=layouts.merged,
    about_zero=formula.AboutZero(cpu.SUMS),
    rows=cpu.TwoPass(cpu.SUMS),
    others=cpu.OnePass(cpu.SUMS),
    groups=cpu.groups,
  ),
}
PLATFORMS = tuple(_FORMS)

# Where JAX compiles for a CPU.
_FORMS['YNN'] = Platform(
  lay_out=layouts.merged,
  about_zero=ynn.AboutZero(ynn.SUMS, cpu.SUMS),
  rows=ynn.TwoPass(ynn.SUMS, cpu.SUMS),
  others=ynn.OnePass(ynn.SUMS, cpu.SUMS),
  groups=plain.groups,
)

# Where nothing is compiled.
_FORMS |= {
  None: Platform(
    about_zero=formula.AboutZero(plain.SUMS),
    rows=orders.TwoPass(plain.ROWS),
    others=plain.OnePass(plain.SUMS),
    groups=plain.groups,
  ),
  'quantizable': Platform(
    about_zero=quantizable.ABOUT_ZERO,
    rows=quantizable.OTHERS,
    others=quantizable.OTHERS,
    groups=plain.groups,
  ),
}

_LANES = _in_lanes(lanes.OnePass())
_LANES_OF_BFLOAT16 = _in_lanes(lanes.OfBfloat16())


def _platform(layout: Layout) -> Platform:
  if layout.spec.platform == 'TPU' and lanes.fit(layout):
    return _LANES_OF_BFLOAT16 if layout.dtype == xp.bfloat16 else _LANES
  return _FORMS[layout.spec.platform]


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


def for_moments(spec: Spec, x: xp.Array) -> Form:
  """The form that returns mean and variance, op by op."""
  layout = layouts.viewed(Layout(spec, xp.shape(x), x.dtype))
  return Form(layout, orders.Moments(plain.SUMS), layouts.groups)


def parameters(spec: Spec, x: xp.Array, gamma, beta) -> tuple[Spec, Any, Any]:
  """`gamma` and `beta` as the form for `x` wants them, and their spec."""
  layout = Layout(spec, list(x.shape), x.dtype)
  return _platform(layout).parameters(spec, gamma, beta)
