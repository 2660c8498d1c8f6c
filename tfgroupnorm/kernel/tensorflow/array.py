"""Array operations of TensorFlow under NumPy's names.

What NumPy has no name for is called as in JAX, or by what it does. Axes, sizes
and multiples are lists. `t.shape` has an int for each size, or `None` where a
graph does not know it; `shape` has a `Size` there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

Array: TypeAlias = tf.Tensor
DType: TypeAlias = tf.DType

bfloat16, float32, float64 = tf.bfloat16, tf.float32, tf.float64
bool_, int32 = tf.bool, tf.int32

# Aliases, not functions of our own, wherever that will do: an eager call costs
# so little that one more level would show.

# Of one tensor.
abs, exp, floor, tanh = tf.abs, tf.exp, tf.floor, tf.tanh
erf, rsqrt, relu, sigmoid = tf.math.erf, tf.math.rsqrt, tf.nn.relu, tf.sigmoid
isinf, real, imag = tf.math.is_inf, tf.math.real, tf.math.imag
stop_gradient, transpose = tf.stop_gradient, tf.transpose

# Of two; join_complex(real, imag).
add, multiply, maximum, minimum = tf.add, tf.multiply, tf.maximum, tf.minimum
join_complex = tf.complex

# (condition, t, other); (t, least, largest)
where, clip = tf.where, tf.clip_by_value

# (t, axes, keepdims=False)
sum, mean = tf.reduce_sum, tf.reduce_mean
min, max = tf.reduce_min, tf.reduce_max

# (t, dtype), where asarray takes a number
astype, asarray = tf.cast, tf.constant

# (sizes, dtype); (stop)
zeros, ones, arange = tf.zeros, tf.ones, tf.range

# (t, multiples); (t, axis)
tile, expand_dims = tf.tile, tf.expand_dims

# (tensors, axis); (tensors): their sum
concatenate, stack, add_all = tf.concat, tf.stack, tf.add_n

# (t, sizes, axis): pieces of these sizes, where NumPy takes the places of cuts.
split = tf.split

# (a, b, how many axes); (matrix, vector)
tensordot, matvec = tf.tensordot, tf.linalg.matvec

# (tensors): the same, but none of them before all are there. It has none.
barrier = None


def to_8_bits(t: Array) -> Array:
  """float32 `t` in the precision of bfloat16.

  By a mask: XLA takes a cast to bfloat16 and back for nothing.
  """
  bits = tf.bitcast(t, tf.uint32) + tf.constant(0x8000, tf.uint32)
  bits = tf.bitwise.bitwise_and(bits, tf.constant(0xFFFF0000, tf.uint32))
  return tf.bitcast(bits, tf.float32)


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
