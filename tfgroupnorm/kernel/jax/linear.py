"""Derivatives as an operation of JAX's own kind, which it can transform.

The derivative of a normalization along tangents is linear in these, and so is
the gradient in that of the result: each is the transpose of the other. Both are
one primitive here. What JAX does to a program it can then do to these two:
differentiate them again, transpose them, map them over axes, put them into
loops and onto many devices; and between forward and backward nothing is kept
but the operands of the primitive, x and small statistics.

Forward mode is the derivative of the plain form, so that it needs no formula of
its own; so is what comes of a derivative with respect to x.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tfgroupnorm.kernel.jax import varying
from tfgroupnorm.kernel.passes import backward, forward
from tfgroupnorm.kernel.spec import Spec

# Those of (x, gamma, beta, gate, mask) that have derivatives.
DIFFERENTIABLE = range(4)

# Most different calls whose compiled programs are kept for eager use.
_MOST = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """What one call of the primitive does; its arguments are told apart by it.

  They are those of (x, gamma, beta, gate, mask) that are given, statistics as
  `passes.forward` returns them, and what the result is linear in: tangents of
  some operands, or the gradient dy.

  Attributes:
    spec: What was done to x.
    given: Which of the operands there are.
    along: The operands whose tangents come, or whose gradients are wanted.
    transposed: From dy to gradients, not from tangents to that of y.
    compiled: Whether it is compiled where JAX runs it by itself.
    mapped: For each `vmap` around it, the innermost first, the axes over which
      the operands and statistics are mapped; the rest is along the first one.
  """

  spec: Spec
  given: tuple[bool, ...]
  along: tuple[int, ...]
  transposed: bool = False
  compiled: bool = True
  mapped: tuple[tuple[int | None, ...], ...] = ()

  @property
  def places(self) -> list[int]:
    """Where the operands are among the arguments: of each that is given."""
    return [i for i, given in enumerate(self.given) if given]

  @property
  def linear(self) -> int:
    """How many arguments the result is linear in."""
    return 1 if self.transposed else len(self.along)

  def apart(self, args: Sequence[Any]) -> tuple[list, list, list]:
    """Operands, `None` for what there is not, statistics, and the rest."""
    fixed, linear = args[: -self.linear], args[-self.linear :]
    operands: list[Any] = [None] * len(self.given)
    for i, t in zip(self.places, fixed, strict=False):
      operands[i] = t
    return operands, list(fixed[len(self.places) :]), list(linear)

  def over_axes(self, body: Callable) -> Callable:
    """`body`, mapped over as many axes as `vmap`s are around it."""
    for axes in self.mapped:
      body = jax.vmap(body, (*axes, *[0] * self.linear))
    return body


# --- What it computes --------------------------------------------------------


def _tangent_of_y(spec: Spec, operands: list, tangents: dict[int, Any]):
  def y(moved):
    return forward(spec, *(moved.get(i, t) for i, t in enumerate(operands)))[0]

  primals = {i: operands[i] for i in tangents}
  return jax.jvp(y, (primals,), (tangents,))[1]


def _computed(call: Call, *args) -> list[Any]:
  """The result, by the platform's form and from the statistics."""
  operands, statistics, linear = call.apart(args)
  if call.transposed:
    x, gamma, beta, gate, mask = operands
    gradients = backward(
      call.spec, x, gamma, beta, gate, mask, statistics, linear[0]
    )
    return [gradients[i] for i in call.along]
  plain = dataclasses.replace(call.spec, platform=None)
  tangents = dict(zip(call.along, linear, strict=True))
  return [_tangent_of_y(plain, operands, tangents)]


def _from_operands(call: Call, *args) -> list[Any]:
  """The same from the operands alone, by operations that JAX differentiates."""
  operands, _, linear = call.apart(args)
  spec = dataclasses.replace(call.spec, platform=None)
  if call.transposed:
    x, gamma, beta, gate, mask = operands
    gradients = backward(spec, x, gamma, beta, gate, mask, None, linear[0])
    return [gradients[i] for i in call.along]
  tangents = dict(zip(call.along, linear, strict=True))
  return [_tangent_of_y(spec, operands, tangents)]


