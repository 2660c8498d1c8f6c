"""What a normalization layer is, for either generation of Keras.

The classes here own weights, options and their configuration, and leave the
maths and its validation to `functional`. They are mixed into
`keras.layers.Layer` in `layers.py` and into `tf_keras.layers.Layer` in
`tf_keras.py`; what differs between the two is in `Norm` alone.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from tfgroupnorm import _checks, _layouts, _tensors, functional

# Where a user of each generation finds these layers.
_HOMES = {'keras': 'tfgroupnorm', 'tf_keras': 'tfgroupnorm.tf_keras'}


def generations() -> list[Any]:
  """The modules `keras` and `tf_keras`, as far as this process has them.

  None is imported for this: who has a model of one has imported it.
  """
  modules = (sys.modules.get(name) for name in _HOMES)
  return [module for module in modules if hasattr(module, 'layers')]


def generation_of(model: Any) -> Any:
  """The module in `generations` of which `model` is a model, or `None`."""
  for module in generations():
    if isinstance(model, module.Model):
      return module
  return None


def layers_of(keras: Any) -> Any:
  """The module that has the layers of this package for `keras`."""
  return importlib.import_module(_HOMES[keras.__name__])


def registered(keras, name: str):
  """Class decorator: registers a layer, and lets Keras call it `name`.

  Keras keys weight files and automatic layer names by `__name__`. With the name
  of Keras' own layer there, `.weights.h5` files fit both ways and
  `get_layer("group_normalization_3")` still finds it after a change of import.

  Args:
    keras: The generation: the module `keras` or `tf_keras`.
    name: What `keras.layers` calls it.

  Returns:
    A decorator; it registers the class under its name in this package.
  """

  def decorate(cls):
    cls.__name__ = name
    register = keras.saving.register_keras_serializable
    return register('tfgroupnorm', cls.__qualname__)(cls)

  return decorate


# A Keras layer, once mixed into one; which one, a type checker cannot know.
_AnyLayer: Any = object


class Norm(_AnyLayer):
  """Weights, dtype policy, masks and configuration of a normalization layer."""

  # The generation: the module `keras` or `tf_keras`.
  _keras: Any = None

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

  def _layout(self, shape) -> _layouts.Layout:
    """Where this layer finds its groups and parameters in `shape`."""
    raise NotImplementedError

  @property
  def _owns_gamma(self) -> bool:
    return self.scale

  @property
  def _owns_beta(self) -> bool:
    return self.center and not getattr(self, 'rms', False)

  def build(self, input_shape):
    """Creates `gamma` and `beta`."""
    shape = self._layout(_tensors.as_shape(input_shape)).parameter_shape
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
          f'{_HOMES[wanted]} import {type(self).__qualname__}` in that model.'
        )
    if isinstance(inputs, np.ndarray):
      # The first Keras 3 versions cast arrays even where autocast is off.
      inputs = tf.convert_to_tensor(inputs)
    if tf.is_tensor(inputs):
      _checks.check_real(inputs)  # Before Keras has something to say of it.
    return super().__call__(inputs, *args, **kwargs)

  def _apply(self, function, inputs, mask, gamma, beta, **options):
    """Calls `function` with this layer's weights, dtypes and mask."""
    if mask is None:
      # Keras passes no mask on where a call has more than one tensor.
      mask = getattr(inputs, '_keras_mask', None)
    compute_dtype = tf.as_dtype(self.compute_dtype)
    outputs = function(
      _widened(tf.convert_to_tensor(inputs), compute_dtype),
      self._parameter('gamma', gamma, self._owns_gamma),
      self._parameter('beta', beta, self._owns_beta),
      epsilon=self.epsilon,
      mask=mask,
      jit_compile=self.jit_compile,
      **options,
    )
    outputs = tf.cast(outputs, compute_dtype)
    if mask is not None:
      # Keras 3 lets only masks travel on that came with the input.
      outputs._keras_mask = mask
    return outputs

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
    value = tf.convert_to_tensor(weight)
    stored = tf.as_dtype(self.variable_dtype)
    if value.dtype != stored and hasattr(weight, '_value'):
      # The first Keras 3 versions cast weights even where autocast is off.
      value = tf.convert_to_tensor(weight._value)
    return value

  def compute_output_shape(self, input_shape):
    self._layout(_tensors.as_shape(input_shape))
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
    return {**super().get_config(), **config}


