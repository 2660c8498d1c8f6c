"""What training keeps in memory, ours beside Keras'.

  python benchmarks/memory.py [--layers=30] [--write]

Two tables, on the CPU of this machine (Linux):

1. What one layer keeps between forward and backward, besides its output, in T,
   the size of its input: by how much the process grows with each gradient tape
   that is kept alive. The input itself counts too: 1.0 is the least.
2. The peak of one training step of a stack of convolution, normalization and
   SiLU, in T of one feature map of 8 images: by how much a step with 9 images
   lets the process grow after a step with one.

Differences, because TensorFlow keeps memory that it has freed. Every
measurement has a process of its own.
"""

from __future__ import annotations

import gc
import json
import pathlib
import resource
import sys

import psutil
from absl import app, flags

import cases as c

RESULTS = pathlib.Path(__file__).parent / 'results'
LAYERS = flags.DEFINE_integer('layers', 30, 'How many in the stack.')
WRITE = flags.DEFINE_bool('write', False, 'Write results/memory.json.')

KEPT = [
  c.group(16, 56, 56, 256),
  c.group(16, 56, 56, 256, activation='silu'),
  c.instance(8, 128, 128, 64),
  c.layer(32, 512, 768),
  c.head(32, 512, 768),
]
FEATURES = (64, 64)  # Height and width, channels.


def _resident() -> int:
  gc.collect()
  return psutil.Process().memory_info().rss


def kept(case: c.Case, owner: str) -> float:
  """What one layer keeps, in T."""
  import tensorflow as tf

  function = {'ours': c.ours, 'keras': c.theirs}[owner](case)
  gamma, beta = (tf.ones(case.parameter_shape) for _ in range(2))
  alive = []

  def run():
    x = tf.random.normal(case.shape)
    with tf.GradientTape() as tape:
      tape.watch([x, gamma, beta])
      y = function(x, gamma, beta)
    alive.append((tape, y))

  for _ in range(4):  # Compiles, and uses up what was freed.
    run()
  before = _resident()
  for _ in range(4):
    run()
  return (_resident() - before) / 4 / case.bytes - 1  # Without y.


def peak(owner: str, jit_compile: bool, layers: int) -> float:
  """Peak of a training step of the stack, in T of a feature map."""
  import keras
  import tensorflow as tf

  import tfgroupnorm

  size, channels = FEATURES
  inputs = x = keras.Input((size, size, channels))
  for _ in range(layers):
    x = keras.layers.Conv2D(channels, 3, padding='same', use_bias=False)(x)
    if owner == 'ours':
      x = tfgroupnorm.GroupNorm(32, activation='silu')(x)
    else:
      x = keras.layers.GroupNormalization(32)(x)
      x = keras.layers.Activation('silu')(x)
  model = keras.Model(inputs, x)
  variables = [weight.value for weight in model.trainable_weights]

  @tf.function(jit_compile=jit_compile, autograph=False)
  def step(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(tf.square(model(x)))
    return tape.gradient(loss, variables)

  def highest(images):
    step(tf.random.normal((images, size, size, channels)))
    # The high-water mark of this process.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  one = highest(1)  # First: it cannot fall.
  return (highest(9) - one) / (4 * 8 * size**2 * channels)


def main(_):
  results: dict = {'kept': [], 'peak': []}
  print(f'{"kept, in T":32}{"ours":>8}{"keras":>8}')
  for case in KEPT:
    row = {who: c.alone(kept, case, who) for who in ('ours', 'keras')}
    results['kept'].append({'case': case.name, **row})
    print(f'{case.name:32}{row["ours"]:8.2f}{row["keras"]:8.2f}', flush=True)
  print(f'\n{f"peak of {LAYERS.value} layers, in T":32}{"ours":>8}{"keras":>8}')
  for jit_compile in (False, True):
    row = {
      who: c.alone(peak, who, jit_compile, LAYERS.value)
      for who in ('ours', 'keras')
    }
    name = 'step compiled' if jit_compile else 'step in a graph'
    results['peak'].append({'step': name, 'layers': LAYERS.value, **row})
    print(f'{name:32}{row["ours"]:8.1f}{row["keras"]:8.1f}', flush=True)
  if WRITE.value:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / 'memory.json').write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  app.run(main)
