"""What XLA makes of JAX' own programs on GPUs and TPUs that are not here.

  python benchmarks/jax_cost.py [--targets=h100,v5e] [--cases=GN] [--write]

As `xla_cost.py`, with its cases, compilers and counts, for the StableHLO that
JAX makes: our functions, the layers of Keras on JAX, and flax, which has no
masks and wants the channels last. `jax_cost_test.py` holds ours to the budgets
that TensorFlow's programs have, and to a tighter one where JAX has what
TensorFlow has not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

from absl import app

import cases as c
import xla_cost

OWNERS = ('ours', 'keras', 'flax')


def _function(case: c.Case, owner: str) -> Callable | None:
  """Of (x, gamma, beta); `None` where an owner has no such thing."""
  if owner == 'ours':
    return functools.partial(_ours, case)
  if case.masked or case.per_sample:
    return None
  if owner == 'keras':
    return _by_keras(case)
  if case.rms or case.options.get('activation'):
    return None
  return c.by_flax(case)


def _ours(case: c.Case, x, gamma, beta):
  from jax import numpy as jnp

  from tfgroupnorm import functional

  name = {
    'GroupNorm': 'group_norm',
    'InstanceNorm': 'instance_norm',
    'LayerNorm': 'layer_norm',
    'HeadNorm': 'head_norm',
  }[case.kind]
  mask = None
  if case.masked:  # Half of the positions, or a little more.
    positions = case.shape[1:-1]
    length = x[0, ..., 0].size
    lengths = length // 2 + jnp.arange(case.shape[0])
    mask = jnp.arange(length) < lengths[:, None]
    mask = mask.reshape(case.shape[0], *positions)
    # Lest it be a constant.
    mask = mask & (gamma[0] == gamma[0])
  return getattr(functional, name)(
    x, gamma, None if case.rms else beta, mask=mask, **case.options
  )


def _by_keras(case: c.Case) -> Callable:
  import keras

  axis = case.options.get('axis', -1)
  shape, size = case.shape, case.shape[axis]
  if case.kind == 'HeadNorm':  # It has one gamma for all heads.
    size //= case.options['num_heads']
    shape = (*shape[:-1], -1, size)
  policy = case.dtype if case.dtype == 'float32' else f'mixed_{case.dtype}'
  options = {'axis': axis, 'dtype': policy}
  if case.kind == 'GroupNorm':
    layer = keras.layers.GroupNormalization(case.options['groups'], **options)
  elif case.kind == 'InstanceNorm':
    layer = keras.layers.GroupNormalization(-1, **options)
  elif case.rms:
    layer = keras.layers.RMSNormalization(**options)
  else:
    layer = keras.layers.LayerNormalization(**options)
  layer.build([-1 if n == -1 else n for n in shape])
  activation = keras.activations.get(case.options.get('activation'))

  def run(x, gamma, beta):
    weights = [gamma[:size]] if case.rms else [gamma[:size], beta[:size]]
    y, _ = layer.stateless_call(weights, [], x.reshape(shape))
    return activation(y).reshape(case.shape)

  return run


def step(function: Callable) -> Callable:
  """`(x, gamma, beta, dy) -> (y, dx, dgamma, dbeta)`; `y` is finished first."""
  import jax

  def run(x, gamma, beta, dy):
    y, back = jax.vjp(function, x, gamma, beta)
    finished, dy = jax.lax.optimization_barrier((y, dy))
    return finished, *back(dy)

  return run


def _write_stablehlo(cases, platforms, folder, owners):
  os.environ['KERAS_BACKEND'] = 'jax'
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax

  from tfgroupnorm.kernel.jax import dispatch

  for platform in platforms:
    # Nothing runs there; the kernel chooses its form by this.
    dispatch._platform = lambda *_, name=platform: name
    target = {'TPU': 'tpu', 'GPU': 'cuda', 'CPU': 'cpu'}[platform]
    for case in cases:
      x = jax.ShapeDtypeStruct(case.shape, case.dtype)
      p = jax.ShapeDtypeStruct(case.parameter_shape, 'float32')
      for owner in owners:
        function = _function(case, owner)
        if function is None:
          continue
        for name, traced, arguments in (
          ('forward', function, (x, p, p)),
          ('step', step(function), (x, p, p, x)),
        ):
          # A lambda of its own: JAX knows what it has traced.
          trace = jax.jit(lambda *a, f=traced: f(*a)).trace(*arguments)
          text = trace.lower(lowering_platforms=(target,)).as_text()
          path = folder / platform / owner / name / f'{case.name}.mlir'
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_text(text)


def costs(cases, targets, folder: pathlib.Path, owners=OWNERS):
  """Yields (case, target, pass, owner, cost)."""
  platforms = sorted({xla_cost.platform(target) for target in targets})
  c.alone(_write_stablehlo, list(cases), platforms, folder, owners)
  for target in targets:
    compiler = xla_cost.Compiler(target)
    for case in cases:
      for name in ('forward', 'step'):
        for owner in owners:
          path = folder / xla_cost.platform(target) / owner / name
          path = path / f'{case.name}.mlir'
          if path.exists():
            cost, hlo = compiler.cost(path.read_text(), case.bytes)
            path.with_suffix(f'.{target}.hlo').write_text(hlo)
            yield case, target, name, owner, cost


def main(_):
  folder = pathlib.Path(xla_cost.KEEP.value or tempfile.mkdtemp())
  results = []
  print(f'{"":56}{"":8}{"kernels":>9}{"T":>9}{"kilocycles":>12}')
  for case, target, name, owner, cost in costs(
    xla_cost.chosen(), xla_cost.TARGETS.value, folder
  ):
    counts = dataclasses.asdict(cost).items()
    results.append(
      {
        'case': case.name,
        'target': target,
        'pass': name,
        'owner': owner,
        **{k: v and round(v, 3) for k, v in counts},
      }
    )
    cycles = '' if cost.kilocycles is None else f'{cost.kilocycles:.1f}'
    print(
      f'{target:6}{case.name:42}{name:8}{owner:8}{cost.kernels:9}'
      f'{cost.traffic:9.2f}{cycles:>12}',
      flush=True,
    )
  if xla_cost.WRITE.value:
    path = xla_cost.HERE / 'results' / 'jax_cost.json'
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  sys.path.insert(0, str(xla_cost.HERE.parent))
  app.run(main)
