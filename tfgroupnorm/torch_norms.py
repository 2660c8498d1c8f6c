"""Normalization modules of PyTorch, with their weights -> layers of ours."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tfgroupnorm import _checks, models
from tfgroupnorm.models import Layer

_INSTANCE = ('InstanceNorm1d', 'InstanceNorm2d', 'InstanceNorm3d')
_KINDS = ('GroupNorm', 'LayerNorm', 'RMSNorm', *_INSTANCE)


def convert_torch_norm(
  module: Any, *, axis: int = 1, generation: str = 'keras'
) -> Layer:
  """Makes a layer that computes what a normalization module of PyTorch does.

      y = weight * (x - mean) / sqrt(var + eps) + bias

  `weight` becomes `gamma`, `bias` becomes `beta`, and the epsilon is the same.
  The layer is built and has the weights; it is frozen if they require no
  gradient.

  | PyTorch | becomes |
  |---|---|
  | `GroupNorm(num_groups, num_channels)` | `GroupNorm(num_groups, axis)` |
  | `InstanceNorm1d`, `2d`, `3d` | `InstanceNorm(axis)` |
  | `LayerNorm(normalized_shape)` | `LayerNorm` over as many last axes |
  | `RMSNorm(normalized_shape)` | `LayerNorm(rms=True)` over these |

  Args:
    module: One of these modules of `torch.nn`.
    axis: The axis of the channels in the layer's input: 1 as in PyTorch, or -1
      for a model that was rewritten for channels last. No effect on `LayerNorm`
      and `RMSNorm`.
    generation: `"keras"` for a layer of Keras 3, `"tf_keras"` for Keras 2.

  Returns:
    A layer of `tfgroupnorm`, or of `tfgroupnorm.tf_keras`.

  Raises:
    TypeError: If `module` is something else.
    ValueError: If `module` keeps running statistics, which these layers do not
      have; if an argument is not allowed.

  Example:

  >>> from tfgroupnorm import convert_torch_norm
  >>> import torch  # doctest: +SKIP
  >>> convert_torch_norm(torch.nn.GroupNorm(4, 32))  # doctest: +SKIP
  <GroupNorm groups=4, axis=1, epsilon=1e-05, name=..., built=True>
  """
  kind = _kind_of(module)
  axis = _checks.check_channel_axis(axis)
  if generation not in ('keras', 'tf_keras'):
    raise ValueError(
      '`generation` must be "keras" or "tf_keras". Received: generation='
      f'{generation!r}. Pass "tf_keras" for a model of Keras 2.'
    )
  if getattr(module, 'track_running_stats', False):
    raise ValueError(
      f'{kind} must not keep running statistics: it uses them for inference, '
      'and layers here those of each sample. Received: track_running_stats='
      'True. Where they make little difference, set `module.'
      'track_running_stats = False` before; else fold them into the layer '
      'before it, as one does with BatchNorm.'
    )
  gamma = getattr(module, 'weight', None)
  beta = getattr(module, 'bias', None)
  options: dict[str, Any] = {
    'epsilon': _epsilon(module, gamma),
    'scale': gamma is not None,
    'center': beta is not None,
    'trainable': all(w.requires_grad for w in (gamma, beta) if w is not None),
  }
  if gamma is not None and 'float64' in str(gamma.dtype):
    options['dtype'] = 'float64'
  name, own, shape = _place(kind, module, axis)
  layers = models.layers_of(_module(generation))
  layer = getattr(layers, name)(**own, **options)
  layer.build(shape)
  layer.set_weights([_as_array(w) for w in (gamma, beta) if w is not None])
  return layer


def _kind_of(module: Any) -> str:
  torch = sys.modules.get('torch')
  if torch is None:
    raise TypeError(
      '`module` must be a module of `torch.nn`. Received: '
      f'{type(module).__name__}, and PyTorch is not imported. Install it with '
      '`pip install torch`, or set `gamma` and `beta` of a layer by '
      '`layer.set_weights([weight, bias])`.'
    )
  for kind in _KINDS:
    # The oldest PyTorch has no RMSNorm.
    if isinstance(module, getattr(torch.nn, kind, ())):
      return kind
  raise TypeError(
    f'`module` must be one of {", ".join(_KINDS)} of `torch.nn`. Received: '
    f'{type(module).__name__}. Convert each norm of a model by itself: '
    '`for name, module in model.named_modules()`.'
  )


def _module(generation: str) -> Any:
  if generation == 'tf_keras':
    import tf_keras as keras
  else:
    import keras
  return keras


def _epsilon(module: Any, weight: Any) -> float:
  if module.eps is not None:
    return module.eps
  # RMSNorm: the step of the dtype of x, which is taken to be the weight's.
  dtype = sys.modules['torch'].float32 if weight is None else weight.dtype
  return sys.modules['torch'].finfo(dtype).eps


def _place(
  kind: str, module: Any, axis: int
) -> tuple[str, dict[str, Any], tuple[int | None, ...]]:
  """The class, its own arguments, and a shape to build it for."""
  if kind in ('LayerNorm', 'RMSNorm'):
    sizes = tuple(module.normalized_shape)
    axes = list(range(-len(sizes), 0))
    own: dict[str, Any] = {'axis': axes if len(axes) > 1 else -1}
    if kind == 'RMSNorm':
      own['rms'] = True
    return 'LayerNorm', own, (None, *sizes)
  grouped = kind == 'GroupNorm'
  channels = module.num_channels if grouped else module.num_features
  # Of images, or with as many axes as there must be.
  shape: list[int | None] = [None] * max(4, axis + 1, 1 - axis)
  shape[axis] = channels
  own = {'axis': axis, **({'groups': module.num_groups} if grouped else {})}
  return kind if grouped else 'InstanceNorm', own, tuple(shape)


def _as_array(weight: Any) -> np.ndarray:
  return weight.detach().cpu().double().numpy()
