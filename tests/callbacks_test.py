"""ActivationPercentiles: what it reads is true, cheap, and disturbs nothing."""

import builtins
import contextlib
import importlib
import random
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import cases
import tfgroupnorm
from tfgroupnorm import callbacks
from tfgroupnorm.callbacks import ActivationPercentiles

PERCENTILES = (1, 20, 80, 99)


def data(count=48):
  rng = np.random.default_rng(0)
  return rng.normal(3, 2, (count, 6, 6, 4)).astype('float32'), (
    np.arange(count) % 3
  )


def block(module, ours):
  """Layers with all that a record could disturb."""
  return [
    module.layers.Conv2D(8, 3, name='conv', activity_regularizer='l2'),
    ours.GroupNorm(4, name='group', jit_compile=False),
    module.layers.Dropout(0.5),
    module.layers.BatchNormalization(name='batch'),
    module.layers.GlobalAveragePooling2D(),
    module.layers.Dense(3, activation='softmax'),
  ]


def make_model(generation, **options):
  module = importlib.import_module(generation)
  module.utils.set_random_seed(0)
  model = module.Sequential(
    [module.Input((6, 6, 4)), *block(module, cases.layers_of(generation))]
  )
  compile_model(model, module, **options)
  return model


def compile_model(model, module, **options):
  model.compile(
    module.optimizers.SGD(0.05),
    'sparse_categorical_crossentropy',
    metrics=['accuracy'],
    **options,
  )


def fit(model, *watching, count=48, epochs=2, **options):
  x, y = data(count)
  return model.fit(
    x,
    y,
    epochs=epochs,
    batch_size=8,
    verbose=0,
    callbacks=list(watching),
    **options,
  ).history


def features(model, layer, x):
  """What a layer returns, by a model of our own making."""
  module = keras if isinstance(model, keras.Model) else tf_keras
  reader = module.Model(model.inputs[0], model.get_layer(layer).output)
  return np.asarray(reader(x, training=False))


def two_inputs(module, declare):
  """A model whose inputs are not in the order of their names."""
  inputs = [module.Input((4,), name='zeta'), module.Input((6,), name='alpha')]
  x = module.layers.Concatenate()(inputs)
  x = module.layers.LayerNormalization(name='norm')(x)
  model = module.Model(declare(*inputs), module.layers.Dense(1)(x))
  model.compile(module.optimizers.SGD(0.0), 'mse')
  return model


def snapshots(module, layers, x):
  """A callback that keeps percentiles in `rows`, in the plainest way."""

  class Snapshots(module.callbacks.Callback):
    rows = []

    def on_train_begin(self, logs=None):
      self.keep()

    def on_train_batch_end(self, batch, logs=None):
      self.keep()

    def keep(self):
      self.rows.append(
        [
          np.percentile(features(self.model, layer, x), PERCENTILES)
          for layer in layers
        ]
      )

  return Snapshots()


@cases.both_kerases
def test_values(generation):
  """At each step those of the layers' outputs, for inference."""
  module = importlib.import_module(generation)
  x, _ = data(20)
  layers = ['conv', 'group', 'batch']
  watching = ActivationPercentiles(x, layers, update_freq='batch')
  wanted = snapshots(module, layers, x)
  fit(make_model(generation), watching, wanted, epochs=2)
  np.testing.assert_array_equal(watching.steps, range(13))
  assert list(watching.history) == layers
  values = np.stack(list(watching.history.values()), 1)
  assert values.shape == (13, 3, 4)
  np.testing.assert_allclose(values, wanted.rows, rtol=1e-4, atol=1e-5)
  assert np.all(np.diff(values, axis=2) > 0)
  assert np.all(values[0] != values[-1])


@cases.both_kerases
@pytest.mark.parametrize('eager', [False, True])
def test_disturbs_nothing(generation, eager):
  """The same training, bit for bit, and the same random numbers after it."""
  module = importlib.import_module(generation)

  class Noise(module.layers.Layer):
    """Draws, and counts its calls, when it should not, too."""

    def build(self, shape):
      self.calls = self.add_weight(
        name='calls', shape=(), initializer='zeros', trainable=False
      )
      if generation == 'keras':
        self.seeds = keras.random.SeedGenerator(1)
      super().build(shape)

    def call(self, x):
      self.calls.assign(self.calls + 1)
      if generation == 'keras':
        x = x + keras.random.normal(tf.shape(x), seed=self.seeds)
      return x

  def run(*watching):
    module.utils.set_random_seed(0)
    layers = block(module, cases.layers_of(generation))
    model = module.Sequential(
      [module.Input((6, 6, 4)), Noise(name='noise'), *layers]
    )
    compile_model(model, module, run_eagerly=eager)
    x, y = data(16)
    history = fit(model, *watching, count=24, epochs=2, validation_data=(x, y))
    noise = model.get_layer('noise')
    drawn = [random.random(), np.random.rand(), float(tf.random.uniform([]))]
    assert noise.calls.numpy() == 2 * (3 + 2)
    return history, model.get_weights(), drawn

  x, _ = data(16)
  history, weights, drawn = run()
  watching = ActivationPercentiles(x, update_freq=1)
  assert run(watching)[0] == history
  assert len(watching.steps) == 7
  _, weights_then, drawn_then = run(ActivationPercentiles(x))
  assert drawn_then == drawn
  for a, b in zip(weights, weights_then, strict=True):
    np.testing.assert_array_equal(a, b)


