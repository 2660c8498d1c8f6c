"""`replace_keras_norms`: a model computes what it did, with our layers in it.

In float32, of which two orders of computation differ in the last digits.
"""

import importlib
import re

import numpy as np
import pytest
import tensorflow as tf

import cases
import tfgroupnorm
from tfgroupnorm import _becoming, _layer, kernel, models

IMAGE = (8, 8, 3)
X = np.random.default_rng(0).normal(1, 2, (4, *IMAGE)).astype('float32')


def rms(keras, **options):
  """Keras 2, and the first Keras 3, have none."""
  kind = getattr(keras.layers, 'RMSNormalization', None)
  return kind(**options) if kind else keras.layers.LayerNormalization(**options)


# --- Models of all kinds -----------------------------------------------------


def functional(keras):
  x = inputs = keras.Input(IMAGE)
  x = keras.layers.Conv2D(8, 3, name='conv')(x)
  y = keras.layers.GroupNormalization(4, name='group')(x)
  y = keras.layers.GroupNormalization(-1, axis=1, name='rows')(y)
  y = keras.layers.Activation('tanh')(y)
  y = keras.layers.LayerNormalization(name='layer', epsilon=1e-5)(y)
  y = keras.layers.LayerNormalization(axis=[1, 2, 3], center=False)(y)
  y = rms(keras, name='rms')(keras.layers.Add()([x, y]))
  y = keras.layers.GlobalAveragePooling2D()(y)
  return keras.Model(inputs, keras.layers.Dense(3)(y))


def sequential(keras):
  return keras.Sequential(
    [
      keras.Input(IMAGE),
      keras.layers.Conv2D(8, 3),
      keras.layers.GroupNormalization(2, scale=False),
      keras.layers.ReLU(),
      keras.layers.Flatten(),
      keras.layers.LayerNormalization(),
    ]
  )


def built_late(keras):
  model = keras.Sequential(
    [keras.layers.Conv2D(8, 3), keras.layers.LayerNormalization()]
  )
  model(X)
  return model


def shared(keras):
  """A norm and a model, each used twice and at two depths."""
  x = inputs = keras.Input(IMAGE)
  norm = keras.layers.LayerNormalization()
  inside = keras.Input((8, 8, 3))
  inner = keras.Model(inside, keras.layers.Dense(3)(norm(inside)))
  return keras.Model(inputs, [norm(inner(norm(x))), inner(x)])


def wrapped(keras):
  inputs = keras.Input(IMAGE)
  norm = keras.layers.LayerNormalization()
  x = keras.layers.TimeDistributed(keras.layers.Dense(6))(inputs)
  return keras.Model(inputs, keras.layers.TimeDistributed(norm)(x))


def named(keras):
  """Inputs and outputs in dicts."""
  a, b = keras.Input(IMAGE, name='a'), keras.Input((5,), name='b')
  x = keras.layers.GroupNormalization(3, name='x')(a)
  y = keras.layers.LayerNormalization(name='y')(b)
  return keras.Model({'a': a, 'b': b}, {'x': x, 'y': y})


def classes(keras):
  class Block(keras.layers.Layer):
    """Cannot be made anew, and holds norms wherever one can."""

    def __init__(self, secret, **kwargs):
      super().__init__(**kwargs)
      del secret
      norm = keras.layers.LayerNormalization
      self._self_attention_norm = norm(name='a', epsilon=1e-5)
      self.norms = [norm(name='b'), (norm(name='c'), 3)]
      self._table = {'d': norm(name='d'), 'e': [rms(keras, name='e')]}
      self.lists = keras.layers.GroupNormalization(4, name='f')
      self.again = self.norms[0]

    def call(self, x):
      x = self._self_attention_norm(x)
      x = self.norms[1][0](self.norms[0](x)) + x
      x = self._table['e'][0](self._table['d'](x))
      return self.again(self.lists(x))

    def compute_output_shape(self, shape):
      return shape

  class Model(keras.Model):
    def __init__(self):
      super().__init__()
      self.conv = keras.layers.Conv2D(8, 3)
      self._blocks = [Block(object()), Block(object())]
      self.row = keras.Sequential(
        [keras.layers.Dense(8), keras.layers.LayerNormalization()]
      )

    def call(self, x):
      x = self.conv(x)
      for block in self._blocks:
        x = block(x)
      return self.row(x)

  return Block, Model


