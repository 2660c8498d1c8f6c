"""What follows what in a functional or Sequential model of either Keras."""

from __future__ import annotations

from typing import Any

from tfgroupnorm import models
from tfgroupnorm._tensors import ops
from tfgroupnorm.models import Layer


def sole_followers(model: Layer) -> dict[int, Layer]:
  """Of layers whose result one other layer reads and nothing else does.

  Both are called once, at whatever depth of the model. What its code does with
  them besides, or other models that were made of the same tensors, is not
  known here.

  Returns:
    The follower, by the `id` of the layer that it follows.
  """
  followers = {}
  for graph in (model, *(layer for _, layer in models.walk(model))):
    if models.is_graph(graph) and models.inputs_of(graph) is not None:
      followers.update(_followers(graph))
  return followers


def _followers(graph: Layer) -> dict[int, Layer]:
  # Keras 3 lists operations that are no layers apart.
  operations = getattr(graph, 'operations', None) or graph.layers
  readers: dict[int, list[Any]] = {}
  for operation in operations:
    for node in _calls(operation):
      for tensor in _inputs(node):
        readers.setdefault(id(tensor), []).append(operation)
  ends = {id(tensor) for tensor in ops.flatten(graph.outputs)}
  found = {}
  for layer in graph.layers:
    if len(_calls(layer)) != 1:
      continue
    results = ops.flatten(layer.output)
    read_by = readers.get(id(results[0]), [])
    if (
      len(results) == len(read_by) == 1
      and id(results[0]) not in ends
      and models.is_layer(read_by[0])
      and len(_calls(read_by[0])) == 1
    ):
      found[id(layer)] = read_by[0]
  return found


def _calls(operation: Any) -> list[Any]:
  """Each symbolic call of it, which Keras 3 keeps in a private list."""
  if hasattr(operation, 'inbound_nodes'):
    return list(operation.inbound_nodes)
  return list(operation._inbound_nodes)


def _inputs(call: Any) -> list[Any]:
  """The symbolic tensors that a call was given, wherever."""
  tensors = getattr(call, 'keras_inputs', None)
  return ops.flatten(call.input_tensors if tensors is None else tensors)
