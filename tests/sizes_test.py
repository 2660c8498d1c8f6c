"""Batches whose size a graph does not know: which of them are compiled."""

import gc
import importlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
  convert_variables_to_constants_v2,
)

import cases
import reference
from tfgroupnorm import functional
from tfgroupnorm.kernel.tensorflow import dispatch, gradient, sizes


def number_compiled():
  """Of sizes, in this process, so far."""
  sizes._counter()
  left = sizes._found(sizes._table('known'), sizes._ALL)
  return sizes._MOST_OF_ALL - int(left)


@pytest.fixture(autouse=True)
def nothing_counted():
  """Forgets what other tests called; two sizes may share a place."""
  table = sizes._table('worked')
  places, _ = tf.raw_ops.LookupTableExportV2(
    table_handle=table, Tkeys=tf.int64, Tvalues=tf.int64
  )
  tf.raw_ops.LookupTableRemoveV2(table_handle=table, keys=places)


@pytest.fixture
def soon(monkeypatch):
  """Sizes are compiled after their third call."""
  monkeypatch.setattr(dispatch, '_COMPILATION', 3_000_000)


def unknown_batch(function, shape):
  return tf.function(
    function, input_signature=[tf.TensorSpec((None, *shape))], autograph=False
  )


def model_of(generation, layers, shape, count=2):
  keras = importlib.import_module(generation)
  model = keras.Sequential(
    [keras.Input(shape), *(layers() for _ in range(count))]
  )
  model.compile('sgd', 'mse')
  return model


def zeros(n, shape):
  return np.zeros((n, *shape), 'float32')


@cases.both_kerases
@pytest.mark.parametrize('how', ['predict', 'train', 'function'])
def test_new_sizes_are_not_compiled(generation, how, soon):
  shape = (3, 5, {'predict': 8, 'train': 12, 'function': 20}[how])
  model = model_of(
    generation, lambda: cases.layers_of(generation).GroupNorm(4), shape
  )
  function = unknown_batch(model, shape)
  before = number_compiled()
  for n in range(1, 41):
    x = zeros(n, shape)
    if how == 'predict':
      model.predict_on_batch(x)
    elif how == 'train':
      model.train_on_batch(x, x)
    else:
      function(x)
  assert number_compiled() == before


@cases.both_kerases
def test_the_last_batch_of_an_epoch(generation, soon):
  """It is smaller, and comes once in an epoch."""
  shape = (2, 3, 14 if generation == 'keras' else 16)
  model = model_of(
    generation, lambda: cases.layers_of(generation).GroupNorm(2), shape
  )
  x = zeros(5 * 4 + 3, shape)
  before = number_compiled()
  model.fit(x, x, batch_size=4, epochs=2, verbose=0)
  # Keras traces the first batch with its size from 3.16 on: not counted.
  version = importlib.import_module(generation).__version__.split('.')
  counted = [*map(int, version[:2])] < [3, 16]
  assert number_compiled() == before + counted
  model.fit(x, x, batch_size=4, epochs=1, verbose=0)
  assert number_compiled() == before + counted + 1


def test_each_layer_of_a_model_counts_by_itself(soon):
  layers = cases.layers_of('keras').LayerNorm
  model = model_of('keras', layers, (3, 18), count=24)
  function = unknown_batch(model, (3, 18))
  before = number_compiled()
  for n in range(1, 4):
    function(zeros(n, (3, 18)))
  assert number_compiled() == before


def test_no_more_than_eight_sizes_of_one_kind(soon):
  function = unknown_batch(functional.layer_norm, (22,))
  before = number_compiled()
  for _ in range(5):
    for n in range(1, 13):
      function(zeros(n, (22,)))
  assert number_compiled() == before + 8
  other = unknown_batch(functional.layer_norm, (23,))
  for _ in range(3):
    other(zeros(2, (23,)))
  assert number_compiled() == before + 9


@pytest.mark.parametrize('gains', [True, False])
def test_sizes_that_gain_nothing(gains, soon):
  shape = (1024, 4 if gains else 16)
  function = unknown_batch(functional.layer_norm, shape)
  before = number_compiled()
  for _ in range(5):
    function(zeros(2, shape))
  assert number_compiled() == before + gains


def test_no_more_than_so_many_of_all(monkeypatch, soon):
  left = sizes._MOST_OF_ALL - number_compiled()
  sizes._write(sizes._table('known'), sizes._ALL, 1)
  try:
    for channels in (25, 26):
      function = unknown_batch(functional.layer_norm, (channels,))
      for _ in range(5):
        function(zeros(2, (channels,)))
    assert number_compiled() == sizes._MOST_OF_ALL
  finally:
    sizes._write(sizes._table('known'), sizes._ALL, left)


