"""The maths: normalization and its gradient, as in the papers.

Wu & He standardize x over sets of its elements, here called groups, which are
all in which batch, layer, instance and group normalization differ (equations 3,
4, 5 and 7 of the paper). With E[.] the mean over a group,

    mean = E[x]                                              (2)
    var  = E[(x - mean)^2]                                   (2)
    rstd = 1 / sqrt(var + epsilon)
    xhat = (x - mean) * rstd                                 (1)
    z    = gamma * xhat + beta                               (6)
    y    = activation(z) * gate_activation(gate)

RMS normalization leaves out the mean: xhat = x / sqrt(E[x^2] + epsilon). With
dy the gradient of the loss with respect to y, and so on,

    dz     = dy * gate_activation(gate) * activation'(z)
    dgate  = dy * activation(z) * gate_activation'(gate)
    dgamma = sum(dz * xhat)
    dbeta  = sum(dz)
    dxhat  = dz * gamma
    dx     = (dxhat - E[dxhat] - xhat * E[dxhat * xhat]) * rstd

and without E[dxhat] for RMS.

Below, `o` has all tensors, laid out for each other; E is `o.mean`, `o.spread`
brings what belongs to a group back to its channels, and `o.materialized` has a
compiler make that once. xhat is a `Line`, d * scale + offset with only d as
large as x, so that gamma and beta can be folded into small tensors. An `Order`
says in which order statistics and gradient are computed. The two here are the
textbook's; `orders.py` has those that keep all digits, `forms/` those of a
platform.

References:
  - Group Normalization, Wu & He, 2018, https://arxiv.org/abs/1803.08494
  - Root Mean Square Layer Normalization, Zhang & Sennrich, 2019,
    https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.line import Line
from tfgroupnorm.kernel.operands import Operands


def forward(o: Operands, order: Order) -> tuple[xp.Array, tuple]:
  """Returns y, and the statistics that `backward` wants."""
  xhat, statistics = order.standardize(o)
  y = o.activation.function(affine(o, xhat))
  if o.gate is not None:
    y *= o.gate_activation.function(o.gate)
  return y, statistics


def affine(o: Operands, xhat: Line) -> xp.Array:
  """z = gamma * xhat + beta."""
  if o.layout.per_channel:  # Then both are folded into scale and offset.
    xhat = xhat.affine(o.gamma, o.beta)
  z = Line(xhat.d, *o.materialized(xhat.scale, xhat.offset)).value
  return z if o.layout.per_channel else Line(z, o.gamma, o.beta).value


def backward(
  o: Operands, order: Order, statistics: tuple | None, dy: xp.Array
) -> tuple[xp.Array, Any, Any, Any]:
  """Returns dx, dgamma, dbeta, dgate, `None` for what there is not.

  Args:
    o: The arguments of `forward`.
    order: That of `forward`.
    statistics: As `forward` returned them; where there are none they are
      computed from x, so that this function may itself be differentiated.
    dy: Gradient with respect to y.
  """
  d = None
  if not statistics:
    statistics, d = order.statistics(o)
  upstream = o.valid(o.enter(dy))
  statistics = order.wait(statistics, dy)
  xhat = order.xhat(o, o.x, statistics, d)
  back = Cotangents(o, statistics, dy, upstream, xhat)
  dgamma, dbeta, means = order.sums_of_gradients(back)
  return order.dx(back, means), dgamma, dbeta, back.dgate


@dataclasses.dataclass(frozen=True, eq=False)
class Cotangents:
  """The chain rule from dy back to xhat, each step taken when asked for.

  Attributes:
    o: The arguments of `forward`.
    statistics: Those of x.
    dy: Gradient with respect to y, as it came.
    upstream: `dy` laid out as x.
    xhat: Where the derivatives are taken.
  """

  o: Operands
  statistics: tuple
  dy: xp.Array
  upstream: xp.Array
  xhat: Line

  @functools.cached_property
  def z(self) -> xp.Array:
    return affine(self.o, self.xhat)

  @functools.cached_property
  def dz(self) -> xp.Array:
    o, dz = self.o, self.upstream
    if o.gate is not None:
      dz = dz * o.gate_activation.function(o.gate)
    if o.activation.derivative is not None:
      dz = dz * o.activation.derivative(self.z)
    return dz

  @property
  def dgate(self) -> xp.Array | None:
    o = self.o
    if o.gate is None:
      return None
    dgate = self.upstream * o.activation.function(self.z)
    if o.gate_activation.derivative is not None:
      dgate *= o.gate_activation.derivative(o.gate)
    return dgate

  @functools.cached_property
  def dxhat(self) -> xp.Array:
    return self.o.times_gamma(self.dz)


class Order:
  """In which order statistics and gradient are computed: the textbook's.

  Reads x twice for its statistics. float32 cannot hold a large mean to the last
  digit of a small deviation: of values of 1e4 +- 1e-2, xhat is off up to 5e-2.

  Attributes:
    sums, backward_sums: How the compiler in charge wants numbers added up.
  """

  def __init__(self, sums: Any, backward_sums: Any = None):
    self.sums = sums
    self.backward_sums = backward_sums or sums

  def statistics(self, o: Operands) -> tuple[tuple, xp.Array | None]:
    """(mean, rstd), what `xhat` and `dx` need of x; and x - mean."""
    mean = o.mean(o.counted_only(o.x))
    d = o.counted_only(o.x - o.spread(mean))
    var = o.mean(d * d)
    return (mean, xp.rsqrt(var + o.epsilon)), d

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    """(x - mean) * rstd; `d` is x - mean, if it is there."""
    mean, rstd = statistics
    scale = o.spread(rstd)
    d = x - o.spread(mean) if d is None else d
    return Line(o.valid(d), scale)

  def standardize(self, o: Operands) -> tuple[Line, tuple]:
    """xhat, and the statistics to keep for the gradient."""
    statistics, d = self.statistics(o)
    return self.xhat(o, o.x, statistics, d), statistics

  def wait(self, statistics: tuple, dy: xp.Array) -> tuple:
    """The statistics; a platform may hold them back until dy is there.

    Lest its compiler share work on them with the forward pass.
    """
    return statistics

  def sums_of_gradients(self, back: Cotangents) -> tuple:
    """dgamma, dbeta and, where they cost nothing more, the means for dx."""
    if back.o.layout.per_channel:
      return sums_per_channel(back)
    dz = back.dz
    return *back.o.sums_for_parameters(dz * back.xhat.value, dz), None

  def dx(self, back: Cotangents, means: tuple | None) -> xp.Array:
    """(dxhat - E[dxhat] - xhat * E[dxhat * xhat]) * rstd."""
    o, xhat = back.o, back.xhat
    if means is None:
      mean = o.spread(o.mean(back.dxhat))
      mean_with_d = o.spread(o.mean(back.dxhat * xhat.d))
      means = mean, xhat.sum_of_products(mean, mean_with_d)
    return multiplied_out(self.remake(back), *means)

  def remake(self, back: Cotangents) -> Cotangents:
    """`back`, or the same from an xhat that is cheaper made again than read."""
    return back


class AboutZero(Order):
  """RMS normalization, likewise: xhat = x / sqrt(E[x^2] + epsilon)."""

  def statistics(self, o: Operands):
    x = o.counted_only(o.x)
    return (xp.rsqrt(o.mean(x * x) + o.epsilon),), None

  def xhat(self, o: Operands, x, statistics, d=None) -> Line:
    (rstd,) = statistics
    return Line(o.valid(x), o.spread(rstd))

  def dx(self, back: Cotangents, means):
    if means is None:
      mean_with_x = back.o.spread(back.o.mean(back.dxhat * back.xhat.d))
      mean_xhat = back.xhat.sum_of_products(None, mean_with_x)
    else:
      _, mean_xhat = means
    return multiplied_out(self.remake(back), None, mean_xhat)


def sums_per_channel(back: Cotangents) -> tuple:
  """dgamma, dbeta, (E[dxhat], E[dxhat * xhat]) from one pass over x and dy.

  Where gamma and beta are constant along the reduced axes, the same two sums
  for each channel give all of them.
  """
  o, xhat = back.o, back.xhat
  sum_, sum_with_d = o.add_up(back.dz, back.dz * xhat.d)
  sum_with_xhat = xhat.sum_of_products(sum_, sum_with_d)
  means = [
    o.spread(o.groups.mean_of_channels(o.times_gamma(t) / o.channel_size))
    for t in (sum_, sum_with_xhat)
  ]
  return *o.channels_to_parameters(sum_with_xhat, sum_), means


def multiplied_out(back: Cotangents, mean, mean_xhat) -> xp.Array:
  """dx with xhat = d * scale + offset multiplied out: one pass, over d and dz.

  `mean` is `None` where no mean was subtracted from x.
  """
  o, xhat, rstd = back.o, back.xhat, back.xhat.scale
  constant = mean
  if mean is not None:
    offset = xhat.offset
    constant = rstd * (mean if offset is None else mean + offset * mean_xhat)
  per_channel = o.layout.per_channel  # Then gamma is on the small side.
  dz = back.dz if per_channel else back.dxhat
  of_dz = o.times_gamma(rstd) if per_channel else rstd
  of_d = rstd * rstd * mean_xhat
  of_dz, of_d, constant = o.materialized(of_dz, of_d, constant)
  dx = dz * of_dz - xhat.d * of_d
  return dx if constant is None else dx - constant