def _generation(tensor) -> str | None:
  """`'keras'` or `'tf_keras'` if `tensor` is a symbolic one of that Keras."""
  kind = type(tensor)
  root = kind.__module__.partition('.')[0]
  return root if 'KerasTensor' in kind.__name__ and root in _HOMES else None


def _widened(x: tf.Tensor, compute_dtype: tf.DType) -> tf.Tensor:
  """`x` in a dtype from which one cast leads to `compute_dtype`."""
  if x.dtype.is_integer or x.dtype.is_bool:
    return tf.cast(x, compute_dtype)
  if not x.dtype.is_floating:
    return x  # For `functional` to refuse.
  if x.dtype == compute_dtype or x.dtype.size > compute_dtype.size:
    return x
  return tf.cast(x, compute_dtype if compute_dtype.size > 2 else tf.float32)


class GroupNorm(Norm):
  """Group normalization layer.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken for each sample over all positions and the
  `channels / groups` adjacent channels of a group. Nothing depends on the
  batch: training and inference are the same, at any batch size. Statistics are
  computed in float32 (float64 for float64), exactly where the mean is large.

  Arguments up to `gamma_constraint` are those of
  `keras.layers.GroupNormalization`, whose weights fit.

  Args:
    groups: Number of groups, a divisor of the channels. -1: one channel a
      group, which is instance normalization. 1: one group.
    axis: The axis of the channels, not the batch. Their number must be known.
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`, of shape (channels,).
    scale: Whether to multiply by `gamma`, of shape (channels,).
    beta_initializer: Initializer of `beta`.
    gamma_initializer: Initializer of `gamma`.
    beta_regularizer: Regularizer of `beta`, or `None`.
    gamma_regularizer: Regularizer of `gamma`, or `None`.
    beta_constraint: Constraint of `beta`, or `None`.
    gamma_constraint: Constraint of `gamma`, or `None`.
    group_size: Channels in a group, given instead of `groups`.
    activation: A Keras activation, or `"gelu_tanh"`. `"relu"`, `"silu"`,
      `"gelu"`, `"gelu_tanh"` and `"sigmoid"` run inside the kernel.
    jit_compile: Whether XLA compiles the kernel: `"auto"`, `True` or `False`.
    **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

  Call arguments:
    inputs: Tensor (batch, ..., channels), or with the channels on `axis`. Not
      autocast; integers are cast to the compute dtype.
    mask: bool (batch, ...) over leading positions. Where it is False, inputs
      are not counted, outputs are 0 and no gradient flows. It travels on.
    gamma: Scale per sample, (batch, channels), if `scale=False`.
    beta: Offset per sample, (batch, channels), if `center=False`.

  Input shape:
    (batch, ..., channels); rank 2 or more, any size but the channels' unknown.

  Output shape:
    That of the input, in the compute dtype of the layer.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type, or the input is a symbolic
      tensor of the other Keras.

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import GroupNorm
  >>> x = np.arange(16, dtype="float32").reshape(1, 2, 2, 4)
  >>> y = GroupNorm(groups=2)(x)
  >>> y.shape
  TensorShape([1, 2, 2, 4])
  >>> abs(float(y[..., :2].numpy().mean())) < 1e-6
  True

  References:
    - [Wu & He, 2018](https://arxiv.org/abs/1803.08494)
  """

  def __init__(
    self,
    groups=_checks.DEFAULT_GROUPS,
    axis=-1,
    epsilon=1e-3,
    center=True,
    scale=True,
    beta_initializer='zeros',
    gamma_initializer='ones',
    beta_regularizer=None,
    gamma_regularizer=None,
    beta_constraint=None,
    gamma_constraint=None,
    *,
    group_size=None,
    activation=None,
    jit_compile='auto',
    **kwargs,
  ):
    super().__init__(
      epsilon=epsilon,
      center=center,
      scale=scale,
      beta_initializer=beta_initializer,
      gamma_initializer=gamma_initializer,
      beta_regularizer=beta_regularizer,
      gamma_regularizer=gamma_regularizer,
      beta_constraint=beta_constraint,
      gamma_constraint=gamma_constraint,
      jit_compile=jit_compile,
      **kwargs,
    )
    self.groups, self.group_size = _checks.check_groups(groups, group_size)
    self.axis = _checks.check_channel_axis(axis)
    self.activation = self._activation(activation)

  def _grouping(self) -> dict[str, Any]:
    # Of `groups` and `group_size` only the one that was given.
    config: dict[str, Any] = {'axis': self.axis, 'group_size': self.group_size}
    if self.group_size is None:
      config['groups'] = int(self.groups)
    return config

  def _layout(self, shape):
    return _layouts.group_layout(shape, **self._grouping())

  def call(self, inputs, mask=None, gamma=None, beta=None):
    return self._apply(
      functional.group_norm,
      inputs,
      mask,
      gamma,
      beta,
      activation=self._fusable(self.activation),
      **self._grouping(),
    )

  def get_config(self):
    return {
      **super().get_config(),
      **self._grouping(),
      'activation': self._serialized_activation(self.activation),
    }


