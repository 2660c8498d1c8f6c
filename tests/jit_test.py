"""Where `jit_compile` compiles, and how often it traces."""

import functools
import gc
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from tensorflow.python.framework.convert_to_constants import (
  convert_variables_to_constants_v2,
)

import cases
import reference
from tfgroupnorm import LayerNorm, functional, op_by_op
from tfgroupnorm.kernel import Spec
from tfgroupnorm.kernel.tensorflow import dispatch, gradient


def compiled_functions(concrete):
  """Functions inside a graph that XLA must compile."""
  return [
    f.signature.name
    for f in concrete.graph.as_graph_def().library.function
    if f.attr['_XlaMustCompile'].b
  ]


def traced(jit_compile, shape=(None, 4, 8), outer=None):
  @tf.function(
    input_signature=[tf.TensorSpec(shape)],
    jit_compile=outer,
    autograph=False,
  )
  def run(x):
    return functional.group_norm(x, groups=2, jit_compile=jit_compile)

  concrete = run.get_concrete_function()
  x = np.random.default_rng(0).normal(3, 2, (2, 4, 8)).astype('float32')
  case = cases.KINDS['GroupNorm']
  wanted = case.formula.func(x.astype('float64'), None, None, groups=2)
  y = concrete(tf.constant(x))
  np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)
  return concrete


@pytest.mark.parametrize(
  'jit_compile, shape, compiled',
  [
    (True, (None, 4, 8), True),
    (True, (None, None, 8), True),
    (False, (2, 4, 8), False),
    ('auto', (2, 4, 8), True),
    ('auto', (None, 4, 8), True),
    ('auto', (None, None, 8), False),
  ],
)
def test_where_it_compiles(jit_compile, shape, compiled):
  assert bool(compiled_functions(traced(jit_compile, shape))) == compiled


@pytest.mark.parametrize(
  'dtype, shape, compiled',
  [
    ('float32', (31, 1024), True),
    ('float32', (32, 1024), False),
    ('float32', (64, 1024), False),
    ('float32', (65, 1024), True),
    ('float32', (None, 1024), True),
    ('bfloat16', (7, 1024), True),
    ('bfloat16', (8, 1024), False),
    ('float16', (64, 1024), False),
    ('float16', (65, 1024), True),
    ('float64', (64, 1024), True),
  ],
)
def test_sizes_that_gain_nothing(monkeypatch, dtype, shape, compiled):
  """On a CPU. What is to run on an accelerator is compiled."""

  def compiles():
    function = tf.function(lambda x: functional.layer_norm(x), autograph=False)
    x = tf.TensorSpec(shape, dtype)
    return bool(compiled_functions(function.get_concrete_function(x)))

  assert compiles() == compiled
  monkeypatch.setattr(dispatch, '_device_compiles', lambda device: True)
  monkeypatch.setattr(dispatch, '_device_types', lambda x: {'CPU', 'GPU'})
  assert compiles()


@pytest.mark.parametrize('jit_compile', [True, False, 'auto'])
def test_plain_inside_a_whole_graph_compilation(jit_compile):
  assert not compiled_functions(traced(jit_compile, outer=True))
  # Also in a function that is called in there, and in a branch.
  inner = tf.function(
    lambda x: functional.layer_norm(x, jit_compile=jit_compile),
    autograph=False,
  )

  @tf.function(
    input_signature=[tf.TensorSpec((2, 8))], jit_compile=True, autograph=False
  )
  def outer(x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: inner(x), lambda: inner(-x))

  assert not compiled_functions(outer.get_concrete_function())
  x = tf.constant([[-3.0, -1.0] * 4, [5.0, -9.0] * 4])
  np.testing.assert_allclose(outer(x), [[1, -1] * 4, [-1, 1] * 4], atol=1e-3)


