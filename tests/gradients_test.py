"""Gradients of every order and mode agree with float64."""

import functools
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf

import cases
import reference
from tfgroupnorm import functional
from tfgroupnorm.kernel.tensorflow import gradient


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
  """No `ForwardAccumulator` of another test's has been met."""
  monkeypatch.setattr(gradient, '_forward_mode', set())


def problem(case, dtype):
  """`(arguments, dy, tangents)`: a point, an upstream and a direction."""
  x, gamma, beta = case.data(dtype)
  arguments = [a for a in (x, gamma, beta) if a is not None]
  rng = np.random.default_rng(7)
  dy, *tangents = (
    rng.normal(0.5, 1.0, a.shape).astype(dtype) for a in (x, *arguments)
  )
  return arguments, dy, tangents


def check(got, wanted, tolerance):
  tf.nest.assert_same_structure(list(got), list(wanted))
  for g, w in zip(got, wanted, strict=True):
    scale = max(1.0, np.abs(w).max())
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale)


def gradients(f, arguments, dy):
  with tf.GradientTape() as tape:
    tape.watch(arguments)
    loss = tf.reduce_sum(f(*arguments) * dy)
  return tape.gradient(loss, arguments)


def zeros_for_none(got, arguments):
  """No gradient at all is right where it is zero everywhere, as for beta."""
  return [
    np.zeros_like(a) if g is None else g
    for g, a in zip(got, arguments, strict=True)
  ]


def tensors(arrays):
  return [tf.constant(a) for a in arrays]


@cases.all_cases
@cases.compiled_or_plain
@pytest.mark.parametrize(
  'dtype, tolerance', [('float64', 1e-10), ('float32', 4e-6)]
)
def test_first_order(case, jit_compile, dtype, tolerance):
  arguments, dy, _ = problem(case, dtype)
  got = gradients(
    lambda *a: case.function(*a, jit_compile=jit_compile),
    tensors(arguments),
    dy,
  )
  wanted = reference.vjp(case.reference, cases.wide(*arguments), dy)
  check(got, wanted, tolerance)


@cases.all_cases
@cases.both_kerases
def test_of_a_layer(case, generation):
  arguments, dy, _ = problem(case, 'float32')
  layer = case.layer(generation)
  layer.build(case.shape)
  layer.set_weights(arguments[1:])
  x = tf.constant(arguments[0])
  weights = cases.tf_variables(layer)
  with tf.GradientTape() as tape:
    tape.watch(x)
    loss = tf.reduce_sum(layer(x) * dy)
  got = tape.gradient(loss, [x, *weights])
  wanted = reference.vjp(case.reference, cases.wide(*arguments), dy)
  check(got, wanted, 4e-6)


@cases.one_of_each
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision(case, dtype):
  """Computed in float32: the only error is the rounding of the result."""
  numpy_dtype = tf.as_dtype(dtype).as_numpy_dtype
  arguments, dy, _ = problem(case, numpy_dtype)
  arguments[1:] = [a.astype('float32') for a in arguments[1:]]
  got = gradients(case.function, tensors(arguments), tf.constant(dy))
  assert [g.dtype.name for g in got] == [dtype] + ['float32'] * len(got[1:])
  wanted = reference.vjp(
    case.reference, cases.wide(*arguments), dy.astype('float64')
  )
  half_ulp = {'float16': 2.0**-11, 'bfloat16': 2.0**-8}[dtype]
  np.testing.assert_allclose(
    got[0].numpy().astype('float64'), wanted[0], rtol=1.01 * half_ulp, atol=4e-6
  )
  check(got[1:], wanted[1:], 4e-6)


def check_second_order(case, jit_compile, wrap):
  """As a gradient penalty needs it, with respect to the upstream too."""
  arguments, dy, tangents = problem(case, 'float64')

  def penalty(arguments, dy):
    with tf.GradientTape() as outer:
      outer.watch([arguments, dy])
      first = gradients(
        lambda *a: case.function(*a, jit_compile=jit_compile), arguments, dy
      )
      product = sum(
        tf.reduce_sum(g * t) for g, t in zip(first, tangents, strict=True)
      )
    return outer.gradient(product, [*arguments, dy])

  *got, d_dy = wrap(penalty)(tensors(arguments), tf.constant(dy))
  wanted = reference.second_order(case.reference, arguments, dy, tangents)
  check(zeros_for_none(got, arguments), wanted, 1e-7)
  check([d_dy], [reference.jvp(case.reference, arguments, tangents)], 1e-10)


