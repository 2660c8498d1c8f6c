"""Normalization of tensors, without Keras: validate, describe, call the kernel.

Everything that can be wrong with an argument is found here, for the layers too,
before any computation. The four public functions differ in nothing but the
`Layout` that they hand on.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tfgroupnorm import kernel

Activation = str | Callable[[tf.Tensor], tf.Tensor] | None


class _Default(int):
  """An int that is told from the same one given by a caller."""


# Beside `group_size`, `groups` must be left out; a given 32 is an error too.
DEFAULT_GROUPS = _Default(32)

# Other spellings of what the kernel can fuse.
_SYNONYMS: dict[Any, str | None] = {
  None: None,
  'linear': None,
  'relu': 'relu',
  'sigmoid': 'sigmoid',
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_tanh',
  tf.identity: None,
  tf.nn.relu: 'relu',
  tf.nn.sigmoid: 'sigmoid',
  tf.nn.silu: 'silu',
  tf.nn.gelu: 'gelu',
}

# Names of functions in tf.nn, applied to the kernel's result.
_UNFUSED = (
  'elu',
  'leaky_relu',
  'log_softmax',
  'relu6',
  'selu',
  'softmax',
  'softplus',
  'softsign',
  'tanh',
)


# --- Validation --------------------------------------------------------------


def check_int(name: str, value: Any) -> int:
  """`value` as an int; bools and floats are not ints, NumPy's ints are."""
  if not isinstance(value, bool):
    try:
      return operator.index(value)
    except TypeError:
      pass
  raise TypeError(
    f'`{name}` must be an integer. Received: {name}={value!r} of type '
    f'{type(value).__name__}. Pass a Python or NumPy int.'
  )


def check_bool(name: str, value: Any) -> bool:
  """`value` as a bool; NumPy's bools are bools, strings and numbers are not."""
  if isinstance(value, (bool, np.bool_)):
    return bool(value)
  raise TypeError(
    f'`{name}` must be True or False. Received: {name}={value!r} of type '
    f'{type(value).__name__}. Pass a bool.'
  )


def check_axis(axis: Any) -> int | tuple[int, ...]:
  """An int, or a list or tuple of ints, none of them the batch axis 0."""
  if isinstance(axis, (list, tuple)):
    if not axis:
      raise ValueError(
        '`axis` must name at least one axis. Received: axis='
        f'{axis!r}. Use -1 for the last axis.'
      )
    return tuple(_check_one_axis(a, axis) for a in axis)
  return _check_one_axis(axis, axis)


def check_channel_axis(axis: Any) -> int:
  """One int that is not the batch axis 0."""
  return _check_one_axis(check_int('axis', axis), axis)


def _check_one_axis(value: Any, axis: Any) -> int:
  value = check_int('axis', value)
  if value == 0:
    raise ValueError(
      '`axis` cannot be 0: that is the batch, and samples are never mixed. '
      f'Received: axis={axis!r}. Use the axis of the channels, -1 if they '
      'are last.'
    )
  return value


def check_groups(groups: Any, group_size: Any) -> tuple[int, int | None]:
  """`groups` >= 1 or -1; or `group_size` >= 1, with `groups` left out."""
  left_out = isinstance(groups, _Default)
  if not left_out:  # What was left out of the layer is so for the function.
    groups = check_int('groups', groups)
  if group_size is not None:
    group_size = check_int('group_size', group_size)
    if not left_out:
      raise ValueError(
        'Give `groups` or `group_size`, not both. Received: '
        f'groups={groups}, group_size={group_size}. Leave out `groups` to '
        'have channels // group_size groups.'
      )
    if group_size < 1:
      raise ValueError(
        '`group_size`, the number of channels in a group, must be positive. '
        f'Received: group_size={group_size}.'
      )
  elif groups < 1 and groups != -1:
    raise ValueError(
      '`groups` must be a positive integer, or -1 for one channel a group. '
      f'Received: groups={groups}.'
    )
  return groups, group_size


