"""The models of the Group Normalization paper, with a slot for the norm.

    python examples/models.py --model=resnet50
    python examples/models.py --model=fpn --norm=group
    python examples/models.py --model=resnet3d --frames=64
    python examples/models.py --model=transformer --attention=rms

Each is a function that takes `make_norm`, which makes a new normalization layer
each time: change that one argument, and the whole model has another norm. As a
program, this builds one of them, trains it for a few steps on one batch of made
data, of the size that the paper used, and prints its parameters, the losses,
and the memory that this took. Nothing is downloaded; nothing is learned either.

Sections are those of Wu & He, "Group Normalization", ECCV 2018.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import digits  # noqa: F401  First: it says how much TensorFlow may print.
import keras
import numpy as np
import tensorflow as tf
import training
from absl import app, flags

import tfgroupnorm

# Takes `gamma_initializer`, as norms of this package and of Keras do.
MakeNorm = Callable[..., keras.layers.Layer]

RESNET50 = (3, 4, 6, 3)  # Residual blocks in each stage.
VGG16 = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
FPN_WIDTH = 256
WIDTH = 64  # The least of a convolution; all others are multiples.
NORMS = {'none': 'no normalization', **training.NORMS}
CONVOLUTIONAL = ('resnet50', 'vgg16', 'fpn', 'resnet3d')
# Flags -> models that have a use for them.
USERS = {
  'norm': CONVOLUTIONAL,
  'groups': CONVOLUTIONAL,
  'frames': ('resnet3d',),
  'attention': ('transformer',),
}

# The norms in a Transformer: of its blocks, of queries and keys, and of what
# attention returns.
ATTENTION = {
  'layer': (tfgroupnorm.LayerNorm, None, None),
  'head': (
    tfgroupnorm.LayerNorm,
    functools.partial(tfgroupnorm.HeadNorm, head_axis=-2),
    functools.partial(
      tfgroupnorm.HeadNorm, head_axis=-2, gate_activation='silu'
    ),
  ),
  'rms': (
    functools.partial(tfgroupnorm.LayerNorm, rms=True),
    functools.partial(
      tfgroupnorm.HeadNorm, head_axis=-2, rms=True, per_head=False
    ),
    functools.partial(
      tfgroupnorm.HeadNorm,
      head_axis=-2,
      rms=True,
      per_head=False,
      gate_activation='silu',
    ),
  ),
}


# --- Convolutional networks --------------------------------------------------


def norm_factory(norm: str, groups: int, batch_size: int) -> MakeNorm | None:
  """What makes the paper's normalization layers: `norm` is a key of `NORMS`.

  As in `training.norm_factory`, LN is `GroupNorm(groups=1)`, and the moving
  averages of BN go by `batch_size`.
  """
  if norm == 'none':
    return None
  return training.norm_factory(norm, groups, batch_size)


def convolution(
  x: keras.KerasTensor,
  width: int,
  make_norm: MakeNorm | None,
  *,
  name: str,
  size: Sequence[int],
  strides: Sequence[int] | int = 1,
  bias: bool = False,
  **norm_options,
) -> keras.KerasTensor:
  """A convolution of images or videos, and its norm if there is one."""
  kind = {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[len(size)]
  x = kind(
    width,
    size,
    strides=strides,
    padding='same',
    use_bias=bias or make_norm is None,
    kernel_initializer='he_normal',
    name=name,
  )(x)
  return x if make_norm is None else make_norm(**norm_options)(x)


def bottleneck(
  x: keras.KerasTensor,
  width: int,
  make_norm: MakeNorm,
  *,
  name: str,
  stride: int,
  frames: int | None,
) -> keras.KerasTensor:
  """Adds 1x1, 3x3 and 1x1 convolutions to `x`.

  Args:
    x: Images (batch, height, width, channels) or videos (batch, time, ...).
    width: Channels of the first two convolutions; the last has 4 times as many.
    make_norm: Makes a norm.
    name: Beginning of the names of layers.
    stride: In space, of the 3x3 convolution. Time keeps its length.
    frames: For videos, how many frames the first convolution spans.

  Returns:
    A tensor of rank as `x`, with 4 * width channels.
  """
  video = frames is not None
  time, one = ((1,), (frames,)) if video else ((), ())
  strides = (1, stride, stride)[-len(x.shape) + 2 :]
  y = convolution(x, width, make_norm, name=f'{name}_1', size=(*one, 1, 1))
  y = keras.layers.ReLU()(y)
  y = convolution(
    y, width, make_norm, name=f'{name}_2', size=(*time, 3, 3), strides=strides
  )
  y = keras.layers.ReLU()(y)
  y = convolution(
    y,
    4 * width,
    make_norm,
    name=f'{name}_3',
    size=(*time, 1, 1),
    # So that each block is the identity at first.
    gamma_initializer='zeros',
  )
  if stride != 1 or x.shape[-1] != 4 * width:
    x = convolution(
      x,
      4 * width,
      make_norm,
      name=f'{name}_shortcut',
      size=(*time, 1, 1),
      strides=strides,
    )
  return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def resnet_stages(
  x: keras.KerasTensor, make_norm: MakeNorm
) -> list[keras.KerasTensor]:
  """What the four stages of a ResNet-50 return, of images or of videos."""
  video = len(x.shape) == 5
  if video:
    x = convolution(
      x, 64, make_norm, name='conv1', size=(5, 7, 7), strides=(2, 2, 2)
    )
    x = keras.layers.ReLU()(x)
    x = keras.layers.MaxPooling3D(3, 2, padding='same', name='pool1')(x)
  else:
    x = convolution(x, 64, make_norm, name='conv1', size=(7, 7), strides=2)
    x = keras.layers.ReLU()(x)
    x = keras.layers.MaxPooling2D(3, 2, padding='same', name='pool1')(x)
  stages = []
  for stage, blocks in enumerate(RESNET50):
    for block in range(blocks):
      x = bottleneck(
        x,
        64 * 2**stage,
        make_norm,
        name=f'res{stage + 2}_{block + 1}',
        stride=2 if stage and not block else 1,
        # One kernel is inflated in every two blocks.
        frames=(1 if block % 2 else 3) if video else None,
      )
    if video and not stage:
      x = keras.layers.MaxPooling3D(
        (3, 1, 1), (2, 1, 1), padding='same', name='pool2'
      )(x)
    stages.append(x)
  return stages


def resnet50(
  make_norm: MakeNorm,
  *,
  input_shape: Sequence[int] = (224, 224, 3),
  classes: int = 1000,
) -> keras.Model:
  """ResNet-50 for classification: section 4.1, "Image Classification".

  The convolutions have no biases, which the norms' `beta` makes up for, and
  the 3x3 ones have the strides: 25,557,032 parameters with any norm that has
  `gamma` and `beta` (`keras.applications.ResNet50`, with biases: 25,583,592).
  The last `gamma` of each block is 0 at first, as in the paper (and in Goyal et
  al., "Accurate, Large Minibatch SGD", 2017; not in Keras).

  Args:
    make_norm: Makes a norm.
    input_shape: Of one image.
    classes: How many logits.

  Returns:
    A model from images to logits.
  """
  image = keras.Input(input_shape, name='image')
  x = resnet_stages(image, make_norm)[-1]
  x = keras.layers.GlobalAveragePooling2D()(x)
  x = keras.layers.Dense(classes, name='logits')(x)
  return keras.Model(image, x, name='resnet50')


def vgg16(
  make_norm: MakeNorm | None,
  *,
  input_shape: Sequence[int] = (224, 224, 3),
  classes: int = 1000,
  shrink: int = 1,
) -> keras.Model:
  """VGG-16: section 4.1, "Results and analysis of VGG models".

  It trains without normalization too, and so shows what a norm does. The norm
  stands right after each convolution; convolutions keep their biases, with
  which VGG-16 has 138,357,544 parameters, and norms add 2 for each of 4,224
  channels. They are called conv1_1 to conv5_3.

  VGG-16 also has dropout after fc6 and fc7 (Simonyan & Zisserman, 2015). It is
  left out here, so that trainings differ by their norm and by no other noise.

  Args:
    make_norm: Makes a norm; `None`: without any.
    input_shape: Of one image, 32 pixels wide and high or a multiple.
    classes: How many logits.
    shrink: By how much to divide all widths, for little data.

  Returns:
    A model from images to logits.
  """
  image = x = keras.Input(input_shape, name='image')
  for stage, widths in enumerate(VGG16, 1):
    for i, width in enumerate(widths, 1):
      x = convolution(
        x,
        width // shrink,
        make_norm,
        name=f'conv{stage}_{i}',
        size=(3, 3),
        bias=True,
      )
      x = keras.layers.ReLU()(x)
    x = keras.layers.MaxPooling2D(name=f'pool{stage}')(x)
  x = keras.layers.Flatten()(x)
  for name in ('fc6', 'fc7'):
    x = keras.layers.Dense(
      4096 // shrink,
      activation='relu',
      kernel_initializer='he_normal',
      name=name,
    )(x)
  x = keras.layers.Dense(classes, name='logits')(x)
  return keras.Model(image, x, name='vgg16')


def resnet3d(
  make_norm: MakeNorm,
  *,
  input_shape: Sequence[int] = (32, 224, 224, 3),
  classes: int = 400,
) -> keras.Model:
  """ResNet-50 I3D: section 4.3, "Video Classification in Kinetics".

  A ResNet-50 whose kernels are inflated in time: the first one to 5x7x7, and in
  every other block the first one to 3x1x1. Time is halved three times: in
  conv1, pool1 and pool2 (Wang et al., "Non-local Neural Networks", 2018). A
  GroupNorm counts time as it does space: its statistics span (time, height,
  width).

  Args:
    make_norm: Makes a norm.
    input_shape: Of one clip; the paper has 32 frames and 64.
    classes: How many logits.

  Returns:
    A model from clips to logits.
  """
  clip = keras.Input(input_shape, name='clip')
  x = resnet_stages(clip, make_norm)[-1]
  x = keras.layers.GlobalAveragePooling3D()(x)
  x = keras.layers.Dense(classes, name='logits')(x)
  return keras.Model(clip, x, name='resnet3d')


def inflate(images: keras.Model, videos: keras.Model) -> None:
  """Gives a `resnet3d` what a `resnet50` has learned.

  A kernel is repeated in time and divided by its length: of frames that are all
  alike it makes what it made of one, but for the ends of a clip, where it meets
  the padding. The logits stay.
  """
  for layer in images.layers:
    if layer.name == 'logits' or not layer.weights:
      continue
    if isinstance(layer, keras.layers.Conv2D):
      twin = videos.get_layer(layer.name)
      frames = twin.kernel_size[0]
      kernel, *rest = layer.get_weights()
      twin.set_weights([np.stack([kernel / frames] * frames), *rest])
  norms = [
    [
      layer
      for layer in model.layers
      if layer.weights and not layer.name.startswith(('conv', 'res', 'logits'))
    ]
    for model in (images, videos)
  ]
  for norm, twin in zip(*norms, strict=True):
    twin.set_weights(norm.get_weights())


# --- Detection ---------------------------------------------------------------


class RoIAlign(keras.layers.Layer):
  """The features in each box, 7x7, from the level of the pyramid that fits.

  Beyond the centres of the outermost pixels, their values go on.

  Call arguments:
    inputs: Boxes (batch, boxes, 4) of (top, left, bottom, right) from 0 to 1,
      then feature maps (batch, height, width, channels), of which the first has
      a quarter of the image's size and each other one half of the last.

  Output shape:
    (batch, boxes, 7, 7, channels).
  """

  SIZE = 7
  SAMPLES = 2  # In each direction, of whose values a cell is the mean.

  def call(self, inputs):
    boxes, *levels = inputs
    count, channels = boxes.shape[1], levels[0].shape[-1]
    flat = tf.reshape(boxes, (-1, 4))
    image = tf.repeat(tf.range(tf.shape(boxes)[0]), count)
    # A box of 224 pixels belongs to the third level, of twice that to the next.
    sizes = tf.cast(tf.shape(levels[0])[1:3], tf.float32) * 4
    edges = (flat[:, 2:] - flat[:, :2]) * sizes
    edge = tf.sqrt(tf.maximum(tf.reduce_prod(edges, -1), 1.0))
    level = tf.cast(tf.floor(2 + tf.math.log(edge / 224) / np.log(2)), tf.int32)
    level = tf.clip_by_value(level, 0, len(levels) - 1)
    y = 0.0
    for i, features in enumerate(levels):
      chosen = tf.cast(level == i, features.dtype)[:, None, None, None]
      y += chosen * self._crop(features, flat, image)
    return tf.reshape(y, (-1, count, self.SIZE, self.SIZE, channels))

  def _crop(self, features, boxes, image):
    samples = self.SIZE * self.SAMPLES
    # `crop_and_resize` takes 0 beyond the centres of the outermost pixels, and
    # a box may reach half a pixel further. Repeated, they are not outermost.
    features = tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]], 'SYMMETRIC')
    sizes = tf.cast(tf.tile(tf.shape(features)[1:3], [2]), tf.float32)
    # `crop_and_resize` wants the centres of its first and its last sample, as
    # shares of the way from the centre of the first pixel to that of the last.
    step = tf.tile(boxes[:, 2:] - boxes[:, :2], [1, 2]) / samples
    inwards = tf.constant([0.5, 0.5, -0.5, -0.5])
    centres = ((boxes + inwards * step) * (sizes - 2) + 0.5) / (sizes - 1)
    y = tf.image.crop_and_resize(features, centres, image, (samples, samples))
    return tf.nn.avg_pool2d(y, self.SAMPLES, self.SAMPLES, 'VALID')


class PerBox(keras.layers.Layer):
  """Calls a model on each box by itself, so that a norm sees one at a time.

  Call arguments:
    inputs: (batch, boxes, ...).

  Output shape:
    (batch, boxes, features) for each output of the model.
  """

  def __init__(self, head: keras.Model, **kwargs):
    super().__init__(**kwargs)
    self.head = head

  def call(self, inputs):
    count = inputs.shape[1]
    outputs = self.head(tf.reshape(inputs, (-1, *inputs.shape[2:])))
    return [tf.reshape(y, (-1, count, y.shape[-1])) for y in outputs]


def box_head(make_norm: MakeNorm, classes: int) -> keras.Model:
  """4 convolutions and 1 fully connected layer on the features of a box."""
  features = x = keras.Input((RoIAlign.SIZE, RoIAlign.SIZE, FPN_WIDTH))
  for i in range(4):
    x = convolution(
      x, FPN_WIDTH, make_norm, name=f'head_conv{i + 1}', size=(3, 3)
    )
    x = keras.layers.ReLU()(x)
  x = keras.layers.Flatten()(x)
  x = keras.layers.Dense(1024, activation='relu', name='head_fc')(x)
  return keras.Model(
    features,
    [
      keras.layers.Dense(classes, name='head_classes')(x),
      keras.layers.Dense(4, name='head_offsets')(x),
    ],
    name='box_head',
  )


def fpn_detector(
  make_norm: MakeNorm,
  *,
  input_shape: Sequence[int] = (800, 1088, 3),
  boxes: int = 64,
  classes: int = 81,
) -> keras.Model:
  """ResNet-50 FPN with a 4conv1fc box head: section 4.2, "Object Detection".

  The norm is in backbone, pyramid and head, as in that section's best model;
  left out are what proposes boxes, which come as an input here, and masks. A
  head's norm sees one box at a time: a BatchNorm would mix boxes of one image,
  and was 9 AP worse there.

  Args:
    make_norm: Makes a norm.
    input_shape: Of one image; multiples of 32.
    boxes: How many boxes an image has.
    classes: How many logits; the first is the background.

  Returns:
    A model from `image` and `boxes`, (batch, boxes, 4) of (top, left, bottom,
    right) from 0 to 1, to the logits `classes` and, shared by all classes,
    `offsets` (batch, boxes, 4).
  """
  image = keras.Input(input_shape, name='image')
  box = keras.Input((boxes, 4), name='boxes')
  pyramid: list[keras.KerasTensor] = []
  for i, x in reversed(list(enumerate(resnet_stages(image, make_norm), 2))):
    x = convolution(x, FPN_WIDTH, make_norm, name=f'lateral{i}', size=(1, 1))
    if pyramid:
      x = keras.layers.Add()([x, keras.layers.UpSampling2D()(pyramid[0])])
    pyramid.insert(0, x)
  pyramid = [
    convolution(x, FPN_WIDTH, make_norm, name=f'fpn{i}', size=(3, 3))
    for i, x in enumerate(pyramid, 2)
  ]
  x = RoIAlign(name='roi_align')([box, *pyramid])
  logits, offsets = PerBox(box_head(make_norm, classes), name='head')(x)
  return keras.Model(
    {'image': image, 'boxes': box},
    # The first Keras 3 knows outputs by the names of layers only.
    {
      name: keras.layers.Identity(name=name)(x)
      for name, x in (('classes', logits), ('offsets', offsets))
    },
    name='fpn_detector',
  )


# --- Transformer -------------------------------------------------------------


class CausalAttention(keras.layers.Layer):
  """Softmax attention of each position to those before it and to itself.

  Call arguments:
    inputs: Queries, keys and values, (batch, time, heads, features) each.

  Output shape:
    (batch, time, heads, features).
  """

  def call(self, inputs):
    ops = keras.ops
    queries, keys, values = inputs
    scores = ops.einsum('bqhd,bkhd->bhqk', queries, keys)
    scores *= queries.shape[-1] ** -0.5
    time = ops.arange(ops.shape(scores)[-1])
    past = time[:, None] >= time
    scores = ops.where(past, scores, float('-inf'))
    return ops.einsum('bhqk,bkhd->bqhd', ops.softmax(scores), values)


def attention(
  x: keras.KerasTensor,
  heads: int,
  make_query_key_norm: MakeNorm | None,
  make_output_norm: MakeNorm | None,
) -> keras.KerasTensor:
  """Causal attention of `x` to itself, (batch, time, width)."""
  width = x.shape[-1]

  def project():
    y = keras.layers.Dense(width, use_bias=False)(x)
    return keras.layers.Reshape((-1, heads, width // heads))(y)

  queries, keys, values = project(), project(), project()
  if make_query_key_norm is not None:
    queries = make_query_key_norm()(queries)
    keys = make_query_key_norm()(keys)
  y = CausalAttention()([queries, keys, values])
  if make_output_norm is not None:
    y = make_output_norm()(y, gate=project())
  y = keras.layers.Reshape((-1, width))(y)
  return keras.layers.Dense(width, use_bias=False)(y)


def transformer(
  make_norm: MakeNorm,
  make_query_key_norm: MakeNorm | None = None,
  make_output_norm: MakeNorm | None = None,
  *,
  vocabulary: int = 64,
  width: int = 128,
  heads: int = 4,
  blocks: int = 2,
) -> keras.Model:
  """A small language model, norms first, and with norms in its attention.

  It stands for no experiment of the paper, but for section 3.1's Layer Norm in
  the model that uses it most, and for groups where they are heads: `HeadNorm`
  normalizes each head at each position, and so never looks ahead, as a
  GroupNorm over time would. `ATTENTION` has three ways to fill the slots.

  Positions are not encoded, so texts may have any length. Causal attention can
  learn them from how much came before (Haviv et al., "Transformer Language
  Models without Positional Encodings Still Learn Positional Information",
  2022).

  Args:
    make_norm: Makes the norm before attention, before the MLP, and at the end.
    make_query_key_norm: Makes the norm of queries or keys, (batch, time, heads,
      features).
    make_output_norm: Makes the norm of what attention returns, of that shape
      too. It is called with `gate=`.
    vocabulary: Number of tokens, and of logits.
    width: Features of a position.
    heads: Attention heads.
    blocks: Blocks of attention and MLP.

  Returns:
    A model from tokens (batch, time) to the logits of those that follow.
  """
  tokens = keras.Input((None,), dtype='int32', name='tokens')
  x = keras.layers.Embedding(vocabulary, width)(tokens)
  for _ in range(blocks):
    y = attention(make_norm()(x), heads, make_query_key_norm, make_output_norm)
    x = keras.layers.Add()([x, y])
    y = keras.layers.Dense(4 * width, activation='gelu')(make_norm()(x))
    x = keras.layers.Add()([x, keras.layers.Dense(width)(y)])
  logits = keras.layers.Dense(vocabulary, name='logits')(make_norm()(x))
  return keras.Model(tokens, logits, name='transformer')


# --- Training on what is made here -------------------------------------------


def made_batch(
  model: keras.Model, batch_size: int, seed: int = 0
) -> tuple[Any, Any]:
  """Inputs and targets for one of the models above, drawn at random."""
  rng = np.random.default_rng(seed)
  if model.name == 'transformer':
    (vocabulary,) = model.output.shape[2:]
    # What comes next can be known: each text repeats 8 tokens.
    text = rng.integers(vocabulary, size=(batch_size, 8))
    text = np.tile(text, 8).astype('int32')
    return text[:, :-1], text[:, 1:]
  if model.name != 'fpn_detector':
    shape = (batch_size, *model.input.shape[1:])
    return (
      rng.normal(size=shape).astype('float32'),
      rng.integers(model.output.shape[-1], size=batch_size),
    )
  image, boxes = (model.input[name].shape[1:] for name in ('image', 'boxes'))
  edges = np.exp(rng.uniform(*np.log([0.03, 0.95]), (batch_size, boxes[0], 2)))
  corner = rng.uniform(size=edges.shape) * (1 - edges)
  classes = model.output['classes'].shape[-1]
  return (
    {
      'image': rng.normal(size=(batch_size, *image)).astype('float32'),
      'boxes': np.concatenate([corner, corner + edges], -1).astype('float32'),
    },
    {
      'classes': rng.integers(classes, size=(batch_size, boxes[0])),
      'offsets': rng.normal(size=(batch_size, *boxes)).astype('float32'),
    },
  )


def compile_model(model: keras.Model) -> None:
  """Loss and optimizer for one of the models above."""
  crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  if model.name == 'transformer':
    optimizer = keras.optimizers.Adam(1e-3)
  else:
    optimizer = keras.optimizers.SGD(3e-3, momentum=0.9)
  model.compile(
    optimizer,
    {'classes': crossentropy, 'offsets': keras.losses.Huber()}
    if model.name == 'fpn_detector'
    else crossentropy,
    # XLA has no `crop_and_resize`. The norms compile their kernels themselves.
    jit_compile=False,
  )
  # The first step that makes variables is traced twice.
  optimizer.build(model.trainable_variables)


def train(model: keras.Model, batch: tuple[Any, Any], steps: int):
  """Yields the loss of each step on the same batch."""
  for _ in range(steps):
    yield float(np.reshape(model.train_on_batch(*batch), -1)[0])


def peak_memory() -> float | None:
  """The most that was used so far, in GB: of a GPU, or of this process.

  `None` where Python does not know: it does not on Windows without a GPU. Linux
  starts to count at the peak of the process that started this one.
  """
  if tf.config.list_physical_devices('GPU'):
    return tf.config.experimental.get_memory_info('GPU:0')['peak'] / 1e9
  try:
    import resource  # Windows has none.
  except ImportError:
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # macOS counts bytes, others count kibibytes.
  return peak * (1 if sys.platform == 'darwin' else 1024) / 1e9


def describe_memory(peak: float | None) -> str:
  """What to print of `peak_memory`."""
  return 'memory not known' if peak is None else f'memory {peak:.2f} GB at most'


def build(options: flags.FlagValues) -> keras.Model:
  """The model that the flags ask for, at the paper's size."""
  if options.model == 'transformer':
    return transformer(*ATTENTION[options.attention])
  make_norm = norm_factory(options.norm, options.groups, options.batch_size)
  if options.model == 'resnet3d':
    return resnet3d(make_norm, input_shape=(options.frames, 224, 224, 3))
  return {'resnet50': resnet50, 'vgg16': vgg16, 'fpn': fpn_detector}[
    options.model
  ](make_norm)


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  flags.DEFINE_enum(
    'model',
    'resnet50',
    [*CONVOLUTIONAL, 'transformer'],
    'Which one.',
  )
  flags.DEFINE_enum(
    'norm',
    'group',
    list(NORMS),
    'Of all but the Transformer. none: only vgg16 can do without.',
  )
  flags.DEFINE_enum(
    'attention', 'head', list(ATTENTION), 'The norms of the Transformer.'
  )
  flags.DEFINE_integer(
    'frames', 32, 'Frames in a clip, for resnet3d.', lower_bound=1
  )
  flags.DEFINE_integer(
    'groups', 32, f'Of --norm=group, a divisor of {WIDTH}.', lower_bound=1
  )
  flags.DEFINE_integer('batch_size', 2, 'Samples in a batch.', lower_bound=1)
  flags.DEFINE_integer('steps', 3, 'Training steps.', lower_bound=1)
  for name in USERS:
    _refuse_where_unused(name)
  flags.register_multi_flags_validator(
    ['model', 'norm'],
    lambda given: given['norm'] != 'none' or given['model'] == 'vgg16',
    '--norm=none is for --model=vgg16. Choose another norm.',
  )
  flags.register_multi_flags_validator(
    ['norm', 'groups'],
    lambda given: given['norm'] == 'group' or not flags.FLAGS['groups'].present,
    '--groups is for --norm=group. Leave it out.',
  )
  flags.register_validator(
    'groups',
    lambda groups: WIDTH % groups == 0,
    f'must divide {WIDTH}, the least number of channels.',
  )


def _refuse_where_unused(name: str) -> None:
  """A flag that is given must not be ignored; left out, it may be."""
  flags.register_multi_flags_validator(
    ['model', name],
    lambda given: (
      given['model'] in USERS[name] or not flags.FLAGS[name].present
    ),
    f'--{name} is for --model={", ".join(USERS[name])}. Leave it out.',
  )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  options = flags.FLAGS
  keras.utils.set_random_seed(0)
  model = build(options)
  compile_model(model)
  batch = made_batch(model, options.batch_size)
  print(f'{model.name}: {model.count_params():,} parameters')
  for x in tf.nest.flatten(batch[0]):
    print(f'  on {x.dtype} {x.shape}')
  begin = time.perf_counter()
  for step, loss in enumerate(train(model, batch, options.steps), 1):
    seconds, begin = time.perf_counter() - begin, time.perf_counter()
    print(
      f'step {step}: loss {loss:.4f}, {seconds:.1f} s, '
      f'{describe_memory(peak_memory())}',
      flush=True,
    )


if __name__ == '__main__':
  define_flags()
  app.run(main)
