"""A JAX that lacks what an operation of one's own needs: reverse mode alone."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import cases
import reference
from tfgroupnorm import functional
from tfgroupnorm.kernel.jax import gradient

MASK = np.array([[True, True, False, True, False], [False, *[True] * 4]])


@pytest.fixture(autouse=True)
def without_the_hook(monkeypatch):
  monkeypatch.setattr(gradient, 'linear', None)


@cases.one_of_each
def test_gradients(case):
  arguments = [a.astype('float64') for a in case.data()]
  rng = np.random.default_rng(1)
  dy = rng.normal(1, 1, case.shape)
  tangents = [rng.normal(1, 1, a.shape) for a in arguments]

  def gradients(*arguments, dy=dy):
    return jax.vjp(case.function, *arguments)[1](jnp.asarray(dy))

  wanted = reference.vjp(case.reference, arguments, dy)
  for g, w in zip(jax.jit(gradients)(*arguments), wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-10)

  def product(arguments, dy):
    first = gradients(*arguments, dy=dy)
    return sum(jnp.sum(g * t) for g, t in zip(first, tangents, strict=True))

  got, of_dy = jax.jit(jax.grad(product, argnums=(0, 1)))(arguments, dy)
  wanted = reference.second_order(case.reference, arguments, dy, tangents)
  for g, w in zip(got, wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=1e-6)
  wanted = reference.jvp(case.reference, arguments, tangents)
  np.testing.assert_allclose(of_dy, wanted, rtol=0, atol=1e-10)


def test_masked_and_mapped():
  x = np.random.default_rng(0).normal(3, 2, (3, 2, 5, 4))
  dirty = np.where(MASK[..., None], x, np.nan)

  def total(x):
    y = functional.group_norm(x, groups=2, mask=MASK)
    return jnp.sum(jnp.where(MASK[..., None], y, 0) ** 3)

  got = jax.jit(jax.vmap(jax.grad(total)))(dirty)

  def formula(x):
    return reference.group_norm(x, None, None, groups=2, mask=MASK) ** 3

  wanted = [reference.vjp(formula, [t], np.ones(t.shape))[0] for t in x]
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


def test_forward_mode_is_lost():
  """As JAX itself says; the docs say when."""
  x = np.ones((2, 3, 4))
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(functional.layer_norm, (x,), (x,))


def test_it_is_said():
  code = """
    import logging, sys
    logging.basicConfig(stream=sys.stdout)
    import keras  # Which imports that itself on the oldest JAX.
    sys.modules['jax.extend.core'] = None
    import numpy as np, jax
    from tfgroupnorm import functional
    x = np.random.default_rng(0).normal(0, 1, (2, 8)).astype('float32')
    total = lambda x: (functional.layer_norm(x) ** 3).sum()
    print(np.isfinite(jax.grad(total)(x)).all())
  """
  result = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout.endswith('True\n'), result.stderr
  said = result.stdout + result.stderr
  assert 'tfgroupnorm has its gradient by reverse mode alone' in said