def check_heads(
  num_heads: Any, head_axis: Any
) -> tuple[int | None, int | None]:
  """At least one of `num_heads` >= 1 and `head_axis`."""
  if num_heads is None and head_axis is None:
    raise ValueError(
      'HeadNorm must know where the heads are. Received: num_heads=None, '
      'head_axis=None. Give `num_heads` for inputs (..., heads * features), '
      'or `head_axis` for heads on an axis of their own.'
    )
  if num_heads is not None:
    num_heads = check_int('num_heads', num_heads)
    if num_heads < 1:
      raise ValueError(
        f'`num_heads` must be positive. Received: num_heads={num_heads}.'
      )
  if head_axis is not None:
    head_axis = check_int('head_axis', head_axis)
    if head_axis in (0, -1):
      raise ValueError(
        '`head_axis` can be neither the batch axis 0 nor the last axis, '
        f'which holds the features. Received: head_axis={head_axis}. Use -2 '
        'for (batch, time, heads, features), 1 for (batch, heads, time, '
        'features), and `num_heads` alone if heads share the last axis.'
      )
  return num_heads, head_axis


def check_epsilon(epsilon: Any) -> float:
  """A positive real number."""
  if isinstance(epsilon, bool) or not isinstance(
    epsilon, (int, float, np.integer, np.floating)
  ):
    raise TypeError(
      f'`epsilon` must be a number. Received: epsilon={epsilon!r} of type '
      f'{type(epsilon).__name__}. Pass a positive float such as 1e-3.'
    )
  if not np.finfo(np.float32).tiny <= epsilon < float('inf'):
    raise ValueError(
      '`epsilon` must be positive, in float32 too: it keeps the division by '
      f'the deviation of a constant group finite. Received: epsilon={epsilon!r}'
      '. Pass a positive float such as 1e-3.'
    )
  return float(epsilon)


def check_jit_compile(jit_compile: Any) -> bool | str:
  """`True`, `False` or `'auto'`."""
  if isinstance(jit_compile, bool):
    return jit_compile
  if isinstance(jit_compile, str) and jit_compile == 'auto':
    return jit_compile
  raise ValueError(
    '`jit_compile` must be True, False or "auto". Received: jit_compile='
    f'{jit_compile!r}. Use "auto" to compile wherever that is faster.'
  )


def check_real(x: tf.Tensor) -> None:
  """Floating, integer or bool; not complex, not a string."""
  if not (x.dtype.is_floating or x.dtype.is_integer or x.dtype.is_bool):
    raise TypeError(
      f'`x` must be real numbers. Received: dtype {x.dtype.name}. Cast it to '
      'a floating dtype, or normalize real and imaginary parts apart.'
    )


def fused_activation(
  activation: Activation,
) -> tuple[str | None, Callable | None]:
  """Splits `activation` into what the kernel fuses and what comes after it."""
  try:
    return _SYNONYMS[activation], None
  except (KeyError, TypeError):  # Unknown, or not hashable.
    pass
  if isinstance(activation, str) and activation in _UNFUSED:
    return None, getattr(tf.nn, activation)
  if callable(activation):
    return None, activation
  known = sorted({k for k in _SYNONYMS if isinstance(k, str)} | set(_UNFUSED))
  raise ValueError(
    f'Unknown activation. Received: {activation!r}. Pass a callable, None, '
    f'or one of {", ".join(known)}.'
  )


# --- Layouts -----------------------------------------------------------------


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


def _positive_axis(axis: int, shape: Sequence[int | None], name: str) -> int:
  rank = len(shape)
  if not -rank <= axis < rank:
    raise ValueError(
      f'`{name}` must be an axis of the input. Received: {name}={axis} for '
      f'an input of rank {rank}, shape {tuple(shape)}. Use a value from 1 to '
      f'{rank - 1}, or a negative one counted from the end.'
    )
  if axis % rank == 0:
    raise ValueError(
      f'`{name}` cannot be 0: that is the batch, and samples are never '
      f'mixed. Received: {name}={axis} for shape {tuple(shape)}. Use the '
      'axis of the channels, -1 if they are last.'
    )
  return axis % rank


def _known(shape: Sequence[int | None], axis: int, what: str) -> int:
  size = shape[axis]
  if size is None:
    raise ValueError(
      f'The number of {what} must be known. Received: shape {tuple(shape)} '
      f'with axis {axis} unknown. Give that axis a size, for example in '
      '`keras.Input(shape=...)`.'
    )
  if size < 1:
    raise ValueError(
      f'The number of {what} must be positive. Received: shape '
      f'{tuple(shape)} with size {size} on axis {axis}.'
    )
  return size


