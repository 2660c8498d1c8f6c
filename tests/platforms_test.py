"""The forms that the kernel takes for each platform's XLA, all run here.

What they cost where they are meant for, `benchmarks/xla_cost.py` counts; this
is about their results.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import cases
import reference
from tfgroupnorm import functional, kernel

platforms = pytest.mark.parametrize('platform', ['CPU', 'GPU', 'TPU'])


@pytest.fixture
def as_on(monkeypatch):
  """Makes the kernel take the form for a platform, and XLA compile it here."""

  def force(platform):
    def form(spec, run, x):
      return dataclasses.replace(spec, platform=platform)

    monkeypatch.setattr(kernel, '_form', form)

  return force


@cases.all_cases
@platforms
def test_values_and_gradients(case, platform, as_on):
  as_on(platform)
  arguments = [a for a in case.data() if a is not None]
  tensors = [tf.constant(a) for a in arguments]
  dy = np.random.default_rng(5).normal(1, 1, case.shape).astype('float32')
  with tf.GradientTape() as tape:
    tape.watch(tensors)
    y = case.function(*tensors, jit_compile=True)
  case.check(y, *arguments)
  wanted = reference.vjp(case.reference, cases.wide(*arguments), dy)
  for g, w in zip(tape.gradient(y, tensors, dy), wanted, strict=True):
    scale = max(1.0, np.abs(w).max())
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * scale)


# Long enough for columns in two stages, rows as products, parts of a channel.
# `view` makes x (samples, positions, groups, size), channels last.
@pytest.mark.parametrize(
  'function, options, shape, view',
  [
    (functional.group_norm, {'groups': 2}, (2, 40, 40, 4), (2, -1, 2, 2)),
    (
      functional.group_norm,
      {'groups': 2, 'axis': 1},
      (2, 4, 40, 40),
      (2, -1, 2, 2),
    ),
    (functional.group_norm, {'groups': 2}, (2, 17, 17, 4), (2, -1, 2, 2)),
    (functional.group_norm, {'groups': 2}, (2, 14, 14, 4), (2, -1, 2, 2)),
    (functional.group_norm, {'groups': 2}, (2, 97, 4), (2, -1, 2, 2)),
    (functional.group_norm, {'groups': 2}, (2, 3, 4), (2, -1, 2, 2)),
    (functional.group_norm, {'groups': 2}, (3, 700), (3, 1, 2, 350)),
    (functional.instance_norm, {'axis': 1}, (1, 2, 70, 70), (1, -1, 2, 1)),
    (functional.layer_norm, {}, (2, 900, 150), (-1, 1, 1, 150)),
    (functional.layer_norm, {}, (2, 2, 5000), (-1, 1, 1, 5000)),
    (functional.layer_norm, {'axis': [1, 2]}, (2, 99, 99), (2, 1, 1, 99 * 99)),
    (functional.head_norm, {'num_heads': 3}, (2, 4, 384), (-1, 1, 3, 128)),
    (functional.head_norm, {'num_heads': 5}, (2, 7, 480), (-1, 1, 5, 96)),
  ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', [None, 'CPU', 'GPU', 'TPU'])
@pytest.mark.parametrize('mean', [3.0, 1e4])
def test_large_tensors(
  function, options, shape, view, dtype, platform, mean, as_on
):
  as_on(platform)
  rng = np.random.default_rng(0)
  axis = options.get('axis', -1)
  x = tf.cast(rng.normal(mean, mean / 100, shape), dtype)
  dy = tf.cast(rng.normal(0, 1, shape), dtype)
  axes = axis if isinstance(axis, list) else [axis]
  gamma = tf.constant(rng.normal(1, 0.3, [shape[a] for a in axes]), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch([x, gamma])
    y = function(x, gamma, **options, jit_compile=True)
  got = [y, *tape.gradient(y, [x, gamma], dy)]

  def viewed(t):
    t = tf.cast(t, tf.float64).numpy()
    return (np.moveaxis(t, 1, -1) if axis == 1 else t).reshape(view)

  wide = gamma.numpy().astype('float64').reshape(view[2:])
  wanted = reference.closed_form(viewed(x), wide, viewed(dy))
  for g, w in zip([viewed(got[0]), viewed(got[1])], wanted[:2], strict=True):
    ulp = 1e-2 if dtype == 'bfloat16' else 1e-5
    np.testing.assert_allclose(g, w, rtol=0, atol=ulp * np.abs(w).max())
  dgamma = got[2].numpy().reshape(view[2:])
  scale = np.abs(wanted[2]).max()
  np.testing.assert_allclose(dgamma, wanted[2], rtol=0, atol=1e-5 * scale)


@platforms
def test_constant_input_gives_beta(platform, as_on):
  as_on(platform)
  for value in (10000.1, -3e-5, 7e8):
    for shape in ((2, 33, 5, 6), (2, 18), (3, 5, 1200)):
      x = tf.fill(shape, np.float32(value))
      beta = tf.range(float(shape[-1]))
      for y in (
        functional.group_norm(x, beta=beta, groups=3, jit_compile=True),
        functional.layer_norm(x, beta=beta, jit_compile=True),
        functional.head_norm(x, beta=beta, num_heads=2, jit_compile=True),
      ):
        np.testing.assert_array_equal(y, tf.broadcast_to(beta, shape))


@pytest.mark.parametrize('platform', [None, 'CPU', 'GPU', 'TPU'])
def test_masked_constant_input_gives_beta(platform, as_on):
  as_on(platform)
  rng = np.random.default_rng(0)
  mask = rng.random((2, 40, 33)) < 0.5
  for value in (10000.1, -3e-5, 7e8):
    x = np.where(mask[..., None], np.float32(value), np.float32(np.nan))
    x = np.repeat(x, 6, axis=-1)
    beta = tf.range(6.0)
    y = functional.group_norm(
      x, beta=beta, groups=3, mask=mask, jit_compile=True
    )
    wanted = np.where(mask[..., None], beta, 0)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize('axis', [-1, 1], ids=['last', 'first'])
@pytest.mark.parametrize('platform', [None, 'CPU', 'GPU', 'TPU'])
def test_a_mask_at_a_large_mean(platform, axis, as_on):
  """Wherever the padding is: each row of the mask has it elsewhere."""
  as_on(platform)
  rng = np.random.default_rng(0)
  position = np.arange(16 * 5)
  mask = np.stack(
    [
      position < 7,
      position >= 61,
      position == 42,
      rng.random(80) < 0.3,
      position % 2 == 0,
    ]
  ).reshape(5, 16, 5)
  x = rng.normal(1e4, 1, (5, 16, 5, 8)).astype('float32')
  x[~mask] = rng.choice([np.nan, -3e38, 0], size=x[~mask].shape)
  moved = np.moveaxis(x, -1, axis)
  y = functional.group_norm(
    moved, groups=2, axis=axis, mask=mask, epsilon=1e-5, jit_compile=True
  )
  got = np.moveaxis(y.numpy(), axis, -1)
  for sample, valid, result in zip(x, mask, got, strict=True):
    wide = sample[valid].astype('float64').reshape(1, -1, 8)
    wanted = reference.group_norm(wide, None, None, groups=2, epsilon=1e-5)
    np.testing.assert_allclose(result[valid], wanted[0], rtol=0, atol=5e-6)
    assert not np.any(result[~valid])


def exactness(platform, mean, std, rng):
  """Largest error of LayerNorm and GroupNorm over 8192 values."""
  errors = []
  for shape, function in [
    ((4, 8192), functional.layer_norm),
    ((2, 32, 32, 16), lambda x, **o: functional.group_norm(x, groups=2, **o)),
  ]:
    x = rng.normal(mean, std, shape).astype('float32')
    y = function(x, epsilon=1e-5, jit_compile=True)
    formula = {2: reference.layer_norm, 4: reference.group_norm}[len(shape)]
    options = {} if len(shape) == 2 else {'groups': 2}
    wide = x.astype('float64')
    wanted = formula(wide, None, None, epsilon=1e-5, **options)
    errors.append(float(np.abs(y - wanted).max()))
  return max(errors)


@platforms
@pytest.mark.parametrize(
  'mean, std, bound',
  [(1e2, 1, 2e-6), (1e4, 1, 5e-6), (1e4, 1e-2, 2e-5), (1e6, 1, 2e-5)],
)
def test_large_means(platform, mean, std, bound, as_on):
  as_on(platform)
  assert exactness(platform, mean, std, np.random.default_rng(0)) <= bound


@platforms
@pytest.mark.parametrize('size', [8192, 20000], ids=['row', 'long_row'])
@pytest.mark.parametrize('where', [0, 777])
def test_an_outlier(platform, where, size, as_on):
  """In a layer's only group, and in one of two groups that are a view."""
  as_on(platform)
  x = np.random.default_rng(0).normal(0, 1, (1, 2, size)).astype('float32')
  x[..., where] = 1e4
  wide = x.astype('float64')
  mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
  wanted = (wide - mean) / np.sqrt(variance + 1e-5)
  flat = x.reshape(1, -1)
  for y in (
    functional.layer_norm(x, epsilon=1e-5, jit_compile=True),
    functional.group_norm(flat, groups=2, epsilon=1e-5, jit_compile=True),
  ):
    y = np.reshape(y, x.shape)
    relative = np.abs(y - wanted) / np.maximum(np.abs(wanted), 1e-3)
    assert relative.max() <= 1e-4


