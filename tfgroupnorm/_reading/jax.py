"""JAX: a program of the model's state; no events, which TensorFlow writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp

# There is none that could be taken for a batch.
DATASET = ()


def _synchronized(model: Any) -> list[Any]:
  """Its variables, with the state that `fit` holds meanwhile."""
  sync = getattr(model, 'jax_state_sync', None)
  if sync is not None:
    sync()
  return model.variables


def wait(model: Any) -> None:
  """Until the devices have done all that they were given for `model`."""
  jax.block_until_ready([each.value for each in _synchronized(model)])


def runner(model: Any, features: Callable[[], Any]) -> Callable[[], Any]:
  """`features`, which calls `model`, as a function that leaves no trace."""

  def of_state(values):
    # What is assigned inside is forgotten, random numbers' state too.
    pairs = list(zip(model.variables, values, strict=True))
    with keras.StatelessScope(state_mapping=pairs):
      return features()

  if not getattr(model, 'run_eagerly', False):
    of_state = jax.jit(of_state)

  def run():
    return of_state([each.value for each in _synchronized(model)])

  return run


def check_outside(name: str, tensor: jax.Array) -> None:
  """Not inside a loop or a branch of what is being traced."""
  try:
    jnp.zeros([], tensor.dtype) + jnp.ravel(tensor)[:0].sum()
  except jax.errors.UnexpectedTracerError as error:
    raise ValueError(
      '`layers` must be called outside of loops and branches. Received: '
      f'{name!r}, whose features are inside one. Follow the layer around it.'
    ) from error


def sample(outputs: Sequence[jax.Array], size: int) -> jax.Array:
  """At most `size` of the values, the same positions each time, as float32."""
  x = jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in outputs])
  if x.size > size:
    # By a key of its own: no random number of the training is used up.
    places = jax.random.randint(jax.random.key(0), [size], 0, x.size)
    x = x[places]
  return x


class Writers:
  """There are none without TensorFlow."""

  def __init__(self, log_dir: str, percentiles: Sequence[float]):
    self.check(log_dir)

  @staticmethod
  def check(log_dir: str) -> None:
    raise ValueError(
      '`log_dir` is for TensorBoard, whose events TensorFlow writes. Received: '
      f'log_dir={log_dir!r}, with JAX beneath Keras. Leave it out: `history` '
      'has the numbers, and `plot` draws them.'
    )

  def write(self, step: int, name: str, row: np.ndarray) -> None:
    raise NotImplementedError

  def close(self) -> None:
    raise NotImplementedError
