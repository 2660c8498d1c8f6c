"""What every form of the kernel promises; each has a file that inherits it.

The forms are those for the compilers of a CPU, GPU and TPU, and op by op. All
run here, on a CPU; what they cost where they are meant for,
`benchmarks/xla_cost.py` counts.
"""

import functools

import numpy as np
import pytest

import cases
import frameworks
import reference
from tfgroupnorm import functional

# Each way in which a mask lies on groups: whole groups of a head or a layer,
# parts of them, channels last, first and in the middle.
MASKED = [
  'group_image',
  'group_channels_first',
  'group_channels_in_the_middle',
  'group_silu',
  'instance_image',
  'layer_last',
  'layer_middle',
  'layer_two_axes',
  'layer_rms',
  'head_flat',
  'head_time_first',
  'head_rms_flat',
]
BY_NAME = {case.name: case for case in cases.CASES}

# Long enough for columns in two stages, rows as products, parts of a channel:
# (function, options, shape, view), and `view` makes x (samples, positions,
# groups, size), channels last.
LARGE = {
  'columns': (
    functional.group_norm,
    {'groups': 2},
    (2, 40, 40, 4),
    (2, -1, 2, 2),
  ),
  'channels_first': (
    functional.group_norm,
    {'groups': 2, 'axis': 1},
    (2, 4, 40, 40),
    (2, -1, 2, 2),
  ),
  'no_divisor': (
    functional.group_norm,
    {'groups': 2},
    (2, 17, 17, 4),
    (2, -1, 2, 2),
  ),
  'short_columns': (
    functional.group_norm,
    {'groups': 2},
    (2, 14, 14, 4),
    (2, -1, 2, 2),
  ),
  'prime': (functional.group_norm, {'groups': 2}, (2, 97, 4), (2, -1, 2, 2)),
  'tiny': (functional.group_norm, {'groups': 2}, (2, 3, 4), (2, -1, 2, 2)),
  'vector': (functional.group_norm, {'groups': 2}, (3, 700), (3, 1, 2, 350)),
  'instance': (
    functional.instance_norm,
    {'axis': 1},
    (1, 2, 70, 70),
    (1, -1, 2, 1),
  ),
  'rows': (functional.layer_norm, {}, (2, 900, 150), (-1, 1, 1, 150)),
  'long_rows': (functional.layer_norm, {}, (2, 2, 5000), (-1, 1, 1, 5000)),
  'planes': (
    functional.layer_norm,
    {'axis': [1, 2]},
    (2, 99, 99),
    (2, 1, 1, 99 * 99),
  ),
  'heads': (
    functional.head_norm,
    {'num_heads': 3},
    (2, 4, 384),
    (-1, 1, 3, 128),
  ),
  'five_heads': (
    functional.head_norm,
    {'num_heads': 5},
    (2, 7, 480),
    (-1, 1, 5, 96),
  ),
}


def gradients(function, arguments, dy, **options):
  """`[y, dx, ...]` of `function` of those arguments that are not `None`."""
  given = [frameworks.tensor(a) for a in arguments if a is not None]
  return frameworks.gradients(functools.partial(function, **options), given, dy)


def close(got, wanted, digits=1e-5):
  for g, w in zip(got, wanted, strict=True):
    scale = max(1.0, np.abs(w).max())
    np.testing.assert_allclose(
      frameworks.wide(g), w, rtol=0, atol=digits * scale
    )


def heads_apart(dtype):
  """Six heads whose means lie far apart, and the result in float64."""
  rng = np.random.default_rng(0)
  mean = np.array([1e4, -1e4, 0, 3, -0.1, 1e3])[:, np.newaxis]
  x = rng.normal(mean, 1, (5, 7, 6, 80)).astype(frameworks.numpy_dtype(dtype))
  wide = frameworks.wide(x)
  wanted = wide - wide.mean(-1, keepdims=True)
  wanted /= np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
  return x.reshape(5, 7, 480), wanted.reshape(5, 7, 480)