def with_blocks(keras):
  x = inputs = keras.Input(IMAGE)
  x = keras.layers.Conv2D(8, 3)(x)
  return keras.Model(inputs, classes(keras)[0](object())(x))


def subclassed(keras):
  model = classes(keras)[1]()
  model(X)
  return model


# And how many norms there are.
MODELS = {
  functional: 5,
  sequential: 2,
  built_late: 1,
  shared: 1,
  wrapped: 1,
  named: 2,
  with_blocks: 6,
  subclassed: 13,
}
all_models = pytest.mark.parametrize('make', MODELS)


def scrambled(model):
  """Every weight is drawn anew, those of the norms too."""
  rng = np.random.default_rng(0)
  model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
  return model


def data(make):
  return {'a': X, 'b': X[:, 0, :5, 0]} if make is named else X


def replaced(model, **options):
  told = []
  result = tfgroupnorm.replace_keras_norms(
    model, print_fn=told.append, **options
  )
  assert result is model
  return told[0]


def rows(table):
  """Its cells, of each row the first line."""
  cells = [re.split('[│|]', line)[1:-1] for line in table.splitlines()]
  cells = [[cell.strip() for cell in row] for row in cells]
  return [row for row in cells if row and row[1]]


def norms(model):
  return [
    layer for _, layer in models.walk(model) if isinstance(layer, _layer.Norm)
  ]


def keras_norms(keras, model):
  kinds = ('GroupNormalization', 'LayerNormalization', 'RMSNormalization')
  kinds = tuple(getattr(keras.layers, k, ()) for k in kinds)
  return [x for _, x in models.walk(model) if isinstance(x, kinds)]


def outputs_and_gradients(model, x):
  with tf.GradientTape() as tape:
    y = tf.nest.flatten(model(x))
    total = tf.add_n([tf.reduce_sum(each**3) for each in y])
  gradients = tape.gradient(
    total, [getattr(w, '_value', w) for w in model.trainable_weights]
  )
  return [each.numpy() for each in [*y, *gradients]]


@all_models
@cases.both_kerases
def test_it_computes_the_same(generation, make):
  keras = importlib.import_module(generation)
  model = scrambled(make(keras))
  x = data(make)
  before = outputs_and_gradients(model, x)
  found = keras_norms(keras, model)
  layers = list(models.walk(model))
  weights = list(model.weights)
  frozen = found[0]
  frozen.trainable = False
  trainable = len(model.trainable_weights)
  assert len(found) == MODELS[make]
  table = replaced(model)
  frozen.trainable = True
  after = outputs_and_gradients(model, x)
  # Gradients that are 0 but for rounding, of a norm before a norm, count as a
  # hundredth of the median.
  sizes = [np.abs(a).max() for a in before]
  floor = np.median(sizes) / 100
  for a, b, size in zip(before, after, sizes, strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * max(size, floor))
  assert norms(model) == found and not keras_norms(keras, model)
  # All is the object that it was, where it was.
  assert list(models.walk(model)) == layers
  assert all(a is b for a, b in zip(model.weights, weights, strict=True))
  assert trainable == len(model.trainable_weights) - len(frozen.weights)
  assert 'The whole on made-up data: outputs differ by' in table
  assert len(rows(table)) == MODELS[make]


