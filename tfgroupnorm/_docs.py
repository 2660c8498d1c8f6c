"""Parts that the public docstrings share, and how they come in.

A docstring says `{{name}}` where the part of that name belongs, indented as its
line is. It is filled once: a function's by `documented`, a layer's when it is
registered with a Keras, because its example names the module to import from.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar('_Function', bound=Callable)

# Of layers: arguments, then what follows them.
_LAYERS = {
  'channels': """
    axis: The axis of the channels, not that of the batch. Their number must be
      known.
    epsilon: Positive number added to the variance.
    center: Whether to add `beta`, of shape (channels,).
    scale: Whether to multiply by `gamma`, of shape (channels,).
  """,
  'weights': """
    beta_initializer: Initializer of `beta`.
    gamma_initializer: Initializer of `gamma`.
    beta_regularizer: Regularizer of `beta`, or `None`.
    gamma_regularizer: Regularizer of `gamma`, or `None`.
    beta_constraint: Constraint of `beta`, or `None`.
    gamma_constraint: Constraint of `gamma`, or `None`.
  """,
  'activation': """
    activation: A Keras activation, or `"gelu_tanh"`. `"relu"`, `"silu"`,
      `"gelu"`, `"gelu_tanh"` and `"sigmoid"` run inside the kernel, others
      after it.
  """,
  'options': """
    jit_compile: Whether XLA compiles the kernel: `True`, `False`, or `"auto"`,
      where that pays.
    **kwargs: `name`, `dtype`, `trainable` of a Keras layer.
  """,
  'call_with_channels': """
    Call arguments:
      inputs: Tensor (batch, ..., channels), or with the channels on `axis`.
        Floating inputs are not cast before; integers are, to the compute dtype.
      mask: bool (batch, ...) over leading positions. Where it is False, inputs
        are not counted, outputs are 0 and no gradient flows. Keras passes it on
        to the next layer. It may have a last axis of size 1 for the channels,
        and be of integers 0 and 1.
      gamma: Scale per sample, (batch, channels), if `scale=False`; or one for
        all samples, (channels,) or (1, channels).
      beta: Offset, of one of these shapes, if `center=False`.
      inputs_mask: The same as `mask`: Keras passes it by this name where a call
        has more than one tensor.

    Input shape:
      (batch, ..., channels); rank 2 or more. All sizes except that of the
        channels may be unknown. A group of a single value, as in (batch,
        channels) with a group for each channel, gives `beta` whatever the
        value is; a warning says so when the layer is built.
  """,
  'inputs_mask': """
    inputs_mask: The same as `mask`: Keras passes it by this name where a call
      has more than one tensor.
  """,
  'output': """
    Output shape:
      That of the input, in the compute dtype of the layer. Squares overflow in
        float32: in a group of n values that lie about 1e19 / sqrt(n) from their
        mean or further, `beta` comes out. What is finite never gives NaN.

    Raises:
      ValueError: If a shape or value does not fit; the message says which.
      TypeError: If an argument has the wrong type, or the input is a symbolic
        tensor of the other Keras.
  """,
}

# Of functions.
_FUNCTIONS = {
  'x_with_channels': """
    x: Tensor (batch, ..., channels), or with the channels on `axis`; rank 2 or
      more. Integers and bools are taken as float32. All sizes but the number of
      channels may be unknown.
    gamma: Scale: (channels,) or (1, channels), or (batch, channels) for one per
      sample.
    beta: Offset, of one of these shapes.
  """,
  'mask_with_channels': """
    mask: bool (batch, ...) over leading position axes, without the channels or
      with a last axis of size 1 for them. Where it is False, `x` is not
      counted, the result is 0 and no gradient flows, whatever `x` holds. It may
      be of integers 0 and 1, but not of floats, which are added to attention
      scores.
  """,
  'function_activation': """
    activation: `'relu'`, `'silu'` (`'swish'`), `'gelu'`, `'gelu_tanh'` and
      `'sigmoid'` run inside the kernel; others, such as `'tanh'`, and callables
      are applied after it.
  """,
  'jit_compile': """
    jit_compile: `'auto'`, `True` or `False`: whether XLA compiles the kernel.
      With `'auto'` it does where that pays. On JAX, what `jax.jit` traces is
      compiled in any case.
  """,
  'result': """
    Returns:
      A tensor of the shape and dtype of `x`; where Keras runs on JAX, an array.
      Squares overflow in float32: in a group of n values that lie about
      1e19 / sqrt(n) from their mean or further, `beta` comes out. What is
      finite never gives NaN.

    Raises:
      ValueError: If a shape or value does not fit; the message says which.
      TypeError: If an argument has the wrong type.
  """,
}

_PARTS = {
  name: textwrap.dedent(text).strip()
  for name, text in {**_LAYERS, **_FUNCTIONS}.items()
}

# One a line, and what stands before it: the indentation and perhaps more.
_PLACE = re.compile(r'^( *)(.*)\{\{(\w+)\}\}', re.MULTILINE)


def filled(doc: str | None, **more: str) -> str:
  """`doc` with each part in its place; `more` has parts of its own."""
  parts = {**_PARTS, **more}

  def part(place: re.Match) -> str:
    indentation, before, name = place.groups()
    return textwrap.indent(before + parts[name], indentation)

  return _PLACE.sub(part, doc or '')


def documented(function: _Function) -> _Function:
  """Decorator of a function whose docstring has places to fill."""
  function.__doc__ = filled(function.__doc__)
  return function
