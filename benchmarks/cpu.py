"""How fast the layers are on this CPU, beside other libraries.

  python benchmarks/cpu.py [--cases=LN] [--rounds=5] [--write]

Every contender lives in a process of its own. They take turns, case by case and
round by round, so that a slow moment of the machine strikes all of them. What
is printed are ratios: how many times faster `auto` is than another; 1.0 is as
fast. Contenders that are not installed (torch, flax, tf-keras) are left out.

`--write` puts the numbers into `results/cpu.json`, of which `charts.py` makes
charts.
"""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import tqdm
from absl import app, flags

import cases as c

RESULTS = pathlib.Path(__file__).parent / 'results'
CASES = flags.DEFINE_string('cases', '', 'Only cases with this in their name.')
ROUNDS = flags.DEFINE_integer('rounds', 5, 'How often everybody takes a turn.')
SECONDS = flags.DEFINE_float('seconds', 0.15, 'Length of one turn.')
WRITE = flags.DEFINE_bool('write', False, 'Write results/cpu.json.')
GROWTH = flags.DEFINE_bool('growth', True, 'Also measure how cost grows.')

LARGE = [
  c.group(16, 56, 56, 256),
  c.group(2, 100, 152, 256),
  c.group(4, 64, 64, 320),
  c.group(16, 14, 14, 1024),
  c.group(16, 256, 56, 56, axis=1),
  c.group(2, 8, 28, 28, 256),
  c.instance(8, 128, 128, 64),
  c.layer(32, 256, 768),
  c.layer(1, 2048, 4096),
  c.head(32, 256, 768),
]
SMALL = [c.group(1, 56, 56, 64), c.group(1, 7, 7, 512)]
ALL = [
  *LARGE,
  *SMALL,
  *(case.with_dtype('bfloat16') for case in (*LARGE, *SMALL)),
]
# One size at a time, around (4, 32, 32, 64).
GROWN = {
  'batch': [c.group(n, 32, 32, 64) for n in (1, 2, 4, 8, 16, 32)],
  'height and width': [c.group(4, n, n, 64) for n in (8, 16, 32, 64, 128)],
  'channels': [c.group(4, 32, 32, n) for n in (32, 64, 128, 256, 512, 1024)],
}

# name: (packages that it needs, maker of functions of a case)
CONTENDERS: dict[str, tuple[tuple[str, ...], Callable]] = {}


def contender(name: str, *packages: str):
  def register(make):
    CONTENDERS[name] = packages, make
    return make

  return register


# --- Contenders: a case -> functions without arguments, by pass ---------------


def _tensorflow(case: c.Case, function: Callable, graph=True, **options):
  import tensorflow as tf

  x, dy = (
    tf.cast(tf.random.normal(case.shape, seed=i), case.dtype) for i in (0, 1)
  )
  gamma, beta = (
    tf.Variable(tf.random.normal(case.parameter_shape, seed=i)) for i in (2, 3)
  )

  def forward():
    p, q = (tf.convert_to_tensor(v) for v in (gamma, beta))
    return function(x, p, q)

  def step():
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = forward()
    return tape.gradient(y, [x, gamma, beta], dy)

  passes = {'forward': forward, 'step': step}
  if not graph:
    return passes
  return {
    name: tf.function(run, autograph=False, **options)
    for name, run in passes.items()
  }


@contender('auto', 'tensorflow')
def _(case):
  return _tensorflow(case, c.ours(case))


@contender('auto, eager', 'tensorflow')
def _(case):
  return _tensorflow(case, c.ours(case), graph=False)


@contender('plain', 'tensorflow')
def _(case):
  return _tensorflow(case, c.ours(case, jit_compile=False))


@contender('keras', 'tensorflow', 'keras')
def _(case):
  return _tensorflow(case, c.theirs(case))


@contender('keras, eager', 'tensorflow', 'keras')
def _(case):
  return _tensorflow(case, c.theirs(case), graph=False)


@contender('keras, compiled', 'tensorflow', 'keras')
def _(case):
  return _tensorflow(case, c.theirs(case), jit_compile=True)


@contender('tf-keras', 'tensorflow', 'tf_keras')
def _(case):
  return _tensorflow(case, c.theirs(case, 'tf_keras'))


def _torch(case, channels_last):
  import torch

  dtype = getattr(torch, case.dtype)
  x, dy = (
    c.torch_layout(case, torch.randn(case.shape)).to(dtype).contiguous()
    for _ in range(2)
  )
  parameters = [torch.randn(case.parameter_shape).to(dtype) for _ in range(2)]
  if channels_last:
    layout = {
      4: torch.channels_last,
      5: torch.channels_last_3d,
    }[x.ndim]
    x, dy = (t.to(memory_format=layout) for t in (x, dy))
  forward = c.by_torch(case)

  def inference():
    with torch.no_grad():
      return forward(x, *parameters)

  wanted = [t.clone().requires_grad_() for t in (x, *parameters)]

  def step():
    return torch.autograd.grad(forward(*wanted), wanted, dy)

  return {'forward': inference, 'step': step}


@contender('torch', 'torch')
def _(case):
  return _torch(case, channels_last=False)


@contender('torch, channels last', 'torch')
def _(case):
  if case.kind not in ('GroupNorm', 'InstanceNorm') or len(case.shape) < 4:
    return None  # It has no other layout there.
  return _torch(case, channels_last=True)


