"""Where a layer may find itself besides a model: loops, maps, copies."""

import copy
import importlib
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import cases
import reference

X = np.random.default_rng(0).normal(3, 2, (4, 6, 8)).astype('float32')
DY = np.random.default_rng(1).normal(1, 1, X.shape).astype('float32')


def formula(x):
  return reference.group_norm(x, None, None, groups=2)


def check(function):
  """Value and gradient of `function(x)` against float64."""
  x = tf.constant(X)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = function(x)
  np.testing.assert_allclose(y, formula(X.astype('float64')), atol=4e-6)
  (wanted,) = reference.vjp(formula, [X.astype('float64')], DY)
  np.testing.assert_allclose(tape.gradient(y, x, DY), wanted, atol=2e-5)


def norm(generation):
  return cases.layers_of(generation).GroupNorm(2)


def mapped(layer, x):
  return tf.map_fn(lambda one: layer(one[None])[0], x)


def branched(layer, x):
  return tf.cond(tf.reduce_sum(x) > 0, lambda: layer(x), lambda: x)


def looped(layer, x):
  return tf.while_loop(
    lambda i, _: i < 1, lambda i, y: (i + 1, layer(y)), (0, x)
  )[1]


def recomputed(layer, x):
  return tf.recompute_grad(lambda x: layer(x))(x)


@cases.both_kerases
@pytest.mark.parametrize('graph', [False, True], ids=['eager', 'graph'])
@pytest.mark.parametrize('form', [mapped, branched, looped, recomputed])
def test_control_flow(generation, form, graph):
  layer = norm(generation)
  layer.build(X.shape)

  def run(x):
    return form(layer, x)

  check(tf.function(run, autograph=False) if graph else run)


@cases.both_kerases
def test_functions_run_eagerly(generation):
  tf.config.run_functions_eagerly(True)
  try:
    check(tf.function(norm(generation)))
  finally:
    tf.config.run_functions_eagerly(False)


@cases.both_kerases
def test_time_distributed(generation):
  layers = importlib.import_module(generation).layers
  layer = layers.TimeDistributed(norm(generation))
  y = layer(X[:, None])[:, 0]
  np.testing.assert_allclose(y, formula(X.astype('float64')), atol=4e-6)


@cases.both_kerases
def test_a_pipeline_of_data(generation):
  layer = norm(generation)
  layer.build(X.shape)
  data = tf.data.Dataset.from_tensor_slices(X).batch(2).map(layer)
  y = np.concatenate(list(data))
  np.testing.assert_allclose(y, formula(X.astype('float64')), atol=4e-6)


def pickled(layer):
  return pickle.loads(pickle.dumps(layer))


def can_be_copied(layer, copied):
  """The first Keras 3 cannot copy a built layer, Keras 2 not pickle one."""
  layer.build(X.shape)
  try:
    copied(layer)
  except (AttributeError, TypeError, ValueError):
    return False
  return True


@pytest.mark.parametrize(
  'generation, copied',
  [
    (generation, copied)
    for generation in cases.GENERATIONS
    for copied in (copy.deepcopy, pickled)
    if can_be_copied(
      importlib.import_module(generation).layers.LayerNormalization(), copied
    )
  ],
)
def test_copies(generation, copied):
  """A copy is a layer of its own, with the same weights."""
  layer = norm(generation)
  layer.build(X.shape)
  layer.set_weights([np.full(8, 2.0), np.full(8, 1.0)])
  wanted = 2 * formula(X.astype('float64')) + 1
  twin = copied(layer)
  np.testing.assert_allclose(twin(X), wanted, atol=1e-5)
  twin.set_weights([np.zeros(8), np.zeros(8)])
  np.testing.assert_allclose(layer(X), wanted, atol=1e-5)


def test_stateless_call():
  layer = norm('keras')
  layer.build(X.shape)
  weights = [np.full(8, 2.0, 'float32'), np.full(8, 1.0, 'float32')]
  y, _ = layer.stateless_call(weights, [], X)
  np.testing.assert_allclose(y, 2 * formula(X.astype('float64')) + 1, atol=1e-5)
  y = keras.ops.convert_to_numpy(layer(X))
  np.testing.assert_allclose(y, formula(X.astype('float64')), atol=4e-6)


@pytest.mark.skipif(
  not hasattr(keras, 'RematScope'), reason='This Keras 3 has no RematScope.'
)
@cases.one_of_each
@pytest.mark.parametrize('graph', [False, True], ids=['eager', 'graph'])
@pytest.mark.parametrize('masked', [False, True], ids=['whole', 'masked'])
def test_remat_scope(case, graph, masked):
  """As of `keras.layers.LayerNormalization`: recomputed by layers' names."""
  x, gamma, beta = case.data()
  mask = tf.constant(case.mask()) if masked else None
  dy = tf.constant(np.random.default_rng(1).normal(1, 1, x.shape), tf.float32)
  results = []
  for names in (['norm'], ['another']):
    with keras.RematScope(mode='list_of_layers', layer_names=names):
      layer = case.layer('keras', name='norm')
    layer.build(x.shape)
    layer.set_weights([gamma, beta])

    def run(x, layer=layer):
      weights = cases.tf_variables(layer)
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, mask=mask)
      return y, *tape.gradient(y, [x, *weights], dy)

    run = tf.function(run, autograph=False) if graph else run
    results.append(run(tf.constant(x)))
  for got, wanted in zip(*results, strict=True):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


@cases.both_kerases
@cases.one_of_each
def test_a_whole_model_can_be_pruned(generation, case):
  """tfmot asks each layer that it does not know which weights to prune."""
  layer = case.layer(generation)
  layer.build(case.shape)
  assert layer.get_prunable_weights() == []