def _check_rank(shape: Sequence[int | None], least: int, who: str) -> None:
  if len(shape) < least:
    raise ValueError(
      f'{who} needs an input of rank {least} or more, the batch first. '
      f'Received: shape {tuple(shape)}. Add the missing axes, for example '
      'with `x[None]`.'
    )


def group_layout(
  shape: Sequence[int | None],
  *,
  groups: int = DEFAULT_GROUPS,
  group_size: int | None = None,
  axis: int = -1,
) -> Layout:
  """Layout of group normalization; arguments as for `group_norm`."""
  groups, group_size = check_groups(groups, group_size)
  axis = check_channel_axis(axis)
  _check_rank(shape, 2, 'Group normalization')
  axis = _positive_axis(axis, shape, 'axis')
  channels = _known(shape, axis, 'channels')
  if group_size is not None:
    if channels % group_size:
      raise ValueError(
        'The number of channels must be a multiple of `group_size`. '
        f'Received: {channels} channels, group_size={group_size}. Pass a '
        f'divisor of {channels}.'
      )
    groups = channels // group_size
  elif groups == -1:
    groups = channels
  if groups > channels:
    raise ValueError(
      'There cannot be more groups than channels. Received: groups='
      f'{groups} for {channels} channels. Pass groups={channels} or -1 for '
      'one channel a group, or a smaller divisor of the channels.'
    )
  if channels % groups:
    raise ValueError(
      'The number of channels must be a multiple of `groups`. Received: '
      f'{channels} channels, groups={groups}. Pass a divisor of {channels}, '
      'or `group_size` to fix the channels in a group.'
    )
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


def layer_layout(
  shape: Sequence[int | None], *, axis: int | Sequence[int] = -1
) -> Layout:
  """Layout of layer normalization; arguments as for `layer_norm`."""
  axis = check_axis(axis)
  _check_rank(shape, 2, 'Layer normalization')
  received = axis if isinstance(axis, tuple) else (axis,)
  axes = tuple(sorted(_positive_axis(a, shape, 'axis') for a in received))
  if len(set(axes)) < len(axes):
    raise ValueError(
      '`axis` must not name an axis twice. Received: axis='
      f'{list(received)} for shape {tuple(shape)}. Drop the repetition; a '
      'negative axis counts from the end.'
    )
  return Layout(
    spec=kernel.Spec(axes=axes, epsilon=1.0),
    parameter_shape=tuple(
      _known(shape, i, 'features on a normalized axis') for i in axes
    ),
    parameter_axes=axes,
    position_axes=tuple(range(len(shape))),
  )


def head_layout(
  shape: Sequence[int | None],
  *,
  num_heads: int | None = None,
  head_axis: int | None = None,
  per_head: bool = True,
) -> Layout:
  """Layout of head normalization; `per_head`: parameters for each head."""
  num_heads, head_axis = check_heads(num_heads, head_axis)
  per_head = check_bool('per_head', per_head)
  last = len(shape) - 1
  if head_axis is None:
    heads = cast(int, num_heads)  # Or `check_heads` would have raised.
    _check_rank(shape, 2, 'Head normalization')
    size = _known(shape, last, 'features')
    if size % heads:
      raise ValueError(
        'The last axis must hold equal heads. Received: size '
        f'{size} for num_heads={heads}. Pass a divisor of {size}.'
      )
    features = size // heads
    return Layout(
      spec=kernel.Spec(axes=(last + 1,), view=(last, heads), epsilon=1.0),
      parameter_shape=(size,) if per_head else (features,),
      parameter_axes=(last, last + 1) if per_head else (last + 1,),
      position_axes=tuple(range(last)),
    )
  _check_rank(shape, 3, 'Head normalization with `head_axis`')
  axis = _positive_axis(head_axis, shape, 'head_axis')
  if axis == last:
    raise ValueError(
      '`head_axis` cannot be the last axis, which holds the features. '
      f'Received: head_axis={head_axis} for shape {tuple(shape)}. Use '
      '`num_heads` if heads share the last axis.'
    )
  features = _known(shape, last, 'features')
  if num_heads is not None and shape[axis] not in (None, num_heads):
    raise ValueError(
      'The head axis must have size `num_heads`. Received: num_heads='
      f'{num_heads}, head_axis={head_axis} for shape {tuple(shape)}. Leave '
      'out `num_heads`, or point `head_axis` at the heads.'
    )
  parameter_shape: tuple[int, ...] = (features,)
  if per_head:
    parameter_shape = (num_heads or _known(shape, axis, 'heads'), features)
  return Layout(
    spec=kernel.Spec(axes=(last,), epsilon=1.0),
    parameter_shape=parameter_shape,
    parameter_axes=(axis, last) if per_head else (last,),
    position_axes=tuple(i for i in range(last) if i != axis),
  )


