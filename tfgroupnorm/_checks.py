"""Validation: whatever can be wrong with an argument is found here.

For the functions and for the layers, before any computation. An error says the
rule, what was received and the remedy. Shapes are sequences with None for what
is not known, dtypes go by their names: nothing here is of one framework, and
what only TensorFlow's tensors can be is refused where they come in, in
`_tensors`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

Shape = Sequence[int | None]


class _Default(int):
  """An int that is told from the same one given by a caller."""


# Beside `group_size`, `groups` must be left out; a given 32 is an error too.
DEFAULT_GROUPS = _Default(32)
ONE_CHANNEL_EACH = _Default(-1)

# What the kernel runs inside, by each of its names; None: nothing.
FUSED: dict[str, str | None] = {
  'linear': None,
  'relu': 'relu',
  'sigmoid': 'sigmoid',
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_tanh',
}

# Names of functions applied to the kernel's result.
UNFUSED = (
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


# --- Options, which no input can make right ----------------------------------


def check_int(name: str, value: Any) -> int:
  """`value` as an int; bools and floats are not ints, NumPy's ints are."""
  if not isinstance(value, bool):
    try:
      return operator.index(value)
    except TypeError:
      pass
  if getattr(value, 'shape', ()) != ():  # Not its values, which may be many.
    raise TypeError(
      f'`{name}` must be an integer. Received: {name} of type '
      f'{type(value).__name__} and shape {tuple(value.shape)}. A layer is made '
      'first and called then: `layer = GroupNorm(8)`, `y = layer(x)`.'
    )
  raise TypeError(
    f'`{name}` must be an integer. Received: {name}={value!r} of type '
    f'{type(value).__name__}. Pass a Python or NumPy int.'
  )


# PyTorch's and others' arguments, and what stands for them here.
_COUNTERPARTS = {
  'affine': 'scale and center, both',
  'bias': 'center',
  'elementwise_affine': 'scale and center, both',
  'eps': 'epsilon',
  'normalized_shape': 'axis, a list of axes such as [-2, -1], whose sizes are '
  'found when the layer is built',
  'num_channels': 'none: the channels are counted on axis when it is built',
  'num_features': 'none: the channels are counted on axis when it is built',
  'num_groups': 'groups',
  'momentum': 'none: there are no moving averages',
  'track_running_stats': 'none: there are no moving averages',
}


def check_foreign_arguments(who: str, names: Any) -> None:
  """None of those that other libraries have."""
  for name in names:
    if name in _COUNTERPARTS:
      raise TypeError(
        f'{who} takes the arguments of Keras, and `{name}` is none. Received: '
        f'{name}. Use instead: {_COUNTERPARTS[name]}.'
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
        f'Received: group_size={group_size}. Pass a divisor of the channels.'
      )
  elif groups < 1 and groups != -1:
    raise ValueError(
      '`groups` must be a positive integer, or -1 for one channel a group. '
      f'Received: groups={groups}. Pass a divisor of the channels.'
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
        f'`num_heads` must be positive. Received: num_heads={num_heads}. Pass '
        'a divisor of the last axis, or the size of `head_axis`.'
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


def check_activation(activation: Any) -> None:
  """None, a callable, or a name that `FUSED` or `UNFUSED` has."""
  if activation is None or callable(activation):
    return
  known = sorted({*FUSED, *UNFUSED})
  if not isinstance(activation, str) or activation not in known:
    raise ValueError(
      f'Unknown activation. Received: {activation!r}. Pass a callable, None, '
      f'or one of {", ".join(known)}.'
    )


def check_no_rms_scaling(rms_scaling: Any) -> None:
  """Not Keras' `rms_scaling`, which is something else than RMS."""
  if rms_scaling:
    raise ValueError(
      "LayerNorm has no `rms_scaling`: with it Keras' LayerNormalization "
      'divides by the deviation from the mean and does not subtract the mean, '
      'which Keras itself calls incorrect. Received: rms_scaling='
      f'{rms_scaling!r}. Use rms=True for RMS normalization, and train again; '
      'or keep the layer of Keras.'
    )


def check_no_offset(rms: bool, beta: Any) -> None:
  """No `beta` with `rms`."""
  if rms and beta is not None:
    raise ValueError(
      '`beta` cannot be given with rms=True: RMS normalization has no '
      'offset. Received: both. Leave it out, or add it to the result.'
    )


# --- The shape of the input --------------------------------------------------


def check_rank(shape: Shape, least: int, who: str) -> None:
  """`least` axes or more."""
  if len(shape) < least:
    raise ValueError(
      f'{who} needs an input of rank {least} or more, the batch first. '
      f'Received: shape {tuple(shape)}. Add the missing axes, for example '
      'with `x[None]`.'
    )


def check_axis_of(shape: Shape, axis: int, name: str) -> int:
  """An axis that `shape` has, counted from the start; not the batch axis 0."""
  rank = len(shape)
  if not -rank <= axis < rank:
    raise ValueError(
      f'`{name}` must be an axis of the input. Received: {name}={axis} for '
      f'an input of rank {rank}, shape {tuple(shape)}. Use a value from 1 to '
      f'{rank - 1}, or a negative one counted from the end; how many channels '
      'or features are there is found when the layer is built.'
    )
  if axis % rank == 0:
    raise ValueError(
      f'`{name}` cannot be 0: that is the batch, and samples are never '
      f'mixed. Received: {name}={axis} for shape {tuple(shape)}. Use the '
      'axis of the channels, -1 if they are last.'
    )
  return axis % rank


def check_distinct_axes(shape: Shape, axes: Sequence[int]) -> tuple[int, ...]:
  """Axes that `shape` has, in ascending order, none of them twice."""
  found = tuple(sorted(check_axis_of(shape, a, 'axis') for a in axes))
  if len(set(found)) < len(found):
    raise ValueError(
      '`axis` must not name an axis twice. Received: axis='
      f'{list(axes)} for shape {tuple(shape)}. Drop the repetition; a '
      'negative axis counts from the end.'
    )
  return found


def check_size(shape: Shape, axis: int, what: str) -> int:
  """The size of an axis, the number of `what`: known, and positive."""
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
      f'{tuple(shape)} with size {size} on axis {axis}. Pass an input that has '
      'some.'
    )
  return size


