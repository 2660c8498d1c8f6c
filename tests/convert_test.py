"""`replace_batch_norm`: as if the code of a model had said GroupNorm."""

import importlib
import math
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

import cases
import tfgroupnorm
from tfgroupnorm import _checks

GROUPS = 4
IMAGE = (8, 8, 3)


def convert(model, **options):
  """Converts; a warning must come with it."""
  options = {'groups': GROUPS, 'verbose': False, **options}
  with pytest.warns(UserWarning, match='fine-tune the model'):
    return tfgroupnorm.replace_batch_norm(model, **options)


# --- Models of all kinds, each with either norm ------------------------------
# `make(keras, norm)`: `norm(**options)` makes a normalization layer.


def functional(keras, norm):
  x = inputs = keras.Input(IMAGE, name='image')
  x = keras.layers.Conv2D(8, 3, name='conv', use_bias=False)(x)
  y = keras.layers.ReLU()(norm(name='a', epsilon=1e-2)(x))
  y = norm(name='b', axis=1, scale=False)(keras.layers.Permute((3, 1, 2))(y))
  y = keras.layers.Permute((2, 3, 1))(y)
  y = norm(name='c', center=False)(keras.layers.Add(name='add')([x, y]))
  y = keras.layers.GlobalAveragePooling2D()(y)
  return keras.Model(inputs, keras.layers.Dense(3, name='head')(y))


def sequential(keras, norm):
  return keras.Sequential(
    [
      keras.Input(IMAGE),
      keras.layers.Conv2D(8, 3),
      norm(),
      keras.layers.Flatten(),
      keras.layers.Dense(12),
      norm(),
    ],
    name='in_a_row',
  )


def built_late(keras, norm):
  model = keras.Sequential([keras.layers.Conv2D(8, 3), norm()])
  model(np.zeros((1, *IMAGE), 'float32'))
  return model


def shared(keras, norm):
  """A norm, a layer and a model, each used twice and at two depths."""
  x = inputs = keras.Input(IMAGE)
  bn, conv = norm(), keras.layers.Conv2D(8, 3, padding='same')
  inner_input = keras.Input((8, 8, 8))
  inner = keras.Model(inner_input, keras.layers.ReLU()(bn(inner_input)))
  x = inner(bn(conv(x)))
  x = keras.layers.Conv2D(3, 1)(inner(x))
  return keras.Model(inputs, [bn(conv(x)), x])


def nested(keras, norm):
  inner = keras.Sequential(
    [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), norm()], name='inner'
  )
  middle = keras.Sequential([inner, keras.layers.ReLU(), norm()], name='middle')
  inputs = keras.Input(IMAGE)
  return keras.Model(inputs, norm()(middle(inputs)))


def many_ends(keras, norm):
  a, b = keras.Input(IMAGE, name='a'), keras.Input(IMAGE, name='b')
  x = keras.layers.Concatenate()([a, b])
  x = keras.layers.Conv2D(8, 3)(x)
  return keras.Model(
    {'a': a, 'b': b}, {'x': x, 'y': norm()(x), 'z': 2 * norm()(x) + 1}
  )


def wrapped(keras, norm):
  inputs = keras.Input(IMAGE)
  x = keras.layers.TimeDistributed(keras.layers.Dense(8))(inputs)
  x = keras.layers.TimeDistributed(norm())(x)
  if keras.__version__.startswith('3.0'):
    return keras.Model(inputs, x)  # Its wrappers hold no models.
  row = keras.Input((8, 8))
  block = keras.Model(row, norm()(keras.layers.Dense(8)(row)))
  return keras.Model(inputs, keras.layers.TimeDistributed(block)(x))


def with_operations(keras, norm):
  x = inputs = keras.Input(IMAGE)
  x = keras.layers.Lambda(lambda x: np.float32(2) * x, output_shape=IMAGE)(x)
  x = norm()(keras.layers.Conv2D(8, 3)(x) / 3)
  return keras.Model(inputs, x[:, 1:] - 1)


