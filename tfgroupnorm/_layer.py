"""What a normalization layer is, for either generation of Keras.

`Norm` owns weights, dtype policy, masks and configuration, and leaves the maths
to `functional` and validation to `_checks`. The four layers in `_norms.py` say
which function they are the layer of; what differs between the two generations
is here alone.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tfgroupnorm import _checks, _docs, _layouts, functional
from tfgroupnorm._tensors import ops

# Where a user of each generation finds these layers.
HOMES = {'keras': 'tfgroupnorm', 'tf_keras': 'tfgroupnorm.tf_keras'}


def registered(name: str):
  """Class decorator: registers a layer, and lets Keras call it `name`.

  Keras keys weight files and automatic layer names by `__name__`. With the name
  of Keras' own layer there, `.weights.h5` files fit both ways and
  `get_layer("group_normalization_3")` still finds it after a change of import.

  Args:
    name: What `keras.layers` calls it.

  Returns:
    A decorator; it registers the class under its name in this package, and
    gives it the docstring of what it is made of if it has none.
  """

  def decorate(cls):
    keras = cls._keras
    if cls.__doc__ is None:
      home = HOMES[keras.__name__]
      doc = _docs.filled(cls.__bases__[0].__doc__, home=home)
      # `help` shows the name that Keras has.
      first, rest = doc.split('\n', 1)
      cls.__doc__ = (
        f'{first}\n\n  This is `{home}.{cls.__qualname__}`; Keras calls it '
        f'`{name}` in\n  names and files.\n{rest}'
      )
    cls.__name__ = name
    register = keras.saving.register_keras_serializable
    return register('tfgroupnorm', cls.__qualname__)(cls)

  return decorate


def common(arguments: dict[str, Any]) -> dict[str, Any]:
  """Of a constructor's arguments, its `locals()`, those that `Norm` takes."""
  names = inspect.getfullargspec(Norm.__init__).kwonlyargs
  return {**{name: arguments[name] for name in names}, **arguments['kwargs']}


# What the generations call a dtype policy.
_POLICIES = ('DTypePolicy', 'FloatDTypePolicy', 'Policy', 'PolicyV1')

# A Keras layer, once mixed into one; which one, a type checker cannot know.
_AnyLayer: Any = object


