"""Ragged tensors where each group lies in a row; a remedy for all others."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

import cases
from tfgroupnorm import functional

LENGTHS = [3, 0, 5, 1]
ROWS = np.random.default_rng(0).normal(3, 2, (9, 4, 6)).astype('float32')


def ragged(values):
  return tf.RaggedTensor.from_row_lengths(values, LENGTHS)


def made(generation, kind, **options):
  """A layer with random weights for (batch, None, 4, 6)."""
  layer = getattr(cases.layers_of(generation), kind)(**options)
  layer.build((None, None, 4, 6))
  rng = np.random.default_rng(1)
  layer.set_weights([rng.normal(1, 0.3, w.shape) for w in layer.get_weights()])
  return layer


TAKEN = [
  ('LayerNorm', {}),
  ('LayerNorm', {'axis': [2, 3], 'activation': 'silu'}),
  ('LayerNorm', {'axis': 3, 'rms': True}),
  ('HeadNorm', {'num_heads': 2}),
  ('HeadNorm', {'head_axis': -2}),
  ('HeadNorm', {'head_axis': 2, 'per_head': False, 'rms': True}),
]


@cases.both_kerases
@pytest.mark.parametrize('kind, options', TAKEN)
@pytest.mark.parametrize('graph', [False, True], ids=['eager', 'graph'])
def test_rows(generation, kind, options, graph):
  """The same as row for row in a dense tensor, and so is the gradient."""
  layer = made(generation, kind, **options)

  def run(values):
    with tf.GradientTape() as tape:
      tape.watch(values)
      y = layer(ragged(values))
      loss = tf.reduce_sum(tf.sin(y.flat_values))
    return y, tape.gradient(loss, values)

  y, dx = (tf.function(run, autograph=False) if graph else run)(
    tf.constant(ROWS)
  )
  assert y.shape.as_list()[2:] == [4, 6]
  np.testing.assert_array_equal(y.row_lengths(), LENGTHS)
  rows = tf.constant(ROWS[:, np.newaxis])
  with tf.GradientTape() as tape:
    tape.watch(rows)
    wanted = layer(rows)
    loss = tf.reduce_sum(tf.sin(wanted))
  np.testing.assert_allclose(y.flat_values, wanted[:, 0], rtol=0, atol=4e-6)
  wanted = tape.gradient(loss, rows)[:, 0]
  np.testing.assert_allclose(dx, wanted, rtol=0, atol=2e-5)


@cases.both_kerases
def test_a_gate_of_the_same_rows(generation):
  layer = made(generation, 'HeadNorm', num_heads=2, gate_activation='silu')
  y = layer(ragged(ROWS), gate=ragged(ROWS[::-1]))
  wanted = layer(ROWS[:, None], gate=ROWS[::-1, None])[:, 0]
  np.testing.assert_allclose(y.flat_values, wanted, rtol=0, atol=4e-6)
  with pytest.raises(
    (TypeError, ValueError), match='`gate` must be ragged as the input is'
  ):
    layer(ragged(ROWS), gate=tf.constant(ROWS))


@cases.both_kerases
def test_a_model_of_ragged_rows(generation):
  """As far as this Keras takes its own layer."""
  keras = importlib.import_module(generation)

  def model(layer):
    inputs = keras.Input((None, 6), ragged=True)
    return keras.Model(inputs, layer(inputs))

  x = ragged(ROWS[:, 0])
  try:
    theirs = model(keras.layers.LayerNormalization())
  except (TypeError, ValueError):
    pytest.skip('This Keras has no ragged inputs.')
  ours = model(cases.layers_of(generation).LayerNorm())
  np.testing.assert_allclose(
    ours(x).flat_values, theirs(x).flat_values, rtol=0, atol=4e-6
  )
  y = ours.predict(x, verbose=0)
  np.testing.assert_array_equal(y.row_lengths(), LENGTHS)


@cases.both_kerases
@pytest.mark.parametrize(
  'kind, options, spanned',
  [
    ('GroupNorm', {'groups': 2}, 'the positions'),
    ('InstanceNorm', {}, 'the positions'),
    ('LayerNorm', {'axis': [1, 3]}, r'axes \[1, 3\]'),
    ('HeadNorm', {'head_axis': 1, 'num_heads': 2}, r'axes \[1, 3\]'),
  ],
)
def test_groups_over_rows_are_refused(generation, kind, options, spanned):
  layer = getattr(cases.layers_of(generation), kind)(**options)
  message = (
    f'A ragged tensor is taken where each group lies in one row: {kind} spans '
    rf'{spanned} of a sample. Received: RaggedTensor of shape .*up to axis 1. '
    r'Pass `x.to_tensor\(\)` with `mask=tf.sequence_mask\(x.row_lengths\(\)\)`'
  )
  with pytest.raises(TypeError, match=message):
    layer(ragged(ROWS))


def test_the_remedy():
  """Padding that a mask leaves out is in no group."""
  x = ragged(ROWS)
  layer = made('keras', 'GroupNorm', groups=2)
  y = layer(x.to_tensor(), mask=tf.sequence_mask(x.row_lengths()))
  wanted = layer(ROWS[None, 3:8])[0]
  np.testing.assert_allclose(y[2], wanted, rtol=0, atol=4e-6)


@cases.both_kerases
@pytest.mark.parametrize('name', ['mask', 'gamma', 'beta'])
def test_nothing_per_sample_beside_rows(generation, name):
  layer = made(generation, 'LayerNorm', scale=False, center=False)
  given = {name: tf.ones((4, 6), tf.bool if name == 'mask' else tf.float32)}
  with pytest.raises(ValueError, match=f'`{name}` cannot be passed beside a'):
    layer(ragged(ROWS), **given)


@cases.both_kerases
@cases.one_of_each
def test_sparse_tensors_are_refused(generation, case):
  x = tf.sparse.from_dense(case.data()[0])
  message = (
    '`x` must be a dense tensor. Received: SparseTensor. Convert it with '
    '`tf.sparse.to_dense`'
  )
  with pytest.raises(TypeError, match=message):
    case.layer(generation)(x)


def test_functions_say_how_to_go_over_rows():
  with pytest.raises(TypeError, match='tf.ragged.map_flat_values'):
    functional.layer_norm(ragged(ROWS))
