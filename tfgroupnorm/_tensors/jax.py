"""JAX, for `functional` and the layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import keras
import numpy as np
from jax import numpy as jnp

from tfgroupnorm import _checks

Tensor: TypeAlias = jax.Array


class Shape(tuple):
  """Sizes, `None` for one that is not known; the rank always is."""

  @property
  def rank(self) -> int:
    return len(self)


# There are none that the layers could take.
RAGGED, SPARSE = (), ()
# float32 for float64, where `jax_enable_x64` is off.
as_dtype, squeeze = jax.dtypes.canonicalize_dtype, jnp.squeeze
flatten, map_structure = jax.tree.leaves, jax.tree.map

# Its own functions that the kernel has inside; its GELU is by tanh.
_FUSED: dict[Any, str | None] = {
  jax.nn.relu: 'relu',
  jax.nn.sigmoid: 'sigmoid',
  jax.nn.silu: 'silu',
  jax.nn.gelu: 'gelu_tanh',
}

# Those with other names or slopes than in Keras.
_UNFUSED = {
  'leaky_relu': functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
  'softsign': jax.nn.soft_sign,
  'tanh': jnp.tanh,
}


def packed(structure: Any, leaves: Sequence[Any]) -> Any:
  return jax.tree.unflatten(jax.tree.structure(structure), leaves)


def is_tensor(x: Any) -> bool:
  return isinstance(x, jax.Array)


def convert(x: Any) -> jax.Array:
  return x if isinstance(x, jax.Array) else jnp.asarray(x)


def value_of(weight: Any) -> jax.Array:
  """What a weight of Keras is now, in a call that brings its state too."""
  return convert(weight.value)


def as_tensor(x: Any, name: str) -> jax.Array:
  """`x` as an array with values, now or when a function runs."""
  if type(x).__name__ == 'KerasTensor':
    raise TypeError(
      f'`{name}` must hold values, or be traced by JAX. Received: a symbolic '
      'tensor of Keras. Use the layer from `tfgroupnorm` in a functional model.'
    )
  if isinstance(x, jax.Array):
    return x
  array = np.asarray(x)
  if array.dtype.kind in 'OSU':
    raise TypeError(
      f'`{name}` must be an array of numbers. Received: {type(x).__name__}, '
      f'which NumPy makes dtype {array.dtype} of. Pass a dense array of JAX or '
      'NumPy.'
    )
  return jnp.asarray(array)


def as_input(x: Any) -> tuple[jax.Array, tuple[int, ...]]:
  """`x` as a floating array, and its shape."""
  x = as_tensor(x, 'x')
  _checks.check_real(x)
  if _checks.is_whole(x):
    x = cast(x, jnp.float32)
  return x, tuple(x.shape)


def as_mask(mask: Any) -> jax.Array:
  """`mask` as an array of bools."""
  mask = as_tensor(mask, 'mask')
  _checks.check_mask_dtype(mask)
  return cast(mask, jnp.bool_)


def shape_of(x: jax.Array) -> tuple[int, ...]:
  return tuple(x.shape)


def as_shape(shape: Any) -> tuple[int | None, ...]:
  """What Keras passes on as a shape."""
  return tuple(shape)


def of_shape(x: jax.Array, shape: Any) -> jax.Array:
  """`x`, which has this shape: what is known of it JAX knows already."""
  return x


def cast(x: Any, dtype: Any) -> jax.Array:
  return jax.lax.convert_element_type(x, dtype)


def repeated(t: jax.Array, axis: int, size: int) -> jax.Array:
  """`t` with `size` on `axis`, where it may have 1."""
  return t if t.shape[axis] == size else jnp.repeat(t, size, axis)


def without_gradient(x: jax.Array) -> jax.Array:
  """`x` whose gradient is 0."""
  return jax.lax.stop_gradient(x)


def widened(x: jax.Array, compute_dtype: Any) -> jax.Array:
  """`x` in a dtype from which one cast leads to `compute_dtype`."""
  if _checks.is_whole(x):
    return cast(x, compute_dtype)
  if not _checks.is_floating(x):
    return x  # For `functional` to refuse.
  size = compute_dtype.itemsize
  if x.dtype == compute_dtype or x.dtype.itemsize > size:
    return x
  return cast(x, compute_dtype if size > 2 else jnp.float32)


def where_valid(mask, mask_axes: tuple[int, ...], x: jax.Array) -> jax.Array:
  """`x`, shaped as the input, with zeros where the mask is False."""
  if mask is None:
    return x
  sizes = [n if i in mask_axes else 1 for i, n in enumerate(x.shape)]
  return jnp.where(jnp.reshape(mask, sizes), x, jnp.zeros([], x.dtype))


def split_activation(activation: Any) -> tuple[str | None, Callable | None]:
  """Splits `activation` into what the kernel fuses and what comes after it."""
  _checks.check_activation(activation)
  if activation is None:
    return None, None
  if isinstance(activation, str):
    if activation in _checks.FUSED:
      return _checks.FUSED[activation], None
    if activation in _UNFUSED:
      return None, _UNFUSED[activation]
    return None, getattr(jax.nn, activation)
  try:
    return _FUSED[activation], None
  except (KeyError, TypeError):  # Unknown, or not hashable.
    return None, activation


def map_flat_values(*args: Any) -> Any:
  """Of ragged tensors, of which JAX has none."""
  raise NotImplementedError


def not_converted(function: Callable) -> Callable:
  """`function`: JAX does not rewrite Python's statements."""
  return function


def gradients(
  function: Callable, tensors: Sequence[jax.Array], weights: Sequence[Any]
) -> list[jax.Array]:
  """Of the number `function(tensors)`, by tensors and by weights of Keras."""

  def number(tensors, values):
    pairs = list(zip(weights, values, strict=True))
    with keras.StatelessScope(state_mapping=pairs):
      return function(tensors)

  values = [each.value for each in weights]
  by_tensors, by_weights = jax.grad(number, (0, 1))(list(tensors), values)
  return [*by_tensors, *by_weights]