def nested(generation):
  """A model with a norm in a model, one in a layer, and one twice."""
  module = importlib.import_module(generation)
  ours = cases.layers_of(generation)

  class Block(module.layers.Layer):
    def __init__(self, **options):
      super().__init__(**options)
      self.norm = ours.LayerNorm(name='norm', jit_compile=False)

    def build(self, shape):
      self.norm.build(shape)
      super().build(shape)

    def call(self, x):
      return self.norm(x) + x

  inner_input = module.Input((6, 6, 4))
  inner = module.Model(
    inner_input,
    ours.GroupNorm(2, name='norm', jit_compile=False)(inner_input),
    name='inner',
  )
  inputs = module.Input((6, 6, 4))
  x = Block(name='block')(inner(inputs))
  shared = module.layers.BatchNormalization(name='shared')
  x = module.layers.GlobalAveragePooling2D()(shared(shared(x)))
  model = module.Model(inputs, module.layers.Dense(3, 'softmax')(x))
  compile_model(model, module)
  return model


@cases.both_kerases
def test_which_layers(generation):
  x, _ = data(8)

  def followed(layers):
    watching = ActivationPercentiles(x, layers, update_freq=100)
    model = nested(generation)
    fit(model, watching, count=8, epochs=1)
    return list(watching.history)

  norms = ['inner/norm', 'block/norm', 'shared']
  assert followed(None) == norms
  assert followed(['shared', 'block/norm']) == ['shared', 'norm']
  assert followed('block') == ['block']
  assert followed(lambda layer: layer.name.startswith('inner')) == ['inner']
  model = nested(generation)
  watching = ActivationPercentiles(x, model.get_layer('inner').layers[1])
  fit(model, watching, count=8, epochs=1)
  given = model.get_layer('inner').layers[1](x)
  np.testing.assert_allclose(
    watching.history['norm'][-1], np.percentile(given, PERCENTILES), rtol=1e-3
  )


DECLARED = {
  'list': lambda zeta, alpha: [zeta, alpha],
  'tuple': lambda zeta, alpha: (zeta, alpha),
  'dict': lambda zeta, alpha: {'zeta': zeta, 'alpha': alpha},
  # Where they differ, the keys count.
  'keys': lambda zeta, alpha: {'first': zeta, 'second': alpha},
}


@cases.both_kerases
@pytest.mark.parametrize('declared', DECLARED)
@pytest.mark.filterwarnings('ignore:When providing `inputs` as a dict')
def test_inputs_by_name(generation, declared):
  """A dict is taken as `fit` takes it, however the inputs were declared."""
  module = importlib.import_module(generation)
  rng = np.random.default_rng(0)
  zeta = rng.normal(0, 1, (8, 4)).astype('float32')
  alpha = rng.normal(5, 3, (8, 6)).astype('float32')
  targets = np.zeros((8, 1), 'float32')
  wanted = np.percentile(
    module.layers.LayerNormalization()(np.concatenate([zeta, alpha], 1)),
    PERCENTILES,
  )
  a, b = ('first', 'second') if declared == 'keys' else ('zeta', 'alpha')
  model = two_inputs(module, DECLARED[declared])
  for x in [{a: zeta, b: alpha}, {b: alpha, a: zeta}]:
    watching = ActivationPercentiles(x)
    model.fit(x, targets, verbose=0, callbacks=[watching])
    np.testing.assert_allclose(watching.history['norm'][0], wanted, rtol=1e-4)
  for bad, message in [
    ({a: zeta, 'beta': alpha}, f"of '{a}', 'beta', without '{b}'"),
    ({a: zeta}, f"a dict of '{a}', without '{b}'"),
    ({a: alpha, b: zeta}, r'Received: shape \(8, [46]\), \(8, [46]\)'),
  ]:
    with pytest.raises(ValueError, match=f'^`data` must.*{message}'):
      model.fit(x, targets, verbose=0, callbacks=[ActivationPercentiles(bad)])


