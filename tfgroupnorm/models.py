"""Walking a built model of either Keras, for those who change or watch one.

A model is made of the layers that a functional or Sequential one lists, and of
those that any layer or model holds: in an attribute, whatever its name, or in
lists, tuples, dicts and sets there. A layer that is held twice is one layer.
"""

from __future__ import annotations

import collections
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tfgroupnorm import _layer

# A layer or model, and either Keras; which one, a type checker cannot know.
Layer = Any
Keras = Any


# --- Which Keras -------------------------------------------------------------


def generations() -> list[Keras]:
  """The modules `keras` and `tf_keras`, as far as this process has them.

  None is imported for this: who has a model of one has imported it.
  """
  modules = (sys.modules.get(name) for name in _layer.HOMES)
  return [module for module in modules if hasattr(module, 'layers')]


def generation_of(model: Any) -> Keras:
  """The module in `generations` of which `model` is a model, or `None`."""
  for module in generations():
    if isinstance(model, module.Model):
      return module
  return None


def keras_of(layer: Layer) -> Keras:
  """The module in `generations` of which `layer` is a layer."""
  (keras,) = (k for k in generations() if isinstance(layer, k.layers.Layer))
  return keras


def check_model(model: Any) -> Keras:
  """`generation_of` what must be a model."""
  keras = generation_of(model)
  if keras is None:
    raise TypeError(
      '`model` must be a model of Keras 3 or tf-keras. Received: '
      f'{type(model).__name__}. Put a layer into a keras.Sequential, with an '
      'Input, to convert what is in it.'
    )
  return keras


def shape_of_build(layer: Layer) -> Any:
  """The shape, or shapes, that it was built for; `None`: not known."""
  config = layer.get_build_config() or {}
  if not layer.built or config.get('input_shape') is not None:
    return config.get('input_shape')
  # The oldest Keras 2 does not note it of what is built by `build`.
  spec: Any = getattr(layer, 'input_spec', None)
  rank = getattr(spec, 'ndim', None) or getattr(spec, 'min_ndim', None)
  if not rank:
    return None
  axes = {axis % rank: size for axis, size in (spec.axes or {}).items()}
  return tuple(axes.get(i) for i in range(rank))


def layers_of(keras: Keras) -> Any:
  """The module that has the layers of this package for `keras`."""
  return importlib.import_module(_layer.HOMES[keras.__name__])


def classes(*names: str) -> tuple[type, ...]:
  """What `layers` of each Keras here has under these names."""
  return tuple(
    getattr(module.layers, name)
    for module in generations()
    for name in names
    if hasattr(module.layers, name)
  )


# --- What something is -------------------------------------------------------


def is_layer(value: Any) -> bool:
  if not hasattr(value, 'get_config'):  # Of a long vocabulary, say.
    return False
  # To Keras 2 a metric is a layer too, but none of a model's.
  metrics = tuple(module.metrics.Metric for module in generations())
  return isinstance(value, classes('Layer')) and not isinstance(value, metrics)


def is_graph(layer: Any) -> bool:
  """Whether it is a model that Keras itself knows the layers of."""
  # Neither Keras has a public name for the class of functional models.
  names = {base.__name__ for base in type(layer).__mro__}
  return generation_of(layer) is not None and not names.isdisjoint(
    {'Functional', 'Sequential'}
  )


def inputs_of(model: Layer) -> Any:
  """Symbolic inputs, in the structure that the model takes them in.

  `None` where Keras knows none: of a subclassed model, or one that is not
  built.
  """
  try:
    inputs = getattr(model, 'inputs', None)
  except ValueError:  # The first Keras 3, of a Sequential that is not built.
    return None
  if not inputs:
    return None
  if isinstance(model, generation_of(model).Sequential):
    (only,) = inputs  # Keras 3's has no `input` that is its own.
    return only
  return model.input


# --- The walk ----------------------------------------------------------------


def walk(model: Layer, *, named: bool = False) -> Iterator[tuple[str, Layer]]:
  """Every layer at any depth, once, after the one it is in, with its path.

  A path tells where the code has it, in attributes; or, if `named`, where a
  user of the model sees it, in names, of which one that repeats is counted.

  Example:

  >>> import keras
  >>> from tfgroupnorm import GroupNorm, models
  >>> class Block(keras.layers.Layer):
  ...   def __init__(self, **kwargs):
  ...     super().__init__(**kwargs)
  ...     self.norms = [GroupNorm(name="norm"), GroupNorm(name="norm")]
  >>> model = keras.Sequential([Block(name="block")])
  >>> [path for path, _ in models.walk(model)]
  ['block', 'block/norms[0]', 'block/norms[1]']
  >>> [path for path, _ in models.walk(model, named=True)]
  ['block', 'block/norm', 'block/norm#2']
  """
  seen = {id(model)}
  paths: set[str] = set()

  def inside(owner, prefix):
    for place, layer in children(owner):
      if id(layer) in seen:
        continue
      seen.add(id(layer))
      path = _distinct(prefix + (layer.name if named else place), paths)
      paths.add(path)
      yield path, layer
      yield from inside(layer, f'{path}/')

  return inside(model, '')


