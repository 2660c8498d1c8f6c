"""BatchNormalization -> GroupNorm in a model that exists, of either Keras."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

from tfgroupnorm import _checks, _copying, _tensors, models
from tfgroupnorm.models import Keras, Layer

_CHOICES = ('gcd', 'error', 'skip')


def replace_batch_norm(
  model: Layer,
  *,
  groups: int = _checks.DEFAULT_GROUPS,
  group_size: int | None = None,
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
  loads a model. A subclassed model must allow that. Its code still makes a
  BatchNormalization, so a result of that kind keeps its weights in
  `.weights.h5` or is exported: of a `.keras` file Keras would make a model
  with BatchNormalization again. Functional and Sequential ones have no such
  limit.

  A group that holds a single value, one channel at one position, would give
  `beta` whatever the input: that counts as indivisible too. It happens over
  vectors (batch, channels), where a group has no positions to its channels.

  Args:
    model: A built model of Keras 3 or tf-keras. In it every subclass of
      BatchNormalization counts, however deeply nested.
    groups: Number of groups. -1: one channel a group.
    group_size: Channels in a group, given instead of `groups`.
    on_indivisible: What to do where `groups` or `group_size` does not divide
      the channels. `"gcd"`: take the greatest common divisor of both; all
      channels in one group if groups would hold a single value. `"error"`:
      raise. `"skip"`: leave that BatchNormalization.
    verbose: Whether to print a table of what became what.
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
  keras = _generation_of(model)
  grouping = _checks.check_groups(groups, group_size)
  if on_indivisible not in _CHOICES:
    raise ValueError(
      '`on_indivisible` must be "gcd", "error" or "skip". Received: '
      f'on_indivisible={on_indivisible!r}. Use "gcd" to take the greatest '
      'common divisor with the channels.'
    )
  _checks.check_bool('verbose', verbose)
  if print_fn is not None and not callable(print_fn):
    raise TypeError(
      '`print_fn` must be a function of one text. Received: print_fn='
      f'{print_fn!r}. Pass `logging.info`, for example.'
    )

  found = [
    _Found(path, layer)
    for path, layer in models.walk(model)
    if isinstance(layer, _batch_norms(keras))
  ]
  for each in found:
    each.plan(keras, *grouping, on_indivisible)
  replaced = [each for each in found if each.norm is not None]
  result = _copying.copy_model(model, replaced)
  _check_complete(keras, result, len(found) - len(replaced))

  if verbose or print_fn is not None:
    _print_table(model.name, found, print_fn)
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


def _generation_of(model: Layer) -> Keras:
  keras = models.generation_of(model)
  if keras is None:
    raise TypeError(
      '`model` must be a model of Keras 3 or tf-keras. Received: '
      f'{type(model).__name__}. Put a layer into a keras.Sequential, with an '
      'Input, to convert what is in it.'
    )
  return keras


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
    alone = size * positions == 1 and self.channels > 1
    if divisor != wanted or alone:
      if on_indivisible == 'skip':
        return
      if on_indivisible == 'error':
        self._refuse(groups, group_size, alone)
    if alone:
      size = self.channels
    if group_size:
      grouping = {'group_size': size}
    elif groups == -1 and size == 1:
      grouping = {'groups': -1}
    else:
      grouping = {'groups': self.channels // size}
    self.groups = self.channels // size
    self.norm = self._group_norm(keras, axis, grouping)

  def _refuse(self, groups, group_size, alone):
    name = 'group_size' if group_size else 'groups'
    problem = (
      'would have groups of a single value, which is always normalized to 0'
      if alone
      else f'has channels that {name} does not divide'
    )
    raise ValueError(
      f'BatchNormalization {self.path!r} {problem}. Received: '
      f'channels={self.channels}, {name}={group_size or groups}. Use '
      'on_indivisible="gcd" to take a divisor of both, "skip" to leave such '
      f'layers, or another {name}.'
    )

  def _input_shape(self) -> list[int | None]:
    config = self.layer.get_build_config()
    if config:
      return list(_tensors.Shape(config['input_shape']))
    # The oldest Keras 2 does not note the shape of what it builds itself.
    spec = self.layer.input_spec
    return [spec.axes.get(i) for i in range(spec.ndim)]

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
      return group_norm(axis=axis, **grouping, **options)
    except ValueError as error:
      raise ValueError(
        f'BatchNormalization {self.path!r} cannot become a GroupNorm. {error}'
      ) from error

  def finish(self) -> None:
    """Gives `norm` the weights, once it is in its place."""
    if not self.norm.built:  # Nobody called it: it is an attribute.
      self.norm.build(tuple(self._input_shape()))
    for name in ('gamma', 'beta'):
      weight = getattr(self.norm, name)
      if weight is not None:
        weight.assign(getattr(self.layer, name))


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
  name: str, found: list[_Found], print_fn: Callable[[str], Any] | None
) -> None:
  # What Keras 3 draws its summaries with.
  import rich.console
  import rich.markup
  import rich.table

  table = rich.table.Table(show_lines=True)
  table.add_column('Layer', overflow='fold')
  table.add_column('Became')
  for header in ('Channels', 'Groups', 'Per group'):
    table.add_column(header, justify='right')
  for each in found:
    if each.norm is None:
      became, groups, size = '-', '-', '-'
    else:
      became = 'GroupNorm'
      groups, size = str(each.groups), str(each.channels // each.groups)
    path = rich.markup.escape(each.path)
    table.add_row(path, became, str(each.channels), groups, size)
  console = rich.console.Console(highlight=False)
  with console.capture() as capture:
    console.print(f'Model: "{name}"', markup=False)
    if found:
      console.print(table)
    else:
      console.print('No BatchNormalization.')
  (print_fn or print)(capture.get())