@pytest.mark.parametrize('jit_compile', [True, False, 'auto'])
def test_plain_while_saving(jit_compile, tmp_path):
  module = tf.Module()
  module.run = tf.function(
    lambda x: functional.layer_norm(x, jit_compile=jit_compile),
    input_signature=[tf.TensorSpec((None, 8))],
    autograph=False,
  )
  tf.saved_model.save(module, tmp_path)
  assert cases.compiled_in_saved_model(tmp_path) == []
  x = tf.constant(np.random.default_rng(0).normal(3, 2, (4, 8)).astype('f'))
  loaded = tf.saved_model.load(tmp_path)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(x)
    y, z = loaded.run(x), functional.layer_norm(x)
  np.testing.assert_allclose(y, z, rtol=0, atol=2e-6)
  case = cases.KINDS['LayerNorm']
  wanted = case.formula(x.numpy().astype('float64'), None, None)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)
  weight = tf.range(8.0)
  np.testing.assert_allclose(
    tape.gradient(y, x, y * weight),
    tape.gradient(z, x, y * weight),
    rtol=0,
    atol=2e-5,
  )


@pytest.mark.parametrize('jit_compile', [True, 'auto'])
def test_op_by_op(jit_compile):
  """Nothing is compiled inside, in no graph and eagerly, nor its gradient."""

  def compiles():
    return bool(compiled_functions(traced(jit_compile)))

  with op_by_op():
    assert not compiles()
    with op_by_op():
      assert not compiles()
    assert not compiles()
    x = tf.random.normal((7, 31, 8))
    before = dispatch.compiled.traces
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = functional.group_norm(x, groups=2, jit_compile=True)
    tape.gradient(y, x)
    assert dispatch.compiled.traces == before
    with pytest.raises(KeyError):
      with op_by_op():
        raise KeyError
    assert not compiles()
  assert compiles()


def test_op_by_op_in_one_thread():
  with op_by_op():
    with futures.ThreadPoolExecutor() as pool:
      elsewhere = pool.submit(traced, 'auto').result()
    assert compiled_functions(elsewhere)
    assert not compiled_functions(traced('auto'))


@cases.both_kerases
def test_a_frozen_graph(generation):
  """Nothing is left that XLA must compile."""
  model = cases.everything(generation, steps=6, jit_compile=True)
  x = np.random.default_rng(0).normal(3, 2, (2, 6, 8)).astype('f')
  spec = tf.TensorSpec((None, 6, 8))
  with op_by_op():
    function = tf.function(lambda x: model(x), autograph=False)
    concrete = function.get_concrete_function(spec)
  frozen = convert_variables_to_constants_v2(concrete)
  graph = frozen.graph.as_graph_def()
  assert not any('_XlaMustCompile' in node.attr for node in graph.node)
  assert not [node.op for node in graph.node if 'PartitionedCall' in node.op]
  (y,) = frozen(tf.constant(x))
  np.testing.assert_allclose(y, model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  'name, batch, jit_compile, compiled',
  [
    ('__call__', None, 'auto', False),
    ('__call__', 2, 'auto', True),
    ('__call__', None, True, True),
    ('model_fn', None, 'auto', False),
    ('_wrapped_model', 2, True, False),
    ('serve', None, 'auto', True),
  ],
)
def test_functions_that_programs_trace(name, batch, jit_compile, compiled):
  """To convert them: known by their names alone, so not where it matters."""

  def norm(x):
    return functional.layer_norm(x, jit_compile=jit_compile)

  def compiles(function):
    concrete = tf.function(function, autograph=False).get_concrete_function(
      tf.TensorSpec((batch, 8))
    )
    return bool(compiled_functions(concrete))

  norm.__name__ = name
  assert compiles(norm) == compiled
  # Called from another function it is that one's.
  called = tf.function(norm, autograph=False)
  assert compiles(lambda x: called(x))


def test_plain_in_a_tpu_replica(monkeypatch):
  class TPUStrategyV2:  # As TensorFlow names it inside.
    pass

  assert compiled_functions(traced(True))
  monkeypatch.setattr(tf.distribute, 'get_strategy', TPUStrategyV2)
  assert not compiled_functions(traced(True))
  assert not compiled_functions(traced('auto'))


def test_plain_where_the_device_has_no_xla(monkeypatch):
  """As on the host of tensorflow-tpu, whose CPU has no compiler."""
  monkeypatch.setattr(dispatch, '_device_compiles', lambda device: False)
  assert not compiled_functions(traced('auto'))
  assert compiled_functions(traced(True))
  x = np.random.default_rng(0).normal(3, 2, (2, 8)).astype('float32')
  case = cases.KINDS['LayerNorm']
  np.testing.assert_allclose(
    functional.layer_norm(x),
    case.formula(x.astype('float64'), None, None),
    rtol=0,
    atol=4e-6,
  )


