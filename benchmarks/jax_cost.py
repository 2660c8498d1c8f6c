"""What XLA makes of JAX' own programs on GPUs and TPUs that are not here.

  python benchmarks/jax_cost.py [--targets=h100,v5e] [--cases=GN] [--write]
  python benchmarks/jax_cost.py --blocks
  python benchmarks/jax_cost.py --whole

As `xla_cost.py`, with its cases, compilers and counts, for the StableHLO that
JAX makes: our functions, the layers of Keras on JAX, and flax, which has no
masks and wants the channels last. Blocks are counted with these norms and with
nothing in their place, and whole networks with ours and those of Keras.
`jax_cost_test.py` holds ours to the budgets that TensorFlow's programs have,
and to a tighter one where JAX has what TensorFlow has not.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
import tempfile

from absl import app

import blocks
import cases as c
import networks
import xla_cost
from jax_cases import OWNERS, function_of, step

OWNERS_OF_BLOCKS = (*blocks.OWNERS, 'flax')


def _lowered(platforms):
  """Yields each platform, and what lowers functions as for it to text."""
  os.environ['KERAS_BACKEND'] = 'jax'
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax

  from tfgroupnorm.kernel.jax import dispatch

  for platform in platforms:
    # Nothing runs there; the kernel chooses its form by this.
    dispatch._platform = lambda *_, name=platform: name
    target = {'TPU': 'tpu', 'GPU': 'cuda', 'CPU': 'cpu'}[platform]

    def lower(function, arguments, target=target):
      # A lambda of its own: JAX knows what it has traced.
      trace = jax.jit(lambda *a: function(*a)).trace(*arguments)
      return trace.lower(lowering_platforms=(target,)).as_text()

    yield platform, lower


def _write_stablehlo(cases, platforms, folder, owners):
  for platform, lower in _lowered(platforms):
    import jax

    for case in cases:
      x = jax.ShapeDtypeStruct(case.shape, case.dtype)
      p = jax.ShapeDtypeStruct(case.parameter_shape, 'float32')
      for owner in owners:
        function = function_of(case, owner)
        if function is None:
          continue
        for name, traced, arguments in (
          ('forward', function, (x, p, p)),
          ('step', step(function), (x, p, p, x)),
        ):
          path = c.path_of(folder, platform, owner, name, case.name)
          c.write(lower(traced, arguments), path)


def _step_of_block(forward):
  """`(x, weights, parameters, dy)` -> y and all gradients."""
  import jax

  def run(x, weights, parameters, dy):
    y, back = jax.vjp(forward, x, weights, parameters)
    finished, dy = jax.lax.optimization_barrier((y, dy))
    return finished, back(dy)

  return run


def _write_blocks(names, platforms, folder, owners):
  for platform, lower in _lowered(platforms):
    import jax

    for block in (block for block in blocks.ALL if block.name in names):
      x = jax.ShapeDtypeStruct(block.shape, block.dtype)
      weights = [jax.ShapeDtypeStruct(s, block.dtype) for s in block.weights]
      parameters = [
        [jax.ShapeDtypeStruct(norm.parameter_shape, 'float32')] * 2
        for norm in block.norms
      ]
      arguments = x, [weights] * blocks.TIMES, [parameters] * blocks.TIMES
      for owner in owners:
        make = functools.partial(function_of, owner=owner)
        forward = blocks.in_a_row(block, None if owner == 'nothing' else make)
        for name, text in (
          ('forward', lower(forward, arguments)),
          ('step', lower(_step_of_block(forward), (*arguments, x))),
        ):
          c.write(text, c.path_of(folder, platform, owner, name, block.name))


def write_network(
  name: str, owner: str, policy: str, platform: str, path: str
) -> None:
  """As `networks.write_stablehlo`."""
  ((_, lower),) = _lowered([platform])
  import jax

  model, shape, dtype = networks.full_model(name, owner, policy)

  def step(weights, rest, x):
    def loss(weights):
      return networks.loss_of(model, x, weights, rest)

    return jax.value_and_grad(loss)(weights)

  weights, rest = (
    [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in variables]
    for variables in (model.trainable_weights, model.non_trainable_weights)
  )
  x = jax.ShapeDtypeStruct(shape, dtype)
  c.write(lower(step, (weights, rest, x)), pathlib.Path(path))


def write_blocks(
  chosen, platforms, folder: pathlib.Path, owners=OWNERS_OF_BLOCKS
) -> None:
  """As `blocks.write_stablehlo`."""
  names = [block.name for block in chosen]
  c.alone(_write_blocks, names, platforms, folder, owners)


def write_stablehlo(cases, platforms, folder: pathlib.Path, owners) -> None:
  """As `cases.write_stablehlo`, where an owner has such a norm."""
  c.alone(_write_stablehlo, list(cases), platforms, folder, owners)


def costs(cases, targets, folder: pathlib.Path, owners=OWNERS):
  """As `xla_cost.costs`."""
  return xla_cost.costs(cases, targets, folder, owners, write_stablehlo)


def main(_):
  folder = pathlib.Path(xla_cost.KEEP.value or tempfile.mkdtemp())
  if xla_cost.WHOLE.value:
    xla_cost.main_of_networks(folder, 'jax_cost_networks.json', write_network)
    return
  if xla_cost.BLOCKS.value:
    xla_cost.main_of_blocks(
      folder, 'jax_cost_blocks.json', write_blocks, OWNERS_OF_BLOCKS
    )
    return
  results = []
  print(f'{"":56}{"":8}{"kernels":>9}{"T":>9}{"kilocycles":>12}')
  for case, target, name, owner, cost in costs(
    xla_cost.chosen(), xla_cost.TARGETS.value, folder
  ):
    results.append(xla_cost.result_of(case, target, name, owner, cost))
    cycles = '' if cost.kilocycles is None else f'{cost.kilocycles:.1f}'
    print(
      f'{target:6}{case.name:42}{name:8}{owner:8}{cost.kernels:9}'
      f'{cost.traffic:9.2f}{cycles:>12}',
      flush=True,
    )
  if xla_cost.WRITE.value:
    xla_cost.write('jax_cost.json', results)


if __name__ == '__main__':
  sys.path.insert(0, str(xla_cost.HERE.parent))
  app.run(main)