@cases.both_kerases
@pytest.mark.filterwarnings('ignore:(?s).*The structure of `inputs`')
def test_sequential_input_by_name(generation):
  module = importlib.import_module(generation)
  model = module.Sequential(
    [
      module.Input((4,), name='zeta'),
      module.layers.LayerNormalization(name='norm'),
    ]
  )
  model.compile('sgd', 'mse')
  x = np.ones((8, 4), 'float32')
  watching = ActivationPercentiles({'zeta': x})
  model.fit({'zeta': x}, x, verbose=0, callbacks=[watching])
  assert len(watching.history['norm'])
  with pytest.raises(ValueError, match="a dict of 'eta', without 'zeta'"):
    model.fit(x, x, verbose=0, callbacks=[ActivationPercentiles({'eta': x})])


@cases.both_kerases
@pytest.mark.parametrize('wanted, given', [((1,), (8,)), ((6,), (8, 6, 1))])
def test_last_axis_of_one(generation, wanted, given):
  """Keras adds and drops it, so that columns of a table fit."""
  module = importlib.import_module(generation)
  inputs = module.Input(wanted)
  norm = module.layers.BatchNormalization(name='norm')
  model = module.Model(inputs, module.layers.Dense(1)(norm(inputs)))
  model.compile('sgd', 'mse')
  x = np.random.default_rng(0).normal(size=given).astype('float32')
  watching = ActivationPercentiles(x)
  model.fit(x, np.zeros((8, 1)), verbose=0, callbacks=[watching])
  np.testing.assert_allclose(
    watching.history['norm'][0], np.percentile(x, PERCENTILES), rtol=2e-3
  )


@cases.both_kerases
def test_subclassed_models(generation):
  """They have no graph of layers, and are built by the first step."""
  module = importlib.import_module(generation)

  class Model(module.Model):
    def __init__(self):
      super().__init__()
      self.blocks = block(module, cases.layers_of(generation))

    def call(self, x, training=None):
      for layer in self.blocks:
        x = layer(x, training=training) if layer.name == 'batch' else layer(x)
      return x

  module.utils.set_random_seed(0)
  model = Model()
  compile_model(model, module)
  x, _ = data(8)
  watching = ActivationPercentiles(x, update_freq=2)
  fit(model, watching, epochs=1)
  assert list(watching.history) == ['group', 'batch']
  assert watching.steps[-3:].tolist() == [2, 4, 6]
  y = x
  for layer in model.blocks[:4]:
    y = layer(y)
  np.testing.assert_allclose(
    watching.history['batch'][-1], np.percentile(y, PERCENTILES), rtol=1e-3
  )


@cases.both_kerases
# The first Keras 3, of several steps in one execution.
@pytest.mark.filterwarnings('ignore:Your input ran out of data')
def test_when(generation):
  x, _ = data(8)

  def steps(*fits, compiled=None, **options):
    watching = ActivationPercentiles(x, 'group', **options)
    model = make_model(generation, **(compiled or {}))
    for epochs in fits:
      fit(model, watching, epochs=epochs, validation_data=data(8))
    for rows in watching.history.values():
      assert rows.shape == (len(watching.steps), 4)
    return watching.steps.tolist()

  assert steps(2, update_freq=4) == [0, 4, 8, 12]
  assert steps(1, 2, update_freq=4) == [0, 4, 8, 12, 16]
  assert steps(2, 1, update_freq='epoch') == [0, 6, 12, 18]
  # The default: before the first step, and in the second half of a training
  # that is too short for more.
  first, *_, last = steps(2)
  assert first == 0 and 6 <= last <= 12
  together = steps(2, update_freq=1, compiled={'steps_per_execution': 3})
  assert together == [0, 3, 6, 9, 12]
  version = tuple(map(int, keras.__version__.split('.')[:2]))
  if generation == 'tf_keras' or version >= (3, 7):  # Others drop the rest.
    uneven = steps(2, update_freq=1, compiled={'steps_per_execution': 4})
    assert uneven == [0, 4, 6, 10, 12]


@pytest.mark.parametrize('update_freq', ['auto', 'epoch', 1])
# Keras says so of a dataset without batches.
@pytest.mark.filterwarnings('ignore:Your input ran out of data')
def test_training_without_steps(update_freq):
  """Nothing to record of a model that is not built; tf-keras rejects it."""
  x, y = data(8)
  model = keras.Sequential(block(keras, tfgroupnorm))
  compile_model(model, keras)
  watching = ActivationPercentiles(x, update_freq=update_freq)
  model.fit(x, y, epochs=0, callbacks=[watching])
  nothing = tf.data.Dataset.from_tensors((x, y)).take(0)
  empty = contextlib.nullcontext()
  if [*map(int, keras.__version__.split('.')[:2])] >= [3, 16]:
    empty = pytest.raises(ValueError, match='metric has not yet been built')
  with empty:
    model.fit(nothing, shuffle=False, verbose=0, callbacks=[watching])
  assert not watching.history and not watching.steps.size
  assert watching.share == 0
  # It follows the training that comes.
  fit(model, watching, epochs=1)
  assert watching.steps[-1] > 0