@cases.all_cases
def test_second_order(case):
  check_second_order(case, False, wrap=lambda f: f)


@cases.one_of_each
@cases.compiled_or_plain
@pytest.mark.parametrize('compiled_around', [True, False])
def test_second_order_in_a_graph(case, jit_compile, compiled_around):
  check_second_order(
    case,
    jit_compile,
    functools.partial(
      tf.function, jit_compile=compiled_around, autograph=False
    ),
  )


@cases.one_of_each
def test_second_order_in_a_loop_that_is_compiled(case):
  """Several steps of a critic with a gradient penalty, in one function."""
  x, *parameters = tensors(problem(case, 'float64')[0])

  def penalty(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = tf.reduce_sum(case.function(x, *parameters) ** 3)
    return tf.reduce_sum(tape.gradient(y, x) ** 2)

  @tf.function(jit_compile=True, autograph=False)
  def loop(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      _, total = tf.while_loop(
        lambda i, _: i < 2,
        lambda i, total: (i + 1, total + penalty(x)),
        (0, tf.zeros([], x.dtype)),
        maximum_iterations=2,
      )
    return tape.gradient(total, x)

  def cubes(x):
    return case.reference(x, *parameters) ** 3

  parameters = [p.numpy() for p in parameters]
  ones, at = np.ones(x.shape), [x.numpy()]
  slope = reference.vjp(cubes, at, ones)
  (wanted,) = reference.second_order(cubes, at, ones, slope)
  check([loop(x)], [2 * 2 * wanted], 1e-6)


@cases.one_of_each
def test_third_order(case):
  arguments, dy, tangents = problem(case, 'float64')
  x, *parameters = tensors(arguments)
  along = tf.constant(tangents[0])

  def derivative(f):
    def df(x):
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = f(x)
      return tape.gradient(y, x)

    return df

  first = derivative(
    lambda x: tf.reduce_sum(case.function(x, *parameters) * dy)
  )
  second = derivative(lambda x: tf.reduce_sum(first(x) * along))
  third = derivative(lambda x: tf.reduce_sum(second(x) * along))
  step = 1e-4

  def formula(x):
    return reference.second_order(
      case.reference,
      [x, *arguments[1:]],
      dy,
      [tangents[0], *(np.zeros_like(a) for a in arguments[1:])],
    )[0]

  ahead, behind = (formula(x.numpy() + s * step * tangents[0]) for s in (1, -1))
  check([third(x)], [(ahead - behind) / (2 * step)], 1e-4)


def check_forward_mode(case, jit_compile, wrap):
  arguments, _, tangents = problem(case, 'float64')

  def push(arguments, tangents):
    with tf.autodiff.ForwardAccumulator(arguments, tangents) as accumulator:
      y = case.function(*arguments, jit_compile=jit_compile)
    return accumulator.jvp(y)

  got = wrap(push)(tensors(arguments), tensors(tangents))
  check([got], [reference.jvp(case.reference, arguments, tangents)], 1e-10)


@cases.all_cases
def test_forward_mode(case):
  check_forward_mode(case, False, wrap=lambda f: f)


@cases.one_of_each
@cases.compiled_or_plain
def test_forward_mode_in_a_graph(case, jit_compile):
  check_forward_mode(
    case, jit_compile, functools.partial(tf.function, autograph=False)
  )


@cases.one_of_each
@cases.compiled_or_plain
def test_forward_over_reverse(case, jit_compile):
  arguments, dy, tangents = problem(case, 'float64')
  tensors_, tangents_ = tensors(arguments), tensors(tangents)
  with tf.autodiff.ForwardAccumulator(tensors_, tangents_) as accumulator:
    first = gradients(
      lambda *a: case.function(*a, jit_compile=jit_compile), tensors_, dy
    )
  wanted = reference.second_order(case.reference, arguments, dy, tangents)
  got = [accumulator.jvp(g) for g in first]
  check(zeros_for_none(got, arguments), wanted, 1e-7)


def test_small_eager_calls_do_without_custom_gradient(monkeypatch):
  """In the main thread, and where no `ForwardAccumulator` has been."""
  usual, asked = gradient._eagerly, []

  def counted(*args, **options):
    asked.append(args)
    return usual(*args, **options)

  monkeypatch.setattr(gradient, '_eagerly', counted)

  def used(rows):
    asked.clear()
    functional.layer_norm(tf.ones((rows, 256)), epsilon=0.5, jit_compile=True)
    return bool(asked)

  assert not used(1) and not used(1024)
  assert used(1025)
  with futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(used, 1).result()
  x = tf.ones((2, 256))
  with tf.autodiff.ForwardAccumulator(x, x):
    functional.layer_norm(x, epsilon=0.5, jit_compile=True)
  assert used(1)


@cases.one_of_each
@pytest.mark.parametrize('persistent', [False, True])
def test_second_order_of_small_compiled_calls(case, persistent):
  arguments, dy, tangents = problem(case, 'float64')
  tensors_ = tensors(arguments)
  with tf.GradientTape() as outer:
    outer.watch(tensors_)
    with tf.GradientTape(persistent=persistent) as inner:
      inner.watch(tensors_)
      y = case.function(*tensors_, jit_compile=True)
      loss = tf.reduce_sum(y * dy)
    first = inner.gradient(loss, tensors_)
  got = outer.gradient(first, tensors_, tensors(tangents))
  wanted = reference.second_order(case.reference, arguments, dy, tangents)
  check(zeros_for_none(got, arguments), wanted, 1e-7)


@cases.one_of_each
@cases.compiled_or_plain
def test_reverse_over_forward(case, jit_compile):
  """Gradients of what forward mode gives, of tangents too."""
  arguments, dy, tangents = problem(case, 'float64')
  tensors_, tangents_ = tensors(arguments), tensors(tangents)
  with tf.GradientTape() as tape:
    tape.watch([*tensors_, *tangents_])
    with tf.autodiff.ForwardAccumulator(tensors_, tangents_) as accumulator:
      y = case.function(*tensors_, jit_compile=jit_compile)
    loss = tf.reduce_sum(accumulator.jvp(y) * dy)
  got = tape.gradient(loss, [*tensors_, *tangents_])
  wanted = [
    *reference.second_order(case.reference, arguments, dy, tangents),
    *reference.vjp(case.reference, arguments, dy),
  ]
  check(zeros_for_none(got, [*arguments, *arguments]), wanted, 1e-7)


@cases.one_of_each
@cases.compiled_or_plain
def test_batch_jacobian(case, jit_compile):
  (x, *parameters), _, _ = problem(case, 'float64')
  x_ = tf.constant(x)
  with tf.GradientTape() as tape:
    tape.watch(x_)
    y = case.function(x_, *parameters, jit_compile=jit_compile)
    y = tf.reshape(y, (len(x), -1))
  got = tape.batch_jacobian(y, x_)
  wanted = np.zeros(got.shape)
  for index in np.ndindex(x.shape[1:]):
    tangent = np.zeros(x.shape)
    tangent[(slice(None), *index)] = 1
    column = reference.jvp(
      lambda x: case.reference(x, *parameters), [x], [tangent]
    )
    wanted[(slice(None), slice(None), *index)] = column.reshape(len(x), -1)
  check([got], [wanted], 1e-10)


@cases.one_of_each
@cases.compiled_or_plain
def test_vectorized_map(case, jit_compile):
  """Gradients both inside the map, one per example, and through it."""
  (x, *parameters), dy, _ = problem(case, 'float64')

  def one(x):
    return case.function(x[None], *parameters, jit_compile=jit_compile)[0]

  def one_gradient(pair):
    x, dy = pair
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = tf.reduce_sum(one(x) * dy)
    return tape.gradient(loss, x)

  x_ = tf.constant(x)
  with tf.GradientTape() as tape:
    tape.watch(x_)
    y = tf.vectorized_map(one, x_)
    loss = tf.reduce_sum(y * dy)

  def formula(x):
    return case.reference(x, *parameters)

  check([y], [formula(x)], 1e-10)
  wanted = reference.vjp(formula, [x], dy)
  check([tape.gradient(loss, x_)], wanted, 1e-10)
  check([tf.vectorized_map(one_gradient, (x_, tf.constant(dy)))], wanted, 1e-10)
