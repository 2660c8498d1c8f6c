"""What tests ask of the framework beneath, the same of TensorFlow and JAX."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

NAME = os.environ.get('KERAS_BACKEND', 'tensorflow')

# Of what the other framework has no counterpart.
on_tensorflow, on_jax = pytest.mark.on_tensorflow, pytest.mark.on_jax

if NAME == 'jax':
  import ml_dtypes

  _DTYPES = {'bfloat16': ml_dtypes.bfloat16}
else:
  from tensorflow import bfloat16

  _DTYPES = {'bfloat16': bfloat16.as_numpy_dtype}


def numpy_dtype(name: str) -> np.dtype:
  return np.dtype(_DTYPES.get(name, name))


def wide(t: Any) -> np.ndarray:
  """In float64, exactly."""
  return np.asarray(t).astype('float64')


class _OnTensorFlow:
  def __init__(self):
    import tensorflow as tf

    self._tf = tf

  def tensor(self, a: Any, dtype: str | None = None) -> Any:
    return self._tf.cast(a, dtype) if dtype else self._tf.convert_to_tensor(a)

  def gradients(self, f: Callable, arguments: Sequence, dy: Any = None) -> list:
    with self._tf.GradientTape() as tape:
      tape.watch(arguments)
      y = f(*arguments)
    return [y, *tape.gradient(y, arguments, dy)]

  def second_order(self, f, arguments, dy, tangents) -> list:
    tf = self._tf
    with tf.GradientTape() as outer:
      outer.watch(arguments)
      first = self.gradients(f, arguments, dy)[1:]
      product = sum(
        tf.reduce_sum(g * t) for g, t in zip(first, tangents, strict=True)
      )
    # No gradient at all is right where it is zero everywhere, as for beta.
    zero = tf.UnconnectedGradients.ZERO
    return outer.gradient(product, arguments, unconnected_gradients=zero)

  def traced(self, f: Callable, shape: Any = None) -> Callable:
    tf = self._tf
    signature = None if shape is None else [tf.TensorSpec(shape)]
    return tf.function(f, input_signature=signature, autograph=False)

  def of_symbolic(self, f: Callable, shape: Sequence, dtype: str) -> Any:
    with self._tf.Graph().as_default():
      return f(self._tf.compat.v1.placeholder(dtype, shape))


class _OnJAX:
  def __init__(self):
    import jax
    import jax.export

    self._jax = jax

  def tensor(self, a: Any, dtype: str | None = None) -> Any:
    return self._jax.numpy.asarray(a, dtype and numpy_dtype(dtype))

  def gradients(self, f: Callable, arguments: Sequence, dy: Any = None) -> list:
    y, back = self._jax.vjp(f, *arguments)
    dy = np.ones(y.shape) if dy is None else dy
    return [y, *back(self.tensor(dy, y.dtype.name))]

  def second_order(self, f, arguments, dy, tangents) -> list:
    def product(*arguments):
      first = self.gradients(f, arguments, dy)[1:]
      return sum((g * t).sum() for g, t in zip(first, tangents, strict=True))

    return self.gradients(product, arguments)[1:]

  def traced(self, f: Callable, shape: Any = None) -> Callable:
    return self._jax.jit(f)

  def of_symbolic(self, f: Callable, shape: Sequence, dtype: str) -> Any:
    sizes = ','.join(
      f'n{i}' if n is None else str(n) for i, n in enumerate(shape)
    )
    shape = self._jax.export.symbolic_shape(sizes)
    return f(self._jax.ShapeDtypeStruct(shape, numpy_dtype(dtype)))


_here = _OnJAX() if NAME == 'jax' else _OnTensorFlow()

# (a, dtype=None): an array as the framework's tensor.
tensor = _here.tensor
# (f, arguments, dy=None): [f(*arguments), and the gradient of each].
gradients = _here.gradients
# (f, arguments, dy, tangents): derivative of these gradients along tangents,
# by a gradient of them.
second_order = _here.second_order
# (f, shape=None): as a graph has it; on TensorFlow for an argument of a shape
# with unknown sizes. JAX traces for each size.
traced = _here.traced
# (f, shape, dtype): f of what has no values yet; `None` in it is not known.
of_symbolic = _here.of_symbolic


def dispatch() -> Any:
  """The room that finds out the platform."""
  from tfgroupnorm import kernel

  return kernel.dispatch