class InstanceNorm(GroupNorm):
  """Instance normalization layer: `GroupNorm` with one channel a group.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken over all positions of one channel of one
  sample. With `scale=False, center=False` and `gamma`, `beta` passed to the
  call this is adaptive instance normalization (AdaIN).

  Args:
    axis: The axis of the channels, not the batch. Their number must be known.
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`, of shape (channels,).
    scale: Whether to multiply by `gamma`, of shape (channels,).
    beta_initializer: Initializer of `beta`.
    gamma_initializer: Initializer of `gamma`.
    beta_regularizer: Regularizer of `beta`, or `None`.
    gamma_regularizer: Regularizer of `gamma`, or `None`.
    beta_constraint: Constraint of `beta`, or `None`.
    gamma_constraint: Constraint of `gamma`, or `None`.
    activation: As for `GroupNorm`.
    jit_compile: As for `GroupNorm`.
    **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

  Call arguments:
    inputs: Tensor (batch, ..., channels), or with the channels on `axis`.
    mask: As for `GroupNorm`.
    gamma: Scale per sample, (batch, channels), if `scale=False`.
    beta: Offset per sample, (batch, channels), if `center=False`.

  Input shape:
    (batch, ..., channels); rank 2 or more, any size but the channels' unknown.

  Output shape:
    That of the input, in the compute dtype of the layer.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import InstanceNorm
  >>> x = np.random.default_rng(0).normal(5.0, 2.0, (2, 8, 8, 3))
  >>> style = np.full((2, 3), 7.0, "float32")
  >>> adain = InstanceNorm(scale=False, center=False)
  >>> adain(x.astype("float32"), beta=style).numpy().mean((1, 2)).round(3)
  array([[7., 7., 7.],
         [7., 7., 7.]], dtype=float32)

  References:
    - [Ulyanov et al., 2016](https://arxiv.org/abs/1607.08022)
    - [Huang & Belongie, 2017](https://arxiv.org/abs/1703.06868) (AdaIN)
  """

  def __init__(
    self,
    axis=-1,
    epsilon=1e-3,
    center=True,
    scale=True,
    beta_initializer='zeros',
    gamma_initializer='ones',
    beta_regularizer=None,
    gamma_regularizer=None,
    beta_constraint=None,
    gamma_constraint=None,
    *,
    activation=None,
    jit_compile='auto',
    **kwargs,
  ):
    super().__init__(
      groups=-1,
      axis=axis,
      epsilon=epsilon,
      center=center,
      scale=scale,
      beta_initializer=beta_initializer,
      gamma_initializer=gamma_initializer,
      beta_regularizer=beta_regularizer,
      gamma_regularizer=gamma_regularizer,
      beta_constraint=beta_constraint,
      gamma_constraint=gamma_constraint,
      activation=activation,
      jit_compile=jit_compile,
      **kwargs,
    )

  def get_config(self):
    config = super().get_config()
    del config['groups'], config['group_size']
    return config

  @classmethod
  def from_config(cls, config):
    # TensorFlow Addons' InstanceNormalization saved its number of groups.
    return super().from_config(
      {key: value for key, value in config.items() if key != 'groups'}
    )