@cases.both_kerases
def test_what_each_became(generation):
  keras = importlib.import_module(generation)
  layers = cases.layers_of(generation)
  model = functional(keras)
  wanted = {x.name: x.get_config() for x in keras_norms(keras, model)}
  table = replaced(model)
  for norm in norms(model):
    config = norm.get_config()
    for name, value in wanted[norm.name].items():
      if name not in ('axis', 'rms_scaling', 'dtype'):
        assert config[name] == value, name
    assert norm.compute_dtype == 'float32'
  assert type(model.get_layer('group')) is layers.GroupNorm
  assert model.get_layer('rows').groups == 6
  assert type(model.get_layer('layer')) is layers.LayerNorm
  assert model.get_layer('rms').rms == hasattr(keras.layers, 'RMSNormalization')
  shown = {row[0]: row[1:3] for row in rows(table)}
  assert shown['group'] == ['GroupNormalization', 'GroupNorm']
  assert shown['layer'] == ['LayerNormalization', 'LayerNorm']
  text = []
  model.summary(print_fn=lambda line, **_: text.append(line))
  assert 'GroupNorm' in '\n'.join(text)


@all_models
@cases.both_kerases
def test_training_goes_on(generation, make):
  """The same losses as without, with the state of the optimizer."""
  keras = importlib.import_module(generation)
  x = data(make)

  def losses(replace):
    keras.utils.set_random_seed(0)
    model = make(keras)
    target = tf.nest.map_structure(lambda y: np.tanh(y) + 1, model(x))
    # The oldest Keras 3 takes no single one for outputs in a dict.
    each = tf.nest.map_structure(lambda _: 'mse', target)
    model.compile(keras.optimizers.Adam(1e-2), each)

    def fit():
      history = model.fit(
        x, target, batch_size=2, epochs=3, verbose=0, shuffle=False
      )
      return history.history['loss']

    first = fit()
    if replace:
      replaced(model)
      assert len(norms(model)) == MODELS[make]
    more = fit()
    return [
      *first,
      *more,
      model.evaluate(x, target, verbose=0, return_dict=1)['loss'],
    ]

  np.testing.assert_allclose(losses(True), losses(False), rtol=1e-5)


# --- Files -------------------------------------------------------------------


@cases.both_kerases
def test_saved_weights_fit_both_ways(generation, tmp_path):
  keras = importlib.import_module(generation)
  model, other = scrambled(functional(keras)), functional(keras)
  before = model(X)
  model.save_weights(tmp_path / 'before.weights.h5')
  replaced(other)
  other.load_weights(tmp_path / 'before.weights.h5')
  np.testing.assert_allclose(other(X), before, rtol=0, atol=1e-5)
  other.save_weights(tmp_path / 'after.weights.h5')
  fresh = functional(keras)
  fresh.load_weights(tmp_path / 'after.weights.h5')
  np.testing.assert_array_equal(fresh(X), before)
  checkpoint = tf.train.Checkpoint(model=model).save(tmp_path / 'checkpoint')
  tf.train.Checkpoint(model=other).restore(checkpoint)
  np.testing.assert_allclose(other(X), before, rtol=0, atol=1e-5)


@cases.both_kerases
def test_the_whole_is_saved(generation, tmp_path):
  keras = importlib.import_module(generation)
  model = scrambled(functional(keras))
  replaced(model)
  model.save(tmp_path / 'model.keras')
  loaded = keras.models.load_model(tmp_path / 'model.keras')
  assert [type(x) for x in norms(loaded)] == [type(x) for x in norms(model)]
  np.testing.assert_allclose(loaded(X), model(X), rtol=0, atol=1e-6)
  tfgroupnorm.export_saved_model(model, tmp_path / 'served')
  clone = keras.models.clone_model(model)
  assert len(norms(clone)) == len(norms(model))


# --- What is left ------------------------------------------------------------


@cases.both_kerases
def test_nothing_to_replace(generation, capsys):
  keras = importlib.import_module(generation)
  model = keras.Sequential(
    [keras.Input((4,)), keras.layers.BatchNormalization()], name='plain'
  )
  tfgroupnorm.replace_keras_norms(model)
  said = capsys.readouterr().out
  assert said.startswith('Model: "plain"\nNo normalization layers of Keras.\n')
  assert '1 BatchNormalization: see `replace_batch_norm`.' in said
  tfgroupnorm.replace_keras_norms(model, verbose=False)
  assert not capsys.readouterr().out


