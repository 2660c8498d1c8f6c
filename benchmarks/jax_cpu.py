"""Times on this machine through JAX: ours, Keras on JAX, and flax, in turns.

  python benchmarks/jax_cpu.py [--cases=GN] [--rounds=25] [--write]

Forward, and a step of training (the gradient of x, gamma and beta), compiled by
`jax.jit`. Each round times everyone once, so that what else the machine does
falls on all alike; what is shown is the median of each, in milliseconds: a call
that happens to get memory that another gave back takes half as long.
`--write` puts them into `results/jax_cpu.json`.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'

from absl import app, flags

import cases as c
import jax_cases

HERE = pathlib.Path(__file__).parent
CASES = flags.DEFINE_string('cases', '', 'Only cases with this in their name.')
WRITE = flags.DEFINE_bool('write', False, 'Write results/jax_cpu.json.')
ROUNDS = flags.DEFINE_integer('rounds', 25, 'How often to time everyone.')

ALL = [
  c.group(16, 56, 56, 256),
  c.group(16, 14, 14, 1024),
  c.group(16, 56, 56, 256, activation='silu'),
  c.instance(8, 128, 128, 64),
  c.layer(32, 512, 768),
  c.layer(32, 512, 768, rms=True),
  c.head(32, 512, 768),
]


def programs(case: c.Case):
  """{(pass, owner): a call that waits for its result}."""
  import jax
  import numpy as np

  rng = np.random.default_rng(0)
  x, dy = rng.normal(1, 2, (2, *case.shape)).astype('float32')
  p = rng.normal(1, 0.3, (2, *case.parameter_shape)).astype('float32')
  x, dy, gamma, beta = map(jax.device_put, (x, dy, *p))
  result = {}
  for owner in jax_cases.OWNERS:
    function = jax_cases.function_of(case, owner)
    if function is None:
      continue
    for name, traced, arguments in (
      ('forward', function, (x, gamma, beta)),
      ('step', jax_cases.step(function), (x, gamma, beta, dy)),
    ):
      run = jax.jit(lambda *a, f=traced: f(*a))

      def call(run=run, arguments=arguments):
        jax.block_until_ready(run(*arguments))

      call()
      result[name, owner] = call
  return result


def main(_):
  os.environ['KERAS_BACKEND'] = 'jax'
  results = []
  print(f'{"ms":44}' + ''.join(f'{owner:>10}' for owner in jax_cases.OWNERS))
  for case in ALL:
    if CASES.value not in case.name:
      continue
    calls = programs(case)
    times = {key: [] for key in calls}
    for _ in range(ROUNDS.value):
      for key, call in calls.items():
        begin = time.perf_counter()
        call()
        times[key].append(1000 * (time.perf_counter() - begin))
    for name in ('forward', 'step'):
      medians = {
        owner: round(statistics.median(times[name, owner]), 3)
        for owner in jax_cases.OWNERS
        if (name, owner) in times
      }
      results.append({'case': case.name, 'pass': name, **medians})
      cells = (medians.get(owner, '') for owner in jax_cases.OWNERS)
      print(
        f'{case.name:36}{name:8}' + ''.join(f'{cell:>10}' for cell in cells),
        flush=True,
      )
  if WRITE.value:
    path = HERE / 'results' / 'jax_cpu.json'
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  sys.path.insert(0, str(HERE.parent))
  app.run(main)
