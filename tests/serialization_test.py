"""Configurations, files and weights survive a round trip."""

import importlib
import json
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import cases
import reference

# Both Kerases advise against files that users still have.
pytestmark = pytest.mark.filterwarnings(
  'ignore:You are saving your model as an HDF5 file:UserWarning'
)


def build_model(case, generation, **options):
  module = importlib.import_module(generation)
  inputs = module.Input(case.unknown_shape()[1:], name='x')
  model = module.Model(inputs, case.layer(generation, **options)(inputs))
  _, gamma, beta = case.data()
  model.set_weights([gamma] if beta is None else [gamma, beta])
  return model


@cases.all_cases
@cases.both_kerases
def test_config(case, generation):
  """The same before and after build, plain JSON, and enough to rebuild."""
  layer = case.layer(generation, epsilon=1e-4, name='norm')
  before = layer.get_config()
  layer(case.data()[0])
  assert layer.get_config() == before
  assert json.loads(json.dumps(before)) == before
  for key, value in {**case.options, 'epsilon': 1e-4}.items():
    # Keras 2 calls silu by its other name.
    assert before[key] == value or (value, before[key]) == ('silu', 'swish')
  twin = type(layer).from_config(before)
  assert twin.get_config() == before
  assert type(twin) is type(layer)


@cases.both_kerases
def test_config_of_everything(generation):
  module = importlib.import_module(generation)
  layer = cases.layers_of(generation).GroupNorm(
    group_size=4,
    beta_initializer=module.initializers.Constant(0.5),
    gamma_initializer='zeros',
    gamma_regularizer=module.regularizers.L2(0.25),
    beta_constraint=module.constraints.NonNeg(),
    activation='silu',
    jit_compile=False,
    trainable=False,
    dtype='float64',
  )
  twin = type(layer).from_config(layer.get_config())
  assert twin.get_config() == layer.get_config()
  x = cases.KINDS['GroupNorm'].data()[0]
  np.testing.assert_array_equal(layer(x), twin(x))
  np.testing.assert_array_equal(twin.beta, np.full(8, 0.5))
  np.testing.assert_array_equal(twin.gamma, np.zeros(8))
  assert not twin.trainable_variables and twin.jit_compile is False
  layer.trainable = True
  assert float(sum(layer.losses)) == 0.0


@cases.both_kerases
def test_regularizers_and_constraints_act(generation):
  module = importlib.import_module(generation)
  layer = cases.KINDS['LayerNorm'].layer(
    generation,
    gamma_regularizer=module.regularizers.L2(0.25),
    beta_constraint=module.constraints.NonNeg(),
    beta_initializer='ones',
  )
  x = cases.KINDS['LayerNorm'].data()[0]
  model = module.Sequential([layer])
  model.compile(module.optimizers.SGD(10.0), lambda y, z: z)
  model.fit(x, x, epochs=1, verbose=0)
  assert np.all(np.asarray(layer.beta) == 0)
  np.testing.assert_allclose(
    float(sum(layer.losses)), 0.25 * np.sum(np.square(layer.gamma)), rtol=1e-5
  )


# --- Configurations of Keras' own layers ---

# (ours, Keras' name, its options, ours that it stands for)
KERAS_CONFIGS = [
  ('GroupNorm', 'GroupNormalization', {'groups': 4}, {'groups': 4}),
  ('GroupNorm', 'GroupNormalization', {'groups': -1, 'axis': 1}, {}),
  ('LayerNorm', 'LayerNormalization', {'epsilon': 1e-5}, {'rms': False}),
  ('LayerNorm', 'LayerNormalization', {'axis': [1, 2]}, {'rms': False}),
  ('LayerNorm', 'LayerNormalization', {'scale': False}, {'scale': False}),
  ('LayerNorm', 'RMSNormalization', {}, {'rms': True, 'epsilon': 1e-6}),
  ('LayerNorm', 'RMSNormalization', {'epsilon': 0.5}, {'rms': True}),
]


