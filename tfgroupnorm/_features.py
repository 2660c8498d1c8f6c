"""Reading what layers of a model return for fixed data, and leaving no trace.

Which layers, on what data, and how: the model is called as for inference while
the `call` of each layer is watched, and at most so many values of each are
kept. Names that users know, and the messages about them, are those of
`callbacks.ActivationPercentiles`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfgroupnorm import _checks, _layer, models
from tfgroupnorm._reading import reading
from tfgroupnorm._tensors import ops

# Keras' own normalization layers, of either generation.
_KERAS_NORMS = (
  'BatchNormalization',
  'GroupNormalization',
  'LayerNormalization',
  'RMSNormalization',
  'UnitNormalization',
)


# --- Which layers ------------------------------------------------------------


def check_layers(layers: Any) -> Any:
  """`layers`, a list of them as a tuple."""
  if layers is None or isinstance(layers, str) or callable(layers):
    return layers
  if isinstance(layers, (list, tuple)) and all(
    isinstance(item, str) or models.is_layer(item) for item in layers
  ):
    if not layers:
      raise ValueError(
        '`layers` must have one layer at least. Received: layers='
        f'{layers!r}. Leave it out for all normalization layers.'
      )
    return tuple(layers)
  raise TypeError(
    '`layers` must be names, layers, or a function of a layer that says '
    f'whether to follow it. Received: layers={layers!r}. Leave it out for all '
    'normalization layers.'
  )


def _is_rule(layers: Any) -> bool:
  """Whether it says of any layer whether to follow it."""
  return layers is None or (callable(layers) and not models.is_layer(layers))


def _is_norm(layer: Any) -> bool:
  return isinstance(layer, (_layer.Norm, *models.classes(*_KERAS_NORMS)))


def _named(name: str, paths: dict[str, Any]) -> str:
  """The path of the layer that `name` is the path or the name of."""
  if name in paths:
    return name
  matches = [path for path, layer in paths.items() if layer.name == name]
  if len(matches) == 1:
    return matches[0]
  if matches:
    raise ValueError(
      'A name in `layers` must be that of one layer. Received: '
      f'{name!r}, the name of {", ".join(map(repr, matches))}. Give one of '
      'these paths.'
    )
  near = difflib.get_close_matches(name, paths, n=5, cutoff=0.4)
  some = near or [path for path in paths if '/' not in path][:9]
  raise ValueError(
    f'`layers` must name layers of the model. Received: {name!r}, which it '
    f'does not have. {"Near" if near else "It has"}: '
    f'{", ".join(map(repr, some))}.'
  )


def _choose(layers: Any, model: Any) -> dict[str, Any]:
  """What to call it in the records -> layer."""
  paths = dict(models.walk(model, named=True))
  if _is_rule(layers):
    wanted = _is_norm if layers is None else layers
    chosen = [path for path, layer in paths.items() if wanted(layer)]
    if not chosen:
      what = 'normalization layer' if layers is None else 'layer that fits'
      raise ValueError(
        f'The model must have a layer to follow. Received: layers={layers!r}, '
        f'and a model without a {what}. Give names in `layers`, such as '
        f'{", ".join(map(repr, list(paths)[-3:]))}.'
      )
  else:
    chosen = []
    for item in layers if isinstance(layers, (list, tuple)) else [layers]:
      if isinstance(item, str):
        chosen.append(_named(item, paths))
        continue
      held = [path for path, layer in paths.items() if layer is item]
      if not held:
        raise ValueError(
          'A layer in `layers` must belong to the model. Received: '
          f'{item.name!r}, which is not in {model.name!r}. Give a layer of '
          'the model that is trained, or its name.'
        )
      chosen += held
  names = [paths[path].name for path in chosen]
  return {
    (name if names.count(name) == 1 else path): paths[path]
    for path, name in zip(chosen, names, strict=True)
  }


# --- On what data ------------------------------------------------------------


def check_data(data: Any) -> Any:
  """`data` with tensors for arrays."""
  if data is None or isinstance(data, (str, reading.DATASET)):
    raise TypeError(
      '`data` must be one batch of inputs of the model: an array or a tensor, '
      f'or a list or dict of these. Received: {type(data).__name__}. Of a '
      'dataset of inputs and targets take `next(iter(dataset))[0]`.'
    )

  def convert(x):
    if isinstance(x, (bool, int, float)):
      raise TypeError(
        '`data` must be one batch of inputs of the model: an array or a '
        'tensor, or a list or dict of these. Received: a number, '
        f'{x!r}, in a {type(data).__name__}. Convert it by `np.array`.'
      )
    if isinstance(x, np.ndarray) and x.dtype.kind == 'f':
      x = x.astype(keras.backend.floatx())  # As `fit` does.
    return ops.convert(x)

  return ops.map_structure(convert, data)


def _by_name(data: dict[str, Any], model: Any) -> list[Any]:
  """What Keras takes from `data`, in the order of `model.inputs`."""
  declared = models.inputs_of(model)
  names = (
    sorted(declared)
    if isinstance(declared, dict)
    else [x.name for x in model.inputs]
  )
  missing = [name for name in names if name not in data]
  if missing:
    raise ValueError(
      '`data` must have each input of the model by its name. Received: a dict '
      f'of {", ".join(map(repr, data))}, without '
      f'{", ".join(map(repr, missing))}. Add what is missing.'
    )
  return [data[name] for name in names]


def _fits(given: tuple[int, ...], wanted: _checks.Shape) -> bool:
  shapes = [given, (*given, 1)]  # Keras adds and drops a last axis of one.
  if given[-1:] == (1,):
    shapes.append(given[:-1])
  return any(_checks.compatible(shape, wanted) for shape in shapes)


def _check_fits(data: Any, model: Any) -> None:
  """Compares shapes, where the model is one that knows its inputs."""
  wanted = getattr(model, 'inputs', None)
  if not wanted:
    return
  if isinstance(data, dict):
    data = _by_name(data, model)
  given = ops.flatten(data)
  shapes = [tuple(x.shape) for x in given]
  expected = [tuple(x.shape) for x in wanted]
  if len(given) != len(wanted) or not all(
    _fits(a, b) for a, b in zip(shapes, expected, strict=True)
  ):
    raise ValueError(
      '`data` must be a batch of inputs of the model, which has inputs of '
      f'shape {", ".join(map(str, expected))}. Received: shape '
      f'{", ".join(map(str, shapes))}. The batch is the first axis.'
    )


# --- How ---------------------------------------------------------------------


def reader(
  model: Any, data: Any, layers: Any, sample_size: int
) -> Callable[[], dict[str, ops.Tensor]]:
  """Makes what reads the features, and has run it once.

  Args:
    model: A built model.
    data: What `check_data` returned.
    layers: What `check_layers` returned.
    sample_size: How many values of a layer to take at most.

  Returns:
    A function without arguments, that returns values by the layer's name.
  """
  chosen = _choose(layers, model)
  _check_fits(data, model)

  def features():
    with watched(chosen) as found:
      try:
        model(data, training=False)
      except Exception as error:
        _raise_uncallable(error)
    return _sampled(found, _is_rule(layers), sample_size)

  run = reading.runner(model, features)
  run()
  return run


@ops.not_converted
@contextlib.contextmanager
def watched(
  layers: dict[str, Any],
) -> Iterator[dict[str, list[ops.Tensor]]]:
  """Within it, all that the layers return is collected in the dict."""
  found: dict[str, list[ops.Tensor]] = {name: [] for name in layers}

  def watch(name, call):
    @functools.wraps(call)
    def watched(*args, **kwargs):
      outputs = call(*args, **kwargs)
      found[name] += ops.flatten(outputs)
      return outputs

    return watched

  # Past `__setattr__`, which would have Keras track them. This reaches what a
  # second functional model would not: subclassed and nested models.
  before = {name: dict(vars(layer)) for name, layer in layers.items()}
  try:
    for name, layer in layers.items():
      vars(layer)['call'] = watch(name, layer.call)
    yield found
  finally:
    for name, layer in layers.items():
      vars(layer).pop('call', None)
      if 'call' in before[name]:
        vars(layer)['call'] = before[name]['call']


@ops.not_converted
def _raise_uncallable(error: Exception) -> None:
  raise ValueError(
    'The model must be callable on `data` with training=False. Received: '
    f'{type(error).__name__}: {error}'
  ) from error


@ops.not_converted
def _sampled(
  found: dict[str, list[ops.Tensor]], by_rule: bool, size: int
) -> dict[str, ops.Tensor]:
  if by_rule:
    # All that the model calls.
    found = {name: outputs for name, outputs in found.items() if outputs}
  _check_collected(found)
  return {
    name: reading.sample(outputs, size) for name, outputs in found.items()
  }


def _check_collected(found: dict[str, list[ops.Tensor]]) -> None:
  """Raises where a layer returned nothing, or nothing that can be read."""
  for name, outputs in found.items():
    if not outputs:
      raise ValueError(
        '`layers` must be called when the model is. Received: '
        f'{name!r}, which was not. Leave it out, or call it in the model, '
        'also with training=False.'
      )
    for tensor in outputs:
      reading.check_outside(name, tensor)
      _checks.check_real(tensor)