def heads_apart(dtype):
  """Six heads whose means lie far apart, and the result in float64."""
  rng = np.random.default_rng(0)
  mean = np.array([1e4, -1e4, 0, 3, -0.1, 1e3])[:, np.newaxis]
  x = tf.cast(rng.normal(mean, 1, (5, 7, 6, 80)), dtype)
  wide = tf.cast(x, tf.float64).numpy()
  wanted = wide - wide.mean(-1, keepdims=True)
  wanted /= np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
  return tf.reshape(x, (5, 7, 480)), wanted.reshape(5, 7, 480)


@pytest.mark.parametrize('platform', [None, 'CPU', 'GPU', 'TPU'])
def test_heads_with_means_apart(platform, as_on):
  as_on(platform)
  x, wanted = heads_apart('float32')
  y = functional.head_norm(x, num_heads=6, jit_compile=True)
  np.testing.assert_allclose(y, wanted, rtol=0, atol=5e-6)


@pytest.fixture
def rounded_products(as_on, monkeypatch):
  """The form for a TPU, with products whose operands are rounded as there."""
  product, calls = tf.tensordot, []

  def as_on_a_tpu(a, b, axes):
    calls.append(a)
    a, b = (tf.cast(tf.cast(t, tf.bfloat16), tf.float32) for t in (a, b))
    return product(a, b, axes)

  as_on('TPU')
  monkeypatch.setattr(tf, 'tensordot', as_on_a_tpu)
  yield
  assert calls


