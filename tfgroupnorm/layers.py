"""The four layers on Keras 3; `_norms.py` says what they are."""

from __future__ import annotations

import keras

from tfgroupnorm import _layer, _norms

if keras.backend.backend() not in ('jax', 'tensorflow'):
  raise ImportError(
    'The layers of tfgroupnorm run on TensorFlow and on JAX. Received: Keras '
    f'with backend {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow '
    'or KERAS_BACKEND=jax in the environment before keras is imported, or '
    '"backend" in keras.json.'
  )

__all__ = [
  'GroupNorm',
  'HeadNorm',
  'InstanceNorm',
  'LayerNorm',
  'custom_objects',
]


@_layer.registered('GroupNormalization')
class GroupNorm(_norms.GroupNorm, keras.layers.Layer):
  _keras = keras


@_layer.registered('InstanceNormalization')
class InstanceNorm(_norms.InstanceNorm, GroupNorm):
  _keras = keras


@_layer.registered('LayerNormalization')
class LayerNorm(_norms.LayerNorm, keras.layers.Layer):
  _keras = keras


@_layer.registered('RMSNormalization')
class _RMSNorm(LayerNorm):
  """`LayerNorm(rms=True)`, whose weight files Keras names differently."""


LayerNorm._rms_form = _RMSNorm


@_layer.registered('HeadNormalization')
class HeadNorm(_norms.HeadNorm, keras.layers.Layer):
  _keras = keras


def custom_objects() -> dict[str, type]:
  """Names under which saved models may know the layers, for `load_model`.

  `import tfgroupnorm` suffices for its own layers. This map also answers for
  the normalizations of TensorFlow Addons, so that old models load.

  Returns:
    A new dict, for the argument `custom_objects` of `keras.models.load_model`.

  Example:

  >>> from tfgroupnorm import custom_objects
  >>> custom_objects()["Addons>GroupNormalization"]
  <class 'tfgroupnorm.layers.GroupNorm'>
  """
  return _layer.custom_objects(
    GroupNorm, InstanceNorm, LayerNorm, _RMSNorm, HeadNorm
  )