@functools.lru_cache(_MOST)
def _program(call: Call, body: Callable) -> Callable:
  """`body` of this call, compiled once for each kind of arguments."""
  function = call.over_axes(functools.partial(body, call))
  return jax.jit(function) if call.compiled else function


# --- What JAX may do to it ---------------------------------------------------

_primitive = Primitive('tfgroupnorm_derivative')
_primitive.multiple_results = True


def bind(call: Call, *args) -> list[Any]:
  return _primitive.bind(*args, call=call)


@_primitive.def_impl
def _run(*args, call: Call):
  return _program(call, _computed)(*args)


def _lowered(*args, call: Call):
  return call.over_axes(functools.partial(_computed, call))(*args)


mlir.register_lowering(
  _primitive, mlir.lower_fun(_lowered, multiple_results=True)
)


@_primitive.def_abstract_eval
def _kinds(*kinds, call: Call):
  """Shapes and dtypes of the results, and over what devices they vary."""
  traced = jax.make_jaxpr(functools.partial(_lowered, call=call))
  return traced(*map(varying.struct, kinds)).out_avals


def _moved(primals, tangents, *, call: Call):
  """Derivatives: linear in some arguments, and through x for the others.

  The statistics are functions of x, and so have no part in it.
  """
  results = bind(call, *primals)
  count = len(primals) - call.linear
  zero = [isinstance(t, ad.Zero) for t in tangents]
  slopes: list[list[Any]] = []
  if not all(zero[count:]):
    own, linear = call, list(tangents[count:])
    if not call.transposed:
      present = [not z for z in zero[count:]]
      along = tuple(i for i, p in zip(call.along, present, strict=True) if p)
      own = dataclasses.replace(call, along=along)
      linear = [t for t, p in zip(linear, present, strict=True) if p]
    slopes.append(bind(own, *primals[:count], *linear))
  moved = [
    n for n, i in enumerate(call.places) if i in DIFFERENTIABLE and not zero[n]
  ]
  if moved:
    program = _program(call, _from_operands)

    def of_operands(*some):
      args = list(primals)
      for n, t in zip(moved, some, strict=True):
        args[n] = t
      return program(*args)

    slopes.append(
      jax.jvp(
        of_operands,
        tuple(primals[n] for n in moved),
        tuple(tangents[n] for n in moved),
      )[1]
    )
  if not slopes:
    return results, [ad.Zero.from_primal_value(r) for r in results]
  return results, [sum(each[1:], each[0]) for each in zip(*slopes, strict=True)]


ad.primitive_jvps[_primitive] = _moved


def _transposed(upstream, *args, call: Call):
  count = len(args) - call.linear
  nothing = [None] * count
  zero = [isinstance(t, ad.Zero) for t in upstream]
  if all(zero):
    return [*nothing, *[None] * call.linear]
  along = call.along
  if call.transposed:
    along = tuple(i for i, z in zip(along, zero, strict=True) if not z)
  other = dataclasses.replace(call, along=along, transposed=not call.transposed)
  linear = [t for t, z in zip(upstream, zero, strict=True) if not z]
  return [*nothing, *bind(other, *args[:count], *linear)]


ad.primitive_transposes[_primitive] = _transposed


def _batched(args, axes, *, call: Call):
  count = len(args) - call.linear
  pairs = zip(args, axes, strict=True)
  (size,) = {t.shape[axis] for t, axis in pairs if axis is not None}

  def first(t, axis):
    # All that it is linear in: what is not mapped would be summed when
    # transposed.
    if axis is None:
      return jnp.broadcast_to(t, (size, *t.shape))
    return jnp.moveaxis(t, axis, 0)

  linear = map(first, args[count:], axes[count:])
  call = dataclasses.replace(call, mapped=(*call.mapped, tuple(axes[:count])))
  results = bind(call, *args[:count], *linear)
  return results, [0] * len(results)


batching.primitive_batchers[_primitive] = _batched