class Timed(ActivationPercentiles):
  """Measured from outside."""

  spent = 0.0

  def _timed(name):  # noqa: N805
    def hook(self, *args, **kwargs):
      start = time.perf_counter()
      getattr(super(), name)(*args, **kwargs)
      self.spent += time.perf_counter() - start

    return hook

  on_train_begin = _timed('on_train_begin')
  on_epoch_begin = _timed('on_epoch_begin')
  on_train_batch_end = _timed('on_train_batch_end')
  on_epoch_end = _timed('on_epoch_end')
  on_train_end = _timed('on_train_end')


def share_of_time(generation, max_share):
  """Of a training in which one record takes as long as several steps."""
  module = importlib.import_module(generation)
  x = np.random.default_rng(0).normal(size=(4096, 256)).astype('float32')
  # Keras is not told how many there are, which is the harder case.
  batches = tf.data.Dataset.from_tensors((x[:64], x[:64])).repeat(100)
  batches = batches.filter(lambda *_: True)

  watching = Timed(x, max_share=max_share)

  class Until(module.callbacks.Callback):
    """Stops when as much may have been spent as of a minute by default."""

    steps = 0

    def on_train_batch_end(self, batch, logs=None):
      self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
      enough = max(1.2, 6 * watching._setup_seconds) / max_share
      self.model.stop_training = time.perf_counter() - start > enough

  model = module.Sequential(
    [
      module.Input((256,)),
      module.layers.Dense(256),
      cases.layers_of(generation).GroupNorm(8, jit_compile=False),
      module.layers.Dense(256),
    ]
  )
  model.compile('sgd', 'mse')
  until = Until()
  start = time.perf_counter()
  model.fit(
    batches,
    epochs=10**6,
    shuffle=False,
    verbose=0,
    callbacks=[watching, until],
  )
  seconds = time.perf_counter() - start
  share = watching.spent / seconds
  np.testing.assert_allclose(watching.share, share, rtol=0.2, atol=0.002)
  # Without minding the time it would have been most of it.
  each = watching._record_seconds / len(watching.steps)
  assert each > 3 * (seconds - watching.spent) / until.steps
  assert len(watching.steps) > 2 and watching.steps[-1] > until.steps / 2
  return share


@cases.both_kerases
@pytest.mark.filterwarnings('ignore:Your input ran out of data')
def test_costs_no_more_than_it_may(generation):
  """A busy machine may slow the records: the best of three."""
  assert any(share_of_time(generation, 0.06) < 0.06 for _ in range(3))


class Clock:
  """In the place of `time`: it goes on when it is told to."""

  now = 0.0

  def perf_counter(self):
    return self.now


@pytest.mark.parametrize('minutes', [1, 10])
@pytest.mark.parametrize('told', [True, False])
@pytest.mark.parametrize('record', [0.001, 0.006, 0.02])
def test_costs_under_two_percent(monkeypatch, record, told, minutes):
  """By default, after a minute, for less than which no share is promised.

  Whether Keras is told how many steps there are, or not, and with records that
  take as long as half a step, 3 steps and 10.
  """
  clock, step, setup = Clock(), 0.002, 0.3
  monkeypatch.setattr(callbacks, 'time', clock)
  monkeypatch.setattr(callbacks.reading, 'wait', lambda model: None)
  watching = ActivationPercentiles(np.zeros((1, 2)))

  def read():
    clock.now += record
    return {'norm': np.arange(3.0)}

  def prepare():
    clock.now += setup
    return read

  monkeypatch.setattr(watching, '_prepare', prepare)
  watching.set_model(types.SimpleNamespace(built=True))
  steps = int(minutes * 60 / step)
  watching.set_params({'epochs': 1, 'steps': steps if told else None})
  watching.on_train_begin()
  watching.on_epoch_begin(0)
  for batch in range(steps):
    clock.now += step
    watching.on_train_batch_end(batch)
  watching.on_train_end()
  own = setup + record * len(watching.steps)
  assert own / clock.now < 0.02
  np.testing.assert_allclose(watching.share, own / clock.now, rtol=1e-6)
  assert 20 <= len(watching.steps) < steps / 20
  assert watching.steps[-1] > steps / 2


