"""Every layer of a model is found, wherever it is, for all who look for them.

These are `tfgroupnorm.models`, and what stands on it: `replace_batch_norm` and
`ActivationPercentiles`.
"""

import collections
import importlib

import numpy as np
import pytest
import tensorflow as tf

import cases
import tfgroupnorm
from tfgroupnorm import models
from tfgroupnorm.callbacks import ActivationPercentiles

X = np.random.default_rng(0).normal(3, 2, (4, 6, 8)).astype('float32')
Pair = collections.namedtuple('Pair', 'a b')


def batch_norm(keras, name):
  layer = keras.layers.BatchNormalization(name=name)
  layer.build((None, 6, 8))
  return layer


def paths(model, **options):
  return [path for path, _ in models.walk(model, **options)]


def holding(keras, base):
  """A layer or model with norms in all that it can hold them in."""

  class Holding(base):
    def __init__(self, **kwargs):
      super().__init__(**kwargs)
      self.plain = batch_norm(keras, 'plain')
      self._hidden = batch_norm(keras, 'hidden')
      self.rows = [batch_norm(keras, 'row'), (batch_norm(keras, 'row'), 3)]
      self._table = {'x': batch_norm(keras, 'x'), 'y': [batch_norm(keras, 'y')]}
      inside = keras.layers.BatchNormalization(name='inside')
      self.wrapped = keras.layers.TimeDistributed(inside)
      self.row = keras.Sequential(
        [keras.Input((6, 8)), batch_norm(keras, 'last')], name='stack'
      )
      self.again = [self._hidden, self.row.layers[0]]

    def norms(self):
      return [
        *(self.plain, self._hidden, self.rows[0], self.rows[1][0]),
        *(self._table['x'], self._table['y'][0]),
        *(self.wrapped, self.row.layers[-1]),
      ]

    def compute_output_shape(self, shape):
      return shape

    def call(self, x):
      for norm in self.norms():
        x = norm(x)
      return x

    def get_config(self):
      return {}

  return Holding()


PLACES = [
  'plain',
  '_hidden',
  'rows[0]',
  'rows[1][0]',
  "_table['x']",
  "_table['y'][0]",
  'wrapped',
  'wrapped/layer',
  'row',
  'row/last',
]
NAMES = 'plain hidden row row#2 x y'.split()


@cases.both_kerases
@pytest.mark.parametrize('kind', ['layer', 'model'])
def test_wherever_it_is_held(generation, kind):
  keras = importlib.import_module(generation)
  base = keras.layers.Layer if kind == 'layer' else keras.Model
  owner = holding(keras, base)
  assert paths(owner) == PLACES
  inside = paths(keras.Sequential([owner], name='outer'))
  assert inside == [owner.name, *(f'{owner.name}/{x}' for x in PLACES)]
  wrapper = owner.wrapped.name
  assert paths(owner, named=True) == [
    *NAMES,
    wrapper,
    f'{wrapper}/inside',
    'stack',
    'stack/last',
  ]


@cases.both_kerases
@pytest.mark.parametrize('kind', ['layer', 'model'])
def test_all_of_them_are_replaced_and_followed(generation, kind):
  keras = importlib.import_module(generation)
  if kind == 'model':
    model = holding(keras, keras.Model)
    model(X)
  else:
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, holding(keras, keras.layers.Layer)(inputs))
  with pytest.warns(UserWarning, match='8 BatchNormalization layers'):
    result = tfgroupnorm.replace_batch_norm(model, groups=2, verbose=False)
  assert sorted(paths(result)) == sorted(paths(model))
  result.compile('sgd', 'mse')
  watching = ActivationPercentiles(X)
  result.fit(X, X, verbose=0, callbacks=[watching])
  # Names that occur once stand for their paths.
  followed = [path.rpartition('/')[2] for path in watching.history]
  assert sorted(followed) == sorted([*NAMES, 'inside', 'last'])


@cases.both_kerases
def test_what_a_graph_was_given(generation):
  """Attributes of a functional model, which are none of its layers."""
  keras = importlib.import_module(generation)
  inputs = keras.Input((6, 8))
  norm = batch_norm(keras, 'norm')
  model = keras.Model(inputs, norm(inputs))
  model.heads = [batch_norm(keras, 'one'), batch_norm(keras, 'two')]
  model.favourite = norm
  model.features = keras.Model(model.input, norm.output, name='features')
  assert set(paths(model, named=True)) == {
    *(layer.name for layer in model.layers),
    *('one', 'two', 'features'),
  }
  model.heads[1].gamma.assign(np.arange(8.0))
  with pytest.warns(UserWarning, match='3 BatchNormalization layers'):
    result = tfgroupnorm.replace_batch_norm(model, groups=2, verbose=False)
  kinds = {type(layer).__qualname__ for layer in result.heads}
  assert kinds == {'GroupNorm'}
  np.testing.assert_array_equal(result.heads[1].gamma, np.arange(8.0))
  assert result.favourite is result.get_layer('norm')
  assert result.features.get_layer('norm') is result.favourite
  assert not {id(v) for v in model.variables} & {
    id(v) for v in result.variables
  }


