"""The file saved_model.pb: what it says of functions and inputs; editing it.

TensorFlow marks a function that only XLA may run; the marks can be taken out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# The message of the file saved_model.pb, which TensorFlow has nowhere else.
from tensorflow.core.protobuf import saved_model_pb2

# TensorFlow's mark on a function, and on each call of it, that only XLA may run
# it.
_MARK = '_XlaMustCompile'


def read(folder: str) -> saved_model_pb2.SavedModel:
  with tf.io.gfile.GFile(os.path.join(folder, 'saved_model.pb'), 'rb') as file:
    return saved_model_pb2.SavedModel.FromString(file.read())


def input_specs(
  saved: saved_model_pb2.SavedModel, signature: str
) -> dict[str, tf.TensorSpec]:
  inputs = saved.meta_graphs[0].signature_def[signature].inputs
  return {
    name: tf.TensorSpec(
      tf.TensorShape(inputs[name].tensor_shape),
      tf.as_dtype(inputs[name].dtype),
      name,
    )
    for name in sorted(inputs)
  }


def functions(saved: saved_model_pb2.SavedModel) -> Iterator[Any]:
  for meta_graph in saved.meta_graphs:
    yield from meta_graph.graph_def.library.function


def nodes(saved: saved_model_pb2.SavedModel) -> Iterator[Any]:
  for meta_graph in saved.meta_graphs:
    yield from meta_graph.graph_def.node
  for function in functions(saved):
    yield from function.node_def


def marked(saved: saved_model_pb2.SavedModel) -> list[str]:
  """Names of functions and calls that only XLA may run."""
  return [
    *(f.signature.name for f in functions(saved) if _has_mark(f)),
    *(node.name for node in nodes(saved) if _has_mark(node)),
  ]


def _has_mark(function_or_node: Any) -> bool:
  # Asking for an attribute that is not there would create it.
  attributes = function_or_node.attr
  return _MARK in attributes and attributes[_MARK].b


def strip(folder: str) -> None:
  """Takes the marks out of a SavedModel."""
  saved = read(folder)
  if not marked(saved):
    return
  for function in functions(saved):
    # XLA alone wants these not to be inlined, and LiteRT then fails.
    if _has_mark(function) and '_noinline' in function.attr:
      del function.attr['_noinline']
  for function_or_node in (*functions(saved), *nodes(saved)):
    if _MARK in function_or_node.attr:
      del function_or_node.attr[_MARK]
  with tf.io.gfile.GFile(os.path.join(folder, 'saved_model.pb'), 'wb') as file:
    file.write(saved.SerializeToString())
  # Optional, and of the file as it was.
  fingerprint = os.path.join(folder, 'fingerprint.pb')
  if tf.io.gfile.exists(fingerprint):
    tf.io.gfile.remove(fingerprint)
