"""BatchNormalization -> GroupNorm in a model that exists, of either Keras.

A functional or Sequential model is rebuilt by Keras' own cloning, with another
layer where a BatchNormalization stood. What holds its layers as attributes, a
wrapper or a subclassed layer or model, is copied by its configuration, and the
attributes of the copy are replaced.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfgroupnorm import _checks, _layer

# A layer or model, and either Keras; which one, a type checker cannot know.
_Layer = Any
_Keras = Any

_CHOICES = ('gcd', 'error', 'skip')


def replace_batch_norm(
  model: _Layer,
  *,
  groups: int = _checks.DEFAULT_GROUPS,
  group_size: int | None = None,
  on_indivisible: str = 'gcd',
  verbose: bool = True,
  print_fn: Callable[[str], Any] | None = None,
) -> _Layer:
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
    for path, layer in _walk(model)
    if isinstance(layer, _batch_norms(keras))
  ]
  for each in found:
    each.plan(keras, *grouping, on_indivisible)
  replaced = [each for each in found if each.norm is not None]
  with keras.saving.custom_object_scope(_custom_classes(model)):
    result = _Copier(keras, replaced).run(model)
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


def _generation_of(model: _Layer) -> _Keras:
  keras = _layer.generation_of(model)
  if keras is None:
    raise TypeError(
      '`model` must be a model of Keras 3 or tf-keras. Received: '
      f'{type(model).__name__}. Put a layer into a keras.Sequential, with an '
      'Input, to convert what is in it.'
    )
  return keras


def _batch_norms(keras: _Keras) -> tuple[type, ...]:
  """The classes that normalize over the batch; in Keras 2 there are two."""
  experimental = getattr(keras.layers, 'experimental', None)
  synchronized = getattr(experimental, 'SyncBatchNormalization', None)
  return tuple(filter(None, (keras.layers.BatchNormalization, synchronized)))


# --- What is in a model ------------------------------------------------------


def _is_graph(layer: _Layer) -> bool:
  """Whether it is a model that Keras itself knows the layers of."""
  # Neither Keras has a public name for the class of functional models.
  names = {base.__name__ for base in type(layer).__mro__}
  return not names.isdisjoint({'Functional', 'Sequential'})


def _is_layer(value: Any) -> bool:
  names = {base.__name__ for base in type(value).__mro__}
  return 'Layer' in names and hasattr(value, 'get_config')


def _leaves(value: Any, path: str) -> Iterator[tuple[str, _Layer]]:
  """Layers in an attribute: itself, or in lists, tuples, dicts and sets."""
  if _is_layer(value):
    yield path, value
  elif isinstance(value, dict):
    for key, each in value.items():
      yield from _leaves(each, f'{path}[{key!r}]')
  elif isinstance(value, (list, tuple, set)):
    for i, each in enumerate(value):
      yield from _leaves(each, f'{path}[{i}]')


def _attributes(layer: _Layer) -> dict[str, Any]:
  """Attributes that may hold layers, without the bookkeeping of Keras."""
  return {
    name: value
    for name, value in vars(layer).items()
    if name != '_layers' and not name.startswith('_self_')
  }


def _children(layer: _Layer) -> list[tuple[str, _Layer]]:
  """Each layer directly inside, once, with where it is."""
  if _is_graph(layer):
    pairs = [(child.name, child) for child in layer.layers]
  else:
    pairs = [
      pair
      for name, value in _attributes(layer).items()
      for pair in _leaves(value, name)
    ]
  return list({id(child): (path, child) for path, child in pairs}.values())


def _walk(
  layer: _Layer, path: str = '', seen: set[int] | None = None
) -> Iterator[tuple[str, _Layer]]:
  """Every layer at any depth, once, with its path; `layer` itself too."""
  seen = set() if seen is None else seen
  if id(layer) in seen:
    return
  seen.add(id(layer))
  yield path, layer
  for name, child in _children(layer):
    yield from _walk(child, f'{path}/{name}' if path else name, seen)


def _custom_classes(model: _Layer) -> dict[str, type]:
  """Classes of layers that Keras may not find by their name."""
  kinds = {type(layer) for _, layer in _walk(model)}
  known = ('keras', 'tf_keras', 'tfgroupnorm')
  return {
    kind.__name__: kind
    for kind in kinds
    if kind.__module__.partition('.')[0] not in known
  }


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
  layer: _Layer
  channels: int = 0
  norm: _Layer = None
  groups: int = 0

  def plan(
    self,
    keras: _Keras,
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
      return tf.TensorShape(config['input_shape']).as_list()
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
    group_norm = _layer.layers_of(keras).GroupNorm
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


# --- Copying -----------------------------------------------------------------


class _Copier:
  """Copies of layers; one layer has one copy, wherever it is met."""

  def __init__(self, keras: _Keras, replaced: list[_Found]):
    self._keras = keras
    self._replaced = {id(each.layer): each for each in replaced}
    # id -> the layer, kept so that no other gets its id, and its copy.
    self._copies: dict[int, tuple[_Layer, _Layer]] = {}
    self._restored: set[int] = set()

  def run(self, model: _Layer) -> _Layer:
    result = self.copy(model)
    self._restore(model)
    for each in self._replaced.values():
      each.finish()
    for layer in _parents_first(model):
      # To set it for a model sets it for all layers inside.
      new = self._copies[id(layer)][1]
      # The first Keras 3 does not tell the weights what is no change.
      new.trainable = not layer.trainable
      new.trainable = layer.trainable
    return result

  def copy(self, layer: _Layer) -> _Layer:
    """The copy of `layer`, for a graph with the copies of its layers."""
    if id(layer) not in self._copies:
      if id(layer) in self._replaced:
        new = self._replaced[id(layer)].norm
      elif _is_graph(layer):
        new = self._copy_graph(layer)
      else:
        new = _from_config(layer)
        if isinstance(layer, self._keras.layers.Lambda):
          # From the configuration it would not know the module it is from.
          new.function = layer.function
      self._copies[id(layer)] = layer, new
    return self._copies[id(layer)][1]

  def _copy_graph(self, model):
    keras = self._keras
    try:
      if keras.__name__ == 'tf_keras':
        new = keras.models.clone_model(model, clone_function=self.copy)
      elif isinstance(model, keras.Sequential):
        new = self._copy_sequential(model)
      else:
        new = self._copy_functional(model)
    except TypeError as error:  # A constructor with other arguments.
      raise _cannot_copy(model, str(error)) from error
    if type(new) is not type(model):
      raise _cannot_copy(model, 'Keras copies it as a plain model.')
    if model.built and not new.built:
      new.build_from_config(model.get_build_config())
    return new

  def _copy_sequential(self, model):
    # Not by Keras' cloning, which compiles the copy of a compiled model, or
    # fails to.
    layers = [self.copy(layer) for layer in model.layers]
    first = model.get_config()['layers'][:1]
    if first and first[0]['class_name'] == 'InputLayer':
      config = first[0]['config']
      layers.insert(0, self._keras.layers.InputLayer.from_config(config))
    return self._keras.Sequential(layers, name=model.name)

  def _copy_functional(self, model):
    # A second model on the same tensors is one that is not compiled.
    plain = type(model)(model.input, model.output, name=model.name)

    kind = self._keras.layers.InputLayer
    inputs = [layer for layer in model.layers if isinstance(layer, kind)]

    def new_input(tensor):
      # Keras would name the new one after the tensor.
      layer = next(layer for layer in inputs if layer.output is tensor)
      return kind.from_config(layer.get_config()).output

    return self._keras.models.clone_model(
      plain,
      input_tensors=tf.nest.map_structure(new_input, model.input),
      clone_function=self.copy,
    )

  def _restore(self, layer):
    """Gives the copy of `layer` the weights, and in place of its own layers
    those that are to be there."""
    if id(layer) in self._restored:
      return
    self._restored.add(id(layer))
    if id(layer) in self._replaced:
      return
    new = self._copies[id(layer)][1]
    if _is_graph(layer):
      for (_, child), (_, twin) in zip(
        _children(layer), _children(new), strict=True
      ):
        # Inputs are made by Keras.
        self._copies.setdefault(id(child), (child, twin))
        self._restore(child)
      return
    self._rename(new, layer.name)
    self._restore_attributes(layer, new)
    if layer.built and not new.built:
      _build_like(layer, new)
      # What is made only by `build`.
      self._restore_attributes(layer, new)
    _copy_state(layer, new)

  def _rename(self, new, name):
    # Names that Keras invents differ from one copy to the next.
    if new.name != name:
      keras_2 = self._keras.__name__ == 'tf_keras'
      setattr(new, '_name' if keras_2 else 'name', name)

  def _restore_attributes(self, layer, new):
    twins = dict(_children(new))
    for path, child in _children(layer):
      if path not in twins:
        if layer.built and not new.built:
          continue  # To come with `build`.
        raise _cannot_copy(layer, f'A layer is missing in the copy: {path}.')
      if id(child) not in self._copies:
        if id(child) in self._replaced or _is_graph(child):
          self.copy(child)
        else:
          self._copies[id(child)] = child, twins[path]
      wanted = self._copies[id(child)][1]
      if wanted is not twins[path]:
        _swap(self._keras, new, twins[path], wanted)
      self._restore(child)


def _from_config(layer: _Layer) -> _Layer:
  make = type(layer).from_config
  # Safe mode is about code in files of others.
  unsafe = 'safe_mode' in inspect.signature(make).parameters
  try:
    new = make(layer.get_config(), **({'safe_mode': False} if unsafe else {}))
  except Exception as error:  # Whatever the code of others may raise.
    raise _cannot_copy(layer, str(error)) from error
  if type(new) is not type(layer):
    raise _cannot_copy(layer, f'It comes back as a {type(new).__name__}.')
  return new


def _cannot_copy(layer: _Layer, problem: str) -> ValueError:
  remedy = (
    'convert `keras.Model(model.inputs, model.outputs)`'
    if _is_graph(layer)
    else 'give its class `get_config` and `from_config` that make an equal one'
  )
  return ValueError(
    f'{type(layer).__name__} {layer.name!r} cannot be copied. Received: '
    f'{problem.rstrip(".")}. To have it converted, {remedy}; or write '
    'GroupNorm in its code in place of BatchNormalization.'
  )


def _build_like(layer: _Layer, new: _Layer) -> None:
  config = layer.get_build_config()
  if not config:
    return
  with warnings.catch_warnings(record=True):
    warnings.simplefilter('always')  # Judged by the weights, see _copy_state.
    new.build_from_config(config)
  # Keras 3 does not note it of a model that it builds by calling it.
  new.built = True


def _copy_state(layer: _Layer, new: _Layer) -> None:
  """All that a layer itself keeps, not the layers in it."""
  if not _is_layer(layer):
    return  # An operation of a functional model.
  state: dict[str, Any] = {}
  layer.save_own_variables(state)
  if state:
    try:
      new.load_own_variables(state)
    except ValueError as error:
      raise _cannot_copy(layer, str(error)) from error
  if hasattr(layer, 'save_assets'):  # Vocabularies.
    with tempfile.TemporaryDirectory() as folder:
      layer.save_assets(folder)
      new.load_assets(folder)


def _parents_first(model: _Layer) -> list[_Layer]:
  """All layers, each after every one that it is in."""
  order: list[_Layer] = []
  seen: set[int] = set()

  def visit(layer):
    if id(layer) not in seen:
      seen.add(id(layer))
      for _, child in _children(layer):
        visit(child)
      order.append(layer)

  visit(model)
  return order[::-1]


def _swap(keras: _Keras, owner: _Layer, old: _Layer, new: _Layer) -> None:
  """Replaces `old` by `new` in the attributes of `owner`."""
  for name, value in _attributes(owner).items():
    if all(layer is not old for _, layer in _leaves(value, name)):
      continue
    rebuilt = _rebuilt(value, old, new)
    if keras.__name__ == 'tf_keras':
      _set_in_keras_2(owner, name, value, rebuilt)
    else:
      _list_in_keras_3(owner, old, new)
      setattr(owner, name, rebuilt)


def _rebuilt(value: Any, old: _Layer, new: _Layer) -> Any:
  """`value` with `new` in place of `old`, in new containers."""
  if value is old:
    return new
  if isinstance(value, dict):
    kind = (
      collections.OrderedDict
      if isinstance(value, collections.OrderedDict)
      else dict
    )
    return kind((k, _rebuilt(v, old, new)) for k, v in value.items())
  if isinstance(value, tuple):
    values = [_rebuilt(v, old, new) for v in value]
    return (
      value.__class__(*values) if hasattr(value, '_fields') else tuple(values)
    )
  if isinstance(value, (list, set)):
    values = [_rebuilt(v, old, new) for v in value]
    return values if isinstance(value, list) else set(values)
  return value


def _list_in_keras_3(owner: _Layer, old: _Layer, new: _Layer) -> None:
  """Lists `new` where Keras 3 lists `old` among the layers of `owner`.

  Keras 3 lets no layer into one that is built, and forgets none that an
  attribute no longer holds; its list is private.
  """
  listed = owner._layers
  for i, layer in enumerate(listed):
    if layer is old:
      listed[i] = new
      stored = owner._tracker.stored_ids['layers']
      stored.discard(id(old))
      stored.add(id(new))


def _set_in_keras_2(owner: _Layer, name: str, old: Any, new: Any) -> None:
  """Sets an attribute, and keeps the order of layers, a private list."""
  places = [each is old for each in owner._self_tracked_trackables]
  setattr(owner, name, new)
  if True in places:
    listed = owner._self_tracked_trackables
    listed.insert(places.index(True), listed.pop())


# --- What is said of it ------------------------------------------------------


def _check_complete(keras: _Keras, result: _Layer, skipped: int) -> None:
  left = [
    path
    for path, layer in _walk(result)
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
