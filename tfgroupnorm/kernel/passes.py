"""The two passes, from tensors as they come to tensors as they are wanted.

These are what runs op by op or compiled: functions of a hashable spec and of
tensors, without state.
"""

from __future__ import annotations

from tfgroupnorm.kernel import forms, formula
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.kernel.operands import Operands, like
from tfgroupnorm.kernel.spec import Spec


def forward(spec: Spec, x, gamma, beta, gate, mask):
  """Returns `y`, shaped as `x`, and the statistics that `backward` wants."""
  form = forms.choose(spec, x)
  o = Operands(form, form.order.sums, x, gamma, beta, gate, mask)
  y, statistics = formula.forward(o, form.order)
  y = o.leave(y, o.dtype if spec.wide else x.dtype)
  return xp.with_shape_of(y, x), statistics


def backward(spec: Spec, x, gamma, beta, gate, mask, statistics, dy):
  """Gradients with respect to `x`, `gamma`, `beta` and `gate`.

  Args:
    spec, x, gamma, beta, gate, mask: As for `forward`.
    statistics: As `forward` returned them; or `None` to compute them from `x`,
      so that this function may itself be differentiated.
    dy: Gradient with respect to the result of `forward`.

  Returns:
    Four gradients, `None` for an argument that was `None`.
  """
  form = forms.choose(spec, x)
  o = Operands(form, form.order.backward_sums, x, gamma, beta, gate, mask)
  dx, dgamma, dbeta, dgate = formula.backward(o, form.order, statistics, dy)
  if gate is not None:
    dgate = o.leave(dgate, gate.dtype)
  dgamma, dbeta = like(gamma, dgamma), like(beta, dbeta)
  return o.leave(dx, x.dtype), dgamma, dbeta, dgate


def moments(spec: Spec, x, mask) -> list:
  """Mean and biased variance, which broadcast with `x` as `spec` views it.

  Of plain operations, differentiable as they are: the gradient of these has a
  formula of its own only within `backward`.
  """
  form = forms.for_moments(spec, x)
  o = Operands(form, form.order.sums, x, None, None, None, mask)
  statistics, _ = form.order.statistics(o)
  if spec.view is None:
    return list(statistics)
  # (batch, channels) alone has a view: each group -> its channels.
  return [
    xp.reshape(xp.broadcast_to(t, o.layout.dims), xp.shape(x))
    for t in statistics
  ]