def test_no_more_than_so_many_are_counted(monkeypatch):
  """As a layer that sees another size with each call would fill the memory."""
  monkeypatch.setattr(sizes, '_PLACES', 7)
  sizes._counter.cache_clear()
  table = sizes._table('worked')
  try:
    function = unknown_batch(functional.layer_norm, (29,))
    before = int(tf.raw_ops.LookupTableSizeV2(table_handle=table))
    for n in range(2, 30):
      function(zeros(n, (29,)))
    after = int(tf.raw_ops.LookupTableSizeV2(table_handle=table))
    assert after <= before + 7
  finally:
    sizes._counter.cache_clear()


def test_what_was_compiled_leaves_its_place(monkeypatch, soon):
  """To a size that shares it, which has to come often by itself."""
  monkeypatch.setattr(sizes, '_PLACES', 1)
  sizes._counter.cache_clear()
  try:
    function = unknown_batch(functional.layer_norm, (30,))
    before = number_compiled()
    for n, compiled in [(2, 0), (2, 0), (2, 1), (3, 1), (3, 1), (3, 2)]:
      function(zeros(n, (30,)))
      assert number_compiled() == before + compiled
  finally:
    sizes._counter.cache_clear()


@cases.all_cases
def test_values_and_gradients_either_way(case, soon):
  """As float64 has them, when a size is new and when it came often."""
  x, gamma, beta = case.data()
  arguments = [a for a in (x, gamma, beta) if a is not None]
  dy = np.random.default_rng(7).normal(0.5, 1.0, x.shape).astype('float32')
  signature = [
    tf.TensorSpec((None, *x.shape[1:]) if a.shape == x.shape else a.shape)
    for a in (*arguments, dy)
  ]

  @tf.function(input_signature=signature, autograph=False)
  def step(*given):
    *arguments, dy = given
    with tf.GradientTape() as tape:
      tape.watch(arguments)
      y = case.function(*arguments)
    return y, tape.gradient(y, arguments, dy)

  wanted = reference.vjp(case.reference, cases.wide(*arguments), dy)
  ways = [step(*arguments, dy) for _ in range(6)]
  for y, gradients in ways:
    case.check(y.numpy(), x, gamma, beta)
    for g, w in zip(gradients, wanted, strict=True):
      scale = max(1.0, np.abs(w).max())
      np.testing.assert_allclose(g, w, rtol=0, atol=4e-6 * scale)
  np.testing.assert_array_equal(ways[0][0], ways[1][0])
  np.testing.assert_array_equal(ways[-2][0], ways[-1][0])