# --- One way to the kernel ---------------------------------------------------


def _as_tensor(x: Any, name: str) -> tf.Tensor:
  if isinstance(x, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)):
    raise TypeError(
      f'`{name}` must be a dense tensor. Received: {type(x).__name__}. '
      'Convert it with `to_tensor()` or `tf.sparse.to_dense`, and pass '
      '`mask` to leave the padding out.'
    )
  if type(x).__name__ == 'KerasTensor':
    raise TypeError(
      f'`{name}` must hold values, or be symbolic in a tf.function. '
      'Received: a symbolic tensor of Keras. Use the layer from '
      '`tfgroupnorm` (or `tfgroupnorm.tf_keras`) in a functional model.'
    )
  return tf.convert_to_tensor(x)


def check_rank(shape: tf.TensorShape) -> None:
  if shape.rank is None:
    raise ValueError(
      'The rank of the input must be known. Received: a tensor of unknown '
      'rank. Call `tf.ensure_shape` with None for each unknown size.'
    )


def _input(x: Any) -> tf.Tensor:
  x = _as_tensor(x, 'x')
  check_real(x)
  if x.dtype.is_integer or x.dtype.is_bool:
    x = tf.cast(x, tf.float32)
  check_rank(x.shape)
  return x


def _parameter(
  name: str, value: Any, layout: Layout, x: tf.Tensor
) -> tuple[tf.Tensor | None, tuple[int, ...]]:
  """`value` as a tensor, and the axes of the kernel's `x` on which it lies."""
  if value is None:
    return None, ()
  value = _as_tensor(value, name)
  if not value.dtype.is_floating:
    raise TypeError(
      f'`{name}` must be floating. Received: dtype {value.dtype.name}.'
    )
  own = layout.parameter_shape
  if value.shape.is_compatible_with(own):
    return value, layout.parameter_axes
  if value.shape.is_compatible_with((x.shape[0], *own)):
    return value, (0, *layout.parameter_axes)
  raise ValueError(
    f'`{name}` must have shape {own}, or {(x.shape[0], *own)} for one per '
    f'sample. Received: shape {tuple(value.shape)} for an input of shape '
    f'{tuple(x.shape)}. Reshape it, or check `axis` and the groups.'
  )


def _mask(mask: Any, layout: Layout, x: tf.Tensor):
  """`mask` as a bool tensor, and the axes of `x` on which it lies."""
  if mask is None:
    return None, ()
  mask = tf.cast(_as_tensor(mask, 'mask'), tf.bool)
  positions = layout.position_axes
  rank = mask.shape.rank
  axes = positions[:rank]
  wanted = tuple(x.shape[i] for i in positions)
  if (
    not rank
    or rank > len(positions)
    or not mask.shape.is_compatible_with(wanted[:rank])
  ):
    raise ValueError(
      '`mask` must have the shape of the leading axes of the input that are '
      f'positions, {wanted} or fewer of these from the left. Received: mask '
      f'of shape {mask.shape} for an input of shape {tuple(x.shape)}. It is '
      'broadcast over the remaining axes.'
    )
  return mask, axes