def test_records_grow_rarer(monkeypatch):
  """However cheap they are, a long training does not keep all of them."""
  watching = ActivationPercentiles(np.zeros((1, 2)))

  def record():
    watching._steps.append(watching._step)

  monkeypatch.setattr(watching, '_record', record)
  monkeypatch.setattr(watching, '_allowed', lambda records: True)
  record()
  for batch in range(50_000):
    watching.on_train_batch_end(batch)
  assert watching.steps[:300].tolist() == list(range(300))
  assert 1000 < len(watching.steps) < 4000
  assert np.all(np.diff(watching.steps) <= 107)


@cases.both_kerases
def test_mixed_precision(generation):
  module = importlib.import_module(generation)
  x, _ = data(8)
  module.utils.set_random_seed(0)
  half = module.Sequential(
    [
      module.Input((6, 6, 4)),
      module.layers.Conv2D(8, 3, dtype='mixed_float16', name='conv'),
      cases.layers_of(generation).GroupNorm(
        4, dtype='mixed_float16', name='group', jit_compile=False
      ),
      module.layers.GlobalAveragePooling2D(dtype='float32'),
      module.layers.Dense(3, activation='softmax'),
    ]
  )
  compile_model(half, module)
  seen = half(x), features(half, 'group', x)
  assert seen[1].dtype == np.float16
  watching = ActivationPercentiles(x, ['conv', 'group'])
  fit(half, watching, count=16, epochs=1)
  wanted = np.percentile(seen[1].astype('float32'), PERCENTILES)
  np.testing.assert_allclose(watching.history['group'][0], wanted, rtol=1e-3)
  assert np.all(np.isfinite(watching.history['conv']))


def test_large_features_are_sampled():
  """The same values each time, and enough of them to be right."""
  x = np.random.default_rng(0).normal(size=(8, 64, 64, 8)).astype('float32')
  model = keras.Sequential(
    [
      keras.Input((64, 64, 8)),
      keras.layers.Identity(name='same'),
      keras.layers.Conv2D(1, 64),
    ]
  )
  model.compile(keras.optimizers.SGD(0.0), 'mse')

  def record(**options):
    watching = ActivationPercentiles(x, 'same', update_freq=1, **options)
    model.fit(x, np.zeros((8, 1, 1, 1)), verbose=0, callbacks=[watching])
    first, second = watching.history['same']
    np.testing.assert_array_equal(first, second)
    return first

  exact = np.percentile(x, PERCENTILES)
  np.testing.assert_allclose(record(sample_size=x.size), exact, rtol=1e-6)
  sampled = record()
  assert np.all(sampled != exact)
  np.testing.assert_allclose(sampled, exact, rtol=0, atol=0.04)
  np.testing.assert_array_equal(record(), sampled)


@cases.both_kerases
def test_follows_a_condition_in_a_layer(generation):
  """A layer may be written with Python's `if`, which TensorFlow converts."""
  module = importlib.import_module(generation)

  class Half(module.layers.Layer):
    def call(self, x):
      if generation == 'tf_keras':  # Keras 3 leaves code as it is.
        if tf.reduce_mean(x) > 1.0:
          return x / 2.0
        return x
      return tf.cond(tf.reduce_mean(x) > 1.0, lambda: x / 2.0, lambda: x)

  inputs = module.Input((6, 6, 4))
  x = module.layers.GlobalAveragePooling2D()(Half(name='half')(inputs))
  model = module.Model(inputs, module.layers.Dense(3, 'softmax')(x))
  compile_model(model, module)
  x, _ = data(8)
  watching = ActivationPercentiles(x, 'half')
  fit(model, watching, count=16, epochs=1)
  wanted = np.percentile(x / 2, PERCENTILES)
  np.testing.assert_allclose(watching.history['half'][0], wanted, rtol=1e-5)


def scalars(path):
  """step, tag -> value, of all that was written there."""
  found = {}
  for record in tf.data.TFRecordDataset([str(path)]):
    event = tf.compat.v1.Event.FromString(record.numpy())
    for value in event.summary.value:
      assert value.metadata.plugin_data.plugin_name == 'scalars'
      found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
  return found


