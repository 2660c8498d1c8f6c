"""Whether a SavedModel is the model in memory: its weights and predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import saved_model_pb2

from tfgroupnorm import _saved_model, _servable

# Unknown sizes of a made-up batch, tried in turn: some models want a multiple
# of many, some a short sequence.
_SIZES = (32, 64, 8, 256)

# Predictions that are smaller are compared as if they were of this size.
_SMALL = 1e-3

# Binary digits after the first.
_DIGITS = {tf.bfloat16: 7, tf.float16: 10, tf.float32: 23}


def check_marks(saved: saved_model_pb2.SavedModel, jit_compile: bool) -> None:
  marked = _saved_model.marked(saved)
  if jit_compile and not marked:
    raise ValueError(
      '`jit_compile=True` keeps the functions of a tf.Module as they are. '
      'Received: none that XLA compiles. Create them with '
      '`tf.function(..., jit_compile=True)`.'
    )
  if marked and not jit_compile:
    raise RuntimeError(
      f'The SavedModel still has functions for XLA. Received: {marked}. Please '
      'report this.'
    )


def check_predictions(
  servable: _servable.Servable,
  folder: str,
  specs: Mapping[str, tf.TensorSpec],
  batches: list[dict[str, tf.Tensor]],
  tolerance: float,
) -> None:
  """Loads what was written, and runs it beside the model in memory."""
  loaded = _load(servable, folder)
  serve = loaded.signatures[_servable.DEFAULT]
  # On made-up numbers too: a batch may be all zeros, say. Some models run on
  # none, and are compared on the given batches alone.
  try:
    batches = [*batches, _made_up(servable, specs)]
  except ValueError:
    if not batches:
      raise
  for batch in batches:
    wanted = _predictions(servable, batch)
    received = serve(**batch)
    worst = _difference(received, wanted)
    if worst <= tolerance:
      continue
    again = _difference(_predictions(servable, batch), wanted)
    if again > tolerance:
      logging.warning(
        'Predictions of this model are random: they differ by %.1e of the '
        'largest from one call to the next. That of the SavedModel was not '
        'compared.',
        again,
      )
      continue
    raise RuntimeError(
      'The SavedModel must predict what the model in memory does. Received: a '
      f'difference of {worst:.1e} of the largest, over {tolerance:.1e}. Does '
      'the model depend on whether it runs eagerly?'
    )


def _load(servable: _servable.Servable, folder: str) -> Any:
  """The SavedModel at `folder`, with the weights of the one in memory.

  Theirs are read one at a time, to be compared, and ours put in their place:
  TensorFlow copies a variable when one of two that share it is written.
  """
  if servable.variables is None:
    return tf.saved_model.load(folder)
  loaded = tf.saved_model.load(
    folder,
    options=tf.saved_model.LoadOptions(experimental_skip_checkpoint=True),
  )
  prefix = os.path.join(folder, 'variables', 'variables')
  for i, (ours, theirs) in enumerate(
    zip(servable.variables, loaded.variables, strict=True)
  ):
    with tf.device('/CPU:0'):
      (saved,) = tf.raw_ops.RestoreV2(
        prefix=prefix,
        tensor_names=[f'variables/{i}/.ATTRIBUTES/VARIABLE_VALUE'],
        shape_and_slices=[''],
        dtypes=[theirs.dtype],
      )
      if not _equal(saved, tf.convert_to_tensor(ours)):
        raise RuntimeError(
          'The weights on disk must be those in memory. Received: another '
          f'{ours.name!r}. Was the model trained while it was exported?'
        )
    theirs.assign(ours)
  return loaded


def _equal(a: tf.Tensor, b: tf.Tensor) -> bool:
  equal = a == b
  if b.dtype.is_floating:
    equal |= b != b  # NaN
  return bool(tf.reduce_all(equal))


def _predictions(
  servable: _servable.Servable, batch: dict[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
  """Of the model in memory, called as TensorFlow calls those of a signature."""
  outputs = servable.predict(batch)
  if isinstance(outputs, Mapping):
    return dict(outputs)
  return {f'output_{i}': y for i, y in enumerate(tf.nest.flatten(outputs))}


def _made_up(
  servable: _servable.Servable, specs: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
  """A batch that the model takes."""
  for size in _SIZES:
    rng = np.random.default_rng(0)
    batch = {name: _random(spec, size, rng) for name, spec in specs.items()}
    try:
      _predictions(servable, batch)
      return batch
    except Exception as caught:  # Whatever a model may do.
      error = caught
  raise ValueError(
    'The model in memory must run, to be compared with what was written. '
    f'Received: {type(error).__name__} on made-up numbers for '
    f'{list(specs.values())}. Pass an example batch as `warmup`.'
  ) from error


def _random(spec: tf.TensorSpec, size: int, rng: np.random.Generator):
  if spec.shape.rank is None:
    raise ValueError(
      'A batch can be made up only for inputs of known rank. Received: '
      f'{spec}. Pass an example batch as `warmup`.'
    )
  shape = [size if n is None else n for n in spec.shape]
  if shape and spec.shape[0] is None:
    shape[0] = 2
  if spec.dtype == tf.string:
    return tf.fill(shape, '')
  if spec.dtype.is_floating or spec.dtype.is_complex:
    return tf.cast(rng.normal(1, 1, shape), spec.dtype)
  return tf.cast(rng.integers(0, 2, shape), spec.dtype)


def _difference(
  received: Mapping[str, tf.Tensor], wanted: Mapping[str, tf.Tensor]
) -> float:
  """The largest difference of any output, in parts of its largest number.

  Or of `_SMALL`, if that is larger: zeros may be rounding errors of ones.
  """
  if set(received) != set(wanted):
    raise RuntimeError(
      'The SavedModel must have the outputs of the model in memory. Received: '
      f'{sorted(received)} for {sorted(wanted)}. Please report this.'
    )
  worst = 0.0
  for name, y in wanted.items():
    a, b = np.asarray(received[name]), np.asarray(y)
    if a.dtype != b.dtype or a.shape != b.shape:
      return np.inf
    if a.dtype.kind in 'OSUb':
      difference = float(np.any(a != b))
    else:
      a, b = (t.astype('complex128') for t in (a, b))
      finite = np.isfinite(b)
      if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
      gap = np.abs(a - b)[finite].max(initial=0)
      difference = gap / max(np.abs(b)[finite].max(initial=0), _SMALL)
    worst = max(worst, difference)
  return worst


def tolerance_of(saved: saved_model_pb2.SavedModel) -> float:
  """How far predictions may be apart, of the largest: half of the digits.

  The digits are those of the coarsest dtype that the model computes in.
  """
  used = {
    value.type for n in _saved_model.nodes(saved) for value in n.attr.values()
  }
  for dtype, digits in _DIGITS.items():
    if dtype.as_datatype_enum in used:
      return 2.0 ** (-digits / 2)
  return 2.0**-26