def in_inference(keras, norm):
  """Called with `training=False`, as one does to a frozen backbone."""
  x = inputs = keras.Input(IMAGE)
  x = keras.layers.Conv2D(8, 3)(x)
  backbone = keras.Model(inputs, norm()(x))
  backbone.trainable = False
  inputs = keras.Input(IMAGE)
  x = backbone(inputs, training=False)
  return keras.Model(inputs, norm()(x, training=False))


def _classes(keras, norm):
  class Block(keras.layers.Layer):
    """Layers as attributes, in lists, dicts and tuples."""

    def __init__(self, width, **kwargs):
      super().__init__(**kwargs)
      self.width = width
      self.convs = [keras.layers.Conv2D(width, 3) for _ in range(2)]
      self.norms = {'first': norm(), 'more': (norm(axis=-1), [norm()])}
      self.last = norm(name='last')

    def call(self, x):
      x = self.norms['first'](self.convs[0](x))
      x = self.norms['more'][0](self.convs[1](x))
      return self.last(self.norms['more'][1][0](x))

    def get_config(self):
      return {**super().get_config(), 'width': self.width}

  class Lazy(keras.layers.Layer):
    """Makes its norm in `build`."""

    def build(self, input_shape):
      self.inside = norm()
      self.inside.build(input_shape)
      super().build(input_shape)

    def call(self, x):
      return self.inside(x)

  class Model(keras.Model):
    def __init__(self):
      super().__init__()
      self.stem = keras.Sequential([keras.layers.Conv2D(8, 1), norm()])
      self.block = Block(8)
      self.graph = functional(keras, norm)
      self.lazy = Lazy()
      self.again = self.block.last

    def call(self, x):
      y = self.lazy(self.block(self.stem(x)))
      return self.graph(x), self.again(y)

    def get_config(self):
      return {}

  return Block, Lazy, Model


def with_blocks(keras, norm):
  block, lazy, _ = _classes(keras, norm)
  inputs = keras.Input(IMAGE)
  return keras.Model(inputs, lazy()(block(8)(inputs)))


def subclassed(keras, norm):
  model = _classes(keras, norm)[2]()
  model(np.zeros((1, *IMAGE), 'float32'))
  return model


MODELS = [
  functional,
  sequential,
  built_late,
  shared,
  nested,
  many_ends,
  wrapped,
  with_operations,
  in_inference,
  with_blocks,
  subclassed,
]
all_models = pytest.mark.parametrize('make', MODELS)


def norms(generation):
  """The two `norm` for `make`."""
  keras = importlib.import_module(generation)

  def group_norm(**options):
    return cases.layers_of(generation).GroupNorm(GROUPS, **options)

  return keras.layers.BatchNormalization, group_norm


def scrambled(model):
  """Every weight is drawn anew, those of the norms too."""
  rng = np.random.default_rng(0)
  model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
  return model


def kept_weights(model):
  """Of a model with BatchNormalization: all but the moving statistics."""
  return [
    value
    for weight, value in zip(model.weights, model.get_weights(), strict=True)
    if 'moving_' not in weight.name
  ]


def data(make):
  rng = np.random.default_rng(1)
  x = rng.normal(3, 2, (4, *IMAGE)).astype('float32')
  return {'a': x, 'b': x[::-1]} if make is many_ends else x


def flat(outputs):
  if isinstance(outputs, dict):
    return [np.asarray(outputs[key]) for key in sorted(outputs)]
  if isinstance(outputs, (list, tuple)):
    return [np.asarray(y) for y in outputs]
  return [np.asarray(outputs)]


def layer_names(model):
  """Of all depths, with what is connected to what."""
  names = []
  for layer in model.layers:
    names.append(layer.name)
    if hasattr(layer, 'layers'):
      names.append(layer_names(layer))
  return names


