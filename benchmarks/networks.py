"""Whole networks, with our norms, with those of Keras, or with BatchNorm.

  python benchmarks/networks.py [--networks=unet] [--write_networks]

How fast they are on this CPU: each contender in a process of its own, in turns,
by `train_on_batch` and `predict_on_batch` as Keras compiles them by default.
What is printed are ratios to ours: how many times as long the first step took,
the later ones, a prediction, and a call of the SavedModel with a batch of 1 and
of 8, of a ResNet-50 for images of 224 pixels; and how high memory went while
they trained. And after how many steps ours have made up for a longer first one.

`xla_cost.py --whole` compiles the same for GPUs and TPUs.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from absl import app, flags

import cases as c

HERE = pathlib.Path(__file__).parent
NETWORKS = flags.DEFINE_list('networks', '', 'Which; all by default.')
TURNS = flags.DEFINE_integer('turns', 3, 'How often everybody takes a turn.')
STEPS = flags.DEFINE_integer('steps', 3, 'Steps in a turn.')
WRITE_NETWORKS = flags.DEFINE_bool(
  'write_networks', False, 'Write results/networks.json.'
)

OWNERS = ('ours', 'keras', 'batch')


# --- Networks ----------------------------------------------------------------


def _norm(owner: str, kind: str) -> Callable:
  """Makes the norm of `owner` where a network wants one of this kind."""
  import keras

  import tfgroupnorm

  return {
    ('ours', 'group'): functools.partial(tfgroupnorm.GroupNorm, 32),
    ('keras', 'group'): functools.partial(keras.layers.GroupNormalization, 32),
    ('batch', 'group'): keras.layers.BatchNormalization,
    ('ours', 'layer'): tfgroupnorm.LayerNorm,
    ('keras', 'layer'): keras.layers.LayerNormalization,
    ('ours', 'head'): functools.partial(
      tfgroupnorm.HeadNorm, head_axis=-2, per_head=False
    ),
    ('keras', 'head'): keras.layers.LayerNormalization,
  }[owner, kind]


def resnet50(owner: str, size: int = 128):
  import models

  return models.resnet50(_norm(owner, 'group'), input_shape=(size, size, 3))


def unet(owner: str, size: int = 64, width: int = 64):
  """As those of diffusion models: residual blocks on three resolutions."""
  import keras

  layers, make_norm = keras.layers, _norm(owner, 'group')

  def norm_and_silu(x):
    if owner == 'ours':  # It has this option.
      return make_norm(activation='silu')(x)
    return layers.Activation('silu')(make_norm()(x))

  def block(x, channels):
    y = x
    for _ in range(2):
      y = layers.Conv2D(channels, 3, padding='same')(norm_and_silu(y))
    if x.shape[-1] != channels:
      x = layers.Conv2D(channels, 1)(x)
    return layers.Add()([x, y])

  image = keras.Input((size, size, 3))
  x = layers.Conv2D(width, 3, padding='same')(image)
  skips = []
  for times in (1, 2, 4):
    x = block(x, width * times)
    skips.append(x)
    x = layers.AveragePooling2D(2)(x)
  x = block(x, 4 * width)
  for times in (4, 2, 1):
    x = layers.Concatenate()([layers.UpSampling2D(2)(x), skips.pop()])
    x = block(x, width * times)
  x = layers.Conv2D(3, 3, padding='same')(layers.Activation('silu')(x))
  return keras.Model(image, x)


def transformer(owner: str, width: int = 512, blocks: int = 6, heads: int = 8):
  import models

  return models.transformer(
    _norm(owner, 'layer'),
    _norm(owner, 'head'),
    width=width,
    blocks=blocks,
    heads=heads,
  )


# name: (maker, shape of the input, how many tokens or `None`, owners)
ALL: dict[str, tuple[Callable, Sequence[int], int | None, Sequence[str]]] = {
  'resnet50': (resnet50, (4, 128, 128, 3), None, OWNERS),
  'unet': (unet, (4, 64, 64, 3), None, OWNERS),
  'transformer': (transformer, (4, 128), 64, OWNERS[:2]),
}


def _batch(model, shape, tokens):
  import numpy as np

  random = np.random.default_rng(0)
  if tokens:
    x = random.integers(tokens, size=shape, dtype='int32')
    return x, x
  x = random.normal(size=shape).astype('float32')
  if len(model.output_shape) == 2:
    return x, np.arange(shape[0])
  return x, x


# --- For compilers of devices that are not here -------------------------------


def full_size(name: str):
  """(maker, shape of a batch, how many tokens), of images of a usual size."""
  make, shape, tokens, _ = ALL[name]
  if name == 'resnet50':
    return functools.partial(make, size=224), (8, 224, 224, 3), tokens
  return make, (8, 512) if tokens else shape, tokens


def full_model(name: str, owner: str, policy: str):
  """(model, shape of a batch, dtype of a batch)"""
  import keras

  keras.config.set_dtype_policy(policy)
  sys.path.append(str(HERE.parent / 'examples'))
  make, shape, tokens = full_size(name)
  return make(owner), shape, 'int32' if tokens else 'float32'


def loss_of(model, x, weights, rest):
  """As a training step has it, of any labels."""
  import keras

  y, _ = model.stateless_call(weights, rest, x, training=True)
  labels = keras.ops.zeros(y.shape[:-1], 'int32')
  return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, y)


def write_stablehlo(
  name: str, owner: str, policy: str, platform: str, path: str
) -> None:
  """Writes a training step, of all its weights."""
  os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
  import tensorflow as tf

  model, shape, dtype = full_model(name, owner, policy)
  rest = [w.numpy() for w in model.non_trainable_weights]

  def step(x, *weights):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = loss_of(model, x, list(weights), rest)
    return [loss, *tape.gradient(loss, weights)]

  weights = [tf.constant(w.numpy()) for w in model.trainable_weights]
  text = c.lower(step, [tf.zeros(shape, dtype), *weights], platform)
  pathlib.Path(path).write_text(text)


# --- A contender -------------------------------------------------------------


def _served(name: str, owner: str) -> dict[str, Callable]:
  """Calls of its SavedModel, by the size of the batch."""
  import tensorflow as tf

  make, shape, tokens = full_size(name)
  model = make(owner)
  with tempfile.TemporaryDirectory() as folder:
    model.export(folder, verbose=False)
    loaded = tf.saved_model.load(folder)

  def serve(x):
    return loaded.serve(x)  # Which lives as long as `loaded`.

  calls = {}
  for batch in (1, 8):
    x, _ = _batch(model, (batch, *shape[1:]), tokens)
    calls[f'served {batch}'] = functools.partial(serve, tf.constant(x))
  return calls


def _serve(name: str, owner: str, pipe) -> None:
  """Answers what it is asked for: a pass, seconds of `STEPS` of it."""
  sys.path.append(str(HERE.parent / 'examples'))
  import keras
  import tensorflow as tf

  # What is paid once a process is not a network's.
  tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros([]))
  keras.utils.set_random_seed(0)
  make, shape, tokens, _ = ALL[name]
  model = make(owner)
  x, y = _batch(model, shape, tokens)
  if len(model.output_shape) == 2 or tokens:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  else:
    loss = 'mse'
  model.compile(keras.optimizers.SGD(1e-3), loss)
  steps: dict[str, Callable] = {
    'step': lambda: model.train_on_batch(x, y),
    'predict': lambda: model.predict_on_batch(x),
  }
  pipe.send('ready')
  while True:
    try:
      which, count = pipe.recv()
    except EOFError:  # Nobody asks any more.
      return
    if which == 'peak':  # In GB: the high-water mark of this process.
      pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
      continue
    if which.startswith('served') and which not in steps:
      steps |= _served(name, owner)
    times = []
    for _ in range(count):
      begin = time.perf_counter()
      steps[which]()
      times.append(time.perf_counter() - begin)
    pipe.send(times)


def _started(name: str) -> dict:
  """A pipe to a process of each owner, all of them waiting with a model."""
  context = multiprocessing.get_context('spawn')
  pipes = {}
  for owner in ALL[name][-1]:
    pipes[owner], other = context.Pipe()
    context.Process(
      target=_serve, args=(name, owner, other), daemon=True
    ).start()
    other.close()
  for pipe in pipes.values():
    pipe.recv()
  return pipes


def measure(name: str, turns: int, count: int) -> dict:
  """{what: {owner: number}}."""

  def best(rounds):
    return {o: min(r[o] for r in rounds) for o in ALL[name][-1]}

  def ask(owner, *question):
    pipes[owner].send(question)
    return pipes[owner].recv()

  first_steps = []
  for _ in range(turns):  # A process has but one first step.
    pipes = _started(name)
    first_steps.append({o: ask(o, 'step', 1)[0] for o in pipes})
  results = {'first step': best(first_steps)}
  for which in ('step', 'peak', 'predict', 'served 1', 'served 8'):
    if which == 'peak':
      results['peak'] = {o: ask(o, 'peak', 0) for o in pipes}
      continue
    for owner in pipes:  # Warm.
      ask(owner, which, 2)
    rounds = [
      {o: statistics.median(ask(o, which, count)) for o in pipes}
      for _ in range(turns)
    ]
    results[which] = best(rounds)
  return results


def paid_off(first: dict[str, float], step: dict[str, float]) -> dict[str, int]:
  """{owner: after how many steps ours have taken less time}, if they do."""
  return {
    owner: max(1, math.ceil((first['ours'] - first[owner]) / gain))
    for owner in first
    if (gain := step[owner] - step['ours']) > 0
  }


def main(_):
  rows = []
  for name in NETWORKS.value or ALL:
    results = measure(name, TURNS.value, STEPS.value)
    for what, found in results.items():
      ratios = {o: round(v / found['ours'], 2) for o, v in found.items()}
      rows.append({'network': name, 'what': what, 'times_ours': ratios})
      shown = '  '.join(
        f'{owner} {value:6.3f} ({ratios[owner]:.2f})'
        for owner, value in found.items()
      )
      print(f'{name:12}{what:12}{shown}', flush=True)
    steps = paid_off(results['first step'], results['step'])
    rows.append({'network': name, 'what': 'paid off', 'steps': steps})
    print(f'{name:12}{"paid off":12}{steps}', flush=True)
  if WRITE_NETWORKS.value:
    path = HERE / 'results' / 'networks.json'
    now = {row['network'] for row in rows}
    rows += [r for r in json.loads(path.read_text()) if r['network'] not in now]
    rows.sort(key=lambda row: list(ALL).index(row['network']))
    path.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  sys.path.insert(0, str(HERE.parent))
  app.run(main)
