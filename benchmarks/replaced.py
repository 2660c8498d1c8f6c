"""Times models of KerasHub before and after `replace_keras_norms`.

A step of training and a call of the SavedModel, in turns, median of some. In
an environment with the extra `hub`, on an idle machine: prints the rows of the
second table of docs/models.md.
"""

import os
import statistics
import sys
import tempfile
import time
import warnings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import keras
import keras_hub
import tensorflow as tf

import tfgroupnorm
from tfgroupnorm import _comparing

STEPS = 7


def bert():
  return keras_hub.models.BertBackbone(
    vocabulary_size=1000,
    num_layers=4,
    num_heads=4,
    hidden_dim=256,
    intermediate_dim=1024,
    max_sequence_length=128,
  ), 128


def vit():
  return keras_hub.models.ViTBackbone(
    image_shape=(96, 96, 3),
    patch_size=8,
    num_layers=4,
    num_heads=4,
    hidden_dim=256,
    mlp_dim=1024,
  ), 96


def convnext():
  return keras.applications.ConvNeXtTiny(
    weights=None, input_shape=(64, 64, 3), classes=10
  ), 64


def vae():
  from keras_hub.src.models.vae.vae_backbone import VAEBackbone

  model = VAEBackbone(
    [64, 128], [1, 1], [128, 64], [1, 1], sampler_method='mode'
  )
  return model, 64


def batch_of(model, size):
  return tf.nest.map_structure(
    lambda x: tf.repeat(
      _comparing.made_up(tuple(x.shape), x.dtype, size), 2, axis=0
    ),
    model.input,
  )


def compiled(model, batch):
  weights = [w.value for w in model.trainable_weights]

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      outputs = tf.nest.flatten(model(batch, training=True))
      loss = tf.add_n([tf.reduce_mean(y**2) for y in outputs])
    gradients = tape.gradient(loss, weights, unconnected_gradients='zero')
    for weight, gradient in zip(weights, gradients, strict=True):
      weight.assign_sub(1e-4 * tf.convert_to_tensor(gradient))
    return loss

  return step


def served(model, batch, folder):
  tfgroupnorm.export_saved_model(model, folder)
  loaded = tf.saved_model.load(folder)
  flat = tf.nest.flatten(batch)
  names = list(
    loaded.signatures['serving_default'].structured_input_signature[1]
  )
  function = loaded.signatures['serving_default']
  by_name = {
    x.name: tensor
    for x, tensor in zip(tf.nest.flatten(model.input), flat, strict=True)
  }
  given = {name: by_name.get(name, flat[0]) for name in names}
  return (lambda: function(**given)), loaded


def medians(functions):
  """In milliseconds, called in turns, after three calls each."""
  times = [[] for _ in functions]
  for turn in range(STEPS + 3):
    for function, found in zip(functions, times, strict=True):
      begin = time.perf_counter()
      tf.nest.map_structure(lambda x: x.numpy(), function())
      if turn >= 3:
        found.append(1e3 * (time.perf_counter() - begin))
  return [statistics.median(found) for found in times]


def row(make):
  steps, calls, kept = [], [], []
  for replace in (False, True):
    keras.utils.set_random_seed(0)
    model, size = make()
    batch = batch_of(model, size)
    if replace:
      tfgroupnorm.replace_keras_norms(model, verbose=False)
    folder = os.path.join(tempfile.mkdtemp(), 'served')
    call, loaded = served(model, batch, folder)
    steps.append(compiled(model, batch))
    calls.append(call)
    kept += [model, loaded]
  before, after = medians(steps)
  slow, fast = medians(calls)
  return (
    f'| `{make.__name__}` | {before:.0f} | {after:.0f} | {after / before:.2f} '
    f'| {slow:.1f} | {fast:.1f} | {fast / slow:.2f} |'
  )


if __name__ == '__main__':
  warnings.simplefilter('ignore')
  made = {make.__name__: make for make in (bert, vit, convnext, vae)}
  for name in sys.argv[1:] or made:
    print(row(made[name]), flush=True)
