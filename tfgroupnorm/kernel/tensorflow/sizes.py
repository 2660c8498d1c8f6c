"""Sizes that a graph does not know: those that come often are compiled.

`fit` and `predict` of either Keras trace a model for a batch of any size, and
XLA compiles for each size anew. Whether that pays is known when the tensor is
there: a pass is in the graph twice, compiled and op by op, and an operation
counts what came and says which is to run. It costs some 7 us.
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

# Most whose calls are counted until they are compiled, of all layers.
_MOST_COUNTED = 2**16

# Bits of a key for a number of elements, the rest is the kind's.
_SIZE_BITS, _KIND_BITS = 42, 20

# Where it is written how many sizes may yet be compiled in this process.
_ALL = -1

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


def _found(table: tf.Tensor, key, default: int = 0) -> tf.Tensor:
  return tf.raw_ops.LookupTableFindV2(
    table_handle=table, keys=key, default_value=tf.constant(default, tf.int64)
  )


def _write(table: tf.Tensor, key, value) -> None:
  tf.raw_ops.LookupTableInsertV2(table_handle=table, keys=key, values=value)


def _count(size, kind, rule) -> tf.Tensor:
  """Adds to the work of a size; True if it is to be compiled from now on."""
  worked, known = _table('worked'), _table('known')
  nth, compilation, call, least, most = tf.unstack(rule)
  key = size + kind
  # Of one layer. The factor scatters: no two of them are likely to be one.
  own = key + nth * tf.constant(0x1E3779B97F4A7C15, tf.int64)
  work = _found(worked, own) + size + call
  # Beside the sizes, none of which is negative.
  left = _found(known, -2 - kind, _MOST)
  left_of_all = _found(known, tf.constant(_ALL, tf.int64))
  gains = (size < least) | (size > most)
  often = (work >= compilation) & (left > 0) & (left_of_all > 0) & gains

  def remember():
    _write(known, key, tf.constant(1, tf.int64))
    _write(known, -2 - kind, left - 1)
    _write(known, tf.constant(_ALL, tf.int64), left_of_all - 1)
    tf.raw_ops.LookupTableRemoveV2(table_handle=worked, keys=[own])
    return often

  def wait():
    counted = tf.raw_ops.LookupTableSizeV2(table_handle=worked)
    tf.cond(counted < _MOST_COUNTED, lambda: often, forget)
    # No more than will do, or many calls would overflow it.
    _write(worked, own, tf.minimum(work, compilation))
    return often

  def forget():
    # All of them: those that come often are soon back.
    none = tf.zeros([0], tf.int64)
    tf.raw_ops.LookupTableImportV2(table_handle=worked, keys=none, values=none)
    return often

  return tf.cond(often, remember, wait)


def _came_often(size, kind, rule) -> tf.Tensor:
  """Whether this size of this kind is compiled, and counts it if not."""
  known = _found(_table('known'), size + kind) > 0
  return tf.cond(known, lambda: known, lambda: _count(size, kind, rule))


@functools.cache
def _counter():
  """`_came_often`, in a process where sizes may be compiled.

  In another one, where a graph of this one was loaded, nobody has written how
  many: there none is.
  """
  with tf.init_scope(), tf.device('/CPU:0'):
    number = tf.TensorSpec([], tf.int64)
    function = tf.function(_came_often, autograph=False)
    concrete = function.get_concrete_function(
      number, number, tf.TensorSpec([5], tf.int64)
    )
    _write(
      _table('known'),
      tf.constant(_ALL, tf.int64),
      tf.constant(_MOST_OF_ALL, tf.int64),
    )
  return concrete


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
  # As one operation without state, for whoever looks into the graph: what
  # vectorizes or differentiates it leaves it alone.
  with tf.device('/CPU:0'):
    size = tf.size(x, tf.int64)
    (often,) = tf.raw_ops.MapDefun(
      arguments=[tf.expand_dims(size, 0)],
      captured_inputs=[
        tf.constant(kind, tf.int64),
        tf.constant([_nth(kind), *rule], tf.int64),
      ],
      output_types=[tf.bool],
      output_shapes=[[]],
      f=counter,
      max_intra_op_parallelism=1,
    )
    return tf.reshape(often, [])


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
