"""Normalization of tensors: validate, describe, call the kernel.

`_checks` validates, for the layers too, and `_layouts` describes: the four
public functions differ in nothing but the `Layout` that they hand on.
`_tensors` is the door to TensorFlow and to JAX: to the one beneath Keras, whose
tensors the functions take and return. On JAX they may be in `jax.jit`, `grad`,
`jvp`, `vmap` and all other transformations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from tfgroupnorm import _checks, _docs, _layouts, kernel
from tfgroupnorm._tensors import ops

Activation = str | Callable[[ops.Tensor], ops.Tensor] | None


@_docs.documented
def group_norm(
  x: Any,
  gamma: Any = None,
  beta: Any = None,
  *,
  groups: int = _checks.DEFAULT_GROUPS,
  group_size: int | None = None,
  axis: int = -1,
  epsilon: float = 1e-3,
  mask: Any = None,
  activation: Activation = None,
  jit_compile: bool | str = 'auto',
) -> ops.Tensor:
  """Group normalization: each group of channels of each sample by itself.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken over all positions of a sample and the
  `channels / groups` adjacent channels of a group. They are computed in float32
  (float64 for float64), and lose no digits of `x` where the mean is large.

  Args:
    {{x_with_channels}}
    groups: Number of groups, a divisor of the number of channels. -1: one
      channel a group, which is instance normalization. 1: one group.
    group_size: Channels in a group, given instead of `groups`.
    axis: The axis of the channels.
    epsilon: Positive number added to the variance.
    {{mask_with_channels}}
    {{function_activation}}
    {{jit_compile}}

  {{result}}

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import functional
  >>> x = np.arange(8, dtype="float32").reshape(1, 2, 4)
  >>> np.asarray(functional.group_norm(x, groups=2, epsilon=1e-5)).round(2)
  array([[[-1.21, -0.73, -1.21, -0.73],
          [ 0.73,  1.21,  0.73,  1.21]]], dtype=float32)

  References:
    - [Wu & He, 2018](https://arxiv.org/abs/1803.08494)
  """
  return _normalize(
    functools.partial(
      _layouts.group_layout, groups=groups, group_size=group_size, axis=axis
    ),
    x,
    gamma,
    beta,
    epsilon=epsilon,
    mask=mask,
    activation=activation,
    jit_compile=jit_compile,
  )


@_docs.documented
def instance_norm(
  x: Any,
  gamma: Any = None,
  beta: Any = None,
  *,
  axis: int = -1,
  epsilon: float = 1e-3,
  mask: Any = None,
  activation: Activation = None,
  jit_compile: bool | str = 'auto',
) -> ops.Tensor:
  """Instance normalization: each channel of each sample by itself.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken over the positions of one channel of one
  sample: `group_norm` with `groups=-1`.

  Args:
    {{x_with_channels}}
    axis: The axis of the channels.
    epsilon: Positive number added to the variance.
    {{mask_with_channels}}
    {{function_activation}}
    {{jit_compile}}

  {{result}}

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import functional
  >>> x = np.array([[[1.0, 10.0], [3.0, 30.0]]], "float32")
  >>> np.asarray(functional.instance_norm(x, epsilon=1e-5)).round(2)
  array([[[-1., -1.],
          [ 1.,  1.]]], dtype=float32)

  References:
    - [Ulyanov et al., 2016](https://arxiv.org/abs/1607.08022)
  """
  return group_norm(
    x,
    gamma,
    beta,
    groups=-1,
    axis=axis,
    epsilon=epsilon,
    mask=mask,
    activation=activation,
    jit_compile=jit_compile,
  )


@_docs.documented
def layer_norm(
  x: Any,
  gamma: Any = None,
  beta: Any = None,
  *,
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-3,
  rms: bool = False,
  mask: Any = None,
  activation: Activation = None,
  jit_compile: bool | str = 'auto',
) -> ops.Tensor:
  """Layer normalization, over one axis or several; RMS normalization too.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)
      y = activation(gamma * x / sqrt(mean(x ** 2) + epsilon))      if rms

  Args:
    x: Tensor (batch, ..., features), rank 2 or more.
    gamma: Scale, with the sizes of the normalized axes in ascending order:
      (features,) for `axis=-1`; or one per sample, (batch, features).
    beta: Offset, shaped like `gamma` may be; not with `rms`.
    axis: The axis or axes to normalize, not the batch.
    epsilon: Positive number added to the variance.
    rms: Neither subtract a mean nor add an offset.
    mask: bool over leading axes of `x`. Where it is False, the result is 0 and
      no gradient flows; `x` is not counted where `axis` includes an axis of the
      mask.
    {{function_activation}}
    {{jit_compile}}

  {{result}}

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import functional
  >>> x = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
  >>> np.asarray(functional.layer_norm(x, epsilon=1e-5)).round(2)
  array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
  >>> np.asarray(functional.layer_norm(x, epsilon=1e-5, rms=True)).round(2)
  array([[0.37, 0.73, 1.1 , 1.46]], dtype=float32)

  References:
    - [Ba et al., 2016](https://arxiv.org/abs/1607.06450)
    - [Zhang & Sennrich, 2019](https://arxiv.org/abs/1910.07467) (RMS)
  """
  return _normalize(
    functools.partial(_layouts.layer_layout, axis=axis),
    x,
    gamma,
    beta,
    epsilon=epsilon,
    rms=rms,
    mask=mask,
    activation=activation,
    jit_compile=jit_compile,
  )


@_docs.documented
def head_norm(
  x: Any,
  gamma: Any = None,
  beta: Any = None,
  *,
  num_heads: int | None = None,
  head_axis: int | None = None,
  epsilon: float = 1e-3,
  per_head: bool = True,
  rms: bool = False,
  gate: Any = None,
  gate_activation: Activation = None,
  mask: Any = None,
  jit_compile: bool | str = 'auto',
) -> ops.Tensor:
  """Head normalization: each attention head at each position by itself.

      y = (gamma * (x - mean) / sqrt(var + epsilon) + beta) * gate'
      y = gamma * x / sqrt(mean(x ** 2) + epsilon) * gate'          if rms

  with `gate' = gate_activation(gate)`, or 1 without a gate. Statistics are
  taken over the features of one head at one position, never over time or other
  heads, so it is causal.

  Args:
    x: Tensor (batch, ..., heads * features) with `num_heads`, or with the heads
      on `head_axis` and the features last.
    gamma: Scale. Heads on the last axis: (heads * features,), or (features,)
      if not `per_head`. Heads on their own axis: (heads, features), or
      (features,). Either may have a batch axis in front.
    beta: Offset, shaped like `gamma` may be; not with `rms`.
    num_heads: Number of heads; may be left out if `head_axis` is given.
    head_axis: The axis of the heads: -2 for (batch, time, heads, features), 1
      for (batch, heads, time, features).
    epsilon: Positive number added to the variance.
    per_head: Whether each head has parameters of its own.
    rms: Neither subtract a mean nor add an offset.
    gate: Tensor of the shape of `x`, or `None`.
    gate_activation: Activation for the gate, with the names that `activation`
      of `group_norm` has; needs a `gate`. `None`: the gate multiplies as it is.
    mask: bool over leading position axes, without the heads. Where it is False,
      the result is 0 and no gradient flows.
    {{jit_compile}}

  {{result}}

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import functional
  >>> x = np.array([[[1.0, 3.0, 10.0, 30.0]]], "float32")  # one step, two heads
  >>> np.asarray(functional.head_norm(x, num_heads=2, epsilon=1e-5)).round(2)
  array([[[-1.,  1., -1.,  1.]]], dtype=float32)

  References:
    - [Henry et al., 2020](https://arxiv.org/abs/2010.04245) (queries and keys)
    - [Sun et al., 2023](https://arxiv.org/abs/2307.08621) (output, with gate)
  """
  return _normalize(
    functools.partial(
      _layouts.head_layout,
      num_heads=num_heads,
      head_axis=head_axis,
      per_head=per_head,
    ),
    x,
    gamma,
    beta,
    epsilon=epsilon,
    rms=rms,
    mask=mask,
    gate=gate,
    gate_activation=gate_activation,
    jit_compile=jit_compile,
  )


@ops.not_converted
def moments(
  x: Any,
  *,
  groups: int = _checks.ONE_CHANNEL_EACH,
  group_size: int | None = None,
  axis: int = -1,
  mask: Any = None,
) -> tuple[ops.Tensor, ops.Tensor]:
  """Mean and biased variance, as `group_norm` takes them of its groups.

      mean, var = mean(x), mean((x - mean) ** 2)

  over all positions of a sample and the channels of a group. AdaIN, for one,
  takes them for the style of an image. They are computed in float32 (float64
  for float64), and lose no digits of `x` where the mean is large. Both have a
  value for each channel, that of its group, and broadcast with `x`:
  `(x - mean) / sqrt(var + epsilon)` is what `group_norm` returns, except for
  digits of a large mean that one float32 cannot hold.

  Args:
    x: Tensor (batch, ..., channels), or with the channels on `axis`; rank 2 or
      more. Integers and bools are taken as float32.
    groups: Number of groups, a divisor of the number of channels. -1, which is
      the default here: one channel a group, as in instance normalization.
    group_size: Channels in a group, given instead of `groups`.
    axis: The axis of the channels.
    mask: As for `group_norm`: where it is False, `x` is not counted. If it is
      False everywhere, both are 0.

  Returns:
    Two tensors (batch, 1, ..., channels), of size 1 where `x` has positions.
    Squares overflow as in `group_norm`: the variance is then infinite.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import functional
  >>> x = np.array([[[1.0, 10.0], [3.0, 30.0]]], "float32")
  >>> mean, var = functional.moments(x)
  >>> np.asarray(mean), np.asarray(var)
  (array([[[ 2., 20.]]], dtype=float32), array([[[  1., 100.]]], dtype=float32))

  References:
    - [Huang & Belongie, 2017](https://arxiv.org/abs/1703.06868) (AdaIN)
  """
  x, shape = ops.as_input(x)
  layout = _layouts.group_layout(
    shape, groups=groups, group_size=group_size, axis=axis
  )
  mask, mask_axes = _mask(mask, layout, shape)
  spec = dataclasses.replace(layout.spec, mask_axes=mask_axes)
  (channels,) = layout.parameter_shape
  mean, var = (
    ops.repeated(t, layout.parameter_axes[0], channels)
    for t in kernel.moments(spec, x, mask)
  )
  return mean, var


# --- One way to the kernel ---------------------------------------------------


def _parameter(
  name: str, value: Any, layout: _layouts.Layout, shape: _checks.Shape
) -> tuple[ops.Tensor | None, tuple[int, ...]]:
  """`value` as a tensor, and the axes of the kernel's `x` on which it lies."""
  if value is None:
    return None, ()
  value = ops.as_tensor(value, name)
  _checks.check_floating(name, value)
  if ops.shape_of(value) == (1, *layout.parameter_shape):
    value = ops.squeeze(value, 0)  # One for all samples.
  per_sample = _checks.check_parameter_shape(
    name, ops.shape_of(value), layout.parameter_shape, shape
  )
  axes = layout.parameter_axes
  return value, (0, *axes) if per_sample else axes


def mask_of_positions(
  mask: Any, layout: _layouts.Layout, shape: _checks.Shape
) -> ops.Tensor:
  """`mask` as bools, without axes of size 1 where there are no positions."""
  mask = ops.as_mask(mask)
  received = ops.shape_of(mask)
  if received is None or len(received) != len(shape):
    return mask
  last = len(shape) - 1
  others = set(range(last + 1)).difference(layout.position_axes) or {last}
  if all(received[i] == 1 for i in others):
    return ops.squeeze(mask, tuple(sorted(others)))
  return mask


def _mask(
  mask: Any, layout: _layouts.Layout, shape: _checks.Shape
) -> tuple[ops.Tensor | None, tuple[int, ...]]:
  """`mask` as a bool tensor, and the axes of `x` on which it lies."""
  if mask is None:
    return None, ()
  mask = mask_of_positions(mask, layout, shape)
  positions = layout.position_axes
  spanned = _checks.check_mask_shape(
    ops.shape_of(mask), tuple(shape[i] for i in positions), shape
  )
  return mask, positions[:spanned]


def _gate(gate: Any, shape: _checks.Shape) -> ops.Tensor | None:
  if gate is None:
    return None
  gate = ops.as_tensor(gate, 'gate')
  _checks.check_floating('gate', gate)
  _checks.check_gate_shape(ops.shape_of(gate), shape)
  return gate


@ops.not_converted
def _normalize(
  layout_of: Callable[..., _layouts.Layout],
  x: Any,
  gamma: Any,
  beta: Any,
  *,
  epsilon: float,
  mask: Any,
  jit_compile: bool | str,
  rms: bool = False,
  activation: Activation = None,
  gate: Any = None,
  gate_activation: Activation = None,
) -> ops.Tensor:
  """Validates what the four functions have in common, and calls the kernel."""
  jit_compile = _checks.check_jit_compile(jit_compile)
  epsilon = _checks.check_epsilon(epsilon)
  rms = _checks.check_bool('rms', rms)
  fused, after = ops.split_activation(activation)
  fused_gate, before = ops.split_activation(gate_activation)
  _checks.check_gate_given(gate, gate_activation)
  x, shape = ops.as_input(x)
  layout = layout_of(shape)
  if not rms and layout.group_size(shape) == 1:
    # Its gradient is 0, exactly. XLA's fused multiplications and additions
    # would leave a millionth of dy.
    x = ops.without_gradient(x)
  _checks.check_no_offset(rms, beta)
  gamma, gamma_axes = _parameter('gamma', gamma, layout, shape)
  beta, beta_axes = _parameter('beta', beta, layout, shape)
  mask, mask_axes = _mask(mask, layout, shape)
  gate = _gate(gate, shape)
  if gate is not None and before is not None:
    # What a mask hides may be NaN, and would come back by the gradient.
    gate = ops.where_valid(mask, mask_axes, gate)
    gate = before(ops.cast(gate, kernel.compute_dtype(gate.dtype)))
  spec = dataclasses.replace(
    layout.spec,
    gamma_axes=gamma_axes,
    beta_axes=beta_axes,
    mask_axes=mask_axes,
    epsilon=epsilon,
    rms=rms,
    activation=fused,
    gate_activation=fused_gate,
    wide=after is not None,
  )
  y = kernel.normalize(
    x, gamma, beta, spec=spec, gate=gate, mask=mask, jit_compile=jit_compile
  )
  if after is None:
    return y
  return ops.cast(ops.where_valid(mask, mask_axes, after(y)), x.dtype)