def last_place(dtype, wanted):
  """What rounding the result to `dtype` may change, and some more."""
  digits, more = {
    'float32': (24, 5e-6),
    'float16': (11, 5e-6),
    'bfloat16': (8, 1e-4),
  }[dtype]
  return 2.0**-digits * np.abs(wanted) + more


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_products_of_a_tpu(dtype, rounded_products):
  x, wanted = heads_apart(dtype)
  dy = np.random.default_rng(1).normal(0, 1, x.shape)
  dy = tf.cast(dy, dtype)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = functional.head_norm(x, num_heads=6, jit_compile=False)
  dx = tf.cast(tape.gradient(y, x, dy), tf.float64)
  error = np.abs(tf.cast(y, tf.float64) - wanted)
  assert np.all(error <= last_place(dtype, wanted))

  def heads(t):
    return np.reshape(tf.cast(t, tf.float64), (-1, 1, 6, 80))

  wanted = reference.closed_form(heads(x), np.ones((6, 80)), heads(dy))[1]
  error = np.abs(heads(dx) - wanted)
  assert np.all(error <= 2e-5 + last_place(dtype, wanted))
  # The largest numbers, in one head, do not reach the others.
  largest = tf.cast([float(x.dtype.max)], dtype)
  x = tf.tensor_scatter_nd_update(x, [[0, 0, 5]], largest)
  z = functional.head_norm(x, num_heads=6, jit_compile=False)
  z, y = (tf.cast(t, tf.float32) for t in (z, y))
  np.testing.assert_array_equal(z[..., 80:], y[..., 80:])


