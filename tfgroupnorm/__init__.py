"""Normalization layers for TensorFlow and JAX on one XLA-fused kernel.

>>> from tfgroupnorm import GroupNorm, LayerNorm, InstanceNorm, HeadNorm
>>> GroupNorm(groups=8).groups
8
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Looked at before Keras is imported, which may fail to find another one.
if os.environ.get('KERAS_BACKEND', 'jax') not in ('jax', 'tensorflow'):
  raise ImportError(
    'tfgroupnorm runs on TensorFlow and on JAX. Received: KERAS_BACKEND='
    f'{os.environ["KERAS_BACKEND"]}. Set KERAS_BACKEND=tensorflow or '
    'KERAS_BACKEND=jax before importing keras or tfgroupnorm; unset, '
    'keras.json decides, or else it is TensorFlow.'
  )

import keras

if TYPE_CHECKING:
  from tfgroupnorm import callbacks as callbacks
  from tfgroupnorm import convert as convert
  from tfgroupnorm import functional as functional
  from tfgroupnorm import keras_norms as keras_norms
  from tfgroupnorm import layers as layers
  from tfgroupnorm import saving as saving
  from tfgroupnorm import torch_norms as torch_norms
  from tfgroupnorm.convert import replace_batch_norm
  from tfgroupnorm.keras_norms import replace_keras_norms
  from tfgroupnorm.kernel import op_by_op
  from tfgroupnorm.layers import (
    GroupNorm,
    HeadNorm,
    InstanceNorm,
    LayerNorm,
    custom_objects,
  )
  from tfgroupnorm.saving import export_saved_model
  from tfgroupnorm.torch_norms import convert_torch_norm

__version__ = '0.1.0'

# Names, and the module that has each.
_HOMES = {
  'GroupNorm': 'layers',
  'HeadNorm': 'layers',
  'InstanceNorm': 'layers',
  'LayerNorm': 'layers',
  'convert_torch_norm': 'torch_norms',
  'custom_objects': 'layers',
  'export_saved_model': 'saving',
  'op_by_op': 'kernel',
  'replace_batch_norm': 'convert',
  'replace_keras_norms': 'keras_norms',
}
_MODULES = (
  'callbacks',
  'convert',
  'functional',
  'keras_norms',
  'layers',
  'saving',
  'torch_norms',
)

# No module: `import *` would put ours in place of a user's `layers`.
__all__ = [
  'GroupNorm',
  'HeadNorm',
  'InstanceNorm',
  'LayerNorm',
  'convert_torch_norm',
  'custom_objects',
  'export_saved_model',
  'op_by_op',
  'replace_batch_norm',
  'replace_keras_norms',
]

# What others call these, or what one may look for here.
_ELSEWHERE = {
  'BatchNorm': 'keras.layers.BatchNormalization; it mixes samples',
  'BatchNormalization': 'keras.layers.BatchNormalization; it mixes samples',
  'GroupNormalization': 'tfgroupnorm.GroupNorm',
  'HeadNormalization': 'tfgroupnorm.HeadNorm',
  'InstanceNormalization': 'tfgroupnorm.InstanceNorm',
  'LayerNormalization': 'tfgroupnorm.LayerNorm',
  'RMSNorm': 'tfgroupnorm.LayerNorm(rms=True)',
  'RMSNormalization': 'tfgroupnorm.LayerNorm(rms=True)',
  'ActivationPercentiles': 'tfgroupnorm.callbacks.ActivationPercentiles',
  'group_norm': 'tfgroupnorm.functional.group_norm',
  'head_norm': 'tfgroupnorm.functional.head_norm',
  'instance_norm': 'tfgroupnorm.functional.instance_norm',
  'layer_norm': 'tfgroupnorm.functional.layer_norm',
}


def __getattr__(name: str) -> Any:
  # Imported when asked for: who imports `tfgroupnorm.tf_keras` or
  # `tfgroupnorm.functional` gets no layer of the other Keras with it.
  if name in _MODULES:
    return importlib.import_module(f'tfgroupnorm.{name}')
  if name in _HOMES:
    module = importlib.import_module(f'tfgroupnorm.{_HOMES[name]}')
    return getattr(module, name)
  hint = f'. Use {_ELSEWHERE[name]}.' if name in _ELSEWHERE else ''
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}{hint}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_MODULES})


def _on_demand(name: str) -> type:
  """What Keras finds under a layer's name until `layers` is imported."""

  def from_config(config):
    layers = importlib.import_module('tfgroupnorm.layers')
    return getattr(layers, name).from_config(config)

  return type(name, (), {'from_config': staticmethod(from_config)})


# So that `import tfgroupnorm` is enough for `keras.models.load_model`.
for _name in ('GroupNorm', 'InstanceNorm', 'LayerNorm', '_RMSNorm', 'HeadNorm'):
  keras.saving.get_custom_objects().setdefault(
    f'tfgroupnorm>{_name}', _on_demand(_name)
  )
