"""What is measured, through JAX: the cases of `cases.py`, and whose layers.

For processes with KERAS_BACKEND=jax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cases as c

OWNERS = ('ours', 'keras', 'flax')


def function_of(case: c.Case, owner: str) -> Callable | None:
  """Of (x, gamma, beta); `None` where an owner has no such thing."""
  if owner == 'ours':
    return functools.partial(_ours, case)
  if case.masked:
    return None
  if owner == 'keras':
    return _by_keras(case)
  return _by_flax(case)


def _ours(case: c.Case, x, gamma, beta):
  from jax import numpy as jnp

  mask = None
  if case.masked:  # Half of the positions, or a little more.
    positions = case.shape[1:-1]
    length = x[0, ..., 0].size
    lengths = length // 2 + jnp.arange(case.shape[0])
    mask = jnp.arange(length) < lengths[:, None]
    mask = mask.reshape(case.shape[0], *positions)
    # Lest it be a constant.
    mask = mask & (gamma[0] == gamma[0])
  return c.functional_of(case)(
    x, gamma, None if case.rms else beta, mask=mask, **case.options
  )


def _by_flax(case: c.Case) -> Callable | None:
  import jax

  norm, activation = c.by_flax(case), case.options.get('activation')
  if norm is not None and case.per_sample:
    norm = _per_sample(norm, case.shape[-1])
  if norm is None or activation is None:
    return norm
  function = getattr(jax.nn, activation)
  return lambda *args: function(norm(*args))


def _per_sample(norm: Callable, size: int) -> Callable:
  """With parameters of each sample, which `norm` has not: it gets 1 and 0."""
  from jax import numpy as jnp

  def run(x, gamma, beta):
    ones = jnp.ones(size)
    y = norm(x, ones, 0 * ones)
    positions = tuple(range(1, x.ndim - 1))
    gamma, beta = (
      jnp.expand_dims(p, positions).astype(y.dtype) for p in (gamma, beta)
    )
    return y * gamma + beta

  return run


def _by_keras(case: c.Case) -> Callable:
  import keras

  axis = case.options.get('axis', -1)
  shape, size = case.shape, case.shape[axis]
  if 'num_heads' in case.options:
    size //= case.options['num_heads']
    shape = (*shape[:-1], -1, size)
  policy = case.dtype if case.dtype == 'float32' else f'mixed_{case.dtype}'
  options = {'axis': axis, 'dtype': policy}
  if case.kind == 'GroupNorm':
    layer = keras.layers.GroupNormalization(case.options['groups'], **options)
  elif case.kind == 'InstanceNorm':
    layer = keras.layers.GroupNormalization(-1, **options)
  elif case.rms:
    layer = keras.layers.RMSNormalization(**options)
  else:
    layer = keras.layers.LayerNormalization(**options)
  layer.build([-1 if n == -1 else n for n in shape])
  activation = keras.activations.get(case.options.get('activation'))

  def run(x, gamma, beta):
    # Of heads: it has one gamma for all of them.
    weights = [gamma.ravel()[:size], beta.ravel()[:size]]
    if case.rms:
      del weights[1]
    y, _ = layer.stateless_call(weights, [], x.reshape(shape))
    return y.reshape(case.shape)

  norm = _per_sample(run, size) if case.per_sample else run
  return lambda *args: activation(norm(*args))


def step(function: Callable) -> Callable:
  """`(x, gamma, beta, dy) -> (y, dx, dgamma, dbeta)`; `y` is finished first."""
  import jax

  def run(x, gamma, beta, dy):
    y, back = jax.vjp(function, x, gamma, beta)
    finished, dy = jax.lax.optimization_barrier((y, dy))
    return finished, *back(dy)

  return run
