"""BatchNormalization -> GroupNorm in a model that exists, of either Keras."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tfgroupnorm import _becoming, _checks, _copying, _report, models
from tfgroupnorm._tensors import ops
from tfgroupnorm.models import Keras, Layer

_CHOICES = ('gcd', 'error', 'skip')
# The variables of a BatchNormalization that a GroupNorm has not.
_STATISTICS = ('moving_mean', 'moving_variance')


def replace_batch_norm(
  model: Layer,
  *,
  groups: int = _checks.DEFAULT_GROUPS,
  group_size: int | None = None,
  min_group_size: int = 2,
  on_indivisible: str = 'gcd',
  verbose: bool = True,
  print_fn: Callable[[str], Any] | None = None,
) -> Layer:
  """Copies a model, with a GroupNorm for each BatchNormalization.

      y = gamma * (x - mean) / sqrt(var + epsilon) + beta

  is computed by both, with `mean` and `var` of a batch there and of a sample's
  groups here. `gamma`, `beta`, `axis`, `epsilon`, initializers, regularizers,
  constraints, the name, `trainable` and the dtype policy of each layer stay;
  moving statistics are dropped. All else is as in `model`: its layers, their
  names, connections and weights. `model` itself stays as it is and shares no
  variable with the result.

  The result predicts something else than `model` does until it is fine-tuned;
  a warning says so. It is not compiled: call `compile` before `fit`.

  Each layer is made anew by `from_config(get_config())`, as Keras does when it
  loads a model. A subclassed model must allow that. If a class of functional
  models does not, the copy is a plain functional model, and the table says so.
  The code of a subclassed model still makes a BatchNormalization, and so would
  Keras when it loads a `.keras` file: save the weights of such a result in
  `.weights.h5`, or export it. Functional and Sequential models have no such
  limit.

  A group of a single value, one channel at one position, would give `beta`
  whatever the input. So that counts as indivisible too. It happens with vectors
  (batch, channels), which have no positions.

  Args:
    model: A built model of Keras 3 or tf-keras. In it every subclass of
      BatchNormalization counts, however deeply nested.
    groups: Number of groups. -1: one channel a group.
    group_size: Channels in a group, given instead of `groups`.
    min_group_size: The least number of channels in a group. By default a norm
      of 32 channels gets 16 groups, not 32. No effect with `groups=-1`.
    on_indivisible: What to do where `groups` or `group_size` does not divide
      the channels, or leaves fewer than `min_group_size` in a group. `"gcd"`:
      take the greatest common divisor of both, then larger groups if these are
      too small, and one group if groups would hold a single value. `"error"`:
      raise. `"skip"`: leave that BatchNormalization.
    verbose: Whether to print a table of the layers and what they became.
    print_fn: Called with the table as text, instead of printing it, whatever
      `verbose` is.

  Returns:
    A new model, not compiled.

  Raises:
    ValueError: If an argument is not allowed; if a layer does not fit, under
      `on_indivisible="error"`; if a BatchNormalization is not built, or has
      several axes; if a layer cannot be made anew from its configuration.
    TypeError: If `model` is not a Keras model or an argument has the wrong
      type.

  Example:

  >>> import keras
  >>> from tfgroupnorm import replace_batch_norm
  >>> model = keras.Sequential([
  ...   keras.Input((8, 8, 3)),
  ...   keras.layers.Conv2D(48, 3, name="conv"),
  ...   keras.layers.BatchNormalization(name="norm"),
  ... ])
  >>> model = replace_batch_norm(model, verbose=False)
  >>> model.get_layer("norm").groups
  16

  References:
    - [Wu & He, 2018](https://arxiv.org/abs/1803.08494)
  """
  keras = models.check_model(model)
  grouping = _checks.check_groups(groups, group_size)
  min_group_size = _checks.check_int('min_group_size', min_group_size)
  if min_group_size < 1:
    raise ValueError(
      '`min_group_size`, the least channels in a group, must be positive. '
      f'Received: min_group_size={min_group_size}. Pass 1 to allow any.'
    )
  if on_indivisible not in _CHOICES:
    raise ValueError(
      '`on_indivisible` must be "gcd", "error" or "skip". Received: '
      f'on_indivisible={on_indivisible!r}. Use "gcd" to take the greatest '
      'common divisor with the channels.'
    )
  _report.check_printing(verbose, print_fn)

  found = [
    _Found(path, layer)
    for path, layer in models.walk(model)
    if isinstance(layer, _batch_norms(keras))
  ]
  for each in found:
    each.plan(keras, *grouping, min_group_size, on_indivisible)
  replaced = [each for each in found if each.norm is not None]
  copy = _copying.copy_model(model)
  for each in replaced:
    each.become(copy.twin(each.layer))
  result = copy.model
  _check_complete(keras, result, len(found) - len(replaced))

  if verbose or print_fn is not None:
    _print_table(model.name, found, copy.plain, print_fn)
  if replaced:
    # By `warnings`, not by a log: it is about the caller's next line, and who
    # means to fine-tune can filter it.
    warnings.warn(
      f'{len(replaced)} BatchNormalization layers of "{model.name}" became '
      'GroupNorm layers, which compute something else from the same weights: '
      'fine-tune the model before you rely on it.',
      stacklevel=2,
    )
  return result


def _batch_norms(keras: Keras) -> tuple[type, ...]:
  """The classes that normalize over the batch; in Keras 2 there are two."""
  experimental = getattr(keras.layers, 'experimental', None)
  synchronized = getattr(experimental, 'SyncBatchNormalization', None)
  return tuple(filter(None, (keras.layers.BatchNormalization, synchronized)))


# --- What becomes of it ------------------------------------------------------


@dataclasses.dataclass
class _Found:
  """A BatchNormalization and what it becomes.

  Attributes:
    path: Where it is in the model.
    layer: The BatchNormalization.
    channels: Of its input.
    norm: The GroupNorm, or `None` if it is left as it is.
    groups: Of `norm`.
  """

  path: str
  layer: Layer
  channels: int = 0
  norm: Layer = None
  groups: int = 0

  def plan(
    self,
    keras: Keras,
    groups: int,
    group_size: int | None,
    min_group_size: int,
    on_indivisible: str,
  ) -> None:
    """Makes `norm`, unless this layer is to be left."""
    if not self.layer.built:
      raise ValueError(
        f'BatchNormalization {self.path!r} has no weights yet, so its number '
        'of channels is unknown. Received: a model that is not built. Call it '
        'on a batch of data first, or give it an `Input`.'
      )
    shape = self._input_shape()
    axis = self._axis()
    self.channels = int(shape[axis] or 0)  # A norm that is built knows it.
    wanted = group_size or (self.channels if groups == -1 else groups)
    divisor = math.gcd(wanted, self.channels)
    size = divisor if group_size else self.channels // divisor
    positions = math.prod(
      n or 2  # An unknown size may be more than 1.
      for i, n in enumerate(shape)
      if i not in (0, axis % len(shape))
    )
    least = (
      1 if groups == -1 else min(min_group_size, group_size or self.channels)
    )
    few = size < least
    alone = size * positions == 1 and self.channels > 1
    if divisor != wanted or few or alone:
      if on_indivisible == 'skip':
        return
      if on_indivisible == 'error':
        self._refuse(groups, group_size, few, alone)
    if alone:
      size = self.channels
    elif few:
      size = next(
        n for n in range(least, self.channels + 1) if self.channels % n == 0
      )
    if group_size:
      grouping = {'group_size': size}
    elif groups == -1 and size == 1:
      grouping = {'groups': -1}
    else:
      grouping = {'groups': self.channels // size}
    self.groups = self.channels // size
    self.norm = self._group_norm(keras, axis, grouping)

  def _refuse(self, groups, group_size, few, alone):
    name = 'group_size' if group_size else 'groups'
    if alone:
      problem = 'would have groups of a single value, always normalized to 0'
    elif few:
      problem = 'would have fewer channels in a group than `min_group_size`'
    else:
      problem = f'has channels that {name} does not divide'
    raise ValueError(
      f'BatchNormalization {self.path!r} {problem}. Received: '
      f'channels={self.channels}, {name}={group_size or groups}. Use '
      'on_indivisible="gcd" to take a divisor of both, "skip" to leave such '
      f'layers, or another {name}.'
    )

  def _input_shape(self) -> list[int | None]:
    return list(ops.Shape(models.shape_of_build(self.layer)))

  def _axis(self) -> int:
    axis = self.layer.axis
    axes = [axis] if isinstance(axis, int) else list(axis)
    if len(axes) > 1:
      raise ValueError(
        f'BatchNormalization {self.path!r} has parameters over several axes, '
        f'which GroupNorm cannot have. Received: axis={axes}. Replace that '
        'layer by one with a single axis first.'
      )
    return axes[0]

  def _group_norm(self, keras, axis, grouping):
    """As the BatchNormalization is configured, but for `grouping`."""
    config = self.layer.get_config()
    kept = ('name', 'trainable', 'dtype', 'epsilon', 'center', 'scale')
    options = {name: config[name] for name in kept}
    for name in ('beta', 'gamma'):
      for kind in ('initializer', 'regularizer', 'constraint'):
        options[f'{name}_{kind}'] = config[f'{name}_{kind}']
    group_norm = models.layers_of(keras).GroupNorm
    try:
      norm = group_norm(axis=axis, **grouping, **options)
      norm.build(tuple(self._input_shape()))
      return norm
    except ValueError as error:
      raise ValueError(
        f'BatchNormalization {self.path!r} cannot become a GroupNorm. {error}'
      ) from error

  def become(self, twin: Layer) -> None:
    """Makes `twin`, a copy of `layer`, what `norm` is."""
    # The oldest Keras 3 has no attribute for what is switched off.
    weights = [getattr(twin, name, None) for name in ('gamma', 'beta')]
    self.norm.set_weights([np.array(w) for w in weights if w is not None])
    _becoming.become(twin, self.norm, dropped=_STATISTICS)


# --- What is said of it ------------------------------------------------------


def _check_complete(keras: Keras, result: Layer, skipped: int) -> None:
  left = [
    path
    for path, layer in models.walk(result)
    if isinstance(layer, _batch_norms(keras))
  ]
  if len(left) != skipped:
    raise ValueError(
      'Not every BatchNormalization could be replaced. Received: a model '
      f'whose copy still has {left}. Hold layers as attributes of the layer '
      'or model that calls them, or in its lists and dicts.'
    )


def _print_table(
  name: str,
  found: list[_Found],
  plain: list[Layer],
  print_fn: _report.PrintFn | None,
) -> None:
  headers = ('Layer', 'Became', '(Channels)', '(Groups)', '(Per group)')
  rows = []
  for each in found:
    if each.norm is None:
      became, groups, size = '-', '-', '-'
    else:
      became = 'GroupNorm'
      groups, size = str(each.groups), str(each.channels // each.groups)
    rows.append((each.path, became, str(each.channels), groups, size))
  below = [] if rows else ['No BatchNormalization.']
  below += [
    f'{type(model).__name__} {model.name!r} cannot be made anew: its copy is a '
    'plain functional model, without the methods of its class.'
    for model in plain
  ]
  _report.print_table(f'Model: "{name}"', headers, rows, below, print_fn)