def test_the_probe_survives_a_failing_compiler(monkeypatch):
  def fails(*_):
    raise tf.errors.NotFoundError(None, None, 'no transfer manager for Host')

  said = []
  monkeypatch.setattr(dispatch, 'compiled', fails)
  monkeypatch.setattr(logging, 'info', lambda *args: said.append(args))
  assert not dispatch._device_compiles.__wrapped__('CPU')
  assert 'no transfer manager' in str(said[0][-1])


def test_many_layers_are_no_reason_to_warn(caplog):
  """TensorFlow warns of functions that are traced with every call."""
  for channels in range(2, 14, 2):
    functional.group_norm(tf.ones((3, 5, channels)), groups=2)
  assert 'retracing' not in caplog.text


def test_a_penalty_over_many_shapes_is_no_reason_to_warn(caplog):
  for length in range(3, 11):
    x = tf.ones((2, length))
    with tf.GradientTape() as outer:
      outer.watch(x)
      with tf.GradientTape() as inner:
        inner.watch(x)
        y = functional.layer_norm(x)
      loss = tf.reduce_sum(inner.gradient(y, x) ** 2)
    outer.gradient(loss, x)
  assert 'retracing' not in caplog.text


def test_the_probe_finds_this_cpu_able():
  assert dispatch._device_compiles.__wrapped__('CPU')


def test_eager_calls_of_one_kind_share_a_trace():
  """Of layers of the same options too, unless functions are to run eagerly."""
  x = tf.random.normal((3, 5, 8), mean=3)
  make = functools.partial(LayerNorm, epsilon=0.0123, jit_compile=True)
  layers = make(), make()
  before = dispatch.compiled.traces
  wanted, again, other = layers[0](x), layers[0](x), layers[1](x)
  assert dispatch.compiled.traces == before + 1
  np.testing.assert_array_equal(again, wanted)
  np.testing.assert_array_equal(other, wanted)
  tf.config.run_functions_eagerly(True)
  try:
    stepped = layers[0](x)
  finally:
    tf.config.run_functions_eagerly(False)
  assert dispatch.compiled.traces == before + 2
  np.testing.assert_allclose(stepped, wanted, rtol=0, atol=1e-6)


TRACES = """
import numpy as np, tensorflow as tf
import tfgroupnorm
from tfgroupnorm.kernel.tensorflow import dispatch

layer = tfgroupnorm.GroupNorm(4)
step = tf.function(layer, autograph=False) if {graph} else layer
shapes = [(2, 4, 4, 8), (3, 4, 4, 8), (2, 6, 6, 8)]
for call in range(1, 101):
  step(tf.ones(shapes[call % 3]))
  if call in (1, 2, 3, 4, 100):
    print(call, dispatch.compiled.traces)
"""


@pytest.mark.parametrize(
  'graph, wanted',
  [
    (False, [[1, 0], [2, 0], [3, 0], [4, 0], [100, 4]]),
    (True, [[1, 2], [2, 3], [3, 4], [4, 4], [100, 4]]),
  ],
  ids=['eager', 'graph'],
)
def test_one_trace_for_each_shape(graph, wanted):
  """100 calls over 3 shapes: 3 traces, in a graph at the first 3 calls.

  And one before them: the probe of the device.
  """
  result = subprocess.run(
    [sys.executable, '-c', TRACES.format(graph=graph)],
    capture_output=True,
    text=True,
    check=True,
  )
  print('calls, traces')
  print(result.stdout)
  counts = [list(map(int, line.split())) for line in result.stdout.splitlines()]
  assert counts == wanted


