"""Array operations of TensorFlow under NumPy's names.

What NumPy has no name for is called as in JAX. `shape` is for sizes that a
graph may not know; `t.shape` has an int or `None` for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

Array: TypeAlias = tf.Tensor
DType: TypeAlias = tf.DType

bfloat16, float32, float64 = tf.bfloat16, tf.float32, tf.float64
bool_, int32, uint32 = tf.bool, tf.int32, tf.uint32

# Aliases, not functions: eagerly each call counts.
abs, exp, floor, tanh = tf.abs, tf.exp, tf.floor, tf.tanh
maximum, minimum, clip = tf.maximum, tf.minimum, tf.clip_by_value
erf, rsqrt, isinf = tf.math.erf, tf.math.rsqrt, tf.math.is_inf
relu, sigmoid = tf.nn.relu, tf.sigmoid
real, imag, join_complex = tf.math.real, tf.math.imag, tf.complex
where, stop_gradient = tf.where, tf.stop_gradient
add, multiply = tf.add, tf.multiply
bitcast, bitwise_and = tf.bitcast, tf.bitwise.bitwise_and

# (t, axes, keepdims=False)
sum, mean = tf.reduce_sum, tf.reduce_mean
min, max = tf.reduce_min, tf.reduce_max

# (t, dtype); (t, multiples); (t, axis); (tensors, axis)
astype, asarray, tile = tf.cast, tf.constant, tf.tile
expand_dims, stack, concatenate = tf.expand_dims, tf.stack, tf.concat
transpose, zeros, ones, arange = tf.transpose, tf.zeros, tf.ones, tf.range

# (tensors); (a, b, how many axes); (matrices, vector)
add_all, tensordot, matvec = tf.add_n, tf.tensordot, tf.linalg.matvec

# (t, sizes, axis): into pieces of these sizes.
split = tf.split


class Size:
  """A size that a graph does not know, and finds out if it is wanted.

  That takes 5 nodes, and mostly it is only handed on to `reshape`. In what is
  computed with it, and as an argument, it is a scalar tensor.
  """

  def __init__(self, sizes: Callable[[], Array], axis: int):
    self._sizes, self._axis = sizes, axis

  @functools.cached_property
  def tensor(self) -> Array:
    return self._sizes()[self._axis]

  def __mul__(self, other: Any) -> Array:
    return self.tensor * _known(other)

  __rmul__ = __mul__

  def __add__(self, other: Any) -> Array:
    return self.tensor + _known(other)

  __radd__ = __add__

  def __sub__(self, other: Any) -> Array:
    return self.tensor - _known(other)

  def __floordiv__(self, other: Any) -> Array:
    return self.tensor // _known(other)


def _known(n: Any) -> Any:
  return n.tensor if isinstance(n, Size) else n


tf.register_tensor_conversion_function(
  Size, lambda size, dtype=None, name=None, as_ref=False: size.tensor
)


def shape(t: Array) -> list[Any]:
  """The sizes of `t`: an int where it is known, a `Size` where not."""
  static = t.shape.as_list()
  sizes = functools.cache(lambda: tf.shape(t))
  return [Size(sizes, i) if n is None else n for i, n in enumerate(static)]


def rank(t: Array) -> int | None:
  """`None` if the graph does not know it."""
  return t.shape.rank


def reshape(t: Array, sizes: list[Any]) -> Array:
  known = [n for n in sizes if isinstance(n, int)]
  if len(known) == len(sizes):
    return tf.reshape(t, sizes)
  if len(known) == len(sizes) - 1 and all(n > 0 for n in known):
    # The one that is not is what is left: nothing need find it out.
    return tf.reshape(t, [n if isinstance(n, int) else -1 for n in sizes])
  return tf.reshape(t, [_known(n) for n in sizes])


def broadcast_to(t: Array, sizes: list[Any]) -> Array:
  return tf.broadcast_to(t, [_known(n) for n in sizes])


def with_shape_of(t: Array, other: Array) -> Array:
  """`t`, of which a graph now knows as much as of `other`."""
  t.set_shape(other.shape)
  return t


def largest_number(dtype: DType) -> float:
  return dtype.max


def take(t: Array, indices: Any, axis: int = 0) -> Array:
  return tf.gather(t, indices, axis=axis)


def take_each(t: Array, indices: Array) -> Array:
  """`t[i, indices[i]]` for each i."""
  return tf.gather(t, indices, axis=1, batch_dims=1)


def argmax(t: Array, axis: int) -> Array:
  return tf.argmax(t, axis, tf.int32)