class FormTest:
  """Values, gradients, masks and dtypes.

  Attributes:
    platform: Whose form this is, `None` op by op.
    jit_compile: Whether XLA compiles it here.
    names: Cases that take this form, by default all.
    masked: Those of which some positions are masked.
    narrow: Those of which other dtypes are tried.
    large: Names in `LARGE` that take this form, by default all.
  """

  platform: str | None = None
  jit_compile = True
  names = list(BY_NAME)
  masked = MASKED
  narrow = [case.name for case in cases.KINDS.values()]
  large = list(LARGE)

  @pytest.fixture(autouse=True)
  def in_this_form(self, monkeypatch):
    monkeypatch.setattr(
      frameworks.dispatch(), '_platform', lambda *_: self.platform
    )

  @classmethod
  def pytest_generate_tests(cls, metafunc):
    for argument in ('names', 'masked', 'narrow', 'large'):
      if argument in metafunc.fixturenames:
        metafunc.parametrize(argument, getattr(cls, argument))

  def test_values_and_gradients(self, names):
    case = BY_NAME[names]
    arguments = case.data()
    dy = np.random.default_rng(5).normal(1, 1, case.shape).astype('float32')
    y, *rest = gradients(
      case.function, arguments, dy, jit_compile=self.jit_compile
    )
    case.check(y, *arguments)
    given = [a for a in arguments if a is not None]
    close(rest, reference.vjp(case.reference, cases.wide(*given), dy))

  def test_masked(self, masked):
    """What a mask hides is in nothing, even if it is NaN."""
    case = BY_NAME[masked]
    x, gamma, beta = case.data()
    dy = np.random.default_rng(5).normal(1, 1, case.shape).astype('float32')
    mask = case.mask()
    valid = case.lay(mask)
    dirty = np.where(valid, x, np.float32(np.nan))
    arguments = [a for a in (dirty, gamma, beta) if a is not None]
    got = gradients(
      case.function,
      arguments,
      np.where(valid, dy, np.float32(np.nan)),
      mask=mask,
      jit_compile=self.jit_compile,
    )
    arguments = cases.wide(x, *arguments[1:])

    def formula(*arguments):
      return case.reference(*arguments, mask=mask)

    close(
      got,
      [formula(*arguments), *reference.vjp(formula, arguments, dy * valid)],
    )
    assert not np.any(np.asarray(got[0])[~valid])
    assert not np.any(np.asarray(got[1])[~valid])

  @pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
  def test_dtypes(self, narrow, dtype):
    case = BY_NAME[narrow]
    x, *parameters = (a for a in case.data() if a is not None)
    narrow_dtype = frameworks.numpy_dtype(dtype)
    x = x.astype(narrow_dtype)
    dy = np.random.default_rng(5).normal(1, 1, case.shape).astype(narrow_dtype)
    got = gradients(
      case.function, [x, *parameters], dy, jit_compile=self.jit_compile
    )
    assert all(t.dtype.name == dtype for t in got[:2])
    assert all(t.dtype.name == 'float32' for t in got[2:])
    arguments = [frameworks.wide(t) for t in (x, *parameters)]
    dy = frameworks.wide(dy)
    wanted = [
      case.reference(*arguments),
      *reference.vjp(case.reference, arguments, dy),
    ]
    ulp = {'float16': 2e-3, 'bfloat16': 2e-2, 'float64': 1e-9}[dtype]
    close(got[:2], wanted[:2], ulp)
    close(got[2:], wanted[2:], 1e-6 if dtype == 'float64' else 1e-5)

  def test_nothing_there(self):
    """No sample, or samples of nothing: nothing comes out, and no NaN."""
    for function, options, shape in (
      (functional.group_norm, {'groups': 4}, (2, 0, 3, 8)),
      (functional.group_norm, {'groups': 4}, (0, 6, 3, 8)),
      (functional.instance_norm, {}, (2, 0, 8)),
      (functional.layer_norm, {}, (0, 8)),
      (functional.layer_norm, {'rms': True}, (2, 0, 8)),
      (functional.head_norm, {'num_heads': 2}, (2, 0, 8)),
    ):
      gamma = np.ones(8, 'float32')

      def run(x, mask=None, f=function, options=options, gamma=gamma):
        return gradients(
          f, [x, gamma], x, **options, mask=mask, jit_compile=self.jit_compile
        )

      unknown = [*[None] * (len(shape) - 1), 8]
      in_graph = frameworks.traced(run, unknown)
      x, mask = np.zeros(shape, 'float32'), np.ones(shape[:2], bool)
      results = [run(x), in_graph(x)]
      if len(shape) > 2:
        results.append(run(x, mask))
      for y, dx, dgamma in results:
        assert y.shape == dx.shape == shape
        np.testing.assert_array_equal(dgamma, np.zeros(8))