@cases.both_kerases
def test_tensorboard(generation, tmp_path, monkeypatch):
  """A run for each percentile; TensorBoard itself need not be installed."""
  importing = builtins.__import__

  def without_tensorboard(name, *args, **kwargs):
    assert name.partition('.')[0] != 'tensorboard'
    return importing(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without_tensorboard)
  x, _ = data(8)
  watching = ActivationPercentiles(x, update_freq=2, log_dir=tmp_path)
  with tf.summary.record_if(False):  # As Keras' TensorBoard does now and then.
    fit(make_model(generation), watching, epochs=1)
  runs = {
    folder.name: scalars(*folder.iterdir()) for folder in tmp_path.iterdir()
  }
  assert set(runs) == {'p1', 'p20', 'p80', 'p99'}
  for i, each in enumerate(PERCENTILES):
    wanted = {
      (step, f'features/{name}'): np.float32(row[i])
      for name, rows in watching.history.items()
      for step, row in zip([0, 2, 4, 6], rows, strict=True)
    }
    assert len(wanted) == 8 and runs[f'p{each}'] == pytest.approx(wanted)


@cases.both_kerases
def test_interrupted_training(generation, tmp_path, monkeypatch):
  """Its time and records count, and are not mixed with what comes after."""
  module = importlib.import_module(generation)
  now = [0.0]
  clock = types.SimpleNamespace(perf_counter=lambda: now[0])
  monkeypatch.setattr(callbacks, 'time', clock)

  class Interrupting(module.callbacks.Callback):
    """A step takes a second; the fifth is not finished, the first time."""

    def on_train_batch_begin(self, batch, logs=None):
      now[0] += 1
      if batch == 4 and now[0] < 9000:
        raise KeyboardInterrupt

  class Slow(ActivationPercentiles):
    """Prepares for long."""

    def _prepare(self):
      now[0] += 1000
      return super()._prepare()

    def _percentiles_of(self, values):
      now[0] += 1e-4
      return super()._percentiles_of(values)

  x, _ = data(8)
  watching = Slow(x, 'group', log_dir=tmp_path)
  model = make_model(generation)
  with pytest.raises(KeyboardInterrupt):
    fit(model, watching, Interrupting())
  first = watching.history['group']
  assert watching.steps.tolist() == list(range(5))
  own = 1000 + 5e-4
  np.testing.assert_allclose(watching.share, own / (own + 4))
  now[0] += 10_000
  np.testing.assert_allclose(watching.share, own / (own + 4))
  fit(model, watching, Interrupting())
  # As often as can be afforded: at each step, when they are so cheap.
  assert watching.steps.tolist() == list(range(17))
  np.testing.assert_array_equal(watching.history['group'][:5], first)
  own = 1000 + 17e-4
  np.testing.assert_allclose(watching.share, own / (own + 4 + 12))
  # A training closes the files that the last one left open.
  files = [[step for step, _ in scalars(x)] for x in tmp_path.glob('p1/*')]
  assert sorted(files) == [list(range(5)), list(range(5, 17))]


@cases.both_kerases
def test_interrupted_record(generation, monkeypatch):
  """Of a record there is all or nothing."""
  x, _ = data(8)
  watching = ActivationPercentiles(x, ['conv', 'group'], update_freq=1)
  percentiles_of = watching._percentiles_of
  calls = []

  def interrupted(values):
    calls.append(values)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return percentiles_of(values)

  monkeypatch.setattr(watching, '_percentiles_of', interrupted)
  model = make_model(generation)
  with pytest.raises(KeyboardInterrupt):
    fit(model, watching, epochs=1)
  assert watching.steps.tolist() == [0]
  fit(model, watching, epochs=1)
  assert watching.steps.tolist() == [0, *range(2, 8)]
  for rows in watching.history.values():
    assert rows.shape == (7, 4)
  assert 0 < watching.share < 1


@cases.both_kerases
@pytest.mark.parametrize(
  'eager, error', [(False, RuntimeError), (True, KeyboardInterrupt)]
)
def test_interrupted_model(generation, eager, error):
  """Left as it was, wherever in it a record broke off."""
  module = importlib.import_module(generation)
  ours = cases.layers_of(generation)

  class Trap(module.layers.Layer):
    armed = False

    def build(self, shape):
      self.calls = self.add_weight(
        name='calls', shape=(), initializer='zeros', trainable=False
      )
      super().build(shape)

    def call(self, x):
      self.calls.assign(self.calls + 1)
      if self.armed:
        raise error('trapped')
      return x

  def run(*watching):
    module.utils.set_random_seed(0)
    model = module.Sequential(
      [module.Input((6, 6, 4)), *block(module, ours)[:4], Trap(name='trap')]
    )
    for layer in block(module, ours)[4:]:
      model.add(layer)
    compile_model(model, module, run_eagerly=eager)
    trap = model.get_layer('trap')
    if watching:
      trap.armed = True
      before = [set(vars(layer)) for layer in model.layers]
      weights = model.get_weights()
      with pytest.raises((KeyboardInterrupt, ValueError), match='trapped'):
        fit(model, *watching, epochs=1)
      trap.armed = False
      # What was put around the layers is gone.
      assert [set(vars(layer)) for layer in model.layers] == before
      for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    history = fit(model, *watching, count=24, epochs=2)
    assert trap.calls.numpy() == 2 * 3
    return history, model.get_weights()

  x, _ = data(8)
  watching = ActivationPercentiles(x, update_freq=2)
  history, weights = run()
  history_then, weights_then = run(watching)
  assert history_then == history
  for a, b in zip(weights, weights_then, strict=True):
    np.testing.assert_array_equal(a, b)
  assert watching.steps.tolist() == [0, 2, 4, 6]
  assert list(watching.history) == ['group', 'batch']