def check_sizes_of_build(
  shape: Shape, built_on: Shape, axes: Sequence[int], who: str
) -> None:
  """The sizes on `axes` for which `gamma` and `beta` were made."""
  for axis in axes:
    if not -len(shape) <= axis < len(shape):
      continue  # For `check_axis_of` to refuse.
    size, wanted = shape[axis], built_on[axis]
    if None not in (size, wanted) and size != wanted:
      raise ValueError(
        f'This {who} was built for size {wanted} on axis {axis}, and its '
        f'weights have that size. Received: size {size}, in an input of shape '
        f'{tuple(shape)}. Give each size a layer of its own, or pass '
        'scale=False, center=False to have no weights.'
      )


def check_division(channels: int, groups: int, group_size: int | None) -> int:
  """How many groups so many channels have; options as of `check_groups`."""
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
  return groups


def check_head_axis_of(
  shape: Shape, head_axis: int, num_heads: int | None
) -> int:
  """The axis of the heads, counted from the start, before the features'."""
  axis = check_axis_of(shape, head_axis, 'head_axis')
  last = len(shape) - 1
  if axis == last:
    raise ValueError(
      '`head_axis` cannot be the last axis, which holds the features. '
      f'Received: head_axis={head_axis} for shape {tuple(shape)}. Use '
      '`num_heads` if heads share the last axis.'
    )
  if num_heads is not None and shape[axis] not in (None, num_heads):
    raise ValueError(
      'The head axis must have size `num_heads`. Received: num_heads='
      f'{num_heads}, head_axis={head_axis} for shape {tuple(shape)}. Leave '
      'out `num_heads`, or point `head_axis` at the heads.'
    )
  return axis


def check_equal_heads(size: int, num_heads: int) -> int:
  """How many features each of `num_heads` heads has, of `size` in all."""
  if size % num_heads:
    raise ValueError(
      'The last axis must hold equal heads. Received: size '
      f'{size} for num_heads={num_heads}. Pass a divisor of {size}.'
    )
  return size // num_heads


# --- Tensors: anything with a `dtype` that has a name ------------------------


def is_floating(x: Any) -> bool:
  return x.dtype.name.startswith(('float', 'bfloat'))


def is_whole(x: Any) -> bool:
  """Of integers or bools."""
  return x.dtype.name.startswith(('int', 'uint', 'bool'))


def check_real(x: Any) -> None:
  """Floating, integer or bool; not complex, not a string."""
  if not (is_floating(x) or is_whole(x)):
    raise TypeError(
      f'`x` must be real numbers. Received: dtype {x.dtype.name}. Cast it to '
      'a floating dtype, or normalize real and imaginary parts apart.'
    )


def check_floating(name: str, value: Any) -> None:
  """Floating, not integers and not bools."""
  if not is_floating(value):
    raise TypeError(
      f'`{name}` must be floating. Received: dtype {value.dtype.name}. Cast it '
      'to the dtype of the input, or to float32.'
    )


