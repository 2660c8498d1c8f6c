"""The form for heads side by side on a TPU's lanes."""

import numpy as np
import pytest

import forms
import frameworks
import reference
from tfgroupnorm import functional
from tfgroupnorm.kernel.forms import lanes
from tfgroupnorm.kernel.framework import xp


class TestLanes(forms.FormTest):
  """What else `TestTPU` promises it shows of these too."""

  platform = 'TPU'
  names = [name for name in forms.BY_NAME if 'flat' in name]
  masked = [name for name in forms.MASKED if 'flat' in name]
  narrow = names


@pytest.fixture
def rounded_products(monkeypatch):
  """The form for a TPU, with products whose operands are rounded as there."""
  product, calls = xp.tensordot, []

  def as_on_a_tpu(a, b, axes):
    calls.append(a)
    a, b = (xp.astype(xp.astype(t, xp.bfloat16), xp.float32) for t in (a, b))
    return product(a, b, axes)

  monkeypatch.setattr(frameworks.dispatch(), '_platform', lambda *_: 'TPU')
  monkeypatch.setattr(xp, 'tensordot', as_on_a_tpu)
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


def six_heads(x, dy):
  """`[y, dx]`"""
  return forms.gradients(
    functional.head_norm, [x], dy, num_heads=6, jit_compile=False
  )


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_products_of_a_tpu(dtype, rounded_products):
  x, wanted = forms.heads_apart(dtype)
  dy = np.random.default_rng(1).normal(0, 1, x.shape).astype(x.dtype)
  y, dx = six_heads(x, dy)
  error = np.abs(frameworks.wide(y) - wanted)
  assert np.all(error <= last_place(dtype, wanted))

  def heads(t):
    return frameworks.wide(t).reshape(-1, 1, 6, 80)

  wanted = reference.closed_form(heads(x), np.ones((6, 80)), heads(dy))[1]
  error = np.abs(heads(dx) - wanted)
  assert np.all(error <= 2e-5 + last_place(dtype, wanted))
  # The largest numbers, in one head, do not reach the others.
  x[0, 0, 5] = xp.largest_number(frameworks.tensor(x).dtype)
  z, _ = six_heads(x, dy)
  z, y = map(frameworks.wide, (z, y))
  np.testing.assert_array_equal(z[..., 80:], y[..., 80:])


@pytest.mark.parametrize(
  'size, upstream', [(1e-3, 1.0), (1.0, 1.0), (1e14, 1.0), (1e15, 1e-8)]
)
def test_gradient_of_rms_heads_on_a_tpu(size, upstream, rounded_products):
  """Also where powers of 1 / sigma are next to 0 in float32."""
  rng = np.random.default_rng(0)
  x = (size * rng.normal(3, 2, (5, 4, 64))).astype('float32')
  dy = (upstream * rng.normal(1, 1, x.shape)).astype('float32')
  _, dx = forms.gradients(
    functional.head_norm,
    [x.reshape(5, -1)],
    dy.reshape(5, -1),
    num_heads=4,
    rms=True,
    jit_compile=False,
  )
  dx = np.reshape(dx, x.shape)
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
  x = x.astype(frameworks.numpy_dtype(dtype))
  wide = frameworks.wide(x)
  wanted = wide - wide.mean(-1, keepdims=True)
  wanted /= np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
  flat = x.reshape(5, 2 * size)
  y = functional.head_norm(flat, num_heads=2, jit_compile=False)
  error = np.abs(frameworks.wide(y).reshape(wide.shape) - wanted)
  assert np.all(error <= last_place(dtype, wanted))


def test_pieces_are_whole():
  x = np.random.default_rng(0).normal(0, 1e4, 10000).astype('float32')
  pieces = lanes.pieces(frameworks.tensor(x), 3)
  for piece in pieces:
    narrow = xp.astype(xp.astype(piece, xp.bfloat16), xp.float32)
    np.testing.assert_array_equal(narrow, piece)
  np.testing.assert_array_equal(sum(np.float64(p) for p in pieces), x)