class ExactFormTest(FormTest):
  """And all digits at large means, of constants, beside outliers."""

  @pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
  # Each is a program that JAX compiles anew.
  @pytest.mark.parametrize(
    'mean', [1e4] if frameworks.NAME == 'jax' else [3.0, 1e4]
  )
  def test_large_tensors(self, large, dtype, mean):
    function, options, shape, view = LARGE[large]
    rng = np.random.default_rng(0)
    axis = options.get('axis', -1)
    narrow_dtype = frameworks.numpy_dtype(dtype)
    x = rng.normal(mean, mean / 100, shape).astype(narrow_dtype)
    dy = rng.normal(0, 1, shape).astype(narrow_dtype)
    axes = axis if isinstance(axis, list) else [axis]
    gamma = rng.normal(1, 0.3, [shape[a] for a in axes]).astype('float32')
    y, dx, dgamma = gradients(
      function, [x, gamma], dy, **options, jit_compile=self.jit_compile
    )

    def viewed(t):
      t = frameworks.wide(t)
      return (np.moveaxis(t, 1, -1) if axis == 1 else t).reshape(view)

    wide = gamma.astype('float64').reshape(view[2:])
    *wanted, sum_ = reference.closed_form(viewed(x), wide, viewed(dy))
    for g, w in zip([viewed(y), viewed(dx)], wanted, strict=True):
      ulp = 1e-2 if dtype == 'bfloat16' else 1e-5
      np.testing.assert_allclose(g, w, rtol=0, atol=ulp * np.abs(w).max())
    scale = np.abs(sum_).max()
    dgamma = np.reshape(dgamma, view[2:])
    np.testing.assert_allclose(dgamma, sum_, rtol=0, atol=1e-5 * scale)

  @pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
  def test_constant_input_gives_beta(self, dtype):
    dtype = frameworks.numpy_dtype(dtype)
    for value in (10000.1, -3e-5, 7e8):
      for shape in ((2, 33, 5, 6), (2, 18), (3, 5, 1200)):
        x = np.full(shape, value, dtype)
        beta = np.arange(shape[-1], dtype='float32')
        wanted = np.broadcast_to(beta.astype(dtype), shape)
        for y in (
          functional.group_norm(
            x, beta=beta, groups=3, jit_compile=self.jit_compile
          ),
          functional.layer_norm(x, beta=beta, jit_compile=self.jit_compile),
          functional.head_norm(
            x, beta=beta, num_heads=2, jit_compile=self.jit_compile
          ),
        ):
          np.testing.assert_array_equal(y, wanted)

  def test_masked_constant_input_gives_beta(self):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 40, 33)) < 0.5
    for value in (10000.1, -3e-5, 7e8):
      x = np.where(mask[..., None], np.float32(value), np.float32(np.nan))
      x = np.repeat(x, 6, axis=-1)
      beta = np.arange(6, dtype='float32')
      y = functional.group_norm(
        x, beta=beta, groups=3, mask=mask, jit_compile=self.jit_compile
      )
      wanted = np.where(mask[..., None], beta, 0)
      np.testing.assert_array_equal(y, wanted)

  @pytest.mark.parametrize('axis', [-1, 1], ids=['last', 'first'])
  def test_a_mask_at_a_large_mean(self, axis):
    """Wherever the padding is: each row of the mask has it elsewhere."""
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
      moved,
      groups=2,
      axis=axis,
      mask=mask,
      epsilon=1e-5,
      jit_compile=self.jit_compile,
    )
    got = np.moveaxis(np.asarray(y), axis, -1)
    for sample, valid, result in zip(x, mask, got, strict=True):
      wide = sample[valid].astype('float64').reshape(1, -1, 8)
      wanted = reference.group_norm(wide, None, None, groups=2, epsilon=1e-5)
      np.testing.assert_allclose(result[valid], wanted[0], rtol=0, atol=5e-6)
      assert not np.any(result[~valid])

  @pytest.mark.parametrize(
    'mean, std, bound',
    [(1e2, 1, 2e-6), (1e4, 1, 5e-6), (1e4, 1e-2, 2e-5), (1e6, 1, 2e-5)],
  )
  def test_large_means(self, mean, std, bound):
    """LayerNorm and GroupNorm over 8192 values."""
    rng = np.random.default_rng(0)
    for shape, function, formula, options in [
      ((4, 8192), functional.layer_norm, reference.layer_norm, {}),
      (
        (2, 32, 32, 16),
        functional.group_norm,
        reference.group_norm,
        {'groups': 2},
      ),
    ]:
      x = rng.normal(mean, std, shape).astype('float32')
      y = function(x, **options, epsilon=1e-5, jit_compile=self.jit_compile)
      wide = x.astype('float64')
      wanted = formula(wide, None, None, **options, epsilon=1e-5)
      assert np.abs(y - wanted).max() <= bound

  @pytest.mark.parametrize('size', [8192, 20000], ids=['row', 'long_row'])
  @pytest.mark.parametrize('where', [0, 777])
  def test_an_outlier(self, where, size):
    """In a layer's only group, and in one of two groups that are a view."""
    x = np.random.default_rng(0).normal(0, 1, (1, 2, size)).astype('float32')
    x[..., where] = 1e4
    wide = x.astype('float64')
    mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    wanted = (wide - mean) / np.sqrt(variance + 1e-5)
    flat = x.reshape(1, -1)
    for y in (
      functional.layer_norm(x, epsilon=1e-5, jit_compile=self.jit_compile),
      functional.group_norm(
        flat, groups=2, epsilon=1e-5, jit_compile=self.jit_compile
      ),
    ):
      y = np.reshape(y, x.shape)
      relative = np.abs(y - wanted) / np.maximum(np.abs(wanted), 1e-3)
      assert relative.max() <= 1e-4

  def test_heads_with_means_apart(self):
    x, wanted = heads_apart('float32')
    y = functional.head_norm(x, num_heads=6, jit_compile=self.jit_compile)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=5e-6)

  @pytest.mark.parametrize('count', [1, 16])
  @pytest.mark.parametrize('rms', [False, True])
  def test_a_head_that_overflows(self, rms, count):
    """The squares of one head are infinite; the others do not notice."""
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 64)).astype('float32')
    alone = functional.head_norm(
      x, num_heads=4, rms=rms, jit_compile=self.jit_compile
    )
    x[..., 16 : 16 + count] = 1e30
    y = functional.head_norm(
      x, num_heads=4, rms=rms, jit_compile=self.jit_compile
    )
    np.testing.assert_array_equal(y[..., :16], alone[..., :16])
    np.testing.assert_array_equal(y[..., 32:], alone[..., 32:])
    np.testing.assert_array_equal(y[..., 16:32], np.zeros((1, 3, 16)))

  @frameworks.on_tensorflow
  def test_a_shared_gamma_of_unknown_rank(self):
    import tensorflow as tf

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

  @pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
  def test_finite_stays_finite(self, dtype):
    """Also where sums overflow, differences do, or only their squares.

    What comes out of all of these is beta, here 0.
    """
    rng = np.random.default_rng(0)
    dtype = frameworks.numpy_dtype(dtype)
    most = float(np.finfo('float32').max) * (1 - 2**-8)  # bfloat16 has it too.
    outlier = np.where(np.arange(64) == 30, most, 0)
    values = [
      np.repeat([0, 3e37], 32),
      np.repeat([-most, most], [1, 63]),
      np.full(64, -most),
      rng.choice([-most, most], 64),
      rng.uniform(-most, most, 64),
      rng.normal(0, 1e20, 64),
      outlier,
      np.roll(outlier, -30),
    ]
    mask = np.ones((1, 8), bool)
    mask[0, ::3] = False
    ways = [
      (functional.layer_norm, {}, (1, 64)),
      (functional.layer_norm, {'rms': True}, (1, 64)),
      (functional.layer_norm, {'axis': 1}, (1, 8, 8)),
      (functional.group_norm, {'groups': 2}, (1, 8, 8)),
      (functional.group_norm, {'groups': 2, 'mask': mask}, (1, 8, 8)),
      (functional.group_norm, {'groups': 2, 'axis': 1}, (1, 8, 8)),
      (functional.instance_norm, {}, (1, 8, 8)),
      (functional.head_norm, {'num_heads': 2}, (1, 1, 64)),
      (functional.head_norm, {'num_heads': 2, 'rms': True}, (1, 1, 64)),
    ]
    for function, options, shape in ways:
      gamma = np.full(shape[options.get('axis', -1)], 1.5, 'float32')
      for x in values:
        found = gradients(
          function,
          [x.reshape(shape).astype(dtype), gamma],
          np.linspace(-1, 2, 64, dtype='float32').reshape(shape).astype(dtype),
          **options,
          jit_compile=self.jit_compile,
        )
        y, dx, dgamma = map(frameworks.wide, found)
        assert np.all(np.isfinite(dx)), (function, options, x)
        np.testing.assert_array_equal(y, np.zeros(shape))
        np.testing.assert_array_equal(dgamma, np.zeros(gamma.shape))

  @pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
  def test_what_is_not_finite_is_seen(self, bad):
    """NaN in all of its group, an infinite number at least in its place."""
    rng = np.random.default_rng(0)
    for function, options, shape, place, group in (
      (functional.layer_norm, {}, (2, 64), (0, 3), np.s_[0]),
      (functional.layer_norm, {'rms': True}, (2, 64), (0, 3), np.s_[0]),
      (
        functional.group_norm,
        {'groups': 2},
        (2, 8, 8),
        (0, 5, 3),
        np.s_[0, :, :4],
      ),
      (functional.instance_norm, {}, (2, 8, 8), (0, 5, 3), np.s_[0, :, 3]),
      (
        functional.head_norm,
        {'num_heads': 2},
        (2, 3, 64),
        (0, 2, 3),
        np.s_[0, 2, :32],
      ),
    ):
      x = rng.normal(3, 1, shape).astype('float32')
      run = functools.partial(function, **options, jit_compile=self.jit_compile)
      clean = np.asarray(run(x))
      x[place] = bad
      y = np.asarray(run(x))
      spoilt = np.isnan(y)
      assert spoilt[place]
      # What is left is beta, as of all numbers whose squares overflow.
      assert np.all(spoilt[group] | ((y[group] == 0) & ~np.isnan(bad)))
      np.testing.assert_array_equal(y[1:], clean[1:])

  def test_masked_values_near_the_largest(self):
    rng = np.random.default_rng(0)
    x = rng.normal(3e35, 1e33, (3, 60, 50, 6)).astype('float32')
    mask = rng.random((3, 60, 50)) < 0.5
    y = functional.group_norm(
      x, groups=2, mask=mask, jit_compile=self.jit_compile
    )
    np.testing.assert_array_equal(y, np.zeros(x.shape))
