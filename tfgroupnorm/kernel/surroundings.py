"""What a caller says around a call, such as that nothing is to be compiled.

Of the thread that says so: others may be training.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

op_by_op_asked = contextvars.ContextVar('tfgroupnorm.op_by_op', default=False)


@contextlib.contextmanager
def op_by_op() -> Iterator[None]:
  """Under it nothing is compiled: for functions that other programs will run.

  Programs that convert a graph, to ONNX or to LiteRT for example, do not know
  what XLA is to compile, and some write a file then that nothing can read.
  Trace what they are given under this context manager: it is
  `jit_compile=False` for all layers and functions of this package, of either
  Keras, whatever they say themselves, `True` too.

  It holds in this thread, for what is traced or called inside it, and may be
  nested. A `tf.function` that was traced before, by a call or by
  `get_concrete_function`, keeps the trace that it has, here too: make a new
  `tf.function` of the same Python function, or of the model, inside. What was
  traced inside stays op by op outside. The same goes for `jax.jit`.

  SavedModels need none of this, however they are made, and no program that
  makes one on its way: `export_saved_model`, `model.export` and
  `TFLiteConverter.from_keras_model` among them.

  Example, on TensorFlow:

  >>> import tensorflow as tf
  >>> from tfgroupnorm import functional, op_by_op
  >>> with op_by_op():
  ...   function = tf.function(functional.layer_norm).get_concrete_function(
  ...     tf.TensorSpec((None, 8))
  ...   )
  >>> any('_XlaMustCompile' in f.attr
  ...     for f in function.graph.as_graph_def().library.function)
  False
  """
  before = op_by_op_asked.set(True)
  try:
    yield
  finally:
    op_by_op_asked.reset(before)


quantizable_asked = contextvars.ContextVar(
  'tfgroupnorm.quantizable', default=False
)


@contextlib.contextmanager
def quantizable() -> Iterator[None]:
  """Under it SavedModels get the form that bears being quantized."""
  before = quantizable_asked.set(True)
  try:
    yield
  finally:
    quantizable_asked.reset(before)
