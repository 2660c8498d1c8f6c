"""The same losses and weights on one device and on several.

TensorFlow must know its devices before it starts, so this file is also the
program that the tests run in processes of their own: `python devices_test.py
ROLE` prints what came out there as JSON.
"""

import functools
import importlib
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf

import cases

STEPS = 6
BATCH = 8
# Before what the tests read, among all that TensorFlow has to say.
MARK = 'RESULTS '
# Sums of gradients in another order, over 6 steps with momentum.
TOLERANCE = {'rtol': 2e-5, 'atol': 2e-5}


# --- The program -------------------------------------------------------------


def data():
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (2 * BATCH, 6, 6, 3)).astype('float32')
  return x, x[:, :3].mean((1, 2, 3))[:, None]


def batches(size=BATCH):
  """Two batches of `BATCH`, over and over."""
  dataset = tf.data.Dataset.from_tensor_slices(data()).batch(size)
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA
  )
  return dataset.repeat().with_options(options)


def norm_layer(generation, norm):
  if norm == 'ours':
    return cases.layers_of(generation).GroupNorm(2)
  layers = importlib.import_module(generation).layers
  return {
    'batch': layers.BatchNormalization,
    'keras': layers.LayerNormalization,
  }[norm]()


def make_model(generation, norm):
  keras = importlib.import_module(generation)
  keras.utils.set_random_seed(0)
  return keras.Sequential(
    [
      keras.Input((6, 6, 3)),
      keras.layers.Conv2D(8, 3),
      norm_layer(generation, norm),
      keras.layers.ReLU(),
      keras.layers.Conv2D(8, 3),
      norm_layer(generation, norm),
      keras.layers.GlobalAveragePooling2D(),
      keras.layers.Dense(1),
    ]
  )


def sgd(generation, **options):
  keras = importlib.import_module(generation)
  return keras.optimizers.SGD(0.05, momentum=0.9, **options)


def outcome(losses, model):
  weights = [w.tolist() for w in model.get_weights()]
  return {'losses': [float(loss) for loss in losses], 'weights': weights}


def fit(
  strategy, generation, norm, *, size=BATCH, dataset=None, options=None, **how
):
  """What `fit` says after each step, or after each `steps_per_execution`."""
  keras = importlib.import_module(generation)
  with strategy.scope():
    model = make_model(generation, norm)
    model.compile(sgd(generation, **(options or {})), 'mse', **how)
  losses = []
  note = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: losses.append(logs['loss'])
  )
  history = model.fit(
    batches(size) if dataset is None else dataset,
    steps_per_epoch=STEPS * BATCH // size,
    shuffle=False,
    verbose=0,
    callbacks=[note] if dataset is None else None,
  )
  return outcome(losses or history.history['loss'], model)


def train_step(strategy, generation, norm, parts=1):
  """A model and a function of a batch per replica: a custom training loop.

  With `parts` the gradients of so many parts of a batch are added first.
  """
  with strategy.scope():
    model = make_model(generation, norm)
    optimizer = sgd(generation)
    optimizer.build(model.trainable_variables)
  weights = model.trainable_variables

  def step(x, y):
    total, sums = 0.0, None
    for a, b in zip(tf.split(x, parts), tf.split(y, parts), strict=True):
      with tf.GradientTape() as tape:
        loss = tf.reduce_sum((model(a, training=True) - b) ** 2) / BATCH
      gradients = tape.gradient(loss, weights)
      sums = (
        gradients
        if sums is None
        else [s + g for s, g in zip(sums, gradients, strict=True)]
      )
      total += loss
    optimizer.apply_gradients(zip(sums, weights, strict=True))
    return total

  @tf.function
  def run(iterator):
    losses = strategy.run(step, next(iterator))
    return strategy.reduce('SUM', losses, axis=None)

  return model, run


def loop(strategy, generation, norm, parts=1):
  model, run = train_step(strategy, generation, norm, parts)
  iterator = iter(strategy.experimental_distribute_dataset(batches()))
  return outcome([run(iterator) for _ in range(STEPS)], model)


def attempt(function, *args, **options):
  """What it returns, or the error it raises."""
  try:
    return function(*args, **options)
  except Exception as error:
    return {'error': type(error).__name__}


