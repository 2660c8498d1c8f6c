"""Sizes that a graph does not know: those that come often are compiled.

`fit` and `predict` of either Keras trace a model for a batch of any size, and
XLA compiles for each size anew. Whether that pays is known when the tensor is
there: a pass is in the graph twice, compiled and op by op, and an operation
counts what came and says which is to run. Both together cost some 60 us a call.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from tfgroupnorm.kernel.operands import compute_dtype
from tfgroupnorm.kernel.passes import backward, forward
from tfgroupnorm.kernel.spec import Spec
from tfgroupnorm.kernel.tensorflow.functions import (
  Function,
  compiled,
  outermost,
  plain,
)

# In elements: the work that a compilation is worth, what a call adds to that
# besides its elements, and the first and the last size that gain nothing.
Rule: TypeAlias = tuple[int, int, int, int]

# Most sizes that are compiled of one kind of tensor, and in a process.
_MOST, _MOST_OF_ALL = 8, 512

# Most statistics of an order of computation.
_STATISTICS = 3

# Places where the calls of a size are counted until it is compiled, of all
# layers: a prime, for they are found by a remainder.
_PLACES = 262_139

# Bits of a key for a number of elements, the rest is the kind's.
_SIZE_BITS, _KIND_BITS = 42, 20

# Where it is written how many sizes may yet be compiled in this process.
_ALL = -1

# What is written there is not read.
_NOWHERE = -(2**63)

# Where a graph counts the calls in it.
_HOME = '_tfgroupnorm_calls'


# --- What came often ---------------------------------------------------------
#
# Tables of TensorFlow's, found by their names: a variable would be captured by
# the graph, and a SavedModel of it refused.


def _table(name: str) -> tf.Tensor:
  return tf.raw_ops.MutableHashTableV2(
    key_dtype=tf.int64,
    value_dtype=tf.int64,
    shared_name=f'tfgroupnorm/{name}',
  )


def _int64(value) -> tf.Tensor:
  return tf.convert_to_tensor(value, tf.int64)


def _found(table: tf.Tensor, key, default: int = 0) -> tf.Tensor:
  return tf.raw_ops.LookupTableFindV2(
    table_handle=table, keys=_int64(key), default_value=_int64(default)
  )


def _write(table: tf.Tensor, key, value) -> None:
  tf.raw_ops.LookupTableInsertV2(
    table_handle=table, keys=_int64(key), values=_int64(value)
  )


def _is_known(size, kind) -> tf.Tensor:
  """Whether this size of this kind is compiled."""
  return _found(_table('known'), size + kind) > 0


def _becomes_known(size, kind, rule) -> tf.Tensor:
  """Counts a call of this size; whether it is compiled from now on."""
  worked, known = _table('worked'), _table('known')
  nth, compilation, call, least, most = tf.unstack(rule)
  # Of one layer. Where two share a place, either is compiled a bit sooner.
  place = (size + kind + nth * 2_654_435_761) % _PLACES
  # No more than will do, or many calls would overflow it.
  work = tf.minimum(_found(worked, place) + size + call, compilation)
  of_kind = -2 - kind  # Beside the sizes, none of which is negative.
  left, left_of_all = _found(known, of_kind, _MOST), _found(known, _ALL)
  room = (left > 0) & (left_of_all > 0)
  gains = (size < least) | (size > most)
  often = (work >= compilation) & room & gains
  _write(worked, place, tf.where(often, tf.zeros_like(work), work))
  _write(
    known,
    tf.where(often, tf.stack([size + kind, of_kind, _ALL]), _NOWHERE),
    tf.stack([1, left - 1, left_of_all - 1]),
  )
  return often


def _traced(function, *shapes) -> Callable:
  """`function` of integers of these shapes."""
  specs = [tf.TensorSpec(shape, tf.int64) for shape in shapes]
  return tf.function(function, autograph=False).get_concrete_function(*specs)


def _called(function, size, *constants) -> tf.Tensor:
  """`function` as one operation without state, for whoever looks into a graph.

  What vectorizes or differentiates it leaves it alone. It must hold no branch:
  TensorFlow would lose it when such a graph is frozen.
  """
  (often,) = tf.raw_ops.MapDefun(
    arguments=[tf.expand_dims(size, 0)],
    captured_inputs=constants,
    output_types=[tf.bool],
    output_shapes=[[]],
    f=function,
    max_intra_op_parallelism=1,
  )
  return tf.reshape(often, [])


@functools.cache
def _counter() -> Callable:
  """Whether this size of this kind is compiled; counts its call if not.

  In a process where sizes may be compiled. In another one, where a graph of
  this one was loaded, nobody has written how many: there none is.
  """
  with tf.init_scope(), tf.device('/CPU:0'):
    _write(_table('known'), _ALL, _MOST_OF_ALL)
    is_known = _traced(_is_known, [], [])
    becomes_known = _traced(_becomes_known, [], [], [5])

    def came_often(size, kind, rule):
      known = _called(is_known, size, kind)
      return tf.cond(
        known, lambda: known, lambda: _called(becomes_known, size, kind, rule)
      )

    return _traced(came_often, [], [], [5])


# --- Either way --------------------------------------------------------------


# Not inlined: an executor passes over every operation of a way not taken.
_apart = Function(plain, experimental_attributes={'_noinline': True})


def _nth(kind: int) -> int:
  """How many calls for tensors of a kind are in the function being traced."""
  graph = outermost(tf.compat.v1.get_default_graph())
  if not hasattr(graph, _HOME):
    setattr(graph, _HOME, collections.Counter())
  calls = getattr(graph, _HOME)
  calls[kind] += 1
  return calls[kind]


def came_often(spec: Spec, x: tf.Tensor, rule: Rule) -> tf.Tensor:
  """Whether `x` has a size that came often; counts it if not.

  Each layer of a model counts by itself: one step through many layers is not
  many steps.
  """
  counter = _counter()
  # What a compiled program depends on besides the batch.
  kind = hash((spec, x.dtype, tuple(x.shape[1:]))) % 2**_KIND_BITS
  kind <<= _SIZE_BITS
  with tf.device('/CPU:0'):
    size = tf.size(x, tf.int64)
    return counter(size, _int64(kind), _int64([_nth(kind), *rule]))


def either(often: tf.Tensor) -> Callable:
  """Runs a pass compiled if `often`, else op by op, and backward the same."""
  # Of the statistics of either way, known once forward has been traced.
  shapes: dict[Callable, list[tf.TensorShape]] = {}

  def ways(often, spec: Spec, way: Callable):
    return tf.cond(
      often,
      lambda: way(compiled, spec),
      lambda: way(_apart, dataclasses.replace(spec, platform=None)),
    )

  def run_forward(spec, x, *args):
    def way(run, spec):
      y, statistics = run(forward, spec, x, *args)
      shapes[run] = [s.shape for s in statistics]
      # Both ways return as many.
      none = [tf.zeros([], compute_dtype(x.dtype))] * _STATISTICS
      return y, *statistics, *none[len(statistics) :]

    y, *statistics = ways(often, spec, way)
    y.set_shape(x.shape)
    # The gradient goes the way of these.
    return y, [often, *statistics]

  def run_backward(spec, *args):
    *operands, (often, *statistics), dy = args

    def way(run, spec):
      own = [tf.identity(s) for s in statistics[: len(shapes[run])]]
      for s, shape in zip(own, shapes[run], strict=True):
        s.set_shape(shape)
      gradients = run(backward, spec, *operands, own, dy)
      return [t for t in gradients if t is not None]

    return ways(often, spec, way)

  def run(body, spec, *args):
    return {forward: run_forward, backward: run_backward}[body](spec, *args)

  return run
