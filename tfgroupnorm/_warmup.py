"""Warm-up records: requests that a server makes itself before the first one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgroupnorm import _servable

# More warm-up records TensorFlow Serving refuses, and the model with them.
_MOST_RECORDS = 1000


def prediction_log() -> Any:
  """The protocol buffers of TensorFlow Serving."""
  try:
    from tensorflow_serving.apis import prediction_log_pb2
  except ImportError as error:
    raise ImportError(
      'Warm-up records are written with tensorflow-serving-api, which is not '
      'installed. Run `pip install tensorflow-serving-api`, or leave out '
      '`warmup`.'
    ) from error
  return prediction_log_pb2


def check_form(warmup: Any) -> list[Any]:
  """`warmup` as a list of batches."""
  if warmup is None:
    return []
  if isinstance(warmup, (np.ndarray, tf.Tensor, Mapping)):
    return [warmup]
  if not isinstance(warmup, list) or not all(
    isinstance(batch, (np.ndarray, tf.Tensor, Mapping)) for batch in warmup
  ):
    what = type(warmup).__name__
    if isinstance(warmup, list):
      what += f' of {sorted({type(batch).__name__ for batch in warmup})}'
    raise TypeError(
      '`warmup` must be a batch or a list of batches, a batch being an array '
      'or a tensor, or a dict from input names to such. Received: warmup of '
      f'type {what}. Pass `images[:8]`, or, for more than one input, '
      '`{"image": images[:8], "mask": masks[:8]}`.'
    )
  if not 1 <= len(warmup) <= _MOST_RECORDS:
    raise ValueError(
      f'`warmup` must have 1 to {_MOST_RECORDS} batches: TensorFlow Serving '
      f'takes no more. Received: {len(warmup)}. Pass one for each batch size '
      'that the server will see.'
    )
  return warmup


def check_batches(
  batches: list[Any], specs: Mapping[str, tf.TensorSpec]
) -> list[dict[str, tf.Tensor]]:
  """Each of `batches` by input name, as `specs` have it."""
  return [_check_batch(batch, specs) for batch in batches]


def _check_batch(
  batch: Any, specs: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
  if not isinstance(batch, Mapping):
    if len(specs) != 1:
      raise ValueError(
        'A batch for a model with more than one input must be a dict. '
        f'Received: an array in `warmup`, for the inputs {list(specs)}. Pass '
        'a dict with an array for each of these.'
      )
    batch = {name: batch for name in specs}
  if set(batch) != set(specs):
    raise ValueError(
      'A batch must have an array for each input. Received: a dict in '
      f'`warmup` with the keys {list(batch)}, for the inputs {list(specs)}. '
      'Use their names as keys.'
    )
  tensors = {name: tf.convert_to_tensor(batch[name]) for name in specs}
  for name, spec in specs.items():
    tensor = tensors[name]
    if 0 in tensor.shape:
      raise ValueError(
        'A batch must hold something, to warm a server up. Received: shape '
        f'{_sizes(tensor.shape)} for the input {name!r} in `warmup`. Leave it '
        'out.'
      )
    # A server casts nothing.
    if tensor.dtype != spec.dtype or not spec.shape.is_compatible_with(
      tensor.shape
    ):
      raise ValueError(
        f'A batch must fit the input {name!r}: shape '
        f'{_sizes(spec.shape)}, dtype {spec.dtype.name}. Received: shape '
        f'{_sizes(tensor.shape)}, dtype {tensor.dtype.name} in `warmup`. '
        'Reshape it, or cast it with `astype`.'
      )
  return tensors


def _sizes(shape: tf.TensorShape) -> tuple[int | None, ...] | None:
  return None if shape.rank is None else tuple(shape)


def write(folder: str, batches: list[dict[str, tf.Tensor]]) -> None:
  logs = prediction_log()
  extra = os.path.join(folder, 'assets.extra')
  tf.io.gfile.makedirs(extra)
  path = os.path.join(extra, 'tf_serving_warmup_requests')
  with tf.io.TFRecordWriter(path) as writer:
    for batch in batches:
      log = logs.PredictionLog()
      request = log.predict_log.request
      request.model_spec.signature_name = _servable.DEFAULT
      for name, tensor in batch.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(tensor))
      writer.write(log.SerializeToString())
