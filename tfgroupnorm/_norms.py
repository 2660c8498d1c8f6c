"""The four layers, for either generation of Keras: arguments and docstrings.

They are mixed into `keras.layers.Layer` in `layers.py` and into
`tf_keras.layers.Layer` in `tf_keras.py`. What they have in common is in
`_layer.py`, and the parts of their docstrings that are in `_docs.py`.
"""

from __future__ import annotations

from typing import Any

from tfgroupnorm import _checks, _layer, _layouts, functional


class GroupNorm(_layer.Norm):
  """Group normalization layer.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken for each sample over all positions and the
  `channels / groups` adjacent channels of a group. No sample depends on others:
  training and inference are the same, at any batch size. Statistics are
  computed in float32 (float64 for float64), and lose no digits of the input
  where the mean is large.

  Arguments up to `gamma_constraint` are those of
  `keras.layers.GroupNormalization`, whose weights fit.

  Args:
    groups: Number of groups, a divisor of the number of channels. -1: one
      channel a group, which is instance normalization. 1: one group.
    {{channels}}
    {{weights}}
    group_size: Channels in a group, given instead of `groups`.
    {{activation}}
    {{options}}

  {{call_with_channels}}

  {{output}}

  Example:

  >>> import numpy as np
  >>> from {{home}} import GroupNorm
  >>> x = np.arange(16, dtype="float32").reshape(1, 2, 2, 4)
  >>> y = GroupNorm(groups=2)(x)
  >>> tuple(y.shape)
  (1, 2, 2, 4)
  >>> bool(abs(np.asarray(y)[..., :2].mean()) < 1e-6)
  True

  References:
    - [Wu & He, 2018](https://arxiv.org/abs/1803.08494)
  """

  _function: Any = staticmethod(functional.group_norm)
  _layout_of: Any = staticmethod(_layouts.group_layout)

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
    super().__init__(**_layer.common(locals()))
    self.groups, self.group_size = _checks.check_groups(groups, group_size)
    self.axis = _checks.check_channel_axis(axis)
    self.activation = self._activation(activation)

  def _where(self):
    where = {'axis': self.axis, 'group_size': self.group_size}
    # Of `groups` and `group_size` only the one that was given.
    return where if self.group_size else {**where, 'groups': int(self.groups)}

  def _sized_axes(self):
    return (self.axis,)


class InstanceNorm(GroupNorm):
  """Instance normalization layer: `GroupNorm` with one channel a group.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)

  `mean` and biased `var` are taken over all positions of one channel of one
  sample. With `scale=False, center=False` and `gamma`, `beta` passed to the
  call this is adaptive instance normalization (AdaIN).

  Args:
    {{channels}}
    {{weights}}
    {{activation}}
    {{options}}

  {{call_with_channels}}

  {{output}}

  Example:

  >>> import numpy as np
  >>> from {{home}} import InstanceNorm
  >>> x = np.random.default_rng(0).normal(5.0, 2.0, (2, 8, 8, 3))
  >>> style = np.full((2, 3), 7.0, "float32")
  >>> adain = InstanceNorm(scale=False, center=False)
  >>> y = adain(x.astype("float32"), beta=style)
  >>> np.asarray(y).mean((1, 2)).round(3)
  array([[7., 7., 7.],
         [7., 7., 7.]], dtype=float32)

  References:
    - [Ulyanov et al., 2016](https://arxiv.org/abs/1607.08022)
    - [Huang & Belongie, 2017](https://arxiv.org/abs/1703.06868) (AdaIN)
  """

  _function = staticmethod(functional.instance_norm)
  _layout_of = staticmethod(_layouts.instance_layout)

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
      groups=-1, axis=axis, activation=activation, **_layer.common(locals())
    )

  def _where(self):
    return {'axis': self.axis}

  @classmethod
  def from_config(cls, config):
    # TensorFlow Addons' InstanceNormalization saved its number of groups.
    return super().from_config(
      {key: value for key, value in config.items() if key != 'groups'}
    )


class LayerNorm(_layer.Norm):
  """Layer normalization layer, and RMS normalization with `rms=True`.

      y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)
      y = activation(gamma * x / sqrt(mean(x ** 2) + epsilon))      if rms

  `mean` and biased `var` are taken over `axis`, and `gamma` and `beta` have its
  size, or those of its axes.
  Arguments up to `gamma_constraint` are those of
  `keras.layers.LayerNormalization`, whose weights fit; with `rms=True` those of
  `keras.layers.RMSNormalization` do.

  Args:
    axis: The axis or axes to normalize, not that of the batch. Their sizes must
      be known.
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`. No effect if `rms`.
    scale: Whether to multiply by `gamma`.
    {{weights}}
    rms: Neither subtract a mean nor add an offset.
    {{activation}}
    {{options}}

  Call arguments:
    inputs: Tensor (batch, ..., features).
    mask: bool over leading axes. Where it is False, outputs are 0 and no
      gradient flows; inputs are not counted where `axis` includes an axis of
      the mask.
    gamma: Scale per sample, (batch, features), if `scale=False`.
    beta: Offset per sample, (batch, features), if `center=False`.
    {{inputs_mask}}

  Input shape:
    (batch, ..., features); rank 2 or more, sizes on `axis` known. A single
      feature gives `beta`, unless `rms`; a warning says so when the layer is
      built.

  {{output}}

  Example:

  >>> import numpy as np
  >>> from {{home}} import LayerNorm
  >>> x = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
  >>> np.asarray(LayerNorm(epsilon=1e-5)(x)).round(2)
  array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
  >>> np.asarray(LayerNorm(epsilon=1e-5, rms=True)(x)).round(2)
  array([[0.37, 0.73, 1.1 , 1.46]], dtype=float32)

  References:
    - [Ba et al., 2016](https://arxiv.org/abs/1607.06450)
    - [Zhang & Sennrich, 2019](https://arxiv.org/abs/1910.07467) (RMS)
  """

  _function = staticmethod(functional.layer_norm)
  _layout_of = staticmethod(_layouts.layer_layout)
  _flags = ('rms',)

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
    # An argument of Keras 3's, in each of its configurations.
    _checks.check_no_rms_scaling(kwargs.pop('rms_scaling', False))
    super().__init__(**_layer.common(locals()))
    self.axis = _checks.check_axis(axis)
    self.rms = _checks.check_bool('rms', rms)
    self.activation = self._activation(activation)

  def _where(self):
    axis = self.axis
    return {'axis': axis if isinstance(axis, int) else list(axis)}

  def _sized_axes(self):
    axis = self.axis
    return (axis,) if isinstance(axis, int) else tuple(axis)

  def _axes_of_groups(self, rank):
    return tuple(axis % rank for axis in self._sized_axes())

  @classmethod
  def from_config(cls, config):
    # Keras' RMSNormalization has no other options, and ours are never left out.
    if set(config) == {'name', 'trainable', 'dtype', 'axis', 'epsilon'}:
      config = {**config, 'rms': True}
    return super().from_config(config)


