"""Array operations of JAX under the names of `tensorflow/array.py`.

Those are NumPy's, and JAX has most of them. Axes, sizes and multiples come as
lists, where JAX wants tuples. All sizes are known, but for those that
`jax.export` leaves open: these are no ints, and can be calculated with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array: TypeAlias = jax.Array
DType: TypeAlias = np.dtype

bfloat16, float32, float64 = jnp.bfloat16, jnp.float32, jnp.float64
bool_, int32 = jnp.bool_, jnp.int32

# Of one tensor.
abs, exp, floor, tanh = jnp.abs, jnp.exp, jnp.floor, jnp.tanh
erf, rsqrt, sigmoid = lax.erf, lax.rsqrt, jax.nn.sigmoid
relu, isinf, real, imag = jax.nn.relu, jnp.isinf, lax.real, lax.imag
stop_gradient, transpose = lax.stop_gradient, jnp.transpose

# Of two; join_complex(real, imag).
add, multiply, minimum = jnp.add, jnp.multiply, jnp.minimum
join_complex = lax.complex

# (condition, t, other); (t, least, largest)
where, clip = jnp.where, jnp.clip

# (a number, dtype)
asarray = jnp.asarray

# (sizes, dtype); (stop)
zeros, ones, arange = jnp.zeros, jnp.ones, jnp.arange

# (t, multiples); (t, axis)
tile, expand_dims = jnp.tile, jnp.expand_dims

# (tensors, axis)
concatenate, stack = jnp.concatenate, jnp.stack

reshape, broadcast_to = jnp.reshape, jnp.broadcast_to

# (tensors): the same, but none of them before all are there.
barrier = lax.optimization_barrier


def to_8_bits(t: Array) -> Array:
  """float32 `t` in the precision of bfloat16."""
  return lax.reduce_precision(t, exponent_bits=8, mantissa_bits=7)


@jax.custom_jvp
def _larger(t: Array, other: Array) -> Array:
  return jnp.maximum(t, other)


@_larger.defjvp
def _slope_of_the_larger(primals, tangents):
  t, other = primals
  slope, other_slope = tangents
  return _larger(t, other), jnp.where(t >= other, slope, other_slope)


def maximum(t: Any, other: Any) -> Array:
  """Where both are equal, the derivative is that of `t`.

  JAX itself takes half of each there. `forms/xla.py` has a maximum that is
  always `t`, and half of whose values are equal to the other one.
  """
  if not jnp.issubdtype(jnp.result_type(t), jnp.floating):
    return jnp.maximum(t, other)
  return _larger(t, jnp.asarray(other, t.dtype))


def astype(t: Any, dtype: DType) -> Array:
  return lax.convert_element_type(t, dtype)


def _over(reduce: Callable) -> Callable:
  def reduced(t: Array, axes: Any = None, keepdims: bool = False) -> Array:
    axes = tuple(axes) if isinstance(axes, Sequence) else axes
    return reduce(t, axes, keepdims=keepdims)

  return reduced


def _extreme(reduce: Callable, of_nothing: float) -> Callable:
  """`reduce`, which JAX refuses for no elements."""
  reduced = _over(reduce)

  def extreme(t: Array, axes: Any = None, keepdims: bool = False) -> Array:
    if 0 in t.shape:
      shape = jax.eval_shape(lambda: _over(jnp.sum)(t, axes, keepdims)).shape
      return jnp.full(shape, of_nothing, t.dtype)
    return reduced(t, axes, keepdims)

  return extreme


# (t, axes, keepdims=False)
sum, mean = _over(jnp.sum), _over(jnp.mean)
min, max = _extreme(jnp.min, np.inf), _extreme(jnp.max, -np.inf)


def add_all(tensors: Sequence[Array]) -> Array:
  """Their sum, from the first to the last."""
  first, *others = tensors
  for t in others:
    first = first + t
  return first


def split(t: Array, sizes: int | Sequence[int], axis: int) -> list[Array]:
  """Pieces of these sizes, where NumPy takes the places of cuts."""
  if isinstance(sizes, int):
    return jnp.split(t, sizes, axis)
  return jnp.split(t, np.cumsum(sizes)[:-1].tolist(), axis)


def tensordot(a: Array, b: Array, axes: int) -> Array:
  """A product of what is exact in 8 bits, as `forms/lanes.py` cuts it."""
  return jnp.tensordot(a, b, axes, precision=lax.Precision.DEFAULT)


def matvec(matrix: Array, vector: Array) -> Array:
  return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)


def shape(t: Array) -> list[Any]:
  """The sizes of `t`: an int where it is known."""
  return list(t.shape)


def rank(t: Array) -> int:
  return t.ndim


def with_shape_of(t: Array, other: Array) -> Array:
  """`t`, of which all is known that is of `other`."""
  return t


def largest_number(dtype: DType) -> float:
  return float(jnp.finfo(dtype).max)


def take(t: Array, indices: Any, axis: int = 0) -> Array:
  if isinstance(indices, int):
    return lax.index_in_dim(t, indices, axis, keepdims=False)
  return jnp.take(t, indices, axis, mode='clip')


def take_each(t: Array, indices: Array) -> Array:
  """`t[i, indices[i]]` for each i."""
  return jax.vmap(lambda row, own: jnp.take(row, own, 0, mode='clip'))(
    t, indices
  )


def argmax(t: Array, axis: int) -> Array:
  return lax.argmax(t, axis % t.ndim, jnp.int32)
