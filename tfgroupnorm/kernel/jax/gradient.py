"""The hand-written gradient, in every transformation of JAX."""

from __future__ import annotations

import dataclasses
import functools

import jax
from absl import logging
from jax import numpy as jnp
from jax.custom_derivatives import SymbolicZero

from tfgroupnorm.kernel.jax import varying
from tfgroupnorm.kernel.passes import backward, forward
from tfgroupnorm.kernel.spec import Spec

try:
  from tfgroupnorm.kernel.jax import linear
except (AttributeError, ImportError, TypeError) as error:
  linear = None  # type: ignore[assignment]
  logging.warning(
    'tfgroupnorm has its gradient by reverse mode alone: this JAX, %s, lacks '
    'what an operation of its own needs: %s. jax.jvp, jacfwd and hessian do '
    'not work; grad, jacrev and vmap do.',
    jax.__version__,
    error,
  )

# Inlined: what is traced sees one program.
_compiled = {
  body: jax.jit(body, static_argnums=0, inline=True)
  for body in (forward, backward)
}


@dataclasses.dataclass(frozen=True)
class _Way:
  """What is done, and whether compiled where JAX runs it by itself."""

  spec: Spec
  compiled: bool

  def run(self, body, *args):
    if self.compiled:
      body = _compiled[body]
    return body(self.spec, *args)


# --- Of any mode and order, by `linear` --------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _any_mode(way: _Way, *operands):
  return way.run(forward, *operands)


def _slopes(way: _Way, operands, tangents):
  # By the function itself: else its own derivatives, for those of second
  # order, would be those of a platform's form.
  y, statistics = _any_mode(way, *operands)
  along = tuple(
    i
    for i in linear.DIFFERENTIABLE
    if operands[i] is not None and not isinstance(tangents[i], SymbolicZero)
  )
  call = linear.Call(
    spec=way.spec,
    given=tuple(t is not None for t in operands),
    along=along,
    compiled=way.compiled,
  )
  slope = jnp.zeros_like(y)
  if along:
    given = [t for t in operands if t is not None]
    (slope,) = linear.bind(
      call, *given, *statistics, *(tangents[i] for i in along)
    )
  # What depends on x through the statistics is in `slope`.
  return (y, statistics), (slope, tuple(map(jnp.zeros_like, statistics)))


_any_mode.defjvp(_slopes, symbolic_zeros=True)


# --- By reverse mode alone ---------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reverse_mode(way: _Way, *operands):
  return way.run(forward, *operands)


def _kept(way: _Way, *operands):
  y, statistics = _reverse_mode(way, *operands)
  return (y, statistics), (operands, statistics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(way: _Way, operands, statistics, dy):
  return way.run(backward, *operands, statistics, dy)


def _gradients_kept(way: _Way, operands, statistics, dy):
  return _gradients(way, operands, statistics, dy), (operands, statistics, dy)


def _of_gradients(way: _Way, kept, upstream):
  (*differentiable, mask), statistics, dy = kept
  spec = dataclasses.replace(way.spec, platform=None)

  def plain(differentiable, dy):
    return backward(spec, *differentiable, mask, None, dy)

  own, of_dy = jax.vjp(plain, differentiable, dy)[1](upstream)
  return (*own, None), tuple(map(jnp.zeros_like, statistics)), of_dy


_gradients.defvjp(_gradients_kept, _of_gradients)


def _upstream(way: _Way, kept, upstream):
  operands, statistics = kept
  return (*_gradients(way, operands, statistics, upstream[0]), None)


_reverse_mode.defvjp(_kept, _upstream)


# --- The way in --------------------------------------------------------------


def differentiable(
  compiled: bool, spec: Spec, x, gamma, beta, gate, mask
) -> jax.Array:
  """`passes.forward`, with its gradient."""
  operands = varying.alike([x, gamma, beta, gate, mask])
  function = _reverse_mode if linear is None else _any_mode
  y, _ = function(_Way(spec, compiled), *operands)
  return y