@cases.both_kerases
@pytest.mark.parametrize('source', cases.GENERATIONS)
@pytest.mark.parametrize('built', [False, True], ids=['new', 'built'])
@pytest.mark.parametrize('kind, theirs, options, ours', KERAS_CONFIGS)
def test_configuration_of_a_layer_of_keras(
  generation, source, built, kind, theirs, options, ours
):
  """Taken whole, with its meaning: that of the layer it comes from."""
  layers = importlib.import_module(source).layers
  if not hasattr(layers, theirs):
    pytest.skip(f'{source} has no {theirs}')
  donor = getattr(layers, theirs)(**options, name='norm', dtype='float32')
  x = np.random.default_rng(0).normal(3, 2, (2, 6, 8)).astype('float32')
  if built:
    donor.build(x.shape)
  layer = getattr(cases.layers_of(generation), kind).from_config(
    donor.get_config()
  )
  options = {k: v for k, v in options.items() if k in ('epsilon', 'scale')}
  for name, value in {**ours, 'name': 'norm', **options}.items():
    assert getattr(layer, name) == value
  np.testing.assert_allclose(layer(x), donor(x), rtol=0, atol=2e-5)


@cases.both_kerases
@pytest.mark.parametrize('source', cases.GENERATIONS)
def test_configuration_of_a_mixed_policy(generation, source):
  donor = importlib.import_module(source).layers.LayerNormalization(
    dtype='mixed_float16', trainable=False
  )
  layer = cases.layers_of(generation).LayerNorm.from_config(donor.get_config())
  assert (layer.compute_dtype, layer.variable_dtype) == ('float16', 'float32')
  assert not layer.trainable


@cases.both_kerases
def test_what_keras_calls_rms_scaling(generation):
  """It is another function than RMS: never taken for it in silence."""
  layer = cases.layers_of(generation).LayerNorm
  assert not layer(rms_scaling=False).rms
  message = (
    'LayerNorm has no `rms_scaling`.*Received: rms_scaling=True. Use rms=True'
  )
  with pytest.raises(ValueError, match=message):
    layer(rms_scaling=True)
  # Keras makes a TypeError of whatever a constructor raises.
  with pytest.raises(TypeError, match=message):
    layer.from_config({**layer().get_config(), 'rms_scaling': True})


# SavedModels first, by TensorFlow alone; then what Keras loads, after the one
# import that a user has to make. Prints what agrees with the model in memory.
LOAD = """
import pathlib, sys
import numpy as np
import tensorflow as tf

generation, layers, folder, *names = sys.argv[1:]
folder = pathlib.Path(folder)
x, wanted = np.load(folder / 'x.npy'), np.load(folder / 'y.npy')

def check(name, y):
  # Seven norms on top of each other, compiled there and op by op here.
  np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
  print(name)

serve = tf.saved_model.load(folder / 'exported').signatures['serving_default']
check('exported', *serve(tf.constant(x)).values())
__import__(layers)
keras = __import__(generation)
for name in names:
  model = keras.models.load_model(folder / name)
  check(name, model.predict(x, verbose=0))
"""

# generation -> what to import before loading, and what can be loaded.
FORMATS = {
  'keras': ('tfgroupnorm', ['model.keras', 'model.h5']),
  'tf_keras': ('tfgroupnorm.tf_keras', ['model.keras', 'model.h5', 'folder']),
}


@cases.both_kerases
def test_files_in_a_fresh_process(generation, tmp_path):
  model = cases.everything(generation)
  x = np.random.default_rng(0).normal(3, 2, (3, 5, 8)).astype('float32')
  np.save(tmp_path / 'x.npy', x)
  np.save(tmp_path / 'y.npy', model(x))
  layers, names = FORMATS[generation]
  model.export(tmp_path / 'exported')
  for name in names:
    model.save(tmp_path / name)
  result = subprocess.run(
    [sys.executable, '-c', LOAD, generation, layers, str(tmp_path), *names],
    capture_output=True,
    text=True,
    check=False,
  )
  loaded = [line for line in result.stdout.splitlines() if line in names]
  assert loaded == names and 'exported' in result.stdout, result.stderr