def _gate(gate: Any, x: tf.Tensor) -> tf.Tensor | None:
  if gate is None:
    return None
  gate = _as_tensor(gate, 'gate')
  if not gate.dtype.is_floating:
    raise TypeError(
      f'`gate` must be floating. Received: dtype {gate.dtype.name}.'
    )
  if not gate.shape.is_compatible_with(x.shape):
    raise ValueError(
      '`gate` must have the shape of the input, which it multiplies '
      f'elementwise. Received: gate of shape {tuple(gate.shape)} for an '
      f'input of shape {tuple(x.shape)}.'
    )
  return gate


@tf.autograph.experimental.do_not_convert
def _normalize(
  layout_of: Callable[..., Layout],
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
) -> tf.Tensor:
  """Validates what the four functions have in common, and calls the kernel."""
  jit_compile = check_jit_compile(jit_compile)
  epsilon = check_epsilon(epsilon)
  rms = check_bool('rms', rms)
  fused, after = fused_activation(activation)
  fused_gate, before = fused_activation(gate_activation)
  x = _input(x)
  layout = layout_of(x.shape.as_list())
  if rms and beta is not None:
    raise ValueError(
      '`beta` cannot be given with rms=True: RMS normalization has no '
      'offset. Received: both. Leave it out, or add it to the result.'
    )
  gamma, gamma_axes = _parameter('gamma', gamma, layout, x)
  beta, beta_axes = _parameter('beta', beta, layout, x)
  mask, mask_axes = _mask(mask, layout, x)
  gate = _gate(gate, x)
  if gate is not None and before is not None:
    # What a mask hides may be NaN, and would come back by the gradient.
    gate = _where_valid(mask, mask_axes, gate)
    gate = before(tf.cast(gate, kernel.compute_dtype(gate.dtype)))
  y = kernel.normalize(
    x,
    gamma,
    beta,
    spec=dataclasses.replace(
      layout.spec,
      gamma_axes=gamma_axes,
      beta_axes=beta_axes,
      mask_axes=mask_axes,
      epsilon=epsilon,
      rms=rms,
      activation=fused,
      gate_activation=fused_gate,
      wide=after is not None,
    ),
    gate=gate,
    mask=mask,
    jit_compile=jit_compile,
  )
  if after is None:
    return y
  return tf.cast(_where_valid(mask, mask_axes, after(y)), x.dtype)


def _where_valid(mask, mask_axes, t: tf.Tensor) -> tf.Tensor:
  """`t`, shaped as the input, with zeros where the mask is False."""
  if mask is None:
    return t
  sizes = tf.shape(t)
  sizes = [sizes[i] if i in mask_axes else 1 for i in range(t.shape.rank)]
  return tf.where(tf.reshape(mask, sizes), t, tf.zeros([], t.dtype))


# --- Public functions --------------------------------------------------------