def check_parameter_shape(
  name: str, received: Shape | None, own: Shape, shape: Shape
) -> bool:
  """Whether a parameter for an input of `shape` is one per sample.

  Args:
    name: `'gamma'` or `'beta'`.
    received: Its shape, or None where not even the rank is known.
    own: The shape of one for all samples.
    shape: That of the input.
  """
  per_sample = (shape[0], *own)
  if compatible(received, own):
    return False
  if compatible(received, per_sample):
    return True
  raise ValueError(
    f'`{name}` must have shape {tuple(own)}, or {per_sample} for one per '
    f'sample. Received: shape {received} for an input of shape '
    f'{tuple(shape)}. Reshape it, or check `axis` and the groups.'
  )


def check_mask_dtype(mask: Any) -> None:
  """Of bools, or of integers 0 and 1."""
  if not is_whole(mask):
    raise TypeError(
      '`mask` must be of bools, or integers 0 and 1: True where the input '
      f'counts. Received: dtype {mask.dtype.name}. Pass `mask == 0` if it is '
      'one to be added to scores, 0 where the input counts and -1e9 where it '
      'does not; or `mask > 0` if it is 1 where the input counts.'
    )


def check_mask_shape(
  received: Shape | None, positions: Shape, shape: Shape
) -> int:
  """How many of the `positions`, from the left, a mask spans."""
  rank = len(received or ())
  if not 0 < rank <= len(positions) or not compatible(
    received, positions[:rank]
  ):
    raise ValueError(
      '`mask` must have the shape of the leading axes of the input that are '
      f'positions, {positions} or fewer of these from the left. Received: mask '
      f'of shape {"<unknown>" if received is None else received} for an input '
      f'of shape {tuple(shape)}. It is broadcast over the remaining axes, '
      'which it may also have with size 1.'
    )
  return rank


def check_axes_not_ragged(
  axes: Sequence[int] | None, ragged_rank: int, shape: Shape, who: str
) -> None:
  """Groups that lie within the rows of a ragged tensor, all of one size.

  Args:
    axes: Those of a group and its parameters, counted from the start; `None`:
      a group spans the positions of a sample.
    ragged_rank: The last axis whose rows have different sizes.
    shape: That of the ragged tensor.
    who: The layer.
  """
  if axes is not None and all(axis > ragged_rank for axis in axes):
    return
  spanned = 'the positions' if axes is None else f'axes {sorted(axes)}'
  raise TypeError(
    f'A ragged tensor is taken where each group lies in one row: {who} spans '
    f'{spanned} of a sample. Received: RaggedTensor of shape {tuple(shape)}, '
    f'ragged up to axis {ragged_rank}. Pass `x.to_tensor()` with '
    '`mask=tf.sequence_mask(x.row_lengths())`.'
  )


def check_nothing_beside_ragged(who: str, **given: Any) -> None:
  """No mask, `gamma` or `beta` with the call of a ragged tensor."""
  for name, value in given.items():
    if value is not None:
      raise ValueError(
        f'`{name}` cannot be passed beside a ragged tensor, which has no '
        f'padding and samples of many sizes. Received: both, for {who}. Pass '
        '`x.to_tensor()` with a mask, or leave it out.'
      )


def check_ragged_gate(ragged: bool, gate: Any) -> None:
  """`gate` is ragged, as the input is."""
  if not ragged:
    raise TypeError(
      '`gate` must be ragged as the input is, with the same rows. Received: '
      f'gate of type {type(gate).__name__} beside a RaggedTensor. Pass both '
      'ragged, or both dense.'
    )


def check_gate_given(gate: Any, gate_activation: Any) -> None:
  """A gate where there is an activation of it."""
  if gate is None and gate_activation is not None:
    raise ValueError(
      '`gate_activation` is applied to a gate. Received: gate_activation='
      f'{getattr(gate_activation, "__name__", gate_activation)!s}, gate=None. '
      'Pass `gate` with the call, shaped as the input; or leave out '
      '`gate_activation`.'
    )


def check_gate_shape(received: Shape | None, shape: Shape) -> None:
  """The shape of the input."""
  if not compatible(received, shape):
    raise ValueError(
      '`gate` must have the shape of the input, which it multiplies '
      f'elementwise. Received: gate of shape {received} for an '
      f'input of shape {tuple(shape)}. Reshape it, or broadcast it before.'
    )


def compatible(shape: Shape | None, wanted: Shape) -> bool:
  """Whether `shape` may turn out to be `wanted`; None is not known yet."""
  return shape is None or (
    len(shape) == len(wanted)
    and all(
      None in (a, b) or a == b for a, b in zip(shape, wanted, strict=True)
    )
  )