@cases.both_kerases
def test_what_a_functional_subclass_makes_itself(generation):
  keras = importlib.import_module(generation)

  class Headed(keras.Model):
    def __init__(self, inputs, outputs, name=None, **kwargs):
      super().__init__(inputs, outputs, name=name, **kwargs)
      self.head = batch_norm(keras, 'head')

  inputs = keras.Input((6, 8))
  model = Headed(inputs, batch_norm(keras, 'norm')(inputs))
  assert paths(model)[1:] == ['norm', 'head']
  if generation == 'tf_keras' or keras.__version__.startswith('3.0'):
    return  # Keras copies it as a plain model.
  with pytest.warns(UserWarning, match='2 BatchNormalization layers'):
    result = tfgroupnorm.replace_batch_norm(model, groups=2, verbose=False)
  assert type(result.head) is tfgroupnorm.GroupNorm
  # Some versions do not list those of what it makes itself.
  names = [weight.name for weight in model.weights]
  left = [name for name in names if not name.startswith('moving')]
  assert [weight.name for weight in result.weights] == left
  assert [w.name for w in result.head.weights] == ['gamma', 'beta']


@cases.both_kerases
def test_what_is_no_layer_of_a_model(generation):
  """Metrics, what `compile` was given, and what was replaced in the code."""
  keras = importlib.import_module(generation)

  class Model(keras.Model):
    def __init__(self):
      super().__init__()
      self.norm = batch_norm(keras, 'before')
      self.norm = batch_norm(keras, 'norm')
      self.error = keras.metrics.Mean(name='error')

    def call(self, x):
      return self.norm(x)

    def get_config(self):
      return {}

  model = Model()
  model(X)
  loss = keras.Sequential([keras.Input((6, 8)), batch_norm(keras, 'inside')])
  model.compile('sgd', loss)
  assert paths(model) == paths(model, named=True) == ['norm']
  assert not models.is_layer(model.error) and not models.is_layer(loss.call)
  with pytest.warns(UserWarning, match='1 BatchNormalization layers'):
    tfgroupnorm.replace_batch_norm(model, groups=2, verbose=False)


@cases.both_kerases
def test_both_directions(generation):
  """The layer that they were made after is never called."""
  keras = importlib.import_module(generation)
  assert paths(keras.layers.Bidirectional(keras.layers.LSTM(2))) == [
    *('forward_layer', 'forward_layer/cell'),
    *('backward_layer', 'backward_layer/cell'),
  ]


@cases.both_kerases
def test_a_class_of_the_name_of_one_of_keras(generation):
  keras = importlib.import_module(generation)

  class Sequential(keras.layers.Layer):
    def __init__(self):
      super().__init__()
      self.norm = batch_norm(keras, 'norm')

  assert models.is_graph(keras.Sequential())
  assert not models.is_graph(Sequential())
  assert paths(Sequential()) == ['norm']


@cases.both_kerases
def test_parents_first(generation):
  keras = importlib.import_module(generation)
  owner = holding(keras, keras.layers.Layer)
  inputs = keras.Input((6, 8))
  model = keras.Model(inputs, owner._hidden(owner(owner._hidden(inputs))))
  order = models.parents_first(model)
  assert order[0] is model
  assert {id(x) for x in order} == {id(model)} | {
    id(layer) for _, layer in models.walk(model)
  }
  places = {id(layer): place for place, layer in enumerate(order)}
  for layer in order:
    for _, child in models.children(layer):
      assert places[id(layer)] < places[id(child)]


@cases.both_kerases
def test_another_in_its_place(generation):
  """In each kind of container, and in Keras' own list."""
  keras = importlib.import_module(generation)
  owner = holding(keras, keras.Model)
  new = keras.layers.Dense(8, name='new')
  for place in ('plain', '_hidden', 'rows[1][0]', "_table['y'][0]"):
    listed = owner.layers
    models.swap(owner, dict(models.children(owner))[place], new)
    assert dict(models.children(owner))[place] is new
    assert len(owner.layers) == len(listed)
    new = keras.layers.Dense(8, name='new')
  kept = owner.again[0]
  assert kept is owner._hidden and kept.name == 'new'


def test_containers_are_kept():
  import keras

  a, b = keras.layers.Dense(1), keras.layers.Dense(2)
  ordered = collections.OrderedDict(x=[a], y=(a, 3))
  for value, wanted in [
    (a, b),
    ('a', 'a'),
    (Pair(a, 'x'), Pair(b, 'x')),
    ({a, 1}, {b, 1}),
    (ordered, collections.OrderedDict(x=[b], y=(b, 3))),
  ]:
    result = models.rebuilt(value, lambda layer: b)
    assert result == wanted and type(result) is type(wanted)


@cases.both_kerases
def test_inputs(generation):
  keras = importlib.import_module(generation)
  a, b = keras.Input((8,), name='a'), keras.Input((8,), name='b')
  y = keras.layers.Add()([a, b])
  for inputs in ([a, b], {'a': a, 'b': b}):
    found = models.inputs_of(keras.Model(inputs, y))
    assert type(found) is type(inputs)
    names = [x.name for x in tf.nest.flatten(found)]
    assert names == ['a', 'b']
  row = keras.Sequential([keras.Input((8,), name='x'), keras.layers.Dense(1)])
  keras.Sequential([keras.Input((8,), name='outer'), row])
  assert models.inputs_of(row).name == 'x'
  assert models.inputs_of(keras.Sequential()) is None
  assert models.inputs_of(holding(keras, keras.Model)) is None