@pytest.mark.parametrize('how', [tf.map_fn, tf.vectorized_map])
@pytest.mark.parametrize('traced', [False, True])
def test_maps(how, traced, soon):
  def norm(x):
    return functional.layer_norm(x)

  if traced:
    norm = unknown_batch(norm, (27,))
    norm(zeros(2, (27,)))

  @tf.function(
    input_signature=[tf.TensorSpec((None, None, 27))], autograph=False
  )
  def run(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = how(norm, x)
    return y, tf.convert_to_tensor(tape.gradient(y, x, tf.sin(x)))

  x = np.random.default_rng(0).normal(3, 2, (3, 5, 27)).astype('float32')

  def formula(x):
    return reference.layer_norm(x, None, None)

  wide = x.astype('float64')
  (wanted,) = reference.vjp(formula, [wide], np.sin(wide))
  for _ in range(6):
    y, dx = run(x)
    np.testing.assert_allclose(y, formula(wide), rtol=0, atol=4e-6)
    np.testing.assert_allclose(dx, wanted, rtol=0, atol=4e-6)


def test_forward_mode_and_second_order(soon):
  x = np.random.default_rng(0).normal(3, 2, (3, 28)).astype('float32')
  t = np.random.default_rng(1).normal(0, 1, (3, 28)).astype('float32')
  dy = np.random.default_rng(2).normal(0.5, 1, (3, 28)).astype('float32')

  def forward_mode(x):
    with tf.autodiff.ForwardAccumulator(x, tf.constant(t)) as accumulator:
      y = functional.layer_norm(x)
    return accumulator.jvp(y)

  def penalty(x):
    with tf.GradientTape() as outer:
      outer.watch(x)
      with tf.GradientTape() as inner:
        inner.watch(x)
        y = functional.layer_norm(x)
      loss = tf.reduce_sum(inner.gradient(y, x, dy) * t)
    return outer.gradient(loss, x)

  def formula(x):
    return reference.layer_norm(x, None, None)

  x64, t64, dy64 = cases.wide(x, t, dy)
  # The second derivative is symmetric: that of sum(dx * t) is that along t.
  (second,) = reference.second_order(formula, [x64], dy64, [t64])
  for function, wanted in (
    (forward_mode, reference.jvp(formula, [x64], [t64])),
    (penalty, second),
  ):
    unknown = unknown_batch(function, (28,))
    for _ in range(6):
      np.testing.assert_allclose(unknown(x), wanted, rtol=0, atol=4e-6)


def test_frozen_graphs():
  """The second too: by then TensorFlow has optimized what both refer to."""
  x = np.random.default_rng(0).normal(3, 2, (2, 31)).astype('float32')
  for _ in range(2):
    frozen = convert_variables_to_constants_v2(
      unknown_batch(functional.layer_norm, (31,)).get_concrete_function(),
      lower_control_flow=False,
      aggressive_inlining=True,
    )
    np.testing.assert_allclose(
      frozen(tf.constant(x))[0],
      reference.layer_norm(x.astype('float64'), None, None),
      rtol=0,
      atol=4e-6,
    )


SAVE = """
import tensorflow as tf, tfgroupnorm
layer = tfgroupnorm.GroupNorm(2)
layer.build((None, 4, 8))
function = tf.function(
  lambda x: layer(x), input_signature=[tf.TensorSpec((None, 4, 8))]
)
for _ in range(30):
  function(tf.ones((2, 4, 8)))
module = tf.Module()
module.weights = [w.value for w in layer.weights]
module.run = function.get_concrete_function()
tf.saved_model.save(module, {path!r})
"""

LOAD = """
import numpy as np, tensorflow as tf
run = tf.saved_model.load({path!r}).run
x = np.random.default_rng(0).normal(3, 2, (2, 4, 8)).astype('float32')
first = run(x).numpy()
assert all(np.array_equal(run(x), first) for _ in range(60))
table = tf.raw_ops.MutableHashTableV2(
  key_dtype=tf.int64, value_dtype=tf.int64, shared_name='tfgroupnorm/known'
)
keys, _ = tf.raw_ops.LookupTableExportV2(
  table_handle=table, Tkeys=tf.int64, Tvalues=tf.int64
)
assert tf.reduce_all(keys < 0), keys  # None that came often.
"""


def run_program(program):
  subprocess.run([sys.executable, '-c', program], check=True)


def test_in_another_process_nothing_is_compiled(tmp_path):
  """Where a graph traced before it was saved is loaded without tfgroupnorm."""
  for program in (SAVE, LOAD):
    run_program(program.format(path=str(tmp_path / 'saved')))


SAME = """
import numpy as np, tensorflow as tf, tfgroupnorm
tf.keras.utils.set_random_seed(0)
tf.config.experimental.enable_op_determinism()
layer = tfgroupnorm.GroupNorm(8)
x = np.random.default_rng(0).normal(3, 2, (8, 14, 14, 64)).astype('float32')
first = layer(x).numpy()
assert all(np.array_equal(layer(x), first) for _ in range(40))
function = tf.function(
  lambda x: layer(x), input_signature=[tf.TensorSpec((None, 14, 14, 64))]
)
first = function(x).numpy()
assert all(np.array_equal(function(x), first) for _ in range(40))
"""


def test_one_way_from_the_first_call_on_if_ops_are_deterministic():
  run_program(SAME)


@cases.compiled_or_plain
def test_traces_go_with_the_function(jit_compile):
  def step(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = functional.layer_norm(x, jit_compile=jit_compile)
    return tape.gradient(y, x)

  def graphs():
    gc.collect()
    kind = type(tf.function(step).get_concrete_function(tf.ones((2, 3))).graph)
    gc.collect()
    return sum(isinstance(o, kind) for o in gc.get_objects())

  before = graphs()
  for n in range(40, 45):
    tf.function(step, autograph=False)(tf.ones((2, n)))
  assert graphs() == before


def test_a_copy_of_a_graph_that_is_gone_has_no_gradient():
  """Rather than a wrong one, or none."""

  def doubled(x):
    return 2 * x, lambda dy: [2 * dy]

  original = tf.Graph()
  with original.as_default():
    x = tf.compat.v1.placeholder(tf.float32, [2], name='x')
    y = tf.identity(gradient._with_gradient(doubled, x), name='y')
    assert tf.gradients(y, x)[0] is not None
  description = original.as_graph_def()
  del original, x, y
  gc.collect()
  with tf.Graph().as_default():
    x, y = tf.import_graph_def(description, return_elements=['x:0', 'y:0'])
    with pytest.raises(LookupError, match='trace it anew'):
      tf.gradients(y, x)