@cases.all_cases
@cases.both_kerases
def test_saved_model_and_weights(case, generation, tmp_path):
  model = build_model(case, generation)
  x = case.data()[0]
  wanted = model(x)
  case.check(wanted, *case.data())
  model.save(tmp_path / 'model.keras')
  loaded = importlib.import_module(generation).models.load_model(
    tmp_path / 'model.keras'
  )
  np.testing.assert_allclose(loaded(x), wanted, rtol=0, atol=4e-6)
  assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
  model.save_weights(tmp_path / 'model.weights.h5')
  fresh = importlib.import_module(generation).models.clone_model(model)
  fresh.set_weights([np.zeros_like(w) for w in model.get_weights()])
  fresh.load_weights(tmp_path / 'model.weights.h5')
  np.testing.assert_allclose(fresh(x), wanted, rtol=0, atol=4e-6)


# --- Weights that move between Keras' layers and ours ---

TWINS = [
  ('GroupNorm', {'groups': 4}, 'GroupNormalization', {'groups': 4}),
  ('GroupNorm', {'groups': -1}, 'GroupNormalization', {'groups': -1}),
  ('LayerNorm', {}, 'LayerNormalization', {}),
  ('LayerNorm', {'axis': [1, 2]}, 'LayerNormalization', {'axis': [1, 2]}),
  ('LayerNorm', {'rms': True, 'epsilon': 1e-6}, 'RMSNormalization', {}),
]


@pytest.mark.parametrize(
  'generation, kind, ours, twin, theirs',
  [
    (generation, *twins)
    for generation in cases.GENERATIONS
    for twins in TWINS
    # Keras 2 has no RMSNormalization, nor has Keras 3 before 3.9.
    if hasattr(importlib.import_module(generation).layers, twins[2])
  ],
)
def test_weights_fit_keras(generation, kind, ours, twin, theirs, tmp_path):
  module = importlib.import_module(generation)
  layers = cases.layers_of(generation)

  def model(layer):
    inputs = module.Input((6, 8))
    return module.Model(inputs, layer(inputs))

  a = model(getattr(layers, kind)(**ours, name='norm'))
  b = model(getattr(module.layers, twin)(**theirs, name='norm'))
  rng = np.random.default_rng(0)
  b.set_weights([rng.normal(0.7, 0.3, w.shape) for w in b.get_weights()])
  x = rng.normal(3, 2, (2, 6, 8)).astype('float32')

  a.set_weights(b.get_weights())
  np.testing.assert_allclose(a(x), b(x), rtol=0, atol=2e-5)
  b.save_weights(tmp_path / 'b.weights.h5')
  a.set_weights([np.zeros_like(w) for w in a.get_weights()])
  a.load_weights(tmp_path / 'b.weights.h5')
  np.testing.assert_allclose(a(x), b(x), rtol=0, atol=2e-5)
  a.save_weights(tmp_path / 'a.weights.h5')
  b.set_weights([np.zeros_like(w) for w in b.get_weights()])
  b.load_weights(tmp_path / 'a.weights.h5')
  np.testing.assert_allclose(a(x), b(x), rtol=0, atol=2e-5)
  assert np.any(b(x))


@cases.both_kerases
def test_automatic_names_are_those_of_keras(generation):
  """So that `get_layer` and files by name survive a change of import."""
  module = importlib.import_module(generation)
  layers = cases.layers_of(generation)
  module.backend.clear_session()
  assert layers.GroupNorm(4).name == 'group_normalization'
  assert layers.LayerNorm().name == 'layer_normalization'
  assert layers.LayerNorm(rms=True).name == 'rms_normalization'
  assert isinstance(layers.LayerNorm(rms=True), layers.LayerNorm)