@contender('flax', 'jax', 'flax')
def _(case):
  import jax

  function = c.by_flax(case)
  if function is None:
    return None
  x, dy = (
    jax.random.normal(jax.random.key(i), case.shape, case.dtype) for i in (0, 1)
  )
  gamma, beta = (
    jax.random.normal(jax.random.key(i), case.parameter_shape) for i in (2, 3)
  )

  @jax.jit
  def step(x, gamma, beta, dy):
    _, gradient = jax.vjp(function, x, gamma, beta)
    return gradient(dy)

  forward = jax.jit(function)
  return {
    'forward': lambda: jax.block_until_ready(forward(x, gamma, beta)),
    'step': lambda: jax.block_until_ready(step(x, gamma, beta, dy)),
  }


# --- Processes that take turns -----------------------------------------------


def _serve(name: str, pipe, threads: int) -> None:
  """A contender: is asked for a case, a pass and seconds; answers times."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  # Idle threads must not take time from the others.
  os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
  os.environ['OMP_NUM_THREADS'] = str(threads)
  make = CONTENDERS[name][1]
  current, functions = None, None
  while True:
    try:
      case, which, seconds = pipe.recv()
    except EOFError:  # Nobody asks any more.
      return
    if case != current:
      functions = None  # Its tensors go before the next ones come.
      current, functions = case, make(case)
      if functions is not None:
        for run in functions.values():
          # Eagerly "auto" compiles what has come often.
          for _ in range(20 if name == 'auto, eager' else 2):
            run()
    if functions is None:
      pipe.send(None)
      continue
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
      begin = time.perf_counter()
      functions[which]()
      times.append(time.perf_counter() - begin)
    pipe.send(times)


class Field:
  """All contenders that are installed."""

  def __init__(self, names=None):
    context = multiprocessing.get_context('spawn')
    self.pipes = {}
    for name, (packages, _) in CONTENDERS.items():
      if names is not None and name not in names:
        continue
      if not all(map(importlib.util.find_spec, packages)):
        print(f'{name}: not installed, left out')
        continue
      ours, theirs = context.Pipe()
      process = context.Process(
        target=_serve, args=(name, theirs, os.cpu_count() or 1), daemon=True
      )
      process.start()
      self.pipes[name] = ours

  def ask(self, name, case, which, seconds):
    self.pipes[name].send((case, which, seconds))
    return self.pipes[name].recv()

  def measure(self, case: c.Case, rounds: int, seconds: float) -> dict:
    """`{pass: {contender: median time of each round}}`."""
    results: dict = {}
    for which in ('forward', 'step'):
      turns: dict = {name: [] for name in self.pipes}
      for _ in range(rounds):
        for name in self.pipes:
          times = self.ask(name, case, which, seconds)
          if times is not None:
            turns[name].append(statistics.median(times))
      results[which] = {name: t for name, t in turns.items() if t}
    return results


def ratio(results: dict, which: str, other: str) -> tuple[float, float]:
  """How many times faster `auto` is than `other`: median and half the range."""
  ours, theirs = results[which]['auto'], results[which][other]
  # Neighbours in time are compared.
  ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
  return statistics.median(ratios), (max(ratios) - min(ratios)) / 2


def table(measured: list[tuple[c.Case, dict]]) -> None:
  names = [n for n in CONTENDERS if n != 'auto']
  width = max(len(case.name) for case, _ in measured) + 1
  for which in ('forward', 'step'):
    print(f'\n{which}: how many times faster is `auto` than')
    print(' ' * width + ''.join(f'{name:>18}' for name in names))
    for case, results in measured:
      row = f'{case.name:{width}}'
      for name in names:
        if name in results[which]:
          value, spread = ratio(results, which, name)
          row += f'{value:10.2f} +-{spread:5.2f}'
        else:
          row += f'{"":>18}'
      print(row)
    row = f'{"geometric mean, large float32":{width}}'
    for name in names:
      values = [
        ratio(results, which, name)[0]
        for case, results in measured
        if name in results[which] and case in LARGE
      ]
      if values:
        row += (
          f'{math.exp(statistics.mean(map(math.log, values))):10.2f}' + ' ' * 8
        )
      else:
        row += ' ' * 18
    print(row)


def main(_):
  chosen = [case for case in ALL if CASES.value in case.name]
  if not chosen:
    raise app.UsageError(f'No case has {CASES.value!r} in its name.')
  field = Field()
  measured = [
    (case, field.measure(case, ROUNDS.value, SECONDS.value))
    for case in tqdm.tqdm(chosen, unit='case')
  ]
  table(measured)
  grown = {}
  if GROWTH.value and not CASES.value:
    few = Field(('auto', 'plain', 'keras', 'torch'))
    for what, points in GROWN.items():
      index = {'batch': 0, 'height and width': 1, 'channels': 3}[what]
      grown[what] = [
        (p.shape[index], p, few.measure(p, 3, SECONDS.value))
        for p in tqdm.tqdm(points, desc=what)
      ]
  if WRITE.value:
    RESULTS.mkdir(exist_ok=True)
    rows = []
    for case, results in measured:
      for which in results:
        for name in results[which]:
          value, spread = ratio(results, which, name)
          rows.append(
            {
              'case': case.name,
              'pass': which,
              'contender': name,
              'times_slower_than_auto': round(value, 3),
              'spread': round(spread, 3),
            }
          )
    growth = [
      {
        'varied': what,
        'size': size,
        'pass': which,
        'contender': name,
        'relative_time': statistics.median(times)
        / statistics.median(points[0][2][which]['auto']),
      }
      for what, points in grown.items()
      for size, _, results in points
      for which in results
      for name, times in results[which].items()
    ]
    about = {'processor': platform.processor(), 'cores': os.cpu_count()}
    (RESULTS / 'cpu.json').write_text(
      json.dumps({'about': about, 'ratios': rows, 'growth': growth}, indent=1)
    )


if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  app.run(main)