@pytest.mark.parametrize(
  'size, upstream', [(1e-3, 1.0), (1.0, 1.0), (1e14, 1.0), (1e15, 1e-8)]
)
def test_gradient_of_rms_heads_on_a_tpu(size, upstream, rounded_products):
  """Also where powers of 1 / sigma are next to 0 in float32."""
  rng = np.random.default_rng(0)
  x = (size * rng.normal(3, 2, (5, 4, 64))).astype('float32')
  dy = (upstream * rng.normal(1, 1, x.shape)).astype('float32')
  flat = tf.constant(x.reshape(5, -1))
  with tf.GradientTape() as tape:
    tape.watch(flat)
    y = functional.head_norm(flat, num_heads=4, rms=True, jit_compile=False)
  dx = tape.gradient(y, flat, dy.reshape(5, -1)).numpy().reshape(x.shape)
  x, dy = x.astype('float64'), dy.astype('float64')
  rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
  xhat = x * rstd
  wanted = dy - xhat * (dy * xhat).mean(-1, keepdims=True)
  dx = dx / rstd / upstream
  np.testing.assert_allclose(dx, wanted / upstream, rtol=0, atol=5e-5)


@pytest.mark.parametrize('size', [64, 256, 1024])
def test_two_outliers_on_a_tpu(size, rounded_products):
  """Where the middle one of three elements is one of them."""
  dtype = 'bfloat16'
  x = np.random.default_rng(0).normal(-40, 1, (5, 2, size))
  x[..., 0] = x[..., size // 2] = 9984
  x = tf.cast(x, dtype)
  wide = tf.cast(x, tf.float64).numpy()
  wanted = wide - wide.mean(-1, keepdims=True)
  wanted /= np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
  flat = tf.reshape(x, (5, 2 * size))
  y = functional.head_norm(flat, num_heads=2, jit_compile=False)
  error = np.abs(np.reshape(tf.cast(y, tf.float64), wide.shape) - wanted)
  assert np.all(error <= last_place(dtype, wanted))


def test_pieces_are_whole():
  x = tf.random.stateless_normal([10000], [1, 2]) * 1e4
  pieces = kernel._Lanes.pieces(x, 3)
  for piece in pieces:
    narrow = tf.cast(tf.cast(piece, tf.bfloat16), tf.float32)
    np.testing.assert_array_equal(narrow, piece)
  np.testing.assert_array_equal(sum(np.float64(p) for p in pieces), x)


@platforms
@pytest.mark.parametrize('count', [1, 16])
@pytest.mark.parametrize('rms', [False, True])
def test_a_head_that_overflows(platform, rms, count, as_on):
  """The squares of one head are infinite; the others do not notice."""
  as_on(platform)
  x = np.random.default_rng(0).normal(0, 1, (1, 3, 64)).astype('float32')
  alone = functional.head_norm(x, num_heads=4, rms=rms, jit_compile=True)
  x[..., 16 : 16 + count] = 1e30
  y = functional.head_norm(x, num_heads=4, rms=rms, jit_compile=True)
  np.testing.assert_array_equal(y[..., :16], alone[..., :16])
  np.testing.assert_array_equal(y[..., 32:], alone[..., 32:])
  np.testing.assert_array_equal(y[..., 16:32], np.zeros((1, 3, 16)))


@platforms
def test_a_shared_gamma_of_unknown_rank(platform, as_on):
  as_on(platform)
  x = np.random.default_rng(0).normal(3, 2, (2, 3, 64)).astype('float32')
  gamma = np.linspace(1, 2, 16, dtype='float32')
  signature = [tf.TensorSpec([None, None, 64]), tf.TensorSpec(None)]

  @tf.function(input_signature=signature, autograph=False)
  def run(x, gamma):
    return functional.head_norm(x, gamma, num_heads=4, per_head=False)

  wide = x.astype('float64').reshape(2, 3, 4, 16)
  wanted = wide - wide.mean(-1, keepdims=True)
  wanted *= gamma / np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
  wanted = wanted.reshape(x.shape)
  np.testing.assert_allclose(run(x, gamma), wanted, rtol=0, atol=1e-5)


@platforms
def test_masked_values_near_the_largest(platform, as_on):
  as_on(platform)
  rng = np.random.default_rng(0)
  x = rng.normal(3e35, 1e33, (3, 60, 50, 6)).astype('float32')
  mask = rng.random((3, 60, 50)) < 0.5
  y = functional.group_norm(x, groups=2, mask=mask, jit_compile=True)
  np.testing.assert_array_equal(y, np.zeros(x.shape))
