"""The four layers on tf-keras (Keras 2); `_norms.py` says what they are."""

from __future__ import annotations

from tfgroupnorm.kernel import framework

if framework.NAME != 'tensorflow':
  raise ImportError(
    'tfgroupnorm.tf_keras is for models of Keras 2, which are TensorFlow. '
    f'Received: Keras 3 with backend {framework.NAME!r}, for which the kernel '
    'is set in this process. Set KERAS_BACKEND=tensorflow before importing '
    'keras or tfgroupnorm; or import from `tfgroupnorm` for Keras 3.'
  )

try:
  import tf_keras
except ImportError as error:
  raise ImportError(
    'tfgroupnorm.tf_keras is for models of Keras 2, which is not installed. '
    'Run `pip install tf-keras`, or import from `tfgroupnorm` for Keras 3.'
  ) from error

from tfgroupnorm import _layer, _norms

__all__ = [
  'GroupNorm',
  'HeadNorm',
  'InstanceNorm',
  'LayerNorm',
  'custom_objects',
]


@_layer.registered('GroupNormalization')
class GroupNorm(_norms.GroupNorm, tf_keras.layers.Layer):
  _keras = tf_keras


@_layer.registered('InstanceNormalization')
class InstanceNorm(_norms.InstanceNorm, GroupNorm):
  _keras = tf_keras


@_layer.registered('LayerNormalization')
class LayerNorm(_norms.LayerNorm, tf_keras.layers.Layer):
  _keras = tf_keras


@_layer.registered('RMSNormalization')
class _RMSNorm(LayerNorm):
  """`LayerNorm(rms=True)`, whose weight files Keras names differently."""


LayerNorm._rms_form = _RMSNorm


@_layer.registered('HeadNormalization')
class HeadNorm(_norms.HeadNorm, tf_keras.layers.Layer):
  _keras = tf_keras


def custom_objects() -> dict[str, type]:
  """As `tfgroupnorm.custom_objects`, for `tf_keras.models.load_model`."""
  return _layer.custom_objects(
    GroupNorm, InstanceNorm, LayerNorm, _RMSNorm, HeadNorm
  )
