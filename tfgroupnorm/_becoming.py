"""A layer of a model becomes one of ours where it stands.

The object stays and its class changes, as Python allows of classes of one
layout. So all that hold it have the new one: attributes, lists, graphs, code;
and an optimizer has its variables. To put another object there would mean to
find all of these, some in private lists of Keras.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfgroupnorm import models
from tfgroupnorm.models import Layer

# What Keras reads off a class when it makes a layer of it: names, and how they
# begin.
_OF_THE_CLASS = ('autocast', '_autocast', '_supports_masking')
_OF_ITS_CALL = ('_call_', 'call_')
# Methods that Keras 3 wraps for each object.
_WRAPPED = ('build', 'quantize')
# What `fit` and its like have traced, in attributes of a model.
_TRACED = (
  'train_function',
  'train_tf_function',
  'test_function',
  'predict_function',
)


def become(
  layer: Layer, new: Layer, dropped: Sequence[str] = ()
) -> Callable[[], None]:
  """Makes `layer` what `new` is, with its own variables.

  They get the values of the weights of `new`, which are as many, besides those
  that are dropped, and of the same shapes. The name, `trainable`, the dtype
  policy and the place in a graph are the layer's own, and so are attributes
  that `new` does not have.

  Args:
    layer: A layer that is built.
    new: One of ours, built; it is not to be used any more.
    dropped: Attributes with variables that it shall not have any more.

  Returns:
    A function that undoes it, but for what was dropped.

  Raises:
    TypeError: If Python does not let the class change.
  """
  for name in dropped:
    _drop(layer, name)
  kind, attributes = type(layer), dict(vars(layer))
  variables = dict(zip(map(id, new.weights), layer.weights, strict=True))
  assigned = _assign(layer, new)

  def undo():
    object.__setattr__(layer, '__class__', kind)
    layer.__dict__.clear()
    layer.__dict__.update(attributes)
    for variable, value in assigned:
      variable.assign(value)

  try:
    _take_over(layer, new, variables)
  except BaseException:
    undo()
    raise
  return undo


def _take_over(layer: Layer, new: Layer, variables: dict[int, Any]) -> None:
  """Makes `layer` what `new` is; `variables` has its own for those of `new`."""
  object.__setattr__(layer, '__class__', type(new))
  known = models.bookkeeping(models.keras_of(new))
  own = {name: x for name, x in vars(new).items() if name not in known}
  for name, value in list(vars(layer).items()):
    if name in own or (name not in known and hasattr(type(new), name)):
      _forget(layer, name, value)
  for name in _WRAPPED:
    layer.__dict__.pop(name, None)
  for name, value in vars(new).items():
    if name in _OF_THE_CLASS or name.startswith(_OF_ITS_CALL):
      layer.__dict__[name] = value
  with _unlocked(layer):
    for name, value in own.items():
      setattr(layer, name, variables.get(id(value), value))


@contextlib.contextmanager
def _unlocked(layer: Layer) -> Iterator[None]:
  """The oldest Keras 3 refuses variables of a built layer, its own too."""
  tracker: Any = getattr(layer, '_tracker', None)
  if not getattr(tracker, 'locked', False):
    yield
    return
  tracker.locked = False
  try:
    yield
  finally:
    tracker.locked = True


def _assign(layer: Layer, new: Layer) -> list[tuple[Any, Any]]:
  """Gives the layer's variables new values; those that change, and the old."""
  changed = []
  values = zip(
    layer.weights, layer.get_weights(), new.get_weights(), strict=True
  )
  for variable, old, value in values:
    if (old != value).any():
      variable.assign(value)
      changed.append((variable, old))
  return changed


def _forget(layer: Layer, name: str, value: Any) -> None:
  if any(value is weight for weight in layer.weights):
    # Not by `del`, by which Keras would forget the variable too.
    del layer.__dict__[name]
  else:
    delattr(layer, name)


def _drop(layer: Layer, name: str) -> None:
  if not hasattr(layer, '_tracker'):
    delattr(layer, name)
    return
  # Keras 3. By `del` all garbage would be collected, for each variable; the
  # oldest does not untrack one then.
  untrack = getattr(layer, '_untrack_variable', layer._tracker.untrack)
  untrack(getattr(layer, name))
  if hasattr(layer, '_delete_tracking'):  # On TensorFlow.
    layer._delete_tracking(name)
  del layer.__dict__[name]


def forget_traces(model: Layer) -> None:
  """What Keras traced for `fit` and its like is traced anew when it is used."""
  for each in (model, *(layer for _, layer in models.walk(model))):
    if models.generation_of(each) is not None:
      for name in set(_TRACED).intersection(vars(each)):
        setattr(each, name, None)