@pytest.mark.filterwarnings('ignore:You passed `rms_scaling=True`')
def test_rms_scaling():
  """It is x / deviation: with a mean, neither of ours can be that."""
  import keras

  x = np.random.default_rng(0).normal(3, 2, (2, 5, 8)).astype('float32')
  norm = keras.layers.LayerNormalization(rms_scaling=True, epsilon=1e-3)
  model = keras.Sequential([keras.Input((5, 8)), norm])
  wanted = x / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
  np.testing.assert_allclose(model(x), wanted, rtol=1e-5)
  table = replaced(model)
  assert type(norm) is keras.layers.LayerNormalization
  assert 'Left, 1 LayerNormalization: rms_scaling divides by the dev' in table
  np.testing.assert_allclose(model(x), wanted, rtol=1e-5)


@cases.both_kerases
def test_a_change_that_fails_midway_is_undone(generation, monkeypatch):
  keras = importlib.import_module(generation)
  model = functional(keras)
  scrambled(model)
  x = data(functional)
  before, kinds = model(x), [type(layer) for layer in model.layers]
  done = []

  def forget(layer, name, value):
    done.append(layer)
    if len({id(each) for each in done}) == 3:  # Two norms have become ours.
      raise RuntimeError('as some other Keras might')
    whole(layer, name, value)

  whole = _becoming._forget
  monkeypatch.setattr(_becoming, '_forget', forget)
  fails(ValueError, 'as some other Keras might', 'It is as it was', model=model)
  assert [type(layer) for layer in model.layers] == kinds
  np.testing.assert_array_equal(model(x), before)


@cases.both_kerases
def test_other_classes_are_left(generation):
  keras = importlib.import_module(generation)

  class Twice(keras.layers.LayerNormalization):
    def call(self, x):
      return 2 * super().call(x)

  class MyNorm(keras.layers.Layer):
    def build(self, shape):
      self.w = self.add_weight(name='w', shape=(shape[-1],))
      super().build(shape)

    def call(self, x):
      return x * self.w

  model = keras.Sequential(
    [keras.Input((5, 8)), Twice(), MyNorm(), keras.layers.UnitNormalization()]
  )
  table = replaced(model)
  assert not norms(model) and 'Left, 1 Twice: a class of its own' in table
  assert 'Left, 1 MyNorm: a class of its own: see `also`.' in table
  assert 'UnitNorm' not in table


@cases.both_kerases
def test_a_norm_that_is_not_built(generation):
  keras = importlib.import_module(generation)
  model = sequential(keras)
  model.never_called = keras.layers.LayerNormalization(name='idle')
  table = replaced(model)
  assert len(norms(model)) == 2
  assert 'Left, 1 LayerNormalization: it has no weights yet.' in table


# --- Masks -------------------------------------------------------------------


def masked(keras, end):
  return keras.Sequential(
    [
      keras.Input((6,), dtype='int32'),
      keras.layers.Embedding(4, 8, mask_zero=True),
      keras.layers.LayerNormalization(name='masked'),
      end,
    ]
  )


TOKENS = np.array([[1, 2, 3, 0, 0, 0], [3, 2, 1, 1, 2, 0]])