class HeadNorm(_layer.Norm):
  """Head normalization layer: each attention head at each position by itself.

      y = (gamma * (x - mean) / sqrt(var + epsilon) + beta) * gate'
      y = gamma * x / sqrt(mean(x ** 2) + epsilon) * gate'          if rms

  with `gate' = gate_activation(gate)`, or 1 without a gate. Statistics are
  taken over the features of one head at one position, never over time or other
  heads, so the layer is causal. It is for queries and keys, or for the output
  of attention. (A GroupNorm over (batch, time, channels) would take statistics
  over time, and leak the future.)

  Args:
    num_heads: Number of heads; may be left out if `head_axis` is given.
    head_axis: The axis of the heads, features last: -2 for (batch, time, heads,
      features), 1 for (batch, heads, time, features). `None`: heads share the
      last axis, (..., heads * features).
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`. No effect if `rms`.
    scale: Whether to multiply by `gamma`.
    {{weights}}
    per_head: Whether each head has its own `gamma` and `beta`, of shape (heads,
      features), or (heads * features,) if heads share the last axis; else they
      have shape (features,).
    rms: Neither subtract a mean nor add an offset.
    gate_activation: A Keras activation for the gate, or `"gelu_tanh"`; then
      each call must pass a gate. `None`: a gate multiplies as it is.
    {{options}}

  Call arguments:
    inputs: Tensor (batch, ..., heads * features), or with `head_axis`.
    mask: bool over leading positions, without the heads. Where it is False,
      outputs are 0 and no gradient flows.
    gate: Tensor of the shape of `inputs`, or `None`.
    gamma: Scale per sample, with a batch axis in front, if `scale=False`.
    beta: Offset per sample, with a batch axis in front, if `center=False`.
    {{inputs_mask}}

  Input shape:
    (batch, ..., heads * features); or heads on `head_axis`, features last. A
      head of one feature gives `beta`, unless `rms`; a warning says so when the
      layer is built.

  {{output}}

  Example:

  >>> import numpy as np
  >>> from {{home}} import HeadNorm
  >>> x = np.array([[[1.0, 3.0, 10.0, 30.0]]], "float32")  # two heads
  >>> np.asarray(HeadNorm(num_heads=2, epsilon=1e-5)(x)).round(2)
  array([[[-1.,  1., -1.,  1.]]], dtype=float32)
  >>> queries = np.ones((2, 5, 8, 64), "float32")
  >>> qk_norm = HeadNorm(head_axis=-2, rms=True, per_head=False)
  >>> tuple(qk_norm(queries).shape), qk_norm.gamma.shape == (64,)
  ((2, 5, 8, 64), True)

  References:
    - [Henry et al., 2020](https://arxiv.org/abs/2010.04245) (queries and keys)
    - [Sun et al., 2023](https://arxiv.org/abs/2307.08621) (output, with gate)
  """

  _function = staticmethod(functional.head_norm)
  _layout_of = staticmethod(_layouts.head_layout)
  _flags = ('rms',)
  _activated = 'gate_activation'

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
    super().__init__(**_layer.common(locals()))
    self.num_heads, self.head_axis = _checks.check_heads(num_heads, head_axis)
    self.per_head = _checks.check_bool('per_head', per_head)
    self.rms = _checks.check_bool('rms', rms)
    self.gate_activation = self._activation(gate_activation)

  def _where(self):
    names = ('num_heads', 'head_axis', 'per_head')
    return {name: getattr(self, name) for name in names}

  def _sized_axes(self):
    own_heads = self.head_axis is not None and self.per_head
    return (self.head_axis, -1) if own_heads else (-1,)

  def _axes_of_groups(self, rank):
    axes = (-1,) if self.head_axis is None else (self.head_axis, -1)
    return tuple(axis % rank for axis in axes)

  def call(
    self,
    inputs,
    mask=None,
    gate=None,
    gamma=None,
    beta=None,
    inputs_mask=None,
  ):
    mask = inputs_mask if mask is None else mask
    return self._normalized(inputs, mask, gamma, beta, gate=gate)
