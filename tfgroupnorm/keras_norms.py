"""Norms of `keras.layers` -> ours in a model that exists, of either Keras."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfgroupnorm import (
  _becoming,
  _checks,
  _comparing,
  _features,
  _graphs,
  _layer,
  _planning,
  _report,
  models,
)
from tfgroupnorm.models import Layer

_HEADERS = ('Layer', 'Was', 'Became', '(Outputs)', '(Gradients)')


def replace_keras_norms(
  model: Layer,
  *,
  also: Mapping[type, Callable[[Layer], Layer]] | None = None,
  fuse_activations: bool = False,
  verbose: bool = True,
  print_fn: Callable[[str], Any] | None = None,
) -> Layer:
  """Turns the normalization layers of Keras in a model into ours, in place.

  Each `GroupNormalization`, `LayerNormalization` and `RMSNormalization` of
  `keras.layers` becomes a `GroupNorm` or `LayerNorm` that computes the same:

      y = gamma * (x - mean) / sqrt(var + epsilon) + beta

  wherever it is: in functional, Sequential and subclassed models, in models and
  layers inside, in attributes, lists and dicts. `model` itself is changed. Each
  norm stays the same object, with the same variables; only its class and its
  options become ours. So its name, its place, `trainable`, its dtype policy,
  saved weights, and what an optimizer knows of it stay; a compiled model stays
  compiled. All other layers are as they were.

  First each norm is compared with what it is to become, and afterwards the
  model with what it was, on made-up data, as for inference: outputs, and
  gradients of all weights. A table tells the largest differences. A norm that
  would change something is left, and the table says why.

  - `LayerNormalization(rms_scaling=True)` is left: it divides by the standard
    deviation but does not subtract the mean, which no layer here does.
  - Subclasses of Keras' norms and classes of others are left: they may compute
    something else. `also` is for them.
  - Where a mask reaches one of ours, masked positions become 0; norms of Keras
    treat them like others. If a later layer reads them, the norm is left.
  - A function that was traced before still runs the old layers: trace it anew.
    `fit`, `evaluate` and `predict` of the model do so by themselves.

  Args:
    model: A built model of Keras 3 or tf-keras.
    also: For classes of norms that are not Keras': {class: function}, where
      the function takes a layer of that very class and returns one of ours with
      weights of the same shapes. If that is built, it keeps its own weights;
      otherwise it gets those of the layer.
    fuse_activations: Whether a norm takes over the ReLU, SiLU, GELU or sigmoid
      of an `Activation` or `ReLU` layer that follows it in a functional or
      Sequential model, if nothing else reads what the norm returns. That layer
      becomes `Activation("linear")`.
    verbose: Whether to print the table.
    print_fn: Called with the table as text, instead of printing it, whatever
      `verbose` is.

  Returns:
    `model`.

  Raises:
    ValueError: If the model is not built; if what a function in `also` returns
      has weights of other shapes; if the model would compute something else,
      as when its code reads an attribute that only norms of Keras have. It is
      then left as it was.
    TypeError: If `model` is not a Keras model or an argument has the wrong
      type.

  Example:

  >>> import keras
  >>> from tfgroupnorm import replace_keras_norms
  >>> model = keras.Sequential([
  ...   keras.Input((8, 8, 3)),
  ...   keras.layers.Conv2D(64, 3),
  ...   keras.layers.GroupNormalization(name="norm"),
  ... ])
  >>> model = replace_keras_norms(model, verbose=False)
  >>> model.get_layer("norm")
  <GroupNorm groups=32, name=norm, built=True>
  """
  keras = models.check_model(model)
  also = _check_also(also)
  _checks.check_bool('fuse_activations', fuse_activations)
  _report.check_printing(verbose, print_fn)
  _check_built(model)
  norms = [
    _planning.Norm(path, layer)
    for path, layer in models.walk(model)
    if _planning.is_candidate(keras, layer, also)
  ]
  for each in norms:
    each.plan(keras, also)
  followers = _graphs.sole_followers(model)
  for each in norms:
    if each.new is not None:
      each.look_at(followers.get(id(each.layer)), keras, fuse_activations)
  whole = _replace(model, norms)
  if verbose or print_fn is not None:
    _print(model, norms, whole, print_fn)
  return model


def _check_also(also: Any) -> dict[type, Callable[[Layer], Layer]]:
  if also is None:
    return {}
  if not isinstance(also, Mapping):
    raise TypeError(
      '`also` must be a dict of classes and functions. Received: also='
      f'{also!r}. Pass {{SomeNorm: lambda layer: LayerNorm(...)}}.'
    )
  for kind, function in also.items():
    layers = models.classes('Layer')
    if not (isinstance(kind, type) and issubclass(kind, layers)):
      raise TypeError(
        'A key of `also` must be a class of layers. Received: '
        f'{kind!r}. Pass the class of the norms that are to be replaced.'
      )
    if issubclass(kind, _layer.Norm):
      raise ValueError(
        'A key of `also` must be a class that is not of this package. '
        f'Received: {kind.__qualname__}, which is. Leave it out.'
      )
    if isinstance(function, type) or not callable(function):
      raise TypeError(
        'A value of `also` must be a function that returns one of our layers '
        f'for a layer of the class. Received: {function!r} for '
        f'{kind.__qualname__}. Pass `lambda layer: LayerNorm(epsilon='
        'layer.epsilon)`, for example.'
      )
  return dict(also)


def _check_built(model: Layer) -> None:
  if not model.built:
    raise ValueError(
      f'The weights of {model.name!r} must exist. Received: a model that is '
      'not built. Call it on a batch of data first, or give it an `Input`.'
    )


# --- In the model ------------------------------------------------------------


@dataclasses.dataclass
class _Whole:
  """What a model computes on a batch, before and after.

  Attributes:
    reason: Why it was not compared, if it was not.
    differences: Of its outputs and gradients, relative.
  """

  reason: str = ''
  differences: tuple[float, float] = (0.0, 0.0)

  def __str__(self):
    if self.reason:
      return f'The whole was not compared: {self.reason}.'
    outputs, gradients = self.differences
    return (
      f'The whole on made-up data: outputs differ by {outputs:.0e}, gradients '
      f'by {gradients:.0e}.'
    )


def _replace(model: Layer, norms: Sequence[_planning.Norm]) -> _Whole:
  """Makes each norm what was planned, if the model stays what it is."""
  norms = [each for each in norms if each.new is not None]
  if not norms:
    return _Whole('nothing was replaced')
  weights = _weights(model, norms)
  batch, before, reason = _first_results(model, weights)
  try:
    for each in norms:
      each.become()
    _becoming.forget_traces(model)
    if before is None:
      return _Whole(reason)
    return _compared(model, norms, batch, before, weights)
  except Exception as error:
    for each in norms:
      each.restore()
    if isinstance(error, _DiffersError):
      raise
    raise ValueError(
      f'{model.name!r} must take our layers where it has those of Keras. '
      f'Received: {type(error).__name__}: {error} It is as it was. Its code '
      'may read what only the former have; write ours there.'
    ) from error


class _DiffersError(ValueError):
  """What a model computes would change."""


def _compared(
  model: Layer,
  norms: Sequence[_planning.Norm],
  batch: Any,
  before: _comparing.Results,
  weights: Sequence[Any],
) -> _Whole:
  """Compares the whole, and takes back what changes it."""
  limit = max(
    _comparing.tolerance(layer.compute_dtype, model=True)
    for layer in (model, *(each.layer for each in norms))
  )
  after, masked = _results_and_masks(model, batch, weights, norms)
  found = _comparing.differences(before, after)
  if max(found) <= limit:
    return _Whole(differences=found)

  for each in norms:
    each.restore()
  again = _comparing.results(model, batch, weights)
  is_random = not max(_comparing.differences(before, again)) <= limit
  for each in norms:
    if each in masked and not is_random:
      # Ours return 0 where a mask is False, and something reads it.
      each.leave('a mask reaches it, and what is masked is read after it')
    else:
      each.become()
  if is_random:
    return _Whole('it is random, also with training=False')
  if masked:
    after = _comparing.results(model, batch, weights)
    found = _comparing.differences(before, after)
    if max(found) <= limit:
      return _Whole(differences=found)
  raise _DiffersError(
    f'What {model.name!r} computes must stay what it is. Received: a model '
    f'whose outputs would differ by {found[0]:.0e} and gradients by '
    f'{found[1]:.0e}, though each norm by itself does not. It is as it was. '
    'Its code may read what only the norms of Keras have; write ours there.'
  )


def _weights(model: Layer, norms: Sequence[_planning.Norm]) -> list[Any]:
  """Those whose gradients are compared."""
  weights = [w for each in norms for w in each.layer.weights]
  if model.count_params() <= _comparing.MOST_WEIGHTS:
    known = set(map(id, weights))
    weights += [w for w in model.trainable_weights if id(w) not in known]
  return weights


def _first_results(
  model: Layer, weights: Sequence[Any]
) -> tuple[Any, _comparing.Results | None, str]:
  """A batch that the model takes, what it makes of it, or why there is none."""
  reason = 'the shapes of its inputs are not known'
  for batch in _comparing.batches(model):
    try:
      return batch, _comparing.results(model, batch, weights), ''
    except Exception as error:  # Whatever the code of others may raise.
      reason = _comparing.refused(error)
  return None, None, reason


def _results_and_masks(
  model: Layer,
  batch: Any,
  weights: Sequence[Any],
  norms: Sequence[_planning.Norm],
) -> tuple[_comparing.Results, list[_planning.Norm]]:
  """What the model computes, and the norms that a mask reached."""
  layers = {str(i): each.layer for i, each in enumerate(norms)}
  with _features.watched(layers) as outputs:
    after = _comparing.results(model, batch, weights)
  masked = [
    each
    for each, found in zip(norms, outputs.values(), strict=True)
    if any(getattr(y, '_keras_mask', None) is not None for y in found)
  ]
  return after, masked


# --- What is said of it ------------------------------------------------------


def _print(
  model: Layer,
  norms: Sequence[_planning.Norm],
  whole: _Whole,
  print_fn: _report.PrintFn | None,
) -> None:
  rows: list[tuple[str, ...]] = []
  left = collections.defaultdict(list)
  for each in norms:
    if each.new is None:
      rows.append((each.path, each.was, '-', '-', '-'))
      left[each.was, each.reason].append(each.path)
    else:
      became = type(each.layer).__qualname__.replace('_RMSNorm', 'LayerNorm')
      if each.follower is not None:
        became += f', {each.activation}'
      shown = [f'{x:.0e}' for x in each.differences]
      rows.append((each.path, each.was, became, *shown))
  below = [str(whole)] if rows else ['No normalization layers of Keras.']
  for (was, reason), paths in left.items():
    below.append(f'Left, {len(paths)} {was}: {reason}.')
  offered = [
    each
    for each in norms
    if each.new is not None and each.activation and each.follower is None
  ]
  if offered:
    below.append(
      f'{len(offered)} of them could compute the activation that follows: '
      '`fuse_activations=True`.'
    )
  batch_norms = [
    layer
    for _, layer in models.walk(model)
    if isinstance(layer, models.classes('BatchNormalization'))
  ]
  if batch_norms:
    below.append(
      f'{len(batch_norms)} BatchNormalization: see `replace_batch_norm`.'
    )
  _report.print_table(f'Model: "{model.name}"', _HEADERS, rows, below, print_fn)
