"""Results agree with float64, elementwise, in every form and dtype."""

import numpy as np
import pytest

import cases
import frameworks
import reference


def check(y, wanted, dtype='float32'):
  """Float32 arithmetic, then at most one rounding to `dtype`."""
  half_ulp = {'float16': 2.0**-11, 'bfloat16': 2.0**-8}.get(dtype, 0.0)
  atol = 1e-12 if dtype == 'float64' else 4e-6
  np.testing.assert_allclose(
    np.asarray(y).astype('float64'), wanted, rtol=1.01 * half_ulp, atol=atol
  )


@cases.all_cases
@cases.compiled_or_plain
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float64'])
def test_function(case, jit_compile, dtype):
  x, gamma, beta = case.data(dtype)
  y = case.function(x, gamma, beta, jit_compile=jit_compile)
  assert y.dtype.name == dtype
  check(y, case.reference(*cases.wide(x, gamma, beta)), dtype)


@cases.all_cases
@cases.both_kerases
def test_layer(case, generation):
  x, gamma, beta = case.data()
  layer = case.layer(generation)
  layer.build(x.shape)
  layer.set_weights([gamma] if beta is None else [gamma, beta])
  check(layer(x), case.reference(*cases.wide(x, gamma, beta)))


@cases.all_cases
def test_without_parameters(case):
  x, _, _ = case.data()
  check(case.function(x), case.reference(*cases.wide(x)))
  layer = case.layer(center=False, scale=False)
  check(layer(x), case.reference(*cases.wide(x)))
  assert not layer.weights


@cases.all_cases
@cases.compiled_or_plain
@pytest.mark.parametrize('mean, std', [(1e3, 1.0), (2.0, 1e-3)])
def test_shifted_and_scaled(case, jit_compile, mean, std):
  x, gamma, beta = case.data(mean=mean, std=std)
  y = case.function(x, gamma, beta, jit_compile=jit_compile)
  check(y, case.reference(*cases.wide(x, gamma, beta)))


@cases.all_cases
@pytest.mark.parametrize('epsilon', [1e-5, 0.1])
def test_epsilon_is_inside_the_root(case, epsilon):
  x, gamma, beta = case.data(std=0.1)
  y = case.function(x, gamma, beta, epsilon=epsilon)
  check(y, case.reference(*cases.wide(x, gamma, beta), epsilon=epsilon))


@cases.one_of_each
def test_op_by_op(case):
  x, gamma, beta = case.data()
  arguments = [frameworks.tensor(a) for a in (x, gamma, beta)]
  y, *got = frameworks.gradients(
    lambda *a: case.function(*a, jit_compile=False), arguments
  )
  wide = cases.wide(x, gamma, beta)
  check(y, case.reference(*wide))
  wanted = reference.vjp(case.reference, wide, np.ones(x.shape))
  for g, w in zip(got, wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=2e-5)


@frameworks.on_jax
@cases.all_cases
def test_traced(case):
  x, gamma, beta = case.data()
  run = frameworks.traced(
    lambda x: case.function(x, gamma, beta, jit_compile=False)
  )
  check(run(x), case.reference(*cases.wide(x, gamma, beta)))


@frameworks.on_tensorflow
@cases.all_cases
@pytest.mark.parametrize(
  'how', ['function', 'compiled_around', 'unknown_sizes']
)
@cases.compiled_or_plain
def test_in_a_graph(case, how, jit_compile):
  import tensorflow as tf

  x, gamma, beta = case.data()
  signature = None
  if how == 'unknown_sizes':
    signature = [tf.TensorSpec(case.unknown_shape(), tf.float32)]

  @tf.function(
    jit_compile=how == 'compiled_around',
    input_signature=signature,
    autograph=False,
  )
  def run(x):
    return case.function(x, gamma, beta, jit_compile=jit_compile)

  graph_shape = run.get_concrete_function(tf.constant(x)).output_shapes
  assert (
    graph_shape.as_list() == (signature or [tf.constant(x)])[0].shape.as_list()
  )
  y = run(tf.constant(x))
  check(y, case.reference(*cases.wide(x, gamma, beta)))