# Keras 3.16 warns of its own LSTM, which heeds masks nevertheless.
@pytest.mark.filterwarnings('ignore:Layer .lstm:UserWarning')
@cases.both_kerases
def test_what_heeds_masks_stays(generation):
  keras = importlib.import_module(generation)
  for end in (keras.layers.LSTM(4), keras.layers.GlobalAveragePooling1D()):
    model = scrambled(masked(keras, end))
    before = model(TOKENS)
    replaced(model)
    assert len(norms(model)) == 1
    np.testing.assert_allclose(model(TOKENS), before, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings('ignore:Layer .flatten:UserWarning')
@cases.both_kerases
def test_what_reads_masked_positions_keeps_its_norm(generation):
  keras = importlib.import_module(generation)
  model = scrambled(masked(keras, keras.layers.Flatten()))
  model.add(keras.layers.LayerNormalization(name='free'))
  before = model(TOKENS)
  table = replaced(model)
  np.testing.assert_allclose(model(TOKENS), before, rtol=0, atol=1e-6)
  assert 'Left, 1 LayerNormalization: a mask reaches it' in table
  assert [x.name for x in norms(model)] == ['free']


# --- Dtypes ------------------------------------------------------------------


@pytest.mark.parametrize(
  'policy, tolerance',
  [('mixed_float16', 4e-3), ('mixed_bfloat16', 3e-2), ('float64', 1e-9)],
)
@cases.both_kerases
def test_dtype_policies(generation, policy, tolerance):
  keras = importlib.import_module(generation)
  dtype = 'float64' if policy == 'float64' else 'float32'
  norm = keras.layers.LayerNormalization(name='norm', dtype=policy)
  model = keras.Sequential(
    [keras.Input((5, 8), dtype=dtype), norm, rms(keras, dtype=policy)]
  )
  x = np.random.default_rng(0).normal(1, 2, (3, 5, 8)).astype(dtype)
  before = np.asarray(model(x), 'float64')
  replaced(model)
  assert len(norms(model)) == 2
  after = model(x)
  assert after.dtype == policy.removeprefix('mixed_')
  np.testing.assert_allclose(
    np.asarray(after, 'float64'), before, rtol=0, atol=tolerance * 3
  )


# --- Activations -------------------------------------------------------------


def with_activations(keras):
  x = inputs = keras.Input(IMAGE)
  layer = keras.layers.LayerNormalization
  x = keras.layers.ReLU()(layer(name='relu')(x))
  x = keras.layers.Activation('silu', name='act')(layer(name='silu')(x))
  x = keras.layers.Activation('gelu')(layer(name='gelu')(x))
  inside = keras.Input(IMAGE)
  sigmoid = keras.layers.Activation('sigmoid')(layer(name='sigmoid')(inside))
  x = keras.Model(inside, sigmoid)(x)
  # None of these can be taken over.
  y = x = layer(name='twice')(x)
  x = keras.layers.Add()([keras.layers.ReLU()(y), y])
  x = keras.layers.Activation('tanh')(layer(name='tanh')(x))
  x = keras.layers.ReLU(max_value=6)(layer(name='relu6')(x))
  x = keras.layers.LeakyReLU()(layer(name='leaky')(x))
  x = end = layer(name='end')(x)
  return keras.Model(inputs, [end, keras.layers.ReLU()(x)])


FUSED = ['relu', 'silu', 'gelu', 'sigmoid']


@cases.both_kerases
def test_activations_are_fused(generation):
  keras = importlib.import_module(generation)
  model = scrambled(with_activations(keras))
  names = [layer.name for _, layer in models.walk(model)]
  before = outputs_and_gradients(model, X)
  table = replaced(model, fuse_activations=True)
  assert 'LayerNorm, silu' in table and 'fuse_activations' not in table
  found = [x.name for x in norms(model) if x.activation is not None]
  assert found == FUSED
  assert [layer.name for _, layer in models.walk(model)] == names
  assert type(model.get_layer('act')) is keras.layers.Activation
  for a, b in zip(before, outputs_and_gradients(model, X), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * np.abs(a).max())
  again = keras.models.clone_model(model)
  again.set_weights(model.get_weights())
  np.testing.assert_allclose(again(X)[0], model(X)[0], rtol=0, atol=1e-6)


@cases.both_kerases
def test_activations_are_offered(generation):
  keras = importlib.import_module(generation)
  model = with_activations(keras)
  table = replaced(model)
  assert '4 of them could compute the activation that follows' in table
  assert [x for x in norms(model) if x.activation is not None] == []


# --- Classes of others -------------------------------------------------------


def one_more(keras):
  """A class that stores w and multiplies by 1 + w."""

  class OneMore(keras.layers.Layer):
    def build(self, shape):
      self.scale = self.add_weight(
        name='w', shape=(shape[-1],), initializer='random_normal'
      )
      self.epsilon = 1e-6
      super().build(shape)

    def call(self, x):
      square = tf.reduce_mean(tf.square(x), -1, keepdims=True)
      return x * tf.math.rsqrt(square + self.epsilon) * (1 + self.scale)

    def compute_output_shape(self, shape):
      return shape

  return OneMore


@cases.both_kerases
def test_a_class_of_the_users_own(generation):
  keras = importlib.import_module(generation)
  layer_norm = cases.layers_of(generation).LayerNorm
  kind = one_more(keras)
  norm = kind(name='mine')
  model = keras.Sequential([keras.Input((5, 8)), norm, keras.layers.Dense(2)])
  norm.set_weights([np.linspace(-0.2, 0, 8)])
  x = X[:, :5, :, 0]
  before = outputs_and_gradients(model, x)
  weights = norm.get_weights()

  def plain(layer):
    return layer_norm(epsilon=layer.epsilon, rms=True)

  def right(layer):
    new = plain(layer)
    new.build((None, 8))
    new.set_weights([1 + layer.get_weights()[0]])
    return new

  # Without the 1 it is another norm, and left.
  table = replaced(model, also={kind: plain})
  assert type(norm) is kind
  assert 'Left, 1 OneMore: it differs by 1e+00' in table
  np.testing.assert_array_equal(norm.get_weights(), weights)
  variable = norm.weights[0]
  table = replaced(model, also={kind: right})
  assert norms(model) == [norm] and norm.name == 'mine' and norm.rms
  assert norm.weights[0] is variable and norm.gamma is variable
  np.testing.assert_array_equal(norm.gamma, 1 + weights[0])
  for a, b in zip(before, outputs_and_gradients(model, x), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
  assert rows(table) == [['mine', 'OneMore', 'LayerNorm', *rows(table)[0][3:]]]


# --- What is said of a wrong use ---------------------------------------------


def fails(kind, *words, model, **options):
  with pytest.raises(kind) as error:
    tfgroupnorm.replace_keras_norms(model, verbose=False, **options)
  for word in ('Received: ', *words):
    assert word in str(error.value), error.value


@cases.both_kerases
def test_wrong_arguments(generation):
  keras = importlib.import_module(generation)
  layers = cases.layers_of(generation)
  model = sequential(keras)
  kind = keras.layers.LayerNormalization
  fails(TypeError, 'model of Keras 3 or tf-keras', model=kind())
  fails(TypeError, 'must be a dict', model=model, also=[kind])
  fails(TypeError, 'key of `also`', "'LN'", model=model, also={'LN': kind})
  fails(TypeError, 'must be a function', model=model, also={kind: kind})
  ours = {layers.LayerNorm: lambda layer: layer}
  fails(ValueError, 'not of this package', model=model, also=ours)
  nothing = {kind: lambda layer: None}
  fails(TypeError, 'LayerNorm(epsilon', 'None', model=model, also=nothing)
  other = 'tf_keras' if generation == 'keras' else 'keras'
  foreign = {kind: lambda layer: cases.layers_of(other).LayerNorm()}
  fails(TypeError, 'must return a layer of', model=model, also=foreign)
  shapes = {kind: lambda layer: layers.LayerNorm(scale=False)}
  fails(ValueError, 'the shapes that', '(288,)', model=model, also=shapes)
  fails(TypeError, '`fuse_activations`', model=model, fuse_activations=1)
  fails(TypeError, '`print_fn`', 'logging.info', model=model, print_fn='no')
  with pytest.raises(TypeError, match='`verbose`'):
    tfgroupnorm.replace_keras_norms(model, verbose='yes')
  late = keras.Sequential([kind()], name='late')
  fails(ValueError, "'late'", 'not built', '`Input`', model=late)
  assert not norms(model)


@cases.both_kerases
def test_code_that_reads_what_only_the_former_have(generation):
  """Then nothing is changed, and what was is said."""
  keras = importlib.import_module(generation)

  def reading(change):
    class Reading(keras.layers.Layer):
      def __init__(self):
        super().__init__()
        self.norm = keras.layers.LayerNormalization(name='inside')

      def call(self, x):
        return change(self.norm, self.norm(x))

    x = inputs = keras.Input((5, 8))
    x = keras.layers.LayerNormalization(name='outside')(x)
    return keras.Model(inputs, Reading()(x), name='reads')

  def by_class(norm, x):
    return x if type(norm) is keras.layers.LayerNormalization else 2 * x

  def by_attribute(norm, x):
    return x * getattr(norm, 'rms', 1) if isinstance(norm, _layer.Norm) else x

  def raising(norm, x):
    assert not isinstance(norm, _layer.Norm), 'a norm of Keras, please'
    return x

  for change, said in [
    (by_class, 'would differ by 1e+00'),
    (by_attribute, 'as it was'),
    (raising, 'a norm of Keras, please'),
  ]:
    model = reading(change)
    before = model(X[:, :5, :, 0])
    fails(ValueError, "'reads'", said, 'It is as it was', model=model)
    assert not norms(model)
    np.testing.assert_array_equal(model(X[:, :5, :, 0]), before)


# --- The whole ---------------------------------------------------------------


@cases.both_kerases
def test_a_model_that_is_random(generation):
  keras = importlib.import_module(generation)

  class Noise(keras.layers.Layer):
    def call(self, x):
      return x + tf.random.normal(tf.shape(x))

  x = inputs = keras.Input((5, 8))
  x = Noise()(keras.layers.LayerNormalization()(x))
  model = keras.Model(inputs, x)
  assert 'not compared: it is random' in replaced(model)
  assert len(norms(model)) == 1


@cases.both_kerases
def test_a_model_whose_inputs_are_not_known(generation):
  keras = importlib.import_module(generation)

  class Two(keras.Model):
    def __init__(self):
      super().__init__()
      self.norm = keras.layers.LayerNormalization()

    def call(self, inputs):
      assert inputs['x'].shape[-1] == 8, 'eight channels'
      return self.norm(inputs['x'])

  model = Two()
  model({'x': X[:, :5, :, 0]})
  before = model({'x': X[:, :5, :, 0]})
  table = replaced(model)
  assert 'The whole' in table and len(norms(model)) == 1
  np.testing.assert_allclose(
    model({'x': X[:, :5, :, 0]}), before, rtol=0, atol=1e-6
  )


@cases.both_kerases
def test_sizes_that_the_model_does_not_tell(generation):
  keras = importlib.import_module(generation)
  x = inputs = keras.Input((None, None, 3))
  for _ in range(3):  # Too much for 8 x 8.
    x = keras.layers.Conv2D(4, 5, strides=2)(x)
    x = keras.layers.GroupNormalization(2)(x)
  model = keras.Model(inputs, x)
  assert 'outputs differ by' in replaced(model)


@cases.both_kerases
def test_the_kernel_knows_silu_by_all_its_names(generation, monkeypatch):
  """To Keras 2, "silu" is a function of TensorFlow's."""
  keras = importlib.import_module(generation)
  seen = []
  normalize = kernel.normalize

  def watched(*args, **options):
    seen.append(options['spec'].activation)
    return normalize(*args, **options)

  monkeypatch.setattr('tfgroupnorm.kernel.normalize', watched)
  group_norm = cases.layers_of(generation).GroupNorm
  for name in ('silu', 'swish', keras.activations.get('silu')):
    layer = group_norm(1, activation=name)
    layer(X)
    group_norm.from_config(layer.get_config())(X)
  group_norm(1, activation=tf.nn.silu)(X)
  assert seen == 7 * ['silu']
