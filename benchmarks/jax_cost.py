"""What XLA makes of JAX' own programs on GPUs and TPUs that are not here.

  python benchmarks/jax_cost.py [--targets=h100,v5e] [--cases=GN] [--write]

As `xla_cost.py`, with its cases, compilers and counts, for the StableHLO that
JAX makes: our functions, the layers of Keras on JAX, and flax, which has no
masks and wants the channels last. `jax_cost_test.py` holds ours to the budgets
that TensorFlow's programs have, and to a tighter one where JAX has what
TensorFlow has not.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

from absl import app

import cases as c
import xla_cost
from jax_cases import OWNERS, function_of, step


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
        function = function_of(case, owner)
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
    results.append(
      {
        'case': case.name,
        'target': target,
        'pass': name,
        'owner': owner,
        **xla_cost.rounded(cost),
      }
    )
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
