"""The four layers on tf-keras (Keras 2); `_layer.py` says what they are."""

from __future__ import annotations

try:
  import tf_keras
except ImportError as error:
  raise ImportError(
    'tfgroupnorm.tf_keras is for models of Keras 2, which is not installed. '
    'Run `pip install tf-keras`, or import from `tfgroupnorm` for Keras 3.'
  ) from error

from tfgroupnorm import _layer


def _doc(layer: type) -> str:
  return (layer.__doc__ or '').replace(
    'from tfgroupnorm import', 'from tfgroupnorm.tf_keras import'
  )


@_layer.registered(tf_keras, 'GroupNormalization')
class GroupNorm(_layer.GroupNorm, tf_keras.layers.Layer):
  __doc__ = _doc(_layer.GroupNorm)
  _keras = tf_keras


@_layer.registered(tf_keras, 'InstanceNormalization')
class InstanceNorm(_layer.InstanceNorm, GroupNorm):
  __doc__ = _doc(_layer.InstanceNorm)


@_layer.registered(tf_keras, 'LayerNormalization')
class LayerNorm(_layer.LayerNorm, tf_keras.layers.Layer):
  __doc__ = _doc(_layer.LayerNorm)
  _keras = tf_keras


@_layer.registered(tf_keras, 'RMSNormalization')
class _RMSNorm(LayerNorm):
  """`LayerNorm(rms=True)`, whose weight files Keras names differently."""


LayerNorm._rms_form = _RMSNorm


@_layer.registered(tf_keras, 'HeadNormalization')
class HeadNorm(_layer.HeadNorm, tf_keras.layers.Layer):
  __doc__ = _doc(_layer.HeadNorm)
  _keras = tf_keras


def custom_objects() -> dict[str, type]:
  """As `tfgroupnorm.custom_objects`, for `tf_keras.models.load_model`."""
  return _layer.custom_objects(
    GroupNorm, InstanceNorm, LayerNorm, _RMSNorm, HeadNorm
  )