class Norm(_AnyLayer):
  """Weights, dtype policy, masks and configuration of a normalization layer."""

  # The generation: the module `keras` or `tf_keras`.
  _keras: Any = None
  # What this is the layer of: a function of `functional`, and its layout.
  _function: Callable[..., ops.Tensor]
  _layout_of: Callable[..., _layouts.Layout]
  # Those of its own arguments that are options, and the one activation.
  _flags: tuple[str, ...] = ()
  _activated = 'activation'

  def __new__(cls, *args, **kwargs):
    # `LayerNorm(rms=True)` makes what Keras calls by another name. A subclass
    # of a user's makes itself. (It is here because in `LayerNorm` this would
    # be the signature that `help` shows.)
    form = vars(cls).get('_rms_form') if kwargs.get('rms') else None
    return super().__new__(form or cls, *args, **kwargs)

  def __init__(
    self,
    *,
    epsilon,
    center,
    scale,
    beta_initializer,
    gamma_initializer,
    beta_regularizer,
    gamma_regularizer,
    beta_constraint,
    gamma_constraint,
    jit_compile,
    **kwargs,
  ):
    _checks.check_foreign_arguments(type(self).__qualname__, kwargs)
    # Inputs keep their dtype: rounding them to float16 before the mean is
    # subtracted would lose what the mean does not need.
    super().__init__(autocast=False, **kwargs)
    keras = self._keras
    self.epsilon = _checks.check_epsilon(epsilon)
    self.center = _checks.check_bool('center', center)
    self.scale = _checks.check_bool('scale', scale)
    self.beta_initializer = keras.initializers.get(beta_initializer)
    self.gamma_initializer = keras.initializers.get(gamma_initializer)
    self.beta_regularizer = keras.regularizers.get(beta_regularizer)
    self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
    self.beta_constraint = keras.constraints.get(beta_constraint)
    self.gamma_constraint = keras.constraints.get(gamma_constraint)
    self.jit_compile = _checks.check_jit_compile(jit_compile)
    self.supports_masking = True
    self.gamma = self.beta = None
    # A shape, not a tuple: Keras 2 would track that, and write it to files.
    self._built_on: ops.Shape | None = None

  def __repr__(self):
    # Keras would give the name of its own layer, and no options.
    if not hasattr(self, '_built_on'):  # In the middle of a constructor.
      return super().__repr__()
    shown = {**self._options(), self._activated: getattr(self, self._activated)}
    usual = inspect.signature(type(self).__init__).parameters
    shown = {
      name: getattr(value, '__name__', value)
      for name, value in shown.items()
      if value is not None
      and (
        name == 'groups' or name not in usual or value != usual[name].default
      )
    }
    shown.update(name=self.name, built=self.built)
    options = ', '.join(f'{name}={value}' for name, value in shown.items())
    kind = 'LayerNorm' if self._is_rms_form() else type(self).__qualname__
    return f'<{kind.rpartition(".")[2]} {options}>'

  def _is_rms_form(self) -> bool:
    return getattr(type(self), '_rms_form', None) is type(self)

  def _where(self) -> dict[str, Any]:
    """Its own arguments that say where the groups are, for `_layout_of` too."""
    raise NotImplementedError

  def _options(self) -> dict[str, Any]:
    """Its own arguments, but for the activation."""
    flags = {name: getattr(self, name) for name in self._flags}
    return {**self._where(), **flags}

  def _sized_axes(self) -> tuple[int, ...]:
    """The axes whose sizes must be known, as its arguments name them."""
    raise NotImplementedError

  def _layout(self, shape) -> _layouts.Layout:
    """Where this layer finds its groups and parameters in `shape`."""
    shape = ops.as_shape(self._completed(shape))
    return self._layout_of(shape, **self._where())

  def _completed(self, shape) -> ops.Shape:
    """`shape` with the sizes that `build` saw, where they must be known."""
    shape = ops.Shape(shape)
    if self._built_on is None:
      return shape
    sizes: list[int | None]
    if shape.rank is None:
      sizes = [None] * self._built_on.rank
    else:
      sizes = list(shape)
    for axis in self._sized_axes():
      if -len(sizes) <= axis < len(sizes) and sizes[axis] is None:
        sizes[axis] = self._built_on[axis]
    return ops.Shape(sizes)

  def _of_known_size(self, inputs: ops.Tensor) -> ops.Tensor:
    """`inputs` as of the sizes that `build` saw.

    A generator's batches have none, and `Input` had told them. What turns out
    to have others is refused when it comes.
    """
    shape = self._completed(inputs.shape)
    if shape.rank is None or shape == inputs.shape:
      known = inputs
    else:
      known = ops.of_shape(inputs, shape)
    if self._owns_gamma or self._owns_beta:
      _checks.check_sizes_of_build(
        tuple(shape),
        tuple(self._built_on or shape),
        self._sized_axes(),
        type(self).__qualname__,
      )
    return known

  @property
  def _owns_gamma(self) -> bool:
    return self.scale

  @property
  def _owns_beta(self) -> bool:
    return self.center and not getattr(self, 'rms', False)

  def build(self, input_shape):
    """Creates `gamma` and `beta`."""
    layout = self._layout(input_shape)
    shape = layout.parameter_shape
    self._built_on = self._completed(input_shape)
    known = tuple(self._built_on)
    if layout.group_size(known) == 1 and not getattr(self, 'rms', False):
      warnings.warn(
        f'Each group of {type(self).__qualname__} {self.name!r} holds one '
        f'value of an input of shape {known}: the result is beta whatever '
        'the input is, and no gradient flows to it. Normalize over more '
        'channels or positions, or leave this layer out.',
        stacklevel=2,
      )
    if self._owns_gamma:
      self.gamma = self._own_weight('gamma', shape)
    if self._owns_beta:
      self.beta = self._own_weight('beta', shape)
    super().build(input_shape)

  def _own_weight(self, name: str, shape: tuple[int, ...]):
    options = {}
    # Keras 2, Keras 3 and the first Keras 3 each have their own word for
    # keeping a weight in its own dtype under a mixed policy.
    known = inspect.signature(super().add_weight).parameters
    if 'autocast' in known:
      options['autocast'] = False
    elif self._keras.__name__ == 'tf_keras':
      options['experimental_autocast'] = False
    return self.add_weight(
      name=name,
      shape=shape,
      initializer=getattr(self, f'{name}_initializer'),
      regularizer=getattr(self, f'{name}_regularizer'),
      constraint=getattr(self, f'{name}_constraint'),
      trainable=True,
      **options,
    )

  def __call__(self, inputs, *args, **kwargs):
    for tensor in (inputs, *args, *kwargs.values()):
      wanted = _generation(tensor)
      if wanted not in (None, self._keras.__name__):
        raise TypeError(
          f'This {type(self).__qualname__} belongs to {self._keras.__name__}. '
          f'Received: a symbolic tensor of {wanted}. Use `from '
          f'{HOMES[wanted]} import {type(self).__qualname__}` in that model.'
        )
    if isinstance(inputs, ops.SPARSE):
      ops.as_tensor(inputs, 'x')  # Which it refuses, as Keras may not.
    if isinstance(inputs, ops.RAGGED) and inputs.shape.rank is not None:
      _checks.check_axes_not_ragged(
        self._axes_of_groups(inputs.shape.rank),
        inputs.ragged_rank,
        tuple(inputs.shape),
        type(self).__qualname__,
      )
    if isinstance(inputs, np.ndarray):
      # The first Keras 3 versions cast arrays even where autocast is off.
      inputs = ops.convert(inputs)
    args = tuple(_mask_as_tensor(a) for a in args[:1]) + args[1:]
    if 'mask' in kwargs:
      kwargs['mask'] = _mask_as_tensor(kwargs['mask'])
    if ops.is_tensor(inputs):
      _checks.check_real(inputs)  # Before Keras has something to say of it.
    return super().__call__(inputs, *args, **kwargs)

  def rematerialized_call(self, layer_call, *args, **kwargs):
    """`layer_call`, recomputed for its gradient where a `RematScope` says so.

    With tensors by position alone: in a graph TensorFlow takes no others, nor
    bools, and Keras 3 hands on `mask` by its name, even if there is none.
    """
    names = [
      name
      for name, given in kwargs.items()
      if ops.is_tensor(given) and _checks.is_floating(given)
    ]

    def by_position(*tensors):
      named = dict(zip(names, tensors[len(args) :], strict=True))
      return layer_call(*tensors[: len(args)], **{**kwargs, **named})

    recomputed = super().rematerialized_call(by_position, *args, **kwargs)
    if recomputed is by_position:
      return layer_call

    def call(*args, **kwargs):
      return recomputed(*args, *(kwargs[name] for name in names))

    return call

  def get_prunable_weights(self):
    """None, for tfmot's `prune_low_magnitude` over a whole model.

    As of its own normalizations: `gamma` and `beta` are few, and zeros among
    them would cut channels off.
    """
    return []

  # Where a call has more than one tensor, Keras 3 passes the mask of `inputs`
  # on by another name.
  def call(self, inputs, mask=None, gamma=None, beta=None, inputs_mask=None):
    mask = inputs_mask if mask is None else mask
    return self._normalized(inputs, mask, gamma, beta)

  def _normalized(self, inputs, mask, gamma, beta, **more):
    """Calls `_function` with this layer's options, weights, dtypes and mask."""
    if mask is None:
      # Keras 2 does not pass it on there.
      mask = getattr(inputs, '_keras_mask', None)
    if isinstance(inputs, ops.RAGGED):
      return self._normalized_rows(inputs, mask, gamma, beta, **more)
    inputs = self._of_known_size(ops.as_tensor(inputs, 'x'))
    if mask is not None:
      layout = self._layout(inputs.shape)
      mask = functional.mask_of_positions(mask, layout, tuple(inputs.shape))
    outputs = self._call_function(
      inputs, mask, gamma, beta, **self._options(), **more
    )
    if mask is not None:
      # Some versions of Keras let only masks travel that came with the input.
      with contextlib.suppress(AttributeError):  # What JAX traces takes none.
        outputs._keras_mask = mask
    return outputs

  def _call_function(self, x, mask, gamma, beta, **options):
    compute_dtype = ops.as_dtype(self.compute_dtype)
    activation = self._fusable(getattr(self, self._activated))
    outputs = self._function(
      ops.widened(x, compute_dtype),
      self._parameter('gamma', gamma, self._owns_gamma),
      self._parameter('beta', beta, self._owns_beta),
      epsilon=self.epsilon,
      mask=mask,
      jit_compile=self.jit_compile,
      **{self._activated: activation},
      **options,
    )
    return ops.cast(outputs, compute_dtype)

  def _normalized_rows(self, inputs, mask, gamma, beta, gate=None):
    """`_normalized` of a ragged tensor, whose groups lie in its flat values."""
    who = type(self).__qualname__
    shape = self._completed(inputs.shape)
    rank, ragged = len(shape), inputs.ragged_rank
    axes = self._axes_of_groups(rank)
    _checks.check_axes_not_ragged(axes, ragged, tuple(shape), who)
    _checks.check_nothing_beside_ragged(who, mask=mask, gamma=gamma, beta=beta)
    options = self._options()
    for name in {'axis', 'head_axis'}.intersection(options):
      options[name] = _from_the_end(options[name], rank)

    def of_values(values, gate=None):
      values = ops.of_shape(values, [None, *shape[ragged + 1 :]])
      more = {} if gate is None else {'gate': gate}
      return self._call_function(values, None, None, None, **options, **more)

    tensors = [inputs]
    if gate is not None:
      _checks.check_ragged_gate(isinstance(gate, ops.RAGGED), gate)
      tensors.append(gate)
    # It sees to it that both have the same rows.
    return ops.map_flat_values(of_values, *tensors)

  def _axes_of_groups(self, rank: int) -> tuple[int, ...] | None:
    """Axes on which a group or its parameters lie; `None`: on all positions."""
    return None

  def _parameter(self, name: str, given, owned: bool):
    if not owned:
      return given
    if given is not None:
      option = {'gamma': 'scale', 'beta': 'center'}[name]
      raise ValueError(
        f'`{name}` cannot be passed to a layer that owns one. Received: '
        f'{name} for {type(self).__qualname__}({option}=True). Create the '
        f'layer with {option}=False to pass {name} with each call.'
      )
    weight = getattr(self, name)
    # A tensor, because a Keras 3 variable cannot be passed to a tf.function.
    value = ops.value_of(weight)
    stored = ops.as_dtype(self.variable_dtype)
    if value.dtype != stored and hasattr(weight, '_value'):
      # The first Keras 3 versions cast weights even where autocast is off.
      value = ops.convert(weight._value)
    return value

  def compute_output_shape(self, input_shape):
    self._layout(input_shape)
    return input_shape

  def _activation(self, identifier):
    """What `activation=identifier` means in this generation of Keras."""
    if identifier is None or identifier == 'gelu_tanh':
      return identifier
    try:
      return self._keras.activations.get(identifier)
    except (ValueError, TypeError) as error:
      raise ValueError(
        f'Unknown activation. Received: {identifier!r}. Pass a callable, '
        'None, "gelu_tanh", or the name of a function in '
        f'{self._keras.__name__}.activations.'
      ) from error

  def _fusable(self, activation):
    """Keras' function -> its name, where the kernel has the same inside."""
    for name in ('linear', 'relu', 'sigmoid', 'silu', 'swish', 'gelu'):
      if activation is getattr(self._keras.activations, name, self):
        return name
    return activation

  def _serialized_activation(self, activation):
    if activation is None or isinstance(activation, str):
      return activation
    return self._keras.activations.serialize(activation)

  def get_config(self):
    keras = self._keras
    config = {
      'epsilon': self.epsilon,
      'center': self.center,
      'scale': self.scale,
      'jit_compile': self.jit_compile,
    }
    for name in ('beta', 'gamma'):
      for kind in ('initializer', 'regularizer', 'constraint'):
        key = f'{name}_{kind}'
        serialize = getattr(keras, f'{kind}s').serialize
        config[key] = serialize(getattr(self, key))
    config.update(self._options())
    activation = getattr(self, self._activated)
    config[self._activated] = self._serialized_activation(activation)
    return {**super().get_config(), **config}

  @classmethod
  def from_config(cls, config):
    """A layer as `get_config` of this or of Keras' own layer describes it."""
    dtype = config.get('dtype')
    if isinstance(dtype, dict) and dtype.get('class_name') in _POLICIES:
      # Neither Keras reads what the other writes of a policy but for its name.
      config = {**config, 'dtype': dtype['config']['name']}
    return super().from_config(config)


def _mask_as_tensor(mask):
  """An array of bools is one of floats to the first Keras 3 versions."""
  return ops.convert(mask) if isinstance(mask, np.ndarray) else mask


def _from_the_end(axis: Any, rank: int) -> Any:
  """An axis or axes, or `None`, counted from the end."""
  if isinstance(axis, (list, tuple)):
    return [_from_the_end(each, rank) for each in axis]
  return axis if axis is None or axis < 0 else axis - rank


def _generation(tensor) -> str | None:
  """`'keras'` or `'tf_keras'` if `tensor` is a symbolic one of that Keras."""
  kind = type(tensor)
  root = kind.__module__.partition('.')[0]
  return root if 'KerasTensor' in kind.__name__ and root in HOMES else None


def custom_objects(group_norm, instance_norm, *others):
  """Names in saved models -> classes; see `layers.custom_objects`."""
  layers = (group_norm, instance_norm, *others)
  return {
    **{f'tfgroupnorm>{layer.__qualname__}': layer for layer in layers},
    **{layer.__qualname__: layer for layer in layers},
    'Addons>GroupNormalization': group_norm,
    'Addons>InstanceNormalization': instance_norm,
  }