def group_norm(
  x: Any,
  gamma: Any = None,
  beta: Any = None,
  *,
  groups: int = DEFAULT_GROUPS,
  group_size: int | None = None,
  axis: int = -1,
  epsilon: float = 1e-3,
  mask: Any = None,
  activation: Activation = None,
  jit_compile: bool | str = 'auto',
) -> tf.Tensor:
  """Group normalization: each group of channels of each sample by itself.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken over all positions of a sample and the
  `channels / groups` adjacent channels of a group. They are computed in float32
  (float64 for float64), and exactly also where the mean is large.

  Args:
    x: Tensor (batch, ..., channels), or with the channels on `axis`; rank 2 or
      more. Integers and bools are taken as float32. All sizes but the number of
      channels may be unknown.
    gamma: Scale: (channels,), or (batch, channels) for one per sample.
    beta: Offset, shaped like `gamma` may be.
    groups: Number of groups, a divisor of the channels; -1: one channel a
      group, which is instance normalization; 1: all channels in one group.
    group_size: Channels in a group, given instead of `groups`.
    axis: The axis of the channels.
    epsilon: Positive number added to the variance.
    mask: bool (batch, ...) over leading position axes, without the channels.
      Where it is False, `x` is not counted, the result is 0 and no gradient
      flows, whatever `x` holds.
    activation: `'relu'`, `'silu'` (`'swish'`), `'gelu'`, `'gelu_tanh'` and
      `'sigmoid'` run inside the kernel; other names and callables follow it.
    jit_compile: `'auto'`, `True` or `False`: whether XLA compiles the kernel.

  Returns:
    A tensor of the shape and dtype of `x`.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import tensorflow as tf
  >>> from tfgroupnorm import functional
  >>> x = tf.reshape(tf.range(8.0), (1, 2, 4))
  >>> functional.group_norm(x, groups=2, epsilon=1e-5).numpy().round(2)
  array([[[-1.21, -0.73, -1.21, -0.73],
          [ 0.73,  1.21,  0.73,  1.21]]], dtype=float32)

  References:
    - [Wu & He, 2018](https://arxiv.org/abs/1803.08494)
  """
  return _normalize(
    functools.partial(
      group_layout, groups=groups, group_size=group_size, axis=axis
    ),
    x,
    gamma,
    beta,
    epsilon=epsilon,
    mask=mask,
    activation=activation,
    jit_compile=jit_compile,
  )


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
) -> tf.Tensor:
  """Instance normalization: each channel of each sample by itself.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken over the positions of one channel of one
  sample: `group_norm` with `groups=-1`.

  Args:
    x: Tensor (batch, ..., channels), or with the channels on `axis`.
    gamma: As for `group_norm`.
    beta: As for `group_norm`.
    axis: The axis of the channels.
    epsilon: Positive number added to the variance.
    mask: As for `group_norm`.
    activation: As for `group_norm`.
    jit_compile: As for `group_norm`.

  Returns:
    A tensor of the shape and dtype of `x`.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import tensorflow as tf
  >>> from tfgroupnorm import functional
  >>> x = tf.constant([[[1.0, 10.0], [3.0, 30.0]]])
  >>> functional.instance_norm(x, epsilon=1e-5).numpy().round(2)
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
) -> tf.Tensor:
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
    mask: bool over leading axes of `x`. Where it is False, `x` is not counted
      in statistics that span it, the result is 0 and no gradient flows.
    activation: As for `group_norm`.
    jit_compile: As for `group_norm`.

  Returns:
    A tensor of the shape and dtype of `x`.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import tensorflow as tf
  >>> from tfgroupnorm import functional
  >>> x = tf.constant([[1.0, 2.0, 3.0, 4.0]])
  >>> functional.layer_norm(x, epsilon=1e-5).numpy().round(2)
  array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
  >>> functional.layer_norm(x, epsilon=1e-5, rms=True).numpy().round(2)
  array([[0.37, 0.73, 1.1 , 1.46]], dtype=float32)

  References:
    - [Ba et al., 2016](https://arxiv.org/abs/1607.06450)
    - [Zhang & Sennrich, 2019](https://arxiv.org/abs/1910.07467) (RMS)
  """
  return _normalize(
    functools.partial(layer_layout, axis=axis),
    x,
    gamma,
    beta,
    epsilon=epsilon,
    rms=rms,
    mask=mask,
    activation=activation,
    jit_compile=jit_compile,
  )


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
) -> tf.Tensor:
  """Head normalization: each attention head at each position by itself.

      y = (gamma * (x - mean) / sqrt(var + epsilon) + beta) * gate'
      y = gamma * x / sqrt(mean(x ** 2) + epsilon) * gate'          if rms

  with `gate' = gate_activation(gate)`. Statistics span the features of one
  head at one position, never time or other heads, so it is causal.

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
    gate_activation: As `activation` of `group_norm`; `None`: the gate as it is.
    mask: bool over leading position axes, without the heads. Where it is False,
      the result is 0 and no gradient flows.
    jit_compile: As for `group_norm`.

  Returns:
    A tensor of the shape and dtype of `x`.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import tensorflow as tf
  >>> from tfgroupnorm import functional
  >>> x = tf.constant([[[1.0, 3.0, 10.0, 30.0]]])  # one step, two heads
  >>> functional.head_norm(x, num_heads=2, epsilon=1e-5).numpy().round(2)
  array([[[-1.,  1., -1.,  1.]]], dtype=float32)

  References:
    - [Henry et al., 2020](https://arxiv.org/abs/2010.04245) (queries and keys)
    - [Sun et al., 2023](https://arxiv.org/abs/2307.08621) (output, with gate)
  """
  return _normalize(
    functools.partial(
      head_layout,
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