def here():
  """One device and two, in one process."""
  (cpu,) = tf.config.list_physical_devices('CPU')
  two = [tf.config.LogicalDeviceConfiguration()] * 2
  tf.config.set_logical_device_configuration(cpu, two)
  one, mirrored = (
    tf.distribute.get_strategy(),
    tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']),
  )
  for generation in cases.GENERATIONS:
    for norm in ('ours', 'batch'):
      name = f'{generation} {norm} '
      yield name + 'loop', loop(one, generation, norm)
      yield name + 'loop mirrored', loop(mirrored, generation, norm)
      yield name + 'loop in parts', loop(one, generation, norm, parts=4)
    name = f'{generation} ours '
    yield name + 'fit', fit(one, generation, 'ours')
    yield name + 'fit mirrored', fit(mirrored, generation, 'ours')
    together = {'steps_per_execution': STEPS}
    yield name + 'fit together', fit(one, generation, 'ours', **together)
    for norm in ('ours', 'keras'):
      yield (
        f'{generation} {norm} fit together mirrored',
        attempt(fit, mirrored, generation, norm, **together),
      )
  keras = importlib.import_module('keras')
  known = inspect.signature(keras.optimizers.Optimizer.__init__).parameters
  # The first Keras 3 versions cannot do it, and Keras 2 never could.
  if 'gradient_accumulation_steps' in known:
    options = {'gradient_accumulation_steps': 2}
    yield (
      'keras ours fit accumulated',
      fit(one, 'keras', 'ours', size=BATCH // 2, options=options),
    )


def worker():
  """One of two under MultiWorkerMirroredStrategy; `TF_CONFIG` says which."""
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  for generation in cases.GENERATIONS:
    for norm in ('ours', 'batch'):
      yield f'{generation} {norm} loop', loop(strategy, generation, norm)
    for norm in ('ours', 'keras'):
      # With a callback it would tell sums over the workers.
      yield (
        f'{generation} {norm} fit',
        attempt(fit, strategy, generation, norm, dataset=batches()),
      )


def server():
  """The coordinator under ParameterServerStrategy, one worker, one server."""
  cluster = tf.train.ClusterSpec(
    {name: [f'127.0.0.1:{free_port()}'] for name in ('worker', 'ps')}
  )
  servers = [
    tf.distribute.Server(cluster, job_name=name, task_index=0)
    for name in ('worker', 'ps')
  ]
  strategy = tf.distribute.ParameterServerStrategy(
    tf.distribute.cluster_resolver.SimpleClusterResolver(
      cluster, rpc_layer='grpc'
    )
  )
  coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
  for generation in cases.GENERATIONS:
    model, run = train_step(strategy, generation, 'ours')
    iterator = iter(coordinator.create_per_worker_dataset(batches))
    losses = []
    for _ in range(STEPS):
      loss = coordinator.schedule(run, args=(iterator,))
      coordinator.join()
      losses.append(loss.fetch())
    yield f'{generation} ours loop', outcome(losses, model)
    for norm in ('ours', 'keras'):
      dataset = batches()
      if generation == 'tf_keras':
        keras = importlib.import_module(generation)
        dataset = keras.utils.experimental.DatasetCreator(lambda _: batches())
      yield (
        f'{generation} {norm} fit',
        attempt(fit, strategy, generation, norm, dataset=dataset),
      )
  assert servers


# --- The tests ---------------------------------------------------------------


def free_port():
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


def start(role, **environment):
  """A process and the file that it writes to."""
  # Not a pipe: who waits for the first of two must not stop the other.
  out = tempfile.TemporaryFile('w+')
  process = subprocess.Popen(
    [sys.executable, '-W', 'ignore', __file__, role],
    env={
      **os.environ,
      **environment,
      'PYTHONPATH': os.pathsep.join(sys.path),
      'CUDA_VISIBLE_DEVICES': '-1',
    },
    stdout=out,
    stderr=subprocess.STDOUT,
  )
  return process, out


def finish(process, out):
  try:
    process.wait(timeout=300)
  finally:
    process.kill()
    out.seek(0)
    text = out.read()
    out.close()
  assert process.returncode == 0, text
  return json.loads(text.partition(MARK)[2].splitlines()[0])


def reduces_gradients(generation):
  """The first Keras 3 adds no gradients of replicas, whatever the layers."""
  keras = importlib.import_module(generation)
  return not keras.__version__.startswith('3.0.')


divided = pytest.mark.parametrize(
  'generation', [*filter(reduces_gradients, cases.GENERATIONS)]
)


@functools.cache
def results(role):
  """What the processes of a role print; a list of one for each."""
  if role != 'worker':
    return [finish(*start(role))]
  workers = [f'127.0.0.1:{free_port()}' for _ in range(2)]
  processes = []
  for i in range(2):
    task = {'cluster': {'worker': workers}, 'task': {'type': role, 'index': i}}
    processes.append(start(role, TF_CONFIG=json.dumps(task)))
  return [finish(*process) for process in processes]


def check(got, wanted):
  np.testing.assert_allclose(got['losses'], wanted['losses'], **TOLERANCE)
  check_weights(got, wanted)


def check_end(got, wanted):
  np.testing.assert_allclose(
    got['losses'][-1], wanted['losses'][-1], **TOLERANCE
  )
  check_weights(got, wanted)


def check_weights(got, wanted):
  for a, b in zip(got['weights'], wanted['weights'], strict=True):
    np.testing.assert_allclose(a, b, **TOLERANCE)


def difference(got, wanted):
  """The largest of the steps, of the loss on one device."""
  got, wanted = np.array(got['losses']), np.array(wanted['losses'])
  return float(np.max(np.abs(got / wanted - 1)))


@cases.both_kerases
def test_it_learns(generation):
  """What the others are compared with. `fit` tells means over the steps."""
  (one,) = results('here')
  for how in ('loop', 'fit'):
    losses = one[f'{generation} ours {how}']['losses']
    assert len(set(losses)) == STEPS and losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize('how', ['loop', 'fit'])
@divided
def test_mirrored(generation, how):
  (one,) = results('here')
  name = f'{generation} ours {how}'
  check(one[f'{name} mirrored'], one[name])


@cases.both_kerases
def test_steps_per_execution(generation):
  (one,) = results('here')
  check_end(
    one[f'{generation} ours fit together'], one[f'{generation} ours fit']
  )


@cases.both_kerases
def test_accumulated_gradients(generation):
  """Added over 4 parts of a batch they are those of the batch."""
  (one,) = results('here')
  name = f'{generation} ours loop'
  check(one[f'{name} in parts'], one[name])
  accumulated = one.get(f'{generation} ours fit accumulated')
  if accumulated is not None:
    check_weights(accumulated, one[f'{generation} ours fit'])


@divided
def test_several_workers(generation):
  (one,) = results('here')
  for each in results('worker'):
    check(each[f'{generation} ours loop'], one[f'{generation} ours loop'])


@cases.both_kerases
def test_a_parameter_server(generation):
  (one,) = results('here')
  (server,) = results('server')
  check(server[f'{generation} ours loop'], one[f'{generation} ours loop'])


@pytest.mark.parametrize(
  'role, how',
  [
    ('here', 'fit together mirrored'),
    ('worker', 'fit'),
    ('server', 'fit'),
  ],
)
@divided
def test_fit_does_what_it_does_with_layers_of_keras(generation, role, how):
  """Where `fit` fails, in Keras 3, it does so with `keras.layers` alone."""
  (one,) = results('here')
  for each in results(role):
    ours = each[f'{generation} ours {how}']
    theirs = each[f'{generation} keras {how}']
    if 'error' in theirs:
      assert generation == 'keras' and ours == theirs
    else:
      check_end(ours, one[f'{generation} ours fit'])


@divided
def test_table(generation, capsys):
  """How far losses are from those on one device, for docs/devices.md."""
  (one,) = results('here')
  first, _ = results('worker')
  rows = []
  for how in ('two replicas', 'two processes', 'batch in 4 parts'):
    gaps = []
    for norm in ('ours', 'batch'):
      name = f'{generation} {norm} loop'
      got = {
        'two replicas': one[f'{name} mirrored'],
        'two processes': first[name],
        'batch in 4 parts': one[f'{name} in parts'],
      }[how]
      gaps.append(difference(got, one[name]))
    rows.append((how, *gaps))
  with capsys.disabled():
    print(f'\n{generation:18} GroupNorm  BatchNormalization')
    for how, ours, batch in rows:
      print(f'{how:18}   {ours:7.1e}  {100 * batch:16.1f} %')
  for _, ours, batch in rows:
    assert ours < 2e-5 and batch > 0.05


if __name__ == '__main__':
  found = {'here': here, 'worker': worker, 'server': server}[sys.argv[1]]()
  print(MARK + json.dumps(dict(found)), flush=True)
  # Servers of a cluster do not end by themselves.
  os._exit(0)
