"""Normalization layers for TensorFlow on one XLA-fused kernel.

>>> from tfgroupnorm import GroupNorm, LayerNorm, InstanceNorm, HeadNorm
>>> GroupNorm(groups=8).groups
8
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Looked at before TensorFlow is imported, because that imports Keras.
if os.environ.get('KERAS_BACKEND', 'tensorflow') != 'tensorflow':
  raise ImportError(
    'tfgroupnorm runs on TensorFlow. Received: KERAS_BACKEND='
    f'{os.environ["KERAS_BACKEND"]}. Set KERAS_BACKEND=tensorflow, or unset '
    'it, before importing keras or tfgroupnorm.'
  )

if TYPE_CHECKING:
  from tfgroupnorm import functional, layers
  from tfgroupnorm.layers import (
    GroupNorm,
    HeadNorm,
    InstanceNorm,
    LayerNorm,
    custom_objects,
  )

__version__ = '0.1.0'

__all__ = [
  'GroupNorm',
  'HeadNorm',
  'InstanceNorm',
  'LayerNorm',
  'custom_objects',
  'functional',
  'layers',
]


def __getattr__(name: str) -> Any:
  # Imported when asked for: who imports `tfgroupnorm.tf_keras` or
  # `tfgroupnorm.functional` gets no layer of the other Keras with it.
  if name in ('functional', 'layers'):
    return importlib.import_module(f'tfgroupnorm.{name}')
  if name in __all__:
    return getattr(importlib.import_module('tfgroupnorm.layers'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
