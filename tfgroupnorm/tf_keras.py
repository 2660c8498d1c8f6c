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

_register = tf_keras.saving.register_keras_serializable(package='tfgroupnorm')


def _doc(layer: type) -> str:
  return (layer.__doc__ or '').replace(
      'from tfgroupnorm import', 'from tfgroupnorm.tf_keras import'
  )


@_register
class GroupNorm(_layer.GroupNorm, tf_keras.layers.Layer):
  __doc__ = _doc(_layer.GroupNorm)
  _keras = tf_keras


@_register
class InstanceNorm(_layer.InstanceNorm, GroupNorm):
  __doc__ = _doc(_layer.InstanceNorm)


@_register
class LayerNorm(_layer.LayerNorm, tf_keras.layers.Layer):
  __doc__ = _doc(_layer.LayerNorm)
  _keras = tf_keras


@_register
class HeadNorm(_layer.HeadNorm, tf_keras.layers.Layer):
  __doc__ = _doc(_layer.HeadNorm)
  _keras = tf_keras


def custom_objects() -> dict[str, type]:
  """As `tfgroupnorm.custom_objects`, for `tf_keras.models.load_model`."""
  return _layer.custom_objects(GroupNorm, InstanceNorm, LayerNorm, HeadNorm)
