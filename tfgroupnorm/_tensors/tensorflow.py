"""TensorFlow, for `functional` and the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tfgroupnorm import _checks

# Aliases, not functions of our own: they are called for each eager call.
Tensor: TypeAlias = tf.Tensor
Shape: TypeAlias = tf.TensorShape
RAGGED, SPARSE = tf.RaggedTensor, (tf.SparseTensor, tf.IndexedSlices)
as_dtype, is_tensor = tf.as_dtype, tf.is_tensor
convert, value_of = tf.convert_to_tensor, tf.convert_to_tensor
cast, squeeze, of_shape = tf.cast, tf.squeeze, tf.ensure_shape
flatten, map_structure = tf.nest.flatten, tf.nest.map_structure
packed = tf.nest.pack_sequence_as
map_flat_values = tf.ragged.map_flat_values
not_converted = tf.autograph.experimental.do_not_convert

# Its own functions that the kernel has inside.
_FUSED = {
  tf.identity: None,
  tf.nn.relu: 'relu',
  tf.nn.sigmoid: 'sigmoid',
  tf.nn.silu: 'silu',
  tf.nn.gelu: 'gelu',
}

_NOT_DENSE = {
  tf.RaggedTensor: (
    'Convert it with `to_tensor()`, and pass `mask=tf.sequence_mask('
    'x.row_lengths())` to leave the padding out; or normalize its rows with '
    '`tf.ragged.map_flat_values`, as the layers LayerNorm and HeadNorm do.'
  ),
  tf.SparseTensor: (
    'Convert it with `tf.sparse.to_dense`: the zeros count too, and are none '
    'any more once a mean is subtracted.'
  ),
  tf.IndexedSlices: 'Convert it with `tf.convert_to_tensor`.',
}


def as_tensor(x: Any, name: str) -> tf.Tensor:
  """`x` as a dense tensor with values, now or when a function runs."""
  for kind, remedy in _NOT_DENSE.items():
    if isinstance(x, kind):
      raise TypeError(
        f'`{name}` must be a dense tensor. Received: {kind.__name__}. {remedy}'
      )
  if type(x).__name__ == 'KerasTensor':
    raise TypeError(
      f'`{name}` must hold values, or be symbolic in a tf.function. '
      'Received: a symbolic tensor of Keras. Use the layer from '
      '`tfgroupnorm` (or `tfgroupnorm.tf_keras`) in a functional model.'
    )
  return tf.convert_to_tensor(x)


def as_input(x: Any) -> tuple[tf.Tensor, tuple[int | None, ...]]:
  """`x` as a floating tensor of known rank, and its shape."""
  x = as_tensor(x, 'x')
  _checks.check_real(x)
  if _checks.is_whole(x):
    x = tf.cast(x, tf.float32)
  return x, as_shape(x.shape)


def as_mask(mask: Any) -> tf.Tensor:
  """`mask` as a tensor of bools."""
  mask = as_tensor(mask, 'mask')
  _checks.check_mask_dtype(mask)
  return tf.cast(mask, tf.bool)


def shape_of(x: tf.Tensor) -> tuple[int | None, ...] | None:
  """What is known of the shape; None where not even the rank is."""
  return None if x.shape.rank is None else tuple(x.shape)


def as_shape(shape: Any) -> tuple[int | None, ...]:
  """What Keras passes on as a shape, whose rank must be known."""
  shape = tf.TensorShape(shape)
  if shape.rank is None:
    raise ValueError(
      'The rank of the input must be known. Received: a tensor of unknown '
      'rank. Call `tf.ensure_shape` with None for each unknown size.'
    )
  return tuple(shape)


def repeated(t: tf.Tensor, axis: int, size: int) -> tf.Tensor:
  """`t` with `size` on `axis`, where it may have 1."""
  if t.shape[axis] == size:
    return t
  return tf.repeat(t, size, axis)


def without_gradient(x: tf.Tensor) -> tf.Tensor:
  """`x` whose gradient is 0, and not `None` as of `tf.stop_gradient`."""
  return tf.where(False, x, tf.stop_gradient(x))


def widened(x: tf.Tensor, compute_dtype: tf.DType) -> tf.Tensor:
  """`x` in a dtype from which one cast leads to `compute_dtype`."""
  if x.dtype.is_integer or x.dtype.is_bool:
    return tf.cast(x, compute_dtype)
  if not x.dtype.is_floating:
    return x  # For `functional` to refuse.
  if x.dtype == compute_dtype or x.dtype.size > compute_dtype.size:
    return x
  return tf.cast(x, compute_dtype if compute_dtype.size > 2 else tf.float32)


def where_valid(mask, mask_axes: tuple[int, ...], x: tf.Tensor) -> tf.Tensor:
  """`x`, shaped as the input, with zeros where the mask is False."""
  if mask is None:
    return x
  sizes = tf.shape(x)
  sizes = [sizes[i] if i in mask_axes else 1 for i in range(x.shape.rank)]
  return tf.where(tf.reshape(mask, sizes), x, tf.zeros([], x.dtype))


def split_activation(activation: Any) -> tuple[str | None, Callable | None]:
  """Splits `activation` into what the kernel fuses and what comes after it."""
  _checks.check_activation(activation)
  if activation is None:
    return None, None
  if isinstance(activation, str):
    if activation in _checks.FUSED:
      return _checks.FUSED[activation], None
    return None, getattr(tf.nn, activation)
  try:
    return _FUSED[activation], None
  except (KeyError, TypeError):  # Unknown, or not hashable.
    return None, activation


def gradients(
  function: Callable, tensors: Sequence[tf.Tensor], weights: Sequence[Any]
) -> list[tf.Tensor]:
  """Of the number `function(tensors)`, by tensors and by weights of Keras."""
  by = [*tensors]
  by += [w if isinstance(w, tf.Variable) else w.value for w in weights]
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(by)
    number = function(tensors)
  return tape.gradient(number, by, unconnected_gradients='zero')
