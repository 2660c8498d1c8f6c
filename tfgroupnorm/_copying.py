"""Copies of models of either Keras, which know which layer is whose copy.

A functional or Sequential model is rebuilt by Keras' own cloning. What holds
its layers as attributes, a wrapper or a subclassed layer or model, is copied by
its configuration, and so is a functional one of a class with a configuration of
its own.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from tfgroupnorm import models
from tfgroupnorm._tensors import ops
from tfgroupnorm.models import Keras, Layer


@dataclasses.dataclass
class Copy:
  """A copy of a model.

  Attributes:
    model: The copy. It shares no variable with the model, and is not compiled.
    twin: The copy of a layer of the model.
    plain: Models whose class the copies do not have: these are plain functional
      models.
  """

  model: Layer
  twin: Callable[[Layer], Layer]
  plain: list[Layer]


def copy_model(model: Layer) -> Copy:
  """A copy of all that is in `model`.

  Raises:
    ValueError: If a layer cannot be made anew from its configuration.
  """
  keras = models.generation_of(model)
  with keras.saving.custom_object_scope(_custom_classes(model)):
    copier = _Copier(keras)
    return Copy(copier.run(model), copier.copy, copier.plain)


def _custom_classes(model: Layer) -> dict[str, type]:
  """Classes of layers that Keras may not find by their name."""
  kinds = {type(model), *(type(layer) for _, layer in models.walk(model))}
  known = ('keras', 'tf_keras', 'tfgroupnorm')
  return {
    kind.__name__: kind
    for kind in kinds
    if kind.__module__.partition('.')[0] not in known
  }


class _Copier:
  """Copies of layers; one layer has one copy, wherever it is met."""

  def __init__(self, keras: Keras):
    self._keras = keras
    self.plain: list[Layer] = []
    # id -> the layer, kept so that no other gets its id, and its copy.
    self._copies: dict[int, tuple[Layer, Layer]] = {}
    self._restored: set[int] = set()

  def run(self, model: Layer) -> Layer:
    result = self.copy(model)
    self._restore(model)
    for layer in models.parents_first(model):
      # To set it for a model sets it for all layers inside.
      new = self._copies[id(layer)][1]
      # The first Keras 3 does not tell the weights what is no change.
      new.trainable = not layer.trainable
      new.trainable = layer.trainable
    return result

  def copy(self, layer: Layer) -> Layer:
    """The copy of `layer`, for a graph with the copies of its layers."""
    if id(layer) not in self._copies:
      if models.is_graph(layer):
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
    if _has_own_config(model):
      new = _like(model)
      if new is not None:
        return new
    if isinstance(model, keras.Sequential):
      new = self._copy_sequential(model)
    else:
      new = self._copy_functional(model)
    if type(new) is not type(model):
      self.plain.append(model)
    if model.built and not new.built:
      new.build_from_config(model.get_build_config())
    return new

  def _copy_sequential(self, model):
    if self._keras.__name__ == 'tf_keras':
      return self._keras.models.clone_model(model, clone_function=self.copy)
    # Not by Keras' cloning, which compiles the copy of a compiled model, or
    # fails to.
    layers = [self.copy(layer) for layer in model.layers]
    first = model.get_config()['layers'][:1]
    if first and first[0]['class_name'] == 'InputLayer':
      config = first[0]['config']
      layers.insert(0, self._keras.layers.InputLayer.from_config(config))
    return self._keras.Sequential(layers, name=model.name)

  def _copy_functional(self, model):
    # A second model on the same tensors is one that is not compiled, and whose
    # class has the constructor that Keras' cloning calls.
    keras = self._keras
    try:
      plain = type(model)(model.input, model.output, name=model.name)
    except Exception:  # Whatever the code of others may raise.
      plain = keras.Model(model.input, model.output, name=model.name)
    if keras.__name__ == 'tf_keras':
      return keras.models.clone_model(plain, clone_function=self.copy)

    kind = self._keras.layers.InputLayer
    inputs = [layer for layer in model.layers if isinstance(layer, kind)]

    def new_input(tensor):
      # Keras would name the new one after the tensor.
      layer = next(layer for layer in inputs if layer.output is tensor)
      return kind.from_config(layer.get_config()).output

    return self._keras.models.clone_model(
      plain,
      input_tensors=ops.map_structure(new_input, model.input),
      clone_function=self.copy,
    )

  def _restore(self, layer):
    """Gives the copy of `layer` the weights, and in place of its own layers
    those that are to be there."""
    if id(layer) in self._restored:
      return
    self._restored.add(id(layer))
    new = self._copies[id(layer)][1]
    if models.is_graph(layer):
      self._attach(layer, new)
      for child, twin in _pairs(layer.layers, new.layers):
        # Inputs are made by Keras.
        self._copies.setdefault(id(child), (child, twin))
        self._rename(twin, child.name)
      self._restore_attributes(layer, new)
      return
    self._rename(new, layer.name)
    self._restore_attributes(layer, new)
    if layer.built and not new.built:
      _build_like(layer, new)
      # What is made only by `build`.
      self._restore_attributes(layer, new)
    _copy_state(layer, new)

  def _attach(self, model, new):
    """Attributes that a graph was given; Keras' cloning leaves them out."""
    for name, value in models.holders(model).items():
      if name not in vars(new):
        setattr(new, name, models.rebuilt(value, self.copy))

  def _rename(self, new, name):
    # Names that Keras invents differ from one copy to the next.
    if new.name != name:
      keras_2 = self._keras.__name__ == 'tf_keras'
      setattr(new, '_name' if keras_2 else 'name', name)

  def _restore_attributes(self, layer, new):
    twins = dict(models.children(new))
    for path, child in models.children(layer):
      if isinstance(child, self._keras.layers.InputLayer):
        continue  # Models that share one each have their own in the copy.
      if path not in twins:
        if layer.built and not new.built:
          continue  # To come with `build`.
        raise _cannot_copy(layer, f'A layer is missing in the copy: {path}.')
      if id(child) not in self._copies:
        if models.is_graph(child) and not _has_own_config(child):
          self.copy(child)
        else:
          self._copies[id(child)] = child, twins[path]
      wanted = self._copies[id(child)][1]
      if wanted is not twins[path]:
        models.swap(new, twins[path], wanted)
      self._restore(child)