class LayerNorm(Norm):
  """Layer normalization layer, and RMS normalization with `rms=True`.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)
      y = activation(gamma * x / sqrt(mean(x ** 2) + epsilon))      if rms

  `mean` and biased `var` are taken over `axis`, and `gamma` and `beta` span it.
  Arguments up to `gamma_constraint` are those of
  `keras.layers.LayerNormalization`, whose weights fit; with `rms=True` those of
  `keras.layers.RMSNormalization` do.

  Args:
    axis: The axis or axes to normalize, not the batch. Their sizes must be
      known.
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`; it spans `axis`. No effect if `rms`.
    scale: Whether to multiply by `gamma`; it spans `axis`.
    beta_initializer: Initializer of `beta`.
    gamma_initializer: Initializer of `gamma`.
    beta_regularizer: Regularizer of `beta`, or `None`.
    gamma_regularizer: Regularizer of `gamma`, or `None`.
    beta_constraint: Constraint of `beta`, or `None`.
    gamma_constraint: Constraint of `gamma`, or `None`.
    rms: Neither subtract a mean nor add an offset.
    activation: As for `GroupNorm`.
    jit_compile: As for `GroupNorm`.
    **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

  Call arguments:
    inputs: Tensor (batch, ..., features).
    mask: bool over leading axes. Where it is False, inputs are not counted in
      statistics that span it, outputs are 0 and no gradient flows.
    gamma: Scale per sample, (batch, features), if `scale=False`.
    beta: Offset per sample, (batch, features), if `center=False`.

  Input shape:
    (batch, ..., features); rank 2 or more, sizes on `axis` known.

  Output shape:
    That of the input, in the compute dtype of the layer.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import LayerNorm
  >>> x = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
  >>> LayerNorm(epsilon=1e-5)(x).numpy().round(2)
  array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
  >>> LayerNorm(epsilon=1e-5, rms=True)(x).numpy().round(2)
  array([[0.37, 0.73, 1.1 , 1.46]], dtype=float32)

  References:
    - [Ba et al., 2016](https://arxiv.org/abs/1607.06450)
    - [Zhang & Sennrich, 2019](https://arxiv.org/abs/1910.07467) (RMS)
  """

  def __new__(cls, *args, **kwargs):
    # `LayerNorm(rms=True)` makes what Keras calls by another name. A subclass
    # of a user's makes itself.
    form = vars(cls).get('_rms_form') if kwargs.get('rms') else None
    return super().__new__(form or cls, *args, **kwargs)

  def __init__(
    self,
    axis=-1,
    epsilon=1e-3,
    center=True,
    scale=True,
    beta_initializer='zeros',
    gamma_initializer='ones',
    beta_regularizer=None,
    gamma_regularizer=None,
    beta_constraint=None,
    gamma_constraint=None,
    *,
    rms=False,
    activation=None,
    jit_compile='auto',
    **kwargs,
  ):
    super().__init__(
      epsilon=epsilon,
      center=center,
      scale=scale,
      beta_initializer=beta_initializer,
      gamma_initializer=gamma_initializer,
      beta_regularizer=beta_regularizer,
      gamma_regularizer=gamma_regularizer,
      beta_constraint=beta_constraint,
      gamma_constraint=gamma_constraint,
      jit_compile=jit_compile,
      **kwargs,
    )
    self.axis = _checks.check_axis(axis)
    self.rms = _checks.check_bool('rms', rms)
    self.activation = self._activation(activation)

  def _layout(self, shape):
    return _layouts.layer_layout(shape, axis=self.axis)

  def call(self, inputs, mask=None, gamma=None, beta=None):
    return self._apply(
      functional.layer_norm,
      inputs,
      mask,
      gamma,
      beta,
      axis=self.axis,
      rms=self.rms,
      activation=self._fusable(self.activation),
    )

  def get_config(self):
    axis = self.axis
    return {
      **super().get_config(),
      'axis': axis if isinstance(axis, int) else list(axis),
      'rms': self.rms,
      'activation': self._serialized_activation(self.activation),
    }


