"""TensorFlow: a graph of its own, and events for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

DATASET = tf.data.Dataset

# What TensorBoard's scalars are. `tf.summary.scalar` would need TensorBoard
# where it writes; the events themselves do not.
_SCALAR = tf.compat.v1.SummaryMetadata(
  plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name='scalars'),
  data_class='DATA_CLASS_SCALAR',
)


def wait(model: Any) -> None:
  """Until the devices have done all that they were given."""
  tf.test.experimental.sync_devices()


def runner(model: Any, features: Callable[[], Any]) -> Callable[[], Any]:
  """`features`, which calls `model`, as a function that leaves no trace."""
  if getattr(model, 'run_eagerly', False):
    run, writes = features, True
  else:
    run = features
    if isinstance(model, keras.Model):
      # Layers of Keras 2 may rely on the conversion of Python's `if`.
      run = tf.autograph.experimental.do_not_convert(run)
    run = tf.function(run)
    writes = _writes(run.get_concrete_function())
  if writes:
    # Keras 3 keeps the state of its random numbers there too.
    run = _guarded(run, model.non_trainable_variables)
  return run


def _writes(function: Any) -> bool:
  """Whether a concrete function assigns to variables."""
  graph = function.graph.as_graph_def()
  nodes = [graph.node, *(each.node_def for each in graph.library.function)]
  return any(node.op.startswith('Assign') for part in nodes for node in part)


def _guarded(
  run: Callable[[], Any], variables: Sequence[Any]
) -> Callable[[], Any]:
  """`run`, after which the variables have the values that they had before."""

  def guarded():
    values = [tf.identity(tf.convert_to_tensor(each)) for each in variables]
    try:
      return run()
    finally:
      for each, value in zip(variables, values, strict=True):
        each.assign(value)

  return guarded


def check_outside(name: str, tensor: tf.Tensor) -> None:
  """Not inside a loop or a branch of what is being traced."""
  graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
  if getattr(tensor, 'graph', graph) is not graph:
    raise ValueError(
      '`layers` must be called outside of loops and branches. Received: '
      f'{name!r}, whose features are inside one. Follow the layer around it.'
    )


def sample(outputs: Sequence[tf.Tensor], size: int) -> tf.Tensor:
  """At most `size` of the values, the same positions each time, as float32."""
  flat = [tf.reshape(x, [-1]) for x in outputs]
  x = (
    flat[0]
    if len(flat) == 1
    else tf.concat([tf.cast(each, tf.float32) for each in flat], 0)
  )
  count = x.shape[0]
  if count is None or count > size:
    # Stateless, so that no random number of the training is used up.
    x = tf.gather(
      x,
      tf.random.stateless_uniform(
        [size], (0, 0), maxval=tf.size(x, tf.int64), dtype=tf.int64
      ),
    )
  return tf.cast(x, tf.float32)


class Writers:
  """A run for TensorBoard for each percentile."""

  def __init__(self, log_dir: str, percentiles: Sequence[float]):
    self._writers = [
      tf.summary.create_file_writer(os.path.join(log_dir, f'p{each:g}'))
      for each in percentiles
    ]

  @staticmethod
  def check(log_dir: str) -> None:
    """Whatever it is, TensorFlow can write there or says so itself."""

  def write(self, step: int, name: str, row: np.ndarray) -> None:
    for writer, value in zip(self._writers, row, strict=True):
      with writer.as_default(step), tf.summary.record_if(True):
        tf.summary.write(name, value, metadata=_SCALAR)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()