@pytest.mark.parametrize(
  'compilation, features, traced_at',
  [
    (1, 88, [8, 8, 8, 8]),
    (3_000_000, 80, [0, 0, 8, 8]),
    (1_000_000_000, 72, [0, 0, 0, 0]),
  ],
)
def test_eager_shapes_that_keep_changing(
  monkeypatch, compilation, features, traced_at
):
  """Those that come often are compiled, a few; the rest runs op by op."""
  monkeypatch.setattr(dispatch, '_COMPILATION', compilation)
  for counts in ('_eager_work', '_compiled_shapes'):
    monkeypatch.setattr(dispatch, counts, {})
  assert dispatch._device_compiles('CPU')
  before = dispatch.compiled.traces
  case = cases.KINDS['LayerNorm']
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (2, 13, features)).astype('float32')
  counts = []
  for _ in traced_at:
    for length in range(1, 13):
      y = functional.layer_norm(x[:, :length])
      wanted = case.formula(x[:, :length].astype('float64'), None, None)
      np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)
    counts.append(dispatch.compiled.traces - before)
  assert counts == traced_at


def test_graphs_of_shapes_that_keep_changing(monkeypatch):
  """XLA keeps what it compiles, for functions that have gone too."""
  before = dispatch.compiled.traces
  x = np.random.default_rng(0).normal(3, 2, (2, 13, 89)).astype('float32')
  wanted = reference.layer_norm(x.astype('float64'), None, None)

  def run(length):
    function = tf.function(functional.layer_norm, autograph=False)
    y = function(x[:, :length])
    np.testing.assert_allclose(y, wanted[:, :length], rtol=0, atol=4e-6)
    return dispatch.compiled.traces - before

  assert [run(length) for length in range(1, 13)] == [*range(1, 9), 8, 8, 8, 8]
  gc.collect()  # The oldest TensorFlow leaves a function to it.
  assert run(1) == 9  # A known shape, a function of its own.
  monkeypatch.setattr(dispatch, '_MOST_SHAPES_OF_ALL', 8)
  other = tf.ones((2, 13, 90))
  spec = Spec(axes=(2,), epsilon=1e-3)
  assert dispatch._runner('auto', spec, other) is dispatch.plain


def test_shapes_without_end(monkeypatch):
  """What is remembered of them has a bound, and those that come often count."""
  monkeypatch.setattr(dispatch, '_COMPILATION', 5_000_000)
  for counts in ('_eager_work', '_compiled_shapes'):
    monkeypatch.setattr(dispatch, counts, {})
  spec = Spec(axes=(1,), epsilon=1e-3)
  often = tf.ones((2, 7))
  compiled_at = None
  for call in range(3000):
    assert not dispatch._worth_compiling(spec, tf.ones((2, 8 + call)))
    if compiled_at is None and dispatch._worth_compiling(spec, often):
      compiled_at = call
  assert compiled_at == 4
  assert len(dispatch._eager_work) <= 1000
  assert dispatch._worth_compiling(spec, often)


@cases.one_of_each
@cases.both_kerases
def test_no_retrace_on_a_second_call(case, generation):
  """Not of a twin layer, nor of its gradient, either."""

  def step(layer):
    x = tf.constant(case.data()[0])
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = layer(x)
    tape.gradient(y, x)

  def count():
    return [f.traces for f in (gradient._in_graph, dispatch.compiled)]

  step(case.layer(generation))
  before = count()
  assert all(before)
  layer = case.layer(generation)
  for _ in range(3):
    step(layer)
  assert count() == before


@pytest.mark.parametrize('activation', [None, 'gelu'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@cases.compiled_or_plain
def test_kept_for_the_gradient(jit_compile, activation, dtype):
  """The input, as it came, and small statistics; no other of its size."""
  x = tf.cast(tf.random.normal((2, 16, 16, 32), seed=0), dtype)
  dy = tf.cast(tf.random.normal(x.shape, seed=1), dtype)

  @tf.function(autograph=False)
  def step(x, dy, gamma):
    with tf.GradientTape() as tape:
      tape.watch([x, gamma])
      y = functional.group_norm(
        x, gamma, groups=4, activation=activation, jit_compile=jit_compile
      )
    gradients = tape.gradient(y, [x, gamma], dy)
    graph = tf.compat.v1.get_default_graph()
    _, backward = [
      op for op in graph.get_operations() if op.type == 'PartitionedCall'
    ]
    return gradients, list(backward.inputs)

  _, kept = step(x, dy, tf.ones(32))
  large = [t for t in kept if t.shape.num_elements() > 100]
  assert len(large) >= 2
  for t in large:
    assert np.array_equal(t, x) or np.array_equal(t, dy)
