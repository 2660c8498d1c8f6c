"""A small residual network with a slot for the norm, for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras


def convolution(
  x: keras.KerasTensor,
  width: int,
  make_norm: Callable[[], keras.layers.Layer],
  *,
  size: int = 3,
  strides: int = 1,
) -> keras.KerasTensor:
  """A convolution and its norm; the norm's `beta` serves as bias."""
  x = keras.layers.Conv2D(
    width, size, strides=strides, padding='same', use_bias=False
  )(x)
  return make_norm()(x)


def residual_block(
  x: keras.KerasTensor,
  width: int,
  make_norm: Callable[[], keras.layers.Layer],
  *,
  make_last_norm: Callable[[], keras.layers.Layer],
  strides: int = 1,
) -> keras.KerasTensor:
  """Adds two convolutions to `x`, which is projected if its shape changes."""
  y = convolution(x, width, make_norm, strides=strides)
  y = keras.layers.ReLU()(y)
  y = convolution(y, width, make_last_norm)
  if strides != 1 or x.shape[-1] != width:
    x = convolution(x, width, make_norm, size=1, strides=strides)
  return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def resnet(
  make_norm: Callable[[], keras.layers.Layer],
  *,
  make_last_norm: Callable[[], keras.layers.Layer],
  shape: Sequence[int],
  widths: Sequence[int],
  classes: int,
  head: int | None = None,
) -> keras.Model:
  """A ResNet from images (batch, *shape) to probabilities (batch, classes).

  Args:
    make_norm: Makes a normalization layer.
    make_last_norm: Makes the last one of each residual block.
    shape: Height, width and channels of an image.
    widths: Channels of each stage. All but the first halve height and width.
    classes: Number of classes.
    head: Outputs of a dense layer with a norm of its own, which sees the last
      features at all positions. Left out, their means over the positions go to
      the classes at once.
  """
  image = keras.Input(shape)
  x = convolution(image, widths[0], make_norm)
  x = keras.layers.ReLU()(x)
  for i, width in enumerate(widths):
    x = residual_block(
      x,
      width,
      make_norm,
      make_last_norm=make_last_norm,
      strides=1 if i == 0 else 2,
    )
  if head is None:
    x = keras.layers.GlobalAveragePooling2D()(x)
  else:
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(head, use_bias=False)(x)
    x = keras.layers.ReLU()(make_norm()(x))
  x = keras.layers.Dense(classes, activation='softmax')(x)
  return keras.Model(image, x)