def test_figure(tmp_path):
  x, _ = data(8)
  watching = ActivationPercentiles(x, update_freq=2)
  with pytest.raises(ValueError, match='There must be records to draw'):
    watching.plot()
  fit(make_model('keras'), watching, epochs=1)
  picture = watching.plot(tmp_path / 'picture.png')
  assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
  assert [axes.get_title() for axes in picture.axes] == ['group', 'batch']
  for axes in picture.axes:
    assert [line.get_label() for line in axes.lines] == [
      '1%',
      '20%',
      '80%',
      '99%',
    ]
    drawn = np.stack([line.get_ydata() for line in axes.lines], 1)
    np.testing.assert_array_equal(drawn, watching.history[axes.get_title()])
    for line in axes.lines:
      np.testing.assert_array_equal(line.get_xdata(), [0, 2, 4, 6])
  with pytest.raises(ValueError, match="Received: layer='conv'.*'group', 'bat"):
    watching.draw(picture.axes[0], 'conv')


@pytest.mark.parametrize('number', [1, 2, 3, 4, 5, 7])
def test_no_frame_without_a_curve(number):
  watching = ActivationPercentiles(np.zeros((1, 2)))
  watching._steps = [0, 1]
  watching._records = {
    f'norm_{i}': [np.zeros(4), np.ones(4)] for i in range(number)
  }
  picture = watching.plot()
  titles = [axes.get_title() for axes in picture.axes]
  assert titles == list(watching.history)
  assert all(len(axes.lines) == 4 for axes in picture.axes)


@cases.both_kerases
@pytest.mark.filterwarnings('ignore:Your input ran out of data')
@pytest.mark.parametrize('sizes', ['known', 'unknown'])
def test_a_short_training_has_twenty_records(generation, sizes, monkeypatch):
  """Whatever they cost, spread over it where its length is known."""
  monkeypatch.setattr(ActivationPercentiles, '_allowed', lambda *_, **__: False)
  x, y = data(8)
  model = make_model(generation)
  watching = ActivationPercentiles(x)
  batches = tf.data.Dataset.from_tensors((x, y)).repeat(50)
  if sizes == 'unknown':
    batches = batches.filter(lambda *_: True)
  options = {'shuffle': False, 'verbose': 0, 'callbacks': [watching]}
  model.fit(batches, epochs=1, **options)
  first = watching.steps
  assert 20 <= len(first) <= 50
  assert first[-1] > 40 and np.max(np.diff(first)) <= 25
  # And so has the next one.
  model.fit(batches, epochs=1, **options)
  assert 20 <= len(watching.steps) - len(first) <= 50


@pytest.mark.parametrize('planned', [None, 10_000])
def test_least_records_do_not_grow_with_the_steps(planned, monkeypatch):
  watching = ActivationPercentiles(np.zeros((1, 2)))
  monkeypatch.setattr(watching, '_allowed', lambda records: False)
  monkeypatch.setattr(
    watching, '_record', lambda: watching._steps.append(watching._step)
  )
  watching._planned = planned
  watching._record()
  for batch in range(10_000):
    watching.on_train_batch_end(batch)
  assert 20 <= len(watching.steps) <= 60
  if planned:
    assert np.max(np.diff(watching.steps)) <= 500


def test_without_matplotlib(monkeypatch):
  x, _ = data(8)
  watching = ActivationPercentiles(x)
  fit(make_model('keras'), watching, epochs=1)
  monkeypatch.setitem(
    importlib.import_module('sys').modules, 'matplotlib', None
  )
  with pytest.raises(ImportError, match='pip install matplotlib'):
    watching.plot()