def parents_first(model: Layer) -> list[Layer]:
  """The model and all layers in it, each after every one that it is in."""
  order: list[Layer] = []
  seen: set[int] = set()

  def visit(layer):
    if id(layer) not in seen:
      seen.add(id(layer))
      for _, child in children(layer):
        visit(child)
      order.append(layer)

  visit(model)
  return order[::-1]


def children(owner: Layer) -> list[tuple[str, Layer]]:
  """Each layer directly inside, once, with a place of its own.

  That is its name where the owner lists its layers, or else its attribute.
  """
  listed = is_graph(owner)
  pairs = [(child.name, child) for child in owner.layers] if listed else []
  for name, value in holders(owner).items():
    # Of a Sequential, Keras lists the input nowhere else.
    pairs += [
      (place, child)
      for place, child in leaves(value, name)
      if not (listed and isinstance(child, classes('InputLayer')))
    ]
  found: dict[str, Layer] = {}
  seen: set[int] = set()
  for place, child in pairs:
    if id(child) not in seen:
      seen.add(id(child))
      found[_distinct(place, found)] = child
  return list(found.items())


def _distinct(path: str, taken: Any) -> str:
  """`path`, or if that is taken, `'path#2'` and so on."""
  distinct, count = path, 1
  while distinct in taken:
    count += 1
    distinct = f'{path}#{count}'
  return distinct


# --- Attributes that hold layers ---------------------------------------------


@functools.cache
def bookkeeping(keras: Keras) -> frozenset[str]:
  """Attributes that Keras itself gives a layer, lists of what it tracks too.

  They are read off one: their names are private, and not those of all that
  begin with an underscore, or with `_self_`, are Keras'.
  """
  probe = keras.layers.Layer(name='probe')
  probe.held = keras.layers.Layer(name='held')
  return frozenset(vars(probe)) - {'held'}


def holders(owner: Layer) -> dict[str, Any]:
  """The attributes with a layer in them, without the bookkeeping of Keras."""
  # Where Keras 3 lists even layers that no attribute has any more.
  kept = set(bookkeeping(keras_of(owner)))
  if generation_of(owner) is not None:
    # What `compile` was given, and what a Sequential runs as.
    kept.update(('loss', '_functional'))
  if isinstance(owner, classes('Bidirectional')):
    kept.add('layer')  # What its two layers were made after.
  return {
    name: value
    for name, value in vars(owner).items()
    if name not in kept and next(leaves(value, name), None)
  }


def leaves(value: Any, path: str) -> Iterator[tuple[str, Layer]]:
  """Layers in an attribute: itself, or in lists, tuples, dicts and sets."""
  if isinstance(value, dict):
    for key, each in value.items():
      yield from leaves(each, f'{path}[{key!r}]')
  elif isinstance(value, (list, tuple, set)):
    for i, each in enumerate(value):
      yield from leaves(each, f'{path}[{i}]')
  elif is_layer(value):
    yield path, value


def rebuilt(value: Any, change: Callable[[Layer], Layer]) -> Any:
  """`value` with `change(layer)` for each layer, in new containers."""
  if isinstance(value, dict):
    kind = (
      collections.OrderedDict
      if isinstance(value, collections.OrderedDict)
      else dict
    )
    return kind((k, rebuilt(v, change)) for k, v in value.items())
  if isinstance(value, (list, tuple, set)):
    values = [rebuilt(v, change) for v in value]
    if isinstance(value, list):
      return values
    if hasattr(value, '_fields'):  # A named tuple.
      return value.__class__(*values)
    return tuple(values) if isinstance(value, tuple) else set(values)
  return change(value) if is_layer(value) else value


def swap(owner: Layer, old: Layer, new: Layer) -> None:
  """Replaces `old` by `new` in the attributes of `owner`."""
  for name, value in holders(owner).items():
    if all(layer is not old for _, layer in leaves(value, name)):
      continue
    changed = rebuilt(value, lambda layer: new if layer is old else layer)
    if _is_keras_2(owner):
      _set_in_keras_2(owner, name, value, changed)
    else:
      _list_in_keras_3(owner, old, new)
      setattr(owner, name, changed)


def _is_keras_2(layer: Layer) -> bool:
  return keras_of(layer).__name__ == 'tf_keras'


def _list_in_keras_3(owner: Layer, old: Layer, new: Layer) -> None:
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


def _set_in_keras_2(owner: Layer, name: str, old: Any, new: Any) -> None:
  """Sets an attribute, and keeps the order of layers, a private list."""
  places = [each is old for each in owner._self_tracked_trackables]
  setattr(owner, name, new)
  if True in places:
    listed = owner._self_tracked_trackables
    listed.insert(places.index(True), listed.pop())