class HeadNorm(Norm):
  """Head normalization layer: each attention head at each position by itself.

      y = (gamma * (x - mean) / sqrt(var + epsilon) + beta) * gate'
      y = gamma * x / sqrt(mean(x ** 2) + epsilon) * gate'          if rms

  with `gate' = gate_activation(gate)`, 1 without a gate. Statistics span the
  features of one head at one position, never time or other heads, so the layer
  is causal: for queries and keys, or for what attention returns. (A GroupNorm
  over (batch, time, channels) would pool over time and leak the future.)

  Args:
    num_heads: Number of heads; may be left out if `head_axis` is given.
    head_axis: The axis of the heads, features last: -2 for (batch, time, heads,
      features), 1 for (batch, heads, time, features). `None`: heads share the
      last axis, (..., heads * features).
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`. No effect if `rms`.
    scale: Whether to multiply by `gamma`.
    beta_initializer: Initializer of `beta`.
    gamma_initializer: Initializer of `gamma`.
    beta_regularizer: Regularizer of `beta`, or `None`.
    gamma_regularizer: Regularizer of `gamma`, or `None`.
    beta_constraint: Constraint of `beta`, or `None`.
    gamma_constraint: Constraint of `gamma`, or `None`.
    per_head: Whether each head has its own `gamma` and `beta`, of shape (heads,
      features), or (heads * features,) if heads share the last axis; else they
      have shape (features,).
    rms: Neither subtract a mean nor add an offset.
    gate_activation: Activation of the gate, named as for `GroupNorm`; `None`:
      the gate multiplies as it is.
    jit_compile: As for `GroupNorm`.
    **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

  Call arguments:
    inputs: Tensor (batch, ..., heads * features), or with `head_axis`.
    mask: bool over leading positions, without the heads. Where it is False,
      outputs are 0 and no gradient flows.
    gate: Tensor of the shape of `inputs`, or `None`.
    gamma: Scale per sample, with a batch axis in front, if `scale=False`.
    beta: Offset per sample, with a batch axis in front, if `center=False`.

  Input shape:
    (batch, ..., heads * features); or heads on `head_axis`, features last.

  Output shape:
    That of the input, in the compute dtype of the layer.

  Raises:
    ValueError: If a shape or value does not fit; the message says which.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import numpy as np
  >>> from tfgroupnorm import HeadNorm
  >>> x = np.array([[[1.0, 3.0, 10.0, 30.0]]], "float32")  # two heads
  >>> HeadNorm(num_heads=2, epsilon=1e-5)(x).numpy().round(2)
  array([[[-1.,  1., -1.,  1.]]], dtype=float32)
  >>> queries = np.ones((2, 5, 8, 64), "float32")
  >>> qk_norm = HeadNorm(head_axis=-2, rms=True, per_head=False)
  >>> qk_norm(queries).shape, qk_norm.gamma.shape == (64,)
  (TensorShape([2, 5, 8, 64]), True)

  References:
    - [Henry et al., 2020](https://arxiv.org/abs/2010.04245) (queries and keys)
    - [Sun et al., 2023](https://arxiv.org/abs/2307.08621) (output, with gate)
  """

  def __init__(
    self,
    num_heads=None,
    head_axis=None,
    epsilon=1e-3,
    center=True,
    scale=True,
    beta_initializer='zeros',
    gamma_initializer='ones',
    beta_regularizer=None,
    gamma_regularizer=None,
    beta_constraint=None,
    gamma_constraint=None,
    *,
    per_head=True,
    rms=False,
    gate_activation=None,
    jit_compile='auto',
    **kwargs,
  ):
    super().__init__(
      epsilon=epsilon,
      center=center,
      scale=scale,
      beta_initializer=beta_initializer,
      gamma_initializer=gamma_initializer,
      beta_regularizer=beta_regularizer,
      gamma_regularizer=gamma_regularizer,
      beta_constraint=beta_constraint,
      gamma_constraint=gamma_constraint,
      jit_compile=jit_compile,
      **kwargs,
    )
    self.num_heads, self.head_axis = _checks.check_heads(num_heads, head_axis)
    self.per_head = _checks.check_bool('per_head', per_head)
    self.rms = _checks.check_bool('rms', rms)
    self.gate_activation = self._activation(gate_activation)

  def _heads(self) -> dict[str, Any]:
    return {
      'num_heads': self.num_heads,
      'head_axis': self.head_axis,
      'per_head': self.per_head,
    }

  def _layout(self, shape):
    return _layouts.head_layout(shape, **self._heads())

  def call(self, inputs, mask=None, gate=None, gamma=None, beta=None):
    return self._apply(
      functional.head_norm,
      inputs,
      mask,
      gamma,
      beta,
      rms=self.rms,
      gate=gate,
      gate_activation=self._fusable(self.gate_activation),
      **self._heads(),
    )

  def get_config(self):
    return {
      **super().get_config(),
      **self._heads(),
      'rms': self.rms,
      'gate_activation': self._serialized_activation(self.gate_activation),
    }


def custom_objects(group_norm, instance_norm, *others):
  """Names in saved models -> classes; see `layers.custom_objects`."""
  layers = (group_norm, instance_norm, *others)
  return {
    **{f'tfgroupnorm>{layer.__qualname__}': layer for layer in layers},
    **{layer.__qualname__: layer for layer in layers},
    'Addons>GroupNormalization': group_norm,
    'Addons>InstanceNormalization': instance_norm,
  }
