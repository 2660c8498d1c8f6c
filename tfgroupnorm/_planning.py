"""What becomes of one norm of a model, and whether it computes the same."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfgroupnorm import _becoming, _comparing, _layer, models
from tfgroupnorm._tensors import ops
from tfgroupnorm.models import Keras, Layer

# Keras' classes, and which of ours they become.
_OURS = {
  'GroupNormalization': 'GroupNorm',
  'LayerNormalization': 'LayerNorm',
  'RMSNormalization': 'LayerNorm',
}
# Of their configurations, what ours take.
_OPTIONS = frozenset(
  ('groups', 'axis', 'epsilon', 'center', 'scale')
  + tuple(
    f'{weight}_{kind}'
    for weight in ('beta', 'gamma')
    for kind in ('initializer', 'regularizer', 'constraint')
  )
)


def is_candidate(keras: Keras, layer: Layer, also: Mapping[type, Any]) -> bool:
  """Whether it is to be replaced, or looks as if it might be."""
  if isinstance(layer, _layer.Norm):
    return False
  if type(layer) in also or isinstance(layer, models.classes(*_OURS)):
    return True
  # Of a class of its own, whose name Keras' other layers do not have.
  others = ('Normalization', 'BatchNormalization', 'UnitNormalization')
  return (
    'norm' in type(layer).__name__.lower()
    and type(layer).__module__.partition('.')[0] != keras.__name__
    and not isinstance(layer, models.classes(*others))
    and bool(layer.weights)
    and not models.children(layer)
  )


@dataclasses.dataclass(eq=False)
class Norm:
  """A norm of the model, and what becomes of it.

  Attributes:
    path: Where it is in the model.
    layer: The norm itself.
    was: The name of its class.
    new: One of ours that is to be in its place, or `None`.
    reason: Why it is left as it is, if it is.
    differences: Of its outputs and gradients on made-up data, relative.
    activation: Of a layer that follows, which `new` could compute, its name.
    follower: That layer, if `new` computes it.
    identity: What becomes of that layer.
    undo: Functions that make all of them again what they were.
  """

  path: str
  layer: Layer
  was: str = ''
  new: Layer = None
  reason: str = ''
  differences: tuple[float, float] = (0.0, 0.0)
  activation: str | None = None
  follower: Layer = None
  identity: Layer = None
  undo: list[Callable[[], None]] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    self.was = type(self.layer).__name__

  def plan(
    self, keras: Keras, also: Mapping[type, Callable[[Layer], Layer]]
  ) -> None:
    """Makes `new`, with the same weights, or says why not."""
    if not self.layer.built:
      return self.leave('it has no weights yet')
    kind = type(self.layer)
    if kind in also:
      self.new = self._of_function(keras, also[kind])
    elif kind in models.classes(*_OURS):
      self.new = self._of_keras(keras)
    else:
      return self.leave('a class of its own: see `also`')
    if self.new is not None:
      self._compare()
    return None

  def leave(self, reason: str) -> None:
    self.new, self.reason = None, reason

  def look_at(self, follower: Layer | None, keras: Keras, fuse: bool) -> None:
    """Notes the activation that follows, and takes it over if `fuse`."""
    config = self.new.get_config()
    if follower is None or config.get('activation', follower) is not None:
      return
    self.activation = self._fusable(follower, keras)
    if self.activation is None or not fuse:
      return
    weights = self.new.get_weights()
    config['activation'] = self.activation
    self.new = self._finished(type(self.new), config)
    self.new.set_weights(weights)
    self.follower = follower
    self.identity = keras.layers.Activation(
      'linear', name=follower.name, dtype=follower.dtype_policy
    )

  def _fusable(self, follower: Layer, keras: Keras) -> str | None:
    """The name of its activation, if our kernel has that inside."""
    if (
      follower.compute_dtype != self.layer.compute_dtype
      or follower.activity_regularizer is not None
    ):
      return None
    if type(follower) is keras.layers.ReLU:
      config = follower.get_config()
      changed = config['negative_slope'] or config['threshold']
      return None if changed or config['max_value'] is not None else 'relu'
    if type(follower) is not keras.layers.Activation:
      return None
    name, after = ops.split_activation(self.new._fusable(follower.activation))
    return name if after is None else None

  def become(self) -> None:
    self.undo.append(_becoming.become(self.layer, self.new))
    if self.follower is not None:
      self.undo.append(_becoming.become(self.follower, self.identity))

  def restore(self) -> None:
    while self.undo:
      self.undo.pop()()

  def _of_keras(self, keras: Keras) -> Layer:
    config = self.layer.get_config()
    # Some versions do not have it in the configuration.
    if config.get('rms_scaling') or getattr(self.layer, 'rms_scaling', False):
      # x / sqrt(var(x) + epsilon): neither a LayerNorm nor an RMS norm.
      self.leave('rms_scaling divides by the deviation, and leaves the mean')
      return None
    options = {name: x for name, x in config.items() if name in _OPTIONS}
    if isinstance(options['axis'], (list, tuple)) and len(options['axis']) == 1:
      (options['axis'],) = options['axis']
    if self.was == 'RMSNormalization':
      options['rms'] = True
    kind = getattr(models.layers_of(keras), _OURS[self.was])
    try:
      new = self._finished(kind, options)
    except (TypeError, ValueError) as error:
      self.leave(str(error).partition('. ')[0])
      return None
    new.set_weights(self.layer.get_weights())
    return new

  def _of_function(self, keras: Keras, function: Callable) -> Layer:
    """What a user's function makes of the layer, checked and built."""
    name = type(self.layer).__qualname__
    made = function(self.layer)
    home = _layer.HOMES[keras.__name__]
    if not isinstance(made, _layer.Norm) or models.keras_of(made) is not keras:
      raise TypeError(
        f'The function for {name} in `also` must return a layer of {home}. '
        f'Received: {made!r} for {self.path!r}. Return `{home}.LayerNorm('
        'epsilon=layer.epsilon)`, for example.'
      )
    new = self._finished(type(made), made.get_config())
    weights = made.get_weights() if made.built else self.layer.get_weights()
    shapes = [
      [np.shape(w) for w in x] for x in (weights, self.layer.get_weights())
    ]
    wanted = [tuple(w.shape) for w in new.weights]
    if shapes != [wanted, wanted]:
      raise ValueError(
        f'What the function for {name} in `also` returns must have weights of '
        f'the shapes that {self.path!r} has. Received: {wanted} for '
        f'{shapes[1]}. Choose `axis`, `center`, `scale` and `rms` to fit.'
      )
    new.set_weights(weights)
    return new

  def _finished(self, kind: Any, options: Mapping[str, Any]) -> Layer:
    """A layer of ours, named and of the dtypes as this one, and built."""
    policy = self.layer.dtype_policy
    new = kind.from_config(
      {**options, 'name': self.layer.name, 'dtype': policy}
    )
    with warnings.catch_warnings():
      # It was so before: a group may hold one value.
      warnings.simplefilter('ignore', UserWarning)
      new.build(self._input_shape())
    return new

  def _input_shape(self) -> tuple[int | None, ...]:
    shape = models.shape_of_build(self.layer)
    if shape is None:
      # Of LayerNormalization the oldest Keras 2 has the axes, from 0 on.
      axes = np.ravel(getattr(self.layer, 'axis', -1))
      sizes = self.layer.weights[0].shape if self.layer.weights else ()
      rank = 2 if np.min(axes) < 0 else int(np.max(axes)) + 1
      known = dict(
        zip([int(axis) % rank for axis in axes], sizes, strict=False)
      )
      shape = [known.get(i) for i in range(rank)]
    if self.was not in _OURS and self.layer.weights:
      # A class of others may be built for the shape of something else.
      shape = (*tuple(shape)[:-1], self.layer.weights[0].shape[-1])
    return tuple(shape)

  def _compare(self) -> None:
    """Calls both on made-up data, and leaves a norm that is another one."""
    dtype = self.layer.compute_dtype
    x = _comparing.made_up(self._input_shape(), dtype)
    try:
      before = _comparing.results(self.layer, x, self.layer.weights)
    except Exception as error:  # Whatever the code of others may raise.
      return self.leave(_comparing.refused(error))
    after = _comparing.results(self.new, x, self.new.weights)
    self.differences = _comparing.differences(before, after)
    if not max(self.differences) <= _comparing.tolerance(dtype):
      self.leave(f'it differs by {max(self.differences):.0e}')
    return None