X = np.ones((2, 6, 6, 4), 'float32')
AT_ONCE = [
  ({'percentiles': ()}, '`percentiles` must be numbers, one at least'),
  ({'percentiles': ('a',)}, '`percentiles` must be numbers'),
  ({'percentiles': (1, 101)}, 'between 0 and 100. Received: percentiles=.1, 1'),
  ({'percentiles': (-1,)}, 'between 0 and 100'),
  ({'percentiles': (float('nan'),)}, 'between 0 and 100'),
  ({'update_freq': 0}, 'one step or more. Received: update_freq=0'),
  ({'update_freq': 1.5}, '`update_freq` must be an integer'),
  ({'update_freq': True}, '`update_freq` must be an integer'),
  ({'update_freq': 'step'}, '"auto", "epoch", "batch" or a number'),
  ({'max_share': 0}, 'above 0 and at most 1. Received: max_share=0'),
  ({'max_share': 2}, 'Received: max_share=2'),
  ({'sample_size': 0}, '`sample_size` must be positive'),
  ({'layers': []}, '`layers` must have one layer at least'),
  ({'layers': [1]}, r'must be names, layers, or a function.*\[1\]'),
  ({'layers': 3}, 'must be names, layers, or a function'),
  ({'data': None}, 'one batch of inputs.*Received: NoneType'),
  (
    {'data': tf.data.Dataset.from_tensors(X)},
    r'take `next\(iter\(dataset\)\)\[0\]`',
  ),
]
AT_FIT = [
  ({'layers': 'grup'}, "Received: 'grup'.*Near: 'group'"),
  ({'layers': ['group', 'zzz']}, "Received: 'zzz'.*It has: .*'conv', 'group'"),
  (
    {'layers': tfgroupnorm.GroupNorm(2, name='other')},
    "Received: 'other', which is not in 'sequential",
  ),
  ({'layers': lambda layer: False}, 'a model without a layer that fits'),
  ({'data': X[:, :5]}, r'inputs of shape \(None, 6, 6, 4\). Received.*2, 5, 6'),
  ({'data': [X, X]}, r'Received: shape \(2, 6, 6, 4\), \(2, 6, 6, 4\)'),
]


@pytest.mark.parametrize('options, message', AT_ONCE)
def test_errors_at_once(options, message):
  with pytest.raises((ValueError, TypeError), match=f'(?s){message}'):
    ActivationPercentiles(**{'data': X, **options})


@cases.both_kerases
@pytest.mark.parametrize('options, message', AT_FIT)
def test_errors_before_training(generation, options, message):
  model = make_model(generation)
  watching = ActivationPercentiles(**{'data': X, **options})
  before = model.get_weights()
  with pytest.raises(ValueError, match=f'(?s){message}'):
    fit(model, watching)
  for a, b in zip(before, model.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


@cases.both_kerases
def test_errors_of_models(generation):
  module = importlib.import_module(generation)
  model = nested(generation)
  watching = ActivationPercentiles(X, 'norm')
  with pytest.raises(ValueError, match="'inner/norm', 'block/norm'. Give one"):
    fit(model, watching, count=8)
  plain = module.Sequential([module.Input((6, 6, 4)), module.layers.Flatten()])
  plain.compile('sgd', 'mse')
  with pytest.raises(ValueError, match='a model without a normalization layer'):
    plain.fit(X, X.reshape(2, -1), callbacks=[ActivationPercentiles(X)])
  watching = ActivationPercentiles(X, 'group')
  fit(make_model(generation), watching, epochs=1)
  with pytest.raises(ValueError, match='A callback follows one model'):
    fit(make_model(generation), watching, epochs=1)

  class Unused(module.Model):
    def __init__(self):
      super().__init__()
      self.used = module.layers.Dense(3, 'softmax', name='used')
      self.unused = module.layers.LayerNormalization(name='unused')
      self.looped = module.layers.LayerNormalization(name='looped')

    def build(self, shape):
      self.used.build((None, 4))
      self.unused.build(shape)
      self.looped.build(shape[1:])
      self.built = True

    def call(self, x, training=None):
      if x.shape[-2] != 6:
        raise RuntimeError('six, please')
      x = tf.map_fn(self.looped, x)
      if training:
        x = self.unused(x)
      return self.used(tf.reduce_mean(x, [1, 2]))

  for layers, batch, message in [
    ('unused', X, "must be called when the model is. Received: 'unused'"),
    ('looped', X, "outside of loops and branches. Received: 'looped'"),
    ('used', X[:, :, :5], 'must be callable on `data`.*six, please'),
  ]:
    model = Unused()
    compile_model(model, module)
    with pytest.raises(ValueError, match=f'(?s){message}'):
      fit(model, ActivationPercentiles(batch, layers), count=8)
    # What was put around the layers is gone.
    assert 'call' not in vars(model.looped)
  model = Unused()
  compile_model(model, module)
  with pytest.raises(ValueError, match='must be called when the model is'):
    fit(model, ActivationPercentiles(X, model.unused), count=8)