def _pairs(
  layers: list[Layer], twins: list[Layer]
) -> list[tuple[Layer, Layer]]:
  """By their names, or where Keras invented some, in their order."""
  named = {twin.name: twin for twin in twins}
  if {layer.name for layer in layers} == set(named):
    return [(layer, named[layer.name]) for layer in layers]
  return list(zip(layers, twins, strict=True))


def _has_own_config(model: Layer) -> bool:
  """Whether a functional model's configuration is that of its own class."""
  for kind in type(model).__mro__:
    if kind.__name__ in ('Functional', 'Sequential', 'Model'):
      return False
    if 'get_config' in vars(kind):
      return True
  return False


def _like(model: Layer) -> Layer | None:
  """A new one from its configuration, if it has the same layers."""
  try:
    new = type(model).from_config(model.get_config())
  except Exception:  # Whatever the code of others may raise.
    return None
  same = type(new) is type(model) and [type(x) for x in new.layers] == [
    type(x) for x in model.layers
  ]
  return new if same else None


def _from_config(layer: Layer) -> Layer:
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


def _cannot_copy(layer: Layer, problem: str) -> ValueError:
  return ValueError(
    f'{type(layer).__name__} {layer.name!r} cannot be copied. Received: '
    f'{problem.rstrip(".")}. To have it converted, give its class `get_config` '
    'and `from_config` that make an equal one; or write GroupNorm in its code '
    'in place of BatchNormalization.'
  )


def _build_like(layer: Layer, new: Layer) -> None:
  config = layer.get_build_config()
  if not config:
    shape = models.shape_of_build(layer)
    if shape is None:
      return
    config = {'input_shape': shape}
  with warnings.catch_warnings(record=True):
    warnings.simplefilter('always')  # Judged by the weights, see _copy_state.
    new.build_from_config(config)
  # Keras 3 does not note it of a model that it builds by calling it.
  new.built = True


def _copy_state(layer: Layer, new: Layer) -> None:
  """All that a layer itself keeps, not the layers in it."""
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