@cases.both_kerases
def test_a_subclass_stays_itself(generation):
  class Mine(cases.layers_of(generation).LayerNorm):
    pass

  assert type(Mine(rms=True)) is Mine
  assert type(Mine()) is Mine
  assert Mine(name='norm').get_config()['name'] == 'norm'


# --- Old models of TensorFlow Addons ---

# As Addons 0.23 wrote its layers; `groups` of the second is what its build
# made of -1.
_ADDONS = {
  'axis': -1,
  'epsilon': 1e-3,
  'center': True,
  'scale': True,
  'beta_initializer': {'class_name': 'Zeros', 'config': {}},
  'gamma_initializer': {'class_name': 'Ones', 'config': {}},
  'beta_regularizer': None,
  'gamma_regularizer': None,
  'beta_constraint': None,
  'gamma_constraint': None,
  'trainable': True,
  'dtype': 'float32',
}


@cases.both_kerases
def test_a_model_of_addons_loads(generation, tmp_path):
  """A file whose configuration names the layers of Addons."""
  module = importlib.import_module(generation)
  layers = cases.layers_of(generation)
  config = {
    'name': 'old',
    'layers': [
      {
        'class_name': 'InputLayer',
        'config': {
          'batch_input_shape': (None, 5, 8),
          'dtype': 'float32',
          'name': 'x',
        },
      },
      {
        'class_name': 'Addons>GroupNormalization',
        'config': {**_ADDONS, 'name': 'group', 'groups': 4},
      },
      {
        'class_name': 'Addons>InstanceNormalization',
        'config': {**_ADDONS, 'name': 'instance', 'groups': 8},
      },
    ],
  }
  # A file with the right weights, made of our layers; then renamed.
  donor = tf_keras.Sequential(
    [
      tf_keras.Input((5, 8)),
      cases.layers_of('tf_keras').GroupNorm(4, name='group'),
      cases.layers_of('tf_keras').InstanceNorm(name='instance'),
    ]
  )
  rng = np.random.default_rng(0)
  donor.set_weights(
    [rng.normal(0.7, 0.3, w.shape) for w in donor.get_weights()]
  )
  path = tmp_path / 'old.h5'
  donor.save(path)
  with h5py.File(path, 'a') as file:
    file.attrs['model_config'] = json.dumps(
      {'class_name': 'Sequential', 'config': config}
    )
  objects = layers.custom_objects()
  # The first Keras 3 versions do not pass custom_objects on to layers.
  with module.saving.custom_object_scope(objects):
    model = module.models.load_model(
      path, custom_objects=objects, compile=False
    )
  group, instance = model.layers[-2:]
  assert type(group) is layers.GroupNorm
  assert type(instance) is layers.InstanceNorm
  x = wanted = rng.normal(3, 2, (2, 5, 8))
  weights = donor.get_weights()
  for groups, gamma, beta in ((4, *weights[:2]), (8, *weights[2:])):
    wanted = reference.group_norm(wanted, gamma, beta, groups=groups)
  y = model(x.astype('float32'))
  np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)


@cases.both_kerases
@cases.one_of_each
def test_registered(case, generation):
  module = importlib.import_module(generation)
  layer = type(case.layer(generation))
  name = f'tfgroupnorm>{layer.__qualname__}'
  assert name == f'tfgroupnorm>{case.kind}'
  assert module.saving.get_registered_name(layer) == name
  assert module.saving.get_registered_object(name) is layer
  objects = cases.layers_of(generation).custom_objects()
  assert objects[name] is layer


def test_the_generations_do_not_mix():
  a, b = (cases.layers_of(g).custom_objects() for g in cases.GENERATIONS)
  assert a.keys() == b.keys()
  assert issubclass(a['GroupNorm'], keras.layers.Layer)
  assert issubclass(b['GroupNorm'], tf_keras.layers.Layer)
  assert not issubclass(b['GroupNorm'], keras.layers.Layer)
