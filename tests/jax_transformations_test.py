"""Every transformation of JAX, of every kind of normalization, in float64."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import reference
from tfgroupnorm import functional

try:
  from jax import shard_map
except ImportError:  # Before 0.8 it was a module.
  from jax.experimental.shard_map import shard_map

B, T, C = 2, 3, 4
RNG = np.random.default_rng(0)
MASK = np.array([[True, True, False], [False, True, True]])


def sample(*shape, mean=1.0):
  return RNG.normal(mean, 1.5, shape)


@dataclasses.dataclass
class Problem:
  """A normalization, its formula in float64 and where to take them.

  Attributes:
    function: The normalization, of as many arrays as `formula`.
    formula: The same of `reference`.
    shapes: Of the arrays; the first is that of x.
    mask: Over (batch, steps), or `None`; behind it x is NaN.
  """

  function: Callable[..., Any]
  formula: Callable[..., np.ndarray]
  shapes: list[tuple[int, ...]]
  mask: np.ndarray | None = None

  def __post_init__(self):
    self.clean = [sample(*shape) for shape in self.shapes]
    self.arguments = list(self.clean)
    self.dy = sample(*self.shapes[0])
    self.tangents = [sample(*shape) for shape in self.shapes]
    if self.mask is not None:
      for i, shape in enumerate(self.shapes):
        if shape == self.shapes[0]:  # x, and a gate.
          valid = self.mask[..., None]
          self.arguments[i] = np.where(valid, self.clean[i], np.nan)


def normalization(name, formula, *, gate=None, activation=None, **options):
  """Both, of x, gamma, beta, unless RMS, and of a gate, if there is one."""
  rms, mask = options.get('rms', False), options.get('mask')
  act = reference.ACTIVATIONS[activation]
  gate_act = reference.ACTIVATIONS[gate if gate != 'as it is' else None]

  def apart(arrays):
    x, gamma, *rest = arrays
    beta = None if rms else rest.pop(0)
    return x, gamma, beta, *rest

  def function(*arrays):
    x, gamma, beta, *rest = apart(arrays)
    more = dict(options)
    if activation:
      more['activation'] = activation
    if rest:
      more['gate'] = rest[0]
      more['gate_activation'] = None if gate == 'as it is' else gate
    return getattr(functional, name)(x, gamma, beta, **more)

  def wanted(*arrays):
    x, gamma, beta, *rest = apart(arrays)
    y = act(formula(x, gamma, beta, **options))
    if mask is not None:
      y = np.where(mask[..., None], y, 0)
    return y * gate_act(rest[0]) if rest else y

  return function, wanted


def problem(name, formula, parameter=(C,), **options):
  x = (B, T, parameter[-1])
  shapes = [x, parameter]
  if not options.get('rms'):
    shapes.append(parameter)
  if 'gate' in options:
    shapes.append(x)
  both = normalization(name, formula, **options)
  return Problem(*both, shapes, options.get('mask'))


group = functools.partial(problem, 'group_norm', reference.group_norm, groups=2)
layer = functools.partial(problem, 'layer_norm', reference.layer_norm)
# Of two features each, finite differences know too little.
head = functools.partial(
  problem, 'head_norm', reference.head_norm, (2 * C,), num_heads=2
)

PROBLEMS = {
  'group': group(),
  'group of each sample': group((B, C)),
  'group masked': group(mask=MASK),
  'relu': group(activation='relu'),
  'silu': group(activation='silu'),
  'gelu': group(activation='gelu'),
  'gelu_tanh': group(activation='gelu_tanh'),
  'sigmoid': group(activation='sigmoid'),
  'layer': layer(),
  'layer masked': layer(mask=MASK, activation='silu'),
  'rms': layer(rms=True),
  'rms over positions, masked': layer((T, C), axis=(1, 2), rms=True, mask=MASK),
  'head': head(),
  'gate': head(gate='as it is', rms=True),
  'gate masked': head(gate='silu', mask=MASK),
}
each_problem = pytest.mark.parametrize(
  'problem', PROBLEMS.values(), ids=PROBLEMS
)
# For what takes longer.
some_problems = pytest.mark.parametrize(
  'name', ['group', 'group masked', 'silu', 'layer', 'rms', 'gate masked']
)


def close(got, wanted, tolerance=1e-10):
  got, wanted = jax.tree.leaves(got), jax.tree.leaves(wanted)
  for g, w in zip(got, wanted, strict=True):
    assert g.dtype == np.float64
    scale = max(1.0, np.abs(w).max())
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale)


def vjp(p, arguments):
  return list(jax.vjp(p.function, *arguments)[1](jnp.asarray(p.dy)))


def wanted_vjp(p):
  dy = p.dy if p.mask is None else p.dy * p.mask[..., None]
  return reference.vjp(p.formula, p.clean, dy)


def wanted_jvp(p):
  return reference.jvp(p.formula, p.clean, p.tangents)


def jacobian(p, i=0):
  """(*y.shape, *argument.shape), a column at a time."""
  columns = []
  for index in np.ndindex(p.shapes[i]):
    tangents = [np.zeros(shape) for shape in p.shapes]
    tangents[i][index] = 1
    columns.append(reference.jvp(p.formula, p.clean, tangents))
  shape = (*p.shapes[0], *p.shapes[i])
  return np.stack(columns, -1).reshape(shape)


def second_order(p):
  return reference.second_order(p.formula, p.clean, p.dy, p.tangents)


# --- One derivative ----------------------------------------------------------


@each_problem
@pytest.mark.parametrize('jit', [True, False], ids=['jit', 'eager'])
def test_grad(problem, jit):
  run = functools.partial(vjp, problem)
  got = (jax.jit(run) if jit else run)(problem.arguments)
  close(got, wanted_vjp(problem))


@each_problem
def test_jvp(problem):
  run = jax.jit(lambda a, t: jax.jvp(problem.function, a, t))
  y, slope = run(tuple(problem.arguments), tuple(problem.tangents))
  close([y, slope], [problem.formula(*problem.clean), wanted_jvp(problem)])


@each_problem
def test_linearize(problem):
  y, slope = jax.linearize(problem.function, *problem.arguments)
  close(y, problem.formula(*problem.clean))
  close(slope(*problem.tangents), wanted_jvp(problem))
  back = jax.linear_transpose(slope, *problem.tangents)
  close(list(back(problem.dy)), wanted_vjp(problem))


@each_problem
@pytest.mark.parametrize('mode', [jax.jacfwd, jax.jacrev])
def test_jacobians(problem, mode):
  run = jax.jit(mode(problem.function, argnums=(0, 1)))
  got = run(*problem.arguments)
  close(list(got), [jacobian(problem, 0), jacobian(problem, 1)])


def test_some_arguments_alone():
  """What is not differentiated costs nothing, and the rest is the same."""
  p = PROBLEMS['gate masked']
  wanted = wanted_vjp(p)
  for i in range(4):
    got = jax.grad(
      lambda *a: jnp.sum(jnp.where(MASK[..., None], p.function(*a) * p.dy, 0)),
      argnums=i,
    )(*p.arguments)
    close(got, wanted[i])


# --- Derivatives of derivatives ----------------------------------------------


@each_problem
def test_grad_of_grad(problem):
  """As a gradient penalty has it, through the upstream too."""

  def product(arguments, dy):
    first = jax.vjp(problem.function, *arguments)[1](dy)
    return sum(
      jnp.sum(g * t) for g, t in zip(first, problem.tangents, strict=True)
    )

  got, of_dy = jax.jit(jax.grad(product, argnums=(0, 1)))(
    problem.arguments, problem.dy
  )
  wanted = second_order(problem)
  if problem.mask is not None:
    got = [
      jnp.where(jnp.isnan(a), 0, g)
      for a, g in zip(problem.arguments, got, strict=True)
    ]
  close(got, wanted, 1e-7)
  close(of_dy, wanted_jvp(problem))


@each_problem
def test_jvp_of_grad_and_grad_of_jvp(problem):
  wanted = second_order(problem)
  arguments, tangents = tuple(problem.arguments), tuple(problem.tangents)
  got = jax.jit(lambda a, t: jax.jvp(lambda *a: vjp(problem, a), a, t)[1])(
    arguments, tangents
  )
  close(got, wanted, 1e-7)
  got = jax.jit(
    jax.grad(
      lambda a: jnp.sum(jax.jvp(problem.function, a, tangents)[1] * problem.dy)
    )
  )(arguments)
  close(list(got), wanted, 1e-7)


@some_problems
def test_hessian(name):
  p = PROBLEMS[name]

  def loss(x):
    return jnp.sum(p.function(x, *p.arguments[1:]) * p.dy)

  got = jax.jit(jax.hessian(loss))(p.arguments[0])
  along = jnp.tensordot(got, jnp.asarray(p.tangents[0]), 3)
  still = [p.tangents[0], *(np.zeros(s) for s in p.shapes[1:])]
  wanted = reference.second_order(p.formula, p.clean, p.dy, still)
  close(along, wanted[0], 1e-7)


def test_third_order():
  p = PROBLEMS['silu']
  (x, *rest), along = p.arguments, p.tangents[0]

  def derivative(f):
    return lambda x: jax.jvp(f, (x,), (along,))[1]

  first = jax.grad(lambda x: jnp.sum(p.function(x, *rest) * p.dy))
  still = [along, *(np.zeros(s) for s in p.shapes[1:])]

  def formula(x):
    return reference.second_order(p.formula, [x, *rest], p.dy, still)[0]

  step = 1e-4
  wanted = (formula(x + step * along) - formula(x - step * along)) / (2 * step)
  close(jax.jit(derivative(derivative(first)))(x), wanted, 1e-4)


# --- Mapped ------------------------------------------------------------------


@each_problem
def test_vmap_of_arguments(problem):
  """Some are mapped, over whichever axis, and others are not."""
  count = 3
  several = [
    np.stack([a + 0.1 * i for i in range(count)], axis=a.ndim if n % 2 else 0)
    for n, a in enumerate(problem.arguments[:2])
  ]
  rest = problem.arguments[2:]
  axes = (0, problem.arguments[1].ndim, *(None for _ in rest))
  run = jax.jit(
    jax.vmap(lambda *a: (problem.function(*a), *vjp(problem, a)), axes)
  )
  y, *got = run(*several, *rest)
  for i in range(count):
    moved = [a + 0.1 * i for a in problem.clean[:2]] + problem.clean[2:]
    twin = dataclasses.replace(problem)
    twin.clean, twin.dy = moved, problem.dy
    close(y[i], problem.formula(*moved))
    close([g[i] for g in got], wanted_vjp(twin))


@some_problems
def test_nested_vmap_of_a_derivative(name):
  """Of tangents and of upstreams, by two axes, while x stays."""
  p = PROBLEMS[name]
  factors = jnp.arange(1.0, 7.0).reshape(2, 3)
  tangents = [jnp.multiply.outer(factors, jnp.asarray(t)) for t in p.tangents]

  def slope(*tangents):
    return jax.jvp(p.function, tuple(p.arguments), tangents)[1]

  got = jax.jit(jax.vmap(jax.vmap(slope)))(*tangents)
  close(got, np.multiply.outer(factors, wanted_jvp(p)))

  def gradients(factor):
    return jax.vjp(p.function, *p.arguments)[1](factor * p.dy)

  got = jax.jit(jax.vmap(jax.vmap(gradients)))(factors)
  close(list(got), [np.multiply.outer(factors, g) for g in wanted_vjp(p)], 1e-9)


@some_problems
def test_gradient_of_each_sample(name):
  """Through a map, and of what is mapped."""
  p = PROBLEMS[name]
  count = 2

  def loss(x):
    each = jax.vmap(lambda x: p.function(x, *p.arguments[1:]))(x)
    return jnp.sum(each * p.dy)

  x = np.stack([p.arguments[0]] * count)
  got = jax.jit(jax.grad(loss))(x)
  close(got, np.stack([wanted_vjp(p)[0]] * count))
  hessian = jax.jit(jax.vmap(jax.hessian(lambda x: loss(x[None]))))(x)
  along = jnp.tensordot(hessian, jnp.asarray(p.tangents[0]), 3)
  still = [p.tangents[0], *(np.zeros(s) for s in p.shapes[1:])]
  wanted = reference.second_order(p.formula, p.clean, p.dy, still)[0]
  close(along, np.stack([wanted] * count), 1e-7)


# --- In programs -------------------------------------------------------------


@some_problems
def test_scan_and_remat(name):
  p = PROBLEMS[name]

  def loss(arguments, body):
    x, *rest = arguments

    def step(total, factor):
      y = body(x, *rest)
      return total + jnp.sum(y * p.dy) * factor, None

    return jax.lax.scan(step, 0.0, jnp.array([1.0, 2.0]))[0]

  for body in (p.function, jax.checkpoint(p.function)):
    got = jax.jit(jax.grad(functools.partial(loss, body=body)))(p.arguments)
    close(got, [3 * g for g in wanted_vjp(p)], 1e-9)


def of_eight(p):
  """x, dy and what else has a batch, with a batch of 8."""
  return [
    np.concatenate([a] * 4) if a.shape[:1] == (B,) and a.ndim > 1 else a
    for a in p.arguments
  ], np.concatenate([p.dy] * 4)


ON_DEVICES = ['group', 'group of each sample', 'layer', 'rms', 'gate']


@pytest.mark.parametrize('name', ON_DEVICES)
@pytest.mark.parametrize('how', ['shard_map', 'gspmd'])
def test_on_eight_devices(name, how):
  p = PROBLEMS[name]
  arguments, dy = of_eight(p)
  mesh = Mesh(np.array(jax.devices()), ('batch',))
  assert mesh.size == 8
  rows = PartitionSpec('batch')
  specs = tuple(rows if a.ndim > 1 else PartitionSpec() for a in arguments)

  def gradients(*given):
    *given, dy = given
    y, back = jax.vjp(p.function, *given)
    return y, *back(dy)

  if how == 'gspmd':
    run = jax.jit(gradients)
    given = [
      jax.device_put(a, NamedSharding(mesh, spec))
      for a, spec in zip((*arguments, dy), (*specs, rows), strict=True)
    ]
  else:
    run = jax.jit(
      shard_map(
        gradients,
        mesh=mesh,
        in_specs=(*specs, rows),
        out_specs=(rows, *specs),
      )
    )
    given = [*arguments, dy]
  y, *got = run(*given)
  close(y, np.concatenate([p.formula(*p.clean)] * 4))
  for g, w, spec in zip(got, wanted_vjp(p), specs, strict=True):
    close(g, np.concatenate([w] * 4) if spec == rows else 4 * w, 1e-9)


def test_second_order_in_shard_map():
  p = PROBLEMS['group']
  arguments, dy = of_eight(p)
  mesh = Mesh(np.array(jax.devices()), ('batch',))
  rows, all_ = PartitionSpec('batch'), PartitionSpec()

  def penalty(x, gamma, beta, dy):
    slope = jax.grad(lambda x: jnp.sum(p.function(x, gamma, beta) * dy))(x)
    return jax.lax.psum(jnp.sum(slope**2), 'batch')

  sharded = shard_map(
    penalty, mesh=mesh, in_specs=(rows, all_, all_, rows), out_specs=all_
  )
  got = jax.jit(jax.grad(sharded))(*arguments, dy)
  still = [2 * wanted_vjp(p)[0], *(np.zeros(s) for s in p.shapes[1:])]
  wanted = reference.second_order(p.formula, p.clean, p.dy, still)[0]
  close(got, np.concatenate([wanted] * 4), 1e-6)


@pytest.mark.parametrize('name', ['group', 'layer', 'gate'])
def test_in_a_mesh_with_explicit_axes(name):
  """There the type of each array says how it is cut."""
  p = PROBLEMS[name]
  arguments, dy = of_eight(p)
  mesh = jax.make_mesh((8,), ('batch',), axis_types=(AxisType.Explicit,))
  rows = PartitionSpec('batch')

  def gradients(arguments, dy):
    y, back = jax.vjp(p.function, *arguments)
    return y, back(dy)

  with jax.set_mesh(mesh):
    cut = [jax.device_put(a, rows) if a.ndim > 1 else a for a in arguments]
    y, got = jax.jit(gradients)(cut, jax.device_put(dy, rows))
    assert jax.typeof(y).sharding.spec[0] == 'batch'
  close(y, np.concatenate([p.formula(*p.clean)] * 4))
  for g, w, a in zip(got, wanted_vjp(p), arguments, strict=True):
    close(g, np.concatenate([w] * 4) if a.ndim > 1 else 4 * w, 1e-9)


def test_exported_with_an_unknown_batch():
  """By `jax.export`, for a batch of any size."""
  (n,) = jax.export.symbolic_shape('n')
  p = PROBLEMS['silu']
  run = jax.jit(lambda x: p.function(x, *p.arguments[1:]))
  shape = jax.ShapeDtypeStruct((n, T, C), 'float64')
  exported = jax.export.export(run)(shape)
  close(exported.call(p.arguments[0]), p.formula(*p.clean))


# --- What it costs -----------------------------------------------------------

LARGE = {
  'group': (functional.group_norm, {'groups': 8}),
  'silu': (functional.group_norm, {'groups': 8, 'activation': 'silu'}),
  'instance': (functional.instance_norm, {}),
  'layer': (functional.layer_norm, {}),
  'rms': (functional.layer_norm, {'rms': True}),
  'head': (functional.head_norm, {'num_heads': 2}),
}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', LARGE)
def test_x_and_small_statistics_are_kept(name, dtype):
  """Between forward and backward, and x itself: no less than that works."""
  function, options = LARGE[name]
  x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (2, 64, 128)), dtype)
  gamma = jnp.ones([128])

  @jax.jit
  def forward(x, gamma):
    return jax.vjp(lambda *a: function(*a, **options), x, gamma)

  _, back = forward(x, gamma)
  kept = sum(t.nbytes for t in jax.tree.leaves(back))
  assert x.nbytes <= kept <= 1.13 * x.nbytes
  assert back(jnp.ones_like(x))[0].shape == x.shape


def test_an_eager_gradient_compiles_once(caplog):
  """And not for each call: 1.5 ms, and not 90."""
  x = jnp.asarray(sample(3, 5, 8))

  def gradient(x):
    return jax.grad(lambda x: jnp.sum(functional.group_norm(x, groups=2)))(x)

  others, smaller = [x + i for i in range(3)], x[:2]
  wanted = gradient(x)
  with jax.log_compiles(), caplog.at_level('WARNING'):
    got = [gradient(other) for other in others]
    assert 'Compiling' not in caplog.text
    gradient(smaller)
    assert 'Compiling' in caplog.text
  np.testing.assert_array_equal(got[0], wanted)