@all_models
@cases.both_kerases
def test_equals_the_model_written_with_group_norm(generation, make):
  keras = importlib.import_module(generation)
  batch_norm, group_norm = norms(generation)
  model = scrambled(make(keras, batch_norm))
  by_hand = make(keras, group_norm)
  by_hand.set_weights(kept_weights(model))
  x = data(make)
  weights, before = model.get_weights(), flat(model(x))
  names, config = layer_names(model), str(model.get_config())
  result = convert(model)
  for y, wanted in zip(flat(result(x)), flat(by_hand(x)), strict=True):
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-6)
  assert type(result) is type(model) and result.name == model.name
  assert layer_names(result) == names
  for a, b in zip(result.get_weights(), kept_weights(model), strict=True):
    np.testing.assert_array_equal(a, b)
  # The model itself is as before, and shares nothing.
  assert str(model.get_config()) == config and layer_names(model) == names
  shared_weights = {id(w) for w in model.weights} & {
    id(w) for w in result.weights
  }
  assert not shared_weights
  result.set_weights([np.zeros_like(w) for w in result.get_weights()])
  for a, b in zip(model.get_weights(), weights, strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(flat(model(x)), before, strict=True):
    np.testing.assert_array_equal(a, b)


# --- Keras' own models -------------------------------------------------------

APPLICATIONS = {
  'ResNet50': (32, 53),
  'ResNet50V2': (32, 49),
  'MobileNetV2': (32, 52),
  'MobileNetV3Small': (32, 34),
  'MobileNetV3Large': (32, 46),
  'EfficientNetB0': (32, 49),
  'DenseNet121': (32, 121),
  'ConvNeXtTiny': (32, 0),
  'InceptionV3': (75, 94),
}


def application(keras, name):
  size, _ = APPLICATIONS[name]
  make = getattr(keras.applications, name)
  return make(weights=None, input_shape=(size, size, 3), classes=3)


def graph(model):
  """Each layer of a functional model, with the names that it is fed by."""
  layers = model.get_config()['layers']
  return {layer['name']: str(layer['inbound_nodes']) for layer in layers}


def without_tensor_names(text):
  """Keras 3 numbers the tensors of a process in its configurations."""
  return re.sub(r'keras_tensor_?\d*', '', text)


@pytest.mark.parametrize('name', APPLICATIONS)
@cases.both_kerases
def test_applications(generation, name):
  keras = importlib.import_module(generation)
  keras.backend.clear_session()
  model = application(keras, name)
  bn = keras.layers.BatchNormalization
  old = {layer.name: layer for layer in model.layers}
  found = [layer for layer in model.layers if isinstance(layer, bn)]
  assert len(found) == APPLICATIONS[name][1]
  for layer in found:
    for weight in layer.weights[:2]:
      weight.assign(np.random.default_rng(0).uniform(0.5, 1, weight.shape))
  if found:
    result = convert(model, groups=32)
  else:
    result = tfgroupnorm.replace_batch_norm(model, verbose=False)
  assert [layer.name for layer in result.layers] == list(old)
  new_graph, old_graph = graph(result), graph(model)
  for layer in result.layers:
    before = old[layer.name]
    assert without_tensor_names(new_graph[layer.name]) == without_tensor_names(
      old_graph[layer.name]
    )
    weights = before.get_weights()
    if isinstance(before, bn):
      assert type(layer) is cases.layers_of(generation).GroupNorm
      channels = (before.gamma if before.scale else before.beta).shape[0]
      assert layer.groups == min(math.gcd(32, channels), channels // 2)
      assert layer.epsilon == before.epsilon
      weights = weights[:-2]
    else:
      assert type(layer) is type(before)
      config = layer.get_config()
      assert without_tensor_names(str(config)) == without_tensor_names(
        str(before.get_config())
      )
    for a, b in zip(layer.get_weights(), weights, strict=True):
      np.testing.assert_array_equal(a, b)
  assert not any(isinstance(layer, bn) for layer in result.layers)


@cases.both_kerases
def test_an_application_trains(generation):
  keras = importlib.import_module(generation)
  keras.utils.set_random_seed(0)
  model = convert(application(keras, 'MobileNetV3Small'), groups=32)
  rng = np.random.default_rng(0)
  x = rng.uniform(0, 255, (4, 32, 32, 3)).astype('float32')
  for layer in model.layers:
    if isinstance(layer, cases.layers_of(generation).GroupNorm):
      layer.jit_compile = False  # 34 compilations are not what is tested.
  model.compile(
    keras.optimizers.Adam(1e-3),
    'sparse_categorical_crossentropy',
    run_eagerly=True,
  )
  y = np.array([0, 1, 2, 0])
  losses = model.fit(x, y, epochs=3, verbose=0).history['loss']
  assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


# --- What comes out ----------------------------------------------------------


@cases.both_kerases
def test_a_model_without_batch_norm_is_equal(generation):
  keras = importlib.import_module(generation)

  def nothing(**options):
    return keras.layers.Activation('tanh', name=options.get('name'))

  for make in (functional, sequential, nested, many_ends):
    model = make(keras, nothing)
    with warnings.catch_warnings():
      warnings.simplefilter('error', UserWarning)  # Nothing to fine-tune.
      result = tfgroupnorm.replace_batch_norm(model, verbose=False)
    assert result is not model
    x = data(make)
    for y, wanted in zip(flat(result(x)), flat(model(x)), strict=True):
      np.testing.assert_array_equal(y, wanted)
    configs = [
      without_tensor_names(str(m.get_config())) for m in (result, model)
    ]
    assert configs[0] == configs[1]


@cases.both_kerases
def test_everything_else_of_a_norm_is_kept(generation):
  keras = importlib.import_module(generation)
  options = dict(
    name='norm',
    epsilon=1e-2,
    beta_initializer=keras.initializers.Constant(0.5),
    gamma_initializer='zeros',
    beta_regularizer=keras.regularizers.L2(0.25),
    gamma_constraint=keras.constraints.NonNeg(),
    trainable=False,
    dtype='mixed_float16',
  )
  model = keras.Sequential(
    [keras.Input((5, 8)), keras.layers.BatchNormalization(**options)]
  )
  new = convert(model).get_layer('norm')
  by_hand = cases.layers_of(generation).GroupNorm(GROUPS, **options)
  by_hand.build((None, 5, 8))
  wanted = {**by_hand.get_config(), 'axis': new.axis}
  assert new.axis in (-1, 2) and new.get_config() == wanted
  assert not new.trainable_variables and new.compute_dtype == 'float16'


@cases.both_kerases
def test_what_is_frozen_stays_frozen(generation):
  keras = importlib.import_module(generation)
  model = nested(keras, keras.layers.BatchNormalization)
  model.get_layer('middle').get_layer('inner').trainable = False
  model.get_layer('middle').get_layer('inner').layers[0].trainable = True
  result = convert(model)

  def trainable(model):
    return [
      (layer.trainable, trainable(layer) if hasattr(layer, 'layers') else None)
      for layer in model.layers
    ]

  assert trainable(result) == trainable(model)
  assert len(result.trainable_weights) == len(model.trainable_weights)


@cases.both_kerases
def test_a_compiled_model(generation):
  """The copy is not compiled, and no loss of the user's stands in the way."""
  keras = importlib.import_module(generation)
  model = functional(keras, keras.layers.BatchNormalization)
  model.compile('sgd', lambda y, z: keras.losses.mean_squared_error(y, z))
  optimizer = model.optimizer
  result = convert(model)
  assert getattr(result, 'optimizer', None) is None
  assert model.optimizer is optimizer
  x = data(functional)
  with pytest.raises((RuntimeError, ValueError), match='compile'):
    result.fit(x, np.zeros((4, 3)), verbose=0)
  model.fit(x, np.zeros((4, 3)), verbose=0)


@cases.both_kerases
def test_state_that_is_no_weight(generation):
  """What `adapt` has learnt."""
  keras = importlib.import_module(generation)
  lookup = keras.layers.StringLookup()
  lookup.adapt(np.array(['b', 'a', 'b']))
  scale = keras.layers.Normalization()
  scale.adapt(np.array([[1.0, 2.0], [5.0, 4.0]]))
  words = keras.Input((2,), dtype='string')
  x = keras.layers.Embedding(4, 8)(lookup(words))
  numbers = keras.Input((2,))
  y = keras.layers.BatchNormalization()(x)
  model = keras.Model([words, numbers], [y, scale(numbers)])
  result = convert(model)
  inputs = [tf.constant([['a', 'c']]), tf.constant([[2.0, 3.0]])]
  np.testing.assert_array_equal(model(inputs)[1], result(inputs)[1])
  kinds = keras.layers.StringLookup
  lookups = [
    layer(inputs[0])
    for m in (model, result)
    for layer in m.layers
    if isinstance(layer, kinds)
  ]
  np.testing.assert_array_equal(*lookups)
  assert np.any(lookups[0] != 0)


@cases.both_kerases
def test_subclasses_and_synchronized(generation):
  keras = importlib.import_module(generation)

  class Mine(keras.layers.BatchNormalization):
    pass

  model = keras.Sequential(
    [
      keras.Input((5, 8)),
      Mine(name='mine'),
      keras.layers.BatchNormalization(synchronized=True, name='all'),
    ]
  )
  result = convert(model)
  kinds = {type(layer).__qualname__ for layer in result.layers}
  assert kinds == {'GroupNorm'}


LOAD = """
import sys
import numpy as np
import tensorflow as tf

generation, layers, folder = sys.argv[1:]
x, wanted = np.load(folder + '/x.npy'), np.load(folder + '/y.npy')
serve = tf.saved_model.load(folder + '/exported').signatures['serving_default']
(y,) = serve(tf.constant(x)).values()
np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
__import__(layers)
model = __import__(generation).models.load_model(folder + '/model.keras')
y = model.predict(x, verbose=0)
np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
import tfgroupnorm
tfgroupnorm.replace_batch_norm(model)
assert generation == 'tf_keras' or 'tf_keras' not in sys.modules
"""


@cases.both_kerases
def test_trains_and_loads_in_a_fresh_process(generation, tmp_path):
  keras = importlib.import_module(generation)
  keras.utils.set_random_seed(0)
  model = convert(functional(keras, keras.layers.BatchNormalization))
  x = data(functional)
  model.compile(keras.optimizers.SGD(0.1), 'mse')
  targets = np.random.default_rng(0).normal(size=(4, 3))
  losses = model.fit(x, targets, epochs=8, verbose=0).history['loss']
  assert np.all(np.isfinite(losses)) and losses[-1] < 0.9 * losses[0]
  model.save(tmp_path / 'model.keras')
  model.export(str(tmp_path / 'exported'))
  np.save(tmp_path / 'x.npy', x)
  np.save(tmp_path / 'y.npy', model(x))
  layers = 'tfgroupnorm' if generation == 'keras' else 'tfgroupnorm.tf_keras'
  process = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', LOAD]
    + [generation, layers, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr


@cases.both_kerases
def test_weights_of_a_subclassed_model(generation, tmp_path):
  keras = importlib.import_module(generation)

  class Model(keras.Model):
    def __init__(self):
      super().__init__()
      self.conv = keras.layers.Conv2D(8, 3)
      self.norms = [keras.layers.BatchNormalization() for _ in range(2)]

    def call(self, x):
      return self.norms[1](keras.activations.relu(self.norms[0](self.conv(x))))

    def get_config(self):
      return {}

  model = Model()
  x = data(subclassed)
  model(x)
  result = scrambled(convert(model))
  result.save_weights(str(tmp_path / 'model.weights.h5'))
  y = result(x)  # Keras exports only what has been called.
  result.export(str(tmp_path / 'exported'))
  served = tf.saved_model.load(str(tmp_path / 'exported'))
  twin = convert(model)
  assert np.any(twin(x) != result(x))
  twin.load_weights(str(tmp_path / 'model.weights.h5'))
  np.testing.assert_array_equal(twin(x), result(x))
  np.testing.assert_allclose(served.serve(x), y, rtol=0, atol=1e-5)


# --- Groups that do not fit --------------------------------------------------


def one_norm(keras, shape, **options):
  norm = keras.layers.BatchNormalization(name='norm', **options)
  return keras.Sequential([keras.Input(shape), norm], name='one_norm')


@pytest.mark.parametrize(
  'shape, options, groups',
  [
    ((4, 24), {}, 8),
    ((4, 24), {'groups': 3}, 3),
    ((4, 24), {'groups': -1}, 24),
    ((4, 7), {}, 1),
    ((4, 24), {'group_size': 4}, 6),
    ((4, 24), {'group_size': 16}, 3),
    ((24,), {'groups': 3}, 3),
    ((24,), {'groups': 24}, 1),
    ((24,), {'groups': -1}, 1),
    ((64,), {'groups': 64}, 1),
    ((24,), {'group_size': 1}, 1),
    ((1, 1, 24), {'groups': 24}, 1),
    ((1, None, 24), {'groups': 24}, 12),
  ],
)
@cases.both_kerases
def test_groups(generation, shape, options, groups):
  keras = importlib.import_module(generation)
  options = {'groups': _checks.DEFAULT_GROUPS, **options}
  if 'group_size' in options:
    del options['groups']
  with pytest.warns(UserWarning, match='fine-tune'):
    result = tfgroupnorm.replace_batch_norm(
      one_norm(keras, shape), verbose=False, **options
    )
  norm = result.get_layer('norm')
  channels = shape[-1]
  assert (
    channels
    // (
      norm.group_size
      or channels // (channels if norm.groups == -1 else norm.groups)
    )
    == groups
  )
  x = np.random.default_rng(0).normal(3, 2, (2, *[n or 3 for n in shape]))
  y = np.asarray(result(x.astype('float32')))
  assert np.all(y.std(axis=-1) > 0.1)  # Not the same whatever comes.


@pytest.mark.parametrize(
  'shape, options',
  [
    ((4, 24), {'groups': 32}),
    ((4, 24), {'group_size': 16}),
    ((24,), {'groups': 24}),
    ((1, 1, 24), {'groups': -1}),
  ],
)
@cases.both_kerases
def test_indivisible(generation, shape, options):
  keras = importlib.import_module(generation)
  model = one_norm(keras, shape)
  with pytest.raises(ValueError, match="'norm'.*channels=24") as error:
    tfgroupnorm.replace_batch_norm(model, on_indivisible='error', **options)
  assert 'on_indivisible="gcd"' in str(error.value)
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    same = tfgroupnorm.replace_batch_norm(
      model, on_indivisible='skip', verbose=False, **options
    )
  kind = keras.layers.BatchNormalization
  assert type(same.get_layer('norm')) is kind
  for a, b in zip(same.get_weights(), model.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


# --- What is said ------------------------------------------------------------


@cases.both_kerases
def test_table(generation, capsys):
  keras = importlib.import_module(generation)
  model = keras.Sequential(
    [
      keras.Input((5, 8)),
      keras.layers.BatchNormalization(name='eight'),
      keras.Sequential(
        [keras.layers.Dense(6), keras.layers.BatchNormalization(name='six')],
        name='inside',
      ),
    ],
    name='outside',
  )
  with pytest.warns(UserWarning, match='1 BatchNorm.*"outside"'):
    tfgroupnorm.replace_batch_norm(model, groups=4, on_indivisible='skip')
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'Model: "outside"'
  rows = [
    [cell.strip() for cell in re.split('[│┃|]', line)[1:-1]] for line in lines
  ]
  assert ['eight', 'GroupNorm', '8', '4', '2'] in rows
  assert ['inside/six', '-', '6', '-', '-'] in rows
  told = []
  convert(model, verbose=False, print_fn=told.append)
  assert 'inside/six' in told[0] and not capsys.readouterr().out
  convert(model)
  assert not capsys.readouterr().out


def fails(kind, *words, model, **options):
  with pytest.raises(kind) as error:
    tfgroupnorm.replace_batch_norm(model, verbose=False, **options)
  for word in ('Received: ', *words):
    assert word in str(error.value), error.value


@cases.both_kerases
def test_errors(generation):
  keras = importlib.import_module(generation)
  bn = keras.layers.BatchNormalization
  model = one_norm(keras, (4, 8))
  fails(TypeError, 'model of Keras 3 or tf-keras', model=bn())
  fails(TypeError, 'model of Keras 3 or tf-keras', model=None)
  fails(ValueError, 'on_indivisible', model=model, on_indivisible='maybe')
  fails(ValueError, 'not both', model=model, groups=4, group_size=2)
  fails(TypeError, '`groups`', model=model, groups=2.0)
  fails(ValueError, '`group_size`', model=model, group_size=0)
  with pytest.raises(TypeError, match='`verbose`'):
    tfgroupnorm.replace_batch_norm(model, verbose='yes')
  late = keras.Sequential([keras.layers.Conv2D(8, 3), bn(name='late')])
  fails(ValueError, "'late'", 'not built', '`Input`', model=late)
  zero = one_norm(keras, (4, 8), epsilon=0)
  fails(ValueError, "'norm'", '`epsilon`', model=zero)


def test_several_axes():
  """Only Keras 2 has such a BatchNormalization."""
  import tf_keras

  model = one_norm(tf_keras, (4, 8), axis=[1, 2])
  fails(ValueError, "'norm'", 'axis=[1, 2]', 'single axis', model=model)


@cases.both_kerases
def test_models_that_cannot_be_copied(generation):
  keras = importlib.import_module(generation)

  class NeedsMore(keras.Model):
    def __init__(self, width, **kwargs):
      super().__init__(**kwargs)
      self.norm = keras.layers.BatchNormalization()

    def call(self, x):
      return self.norm(x)

    def get_config(self):
      return {}

  model = NeedsMore(object())
  model(np.zeros((2, 4, 8), 'float32'))
  fails(ValueError, 'NeedsMore', '`get_config`', model=model)


@cases.both_kerases
def test_functional_models_of_a_class(generation, capsys):
  """Made anew from a configuration of their own, or else plain ones."""
  keras = importlib.import_module(generation)

  class Graph(keras.Model):
    def __init__(self, width, **kwargs):
      inputs = keras.Input((4, width))
      inner = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
      super().__init__(inputs, inner(inputs), **kwargs)
      self.width, self.inner = width, inner
      self.head = keras.layers.BatchNormalization(name='head')
      self.head.build((None, 4, width))

  class Configured(Graph):
    def get_config(self):
      return {'width': self.width, 'name': self.name}

    @classmethod
    def from_config(cls, config):
      return cls(**config)

  x = np.random.default_rng(0).normal(1, 2, (2, 4, 8)).astype('float32')
  for kind in (Graph, Configured):
    model = scrambled(kind(8, name='mine'))
    same = tfgroupnorm.replace_batch_norm(
      model, groups=3, on_indivisible='skip', verbose=False
    )
    np.testing.assert_array_equal(same(x), model(x))
    with pytest.warns(UserWarning, match='2 BatchNormalization layers'):
      result = tfgroupnorm.replace_batch_norm(model, groups=GROUPS)
    said = capsys.readouterr().out
    plain = "Graph 'mine' cannot be made anew: its copy is a plain functional"
    assert (plain in said.replace('\n', ' ')) == (kind is Graph)
    assert (type(result) is kind) == (kind is Configured)
    group_norm = cases.layers_of(generation).GroupNorm
    assert type(result.head) is type(result.inner.layers[-1]) is group_norm
    assert result.name == 'mine' and result.inner in result.layers
    gamma, beta = model.inner.layers[-1].get_weights()[:2]
    by_hand = group_norm(GROUPS)
    by_hand.build((None, 4, 8))
    by_hand.set_weights([gamma, beta])
    np.testing.assert_allclose(result(x), by_hand(x), rtol=0, atol=1e-6)


@cases.both_kerases
def test_min_group_size(generation):
  """32 groups of 32 channels would be one channel a group."""
  keras = importlib.import_module(generation)

  def groups(channels, **options):
    model = one_norm(keras, (4, channels))
    norm = convert(model, **options).get_layer('norm')
    return norm.groups if norm.group_size is None else (norm.group_size,)

  for channels, options, wanted in [
    (32, {'groups': 32}, 16),
    (32, {'groups': 32, 'min_group_size': 1}, 32),
    (16, {'groups': 32}, 8),
    (24, {'groups': 32, 'min_group_size': 5}, 4),
    (7, {'groups': 32}, 7 // 7),
    (24, {'groups': -1}, -1),
    (64, {'groups': 32}, 32),
  ]:
    assert groups(channels, **options) == wanted, (channels, options)
  model = one_norm(keras, (4, 32))
  fails(
    ValueError,
    "'norm'",
    'min_group_size',
    model=model,
    groups=32,
    on_indivisible='error',
  )
  fails(ValueError, '`min_group_size`', model=model, min_group_size=0)
  fails(TypeError, '`min_group_size`', model=model, min_group_size=2.0)
