"""How fast and how exact the kernel is on a GPU, beside other libraries.

  python benchmarks/gpu.py [--cases=LN] [--rounds=7] [--write]

The layers as they are on JAX, ours and Keras', take turns with flax and torch,
where these are installed; and so does TensorFlow's own StableHLO, of ours and
of Keras, which JAX compiles and runs. What is printed are microseconds and, in
brackets, the share of the memory bandwidth that a plain copy reaches on the
same device. Counted is the traffic that no kernel can avoid, 2 T forward and
7 T for a training step, where T is the size of the input.
All of our outputs are compared with a formula in float64.

TensorFlow and the GPU need not be on one machine:

  python benchmarks/gpu.py --lower --stablehlo=DIR   # TensorFlow, no GPU
  python benchmarks/gpu.py --stablehlo=DIR           # JAX on a GPU

`--lower` writes DIR anew; without it, only files that are missing are made. A
machine without TensorFlow does without those that it has not. After a change of
the kernel, lower again.

`--write` puts the numbers into `results/gpu.json`. `--any_device` tries all of
this out where there is no GPU; its times mean nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

import cases as c
import jax_cases

HERE = pathlib.Path(__file__).parent
STABLEHLO = flags.DEFINE_string('stablehlo', '', 'Folder of StableHLO files.')
LOWER = flags.DEFINE_bool('lower', False, 'Write the StableHLO files anew.')
CASES = flags.DEFINE_string('cases', '', 'Only cases with this in their name.')
ROUNDS = flags.DEFINE_integer('rounds', 7, 'How often everybody takes a turn.')
SECONDS = flags.DEFINE_float('seconds', 0.05, 'Length of one turn.')
ANY = flags.DEFINE_bool('any_device', False, 'Try it out without a GPU.')
WRITE = flags.DEFINE_bool('write', False, 'Write results/gpu.json.')

_LARGE = [
  c.group(16, 56, 56, 256),
  c.group(16, 256, 56, 56, axis=1),
  c.group(4, 64, 64, 320),
  c.instance(8, 128, 128, 64),
  c.layer(32, 512, 768),
  c.layer(1, 2048, 4096),
  c.head(32, 512, 768),
]
ALL = [*_LARGE, *(case.with_dtype('bfloat16') for case in _LARGE)]
PASSES = {'forward': 2, 'step': 7}  # The least traffic, in T.
OUTPUTS = ('y', 'dx', 'dgamma', 'dbeta')
# Of the largest magnitude in an output.
TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2}
# By name: whose StableHLO of TensorFlow's. Others go by whose they are.
LOWERED = {'ours (TF)': 'ours', 'keras (TF)': 'keras'}
CONTENDERS = (*jax_cases.OWNERS, *LOWERED, 'torch', 'torch.compile')
# More than the largest cache of a GPU, so that inputs come from its memory.
_COLD = 2**28


# --- StableHLO ----------------------------------------------------------------


def without_stablehlo(cases, folder: pathlib.Path) -> list[c.Case]:
  return [
    case
    for case in cases
    if not all(
      c.path_of(folder, 'GPU', owner, which, case.name).is_file()
      for owner in ('ours', 'keras')
      for which in PASSES
    )
  ]


# --- Inputs and what is to come out -------------------------------------------


def inputs(case: c.Case) -> list:
  """x, gamma, beta, dy."""
  import ml_dtypes
  import numpy as np

  random = np.random.default_rng(0)
  dtype = ml_dtypes.bfloat16 if case.dtype == 'bfloat16' else np.float32

  def normal(shape, mean, deviation):
    z = random.standard_normal(shape, np.float32)
    return z * np.float32(deviation) + np.float32(mean)

  return [
    normal(case.shape, 3, 2).astype(dtype),
    normal(case.parameter_shape, 1, 0.3),
    normal(case.parameter_shape, 0, 0.3),
    normal(case.shape, 0, 1).astype(dtype),
  ]


def expected(case: c.Case, x, gamma, beta, dy) -> dict[str, Any]:
  """Every output, in float64 and by the closed formula."""
  import numpy as np

  axis = case.options.get('axis', -1)
  channels = case.parameter_shape[0]
  groups = {
    'GroupNorm': case.options.get('groups'),
    'InstanceNorm': channels,
    'LayerNorm': 1,
    'HeadNorm': case.options.get('num_heads'),
  }[case.kind]
  # Only the first two share statistics between positions.
  batch = case.shape[0] if case.kind in ('GroupNorm', 'InstanceNorm') else -1
  positions = -1 if batch > 0 else 1
  last = np.moveaxis(np.empty(case.shape, np.bool_), axis, -1).shape

  def view(t):
    t = np.moveaxis(t.astype(np.float64), axis, -1)
    return t.reshape(batch, positions, groups, channels // groups)

  def restored(t):
    return np.moveaxis(t.reshape(last), -1, axis)

  def mean(t):
    return t.mean((1, 3), keepdims=True)

  x, dy = view(x), view(dy)
  gamma, beta = (
    p.astype(np.float64).reshape(groups, -1) for p in (gamma, beta)
  )
  x -= mean(x)
  rstd = 1 / np.sqrt(mean(x * x) + c.EPSILON)
  xhat = x * rstd
  g = dy * gamma
  dx = rstd * (g - mean(g) - xhat * mean(g * xhat))
  return {
    'y': restored(xhat * gamma + beta),
    'dx': restored(dx),
    'dgamma': (dy * xhat).sum((0, 1)).ravel(),
    'dbeta': dy.sum((0, 1)).ravel(),
  }


def error(actual, wanted) -> float:
  """The largest error, relative to the largest magnitude."""
  import numpy as np

  if actual.shape != wanted.shape:
    raise SystemExit(f'Shape {actual.shape} instead of {wanted.shape}.')
  difference = np.abs(actual.astype(np.float64) - wanted).max()
  return float(difference / np.abs(wanted).max())


# --- Contenders in JAX --------------------------------------------------------


def _copies(case: c.Case, cold: bool) -> int:
  return math.ceil(_COLD / case.bytes) + 1 if cold else 1


def _in_turn(function: Callable, arguments: list) -> Callable:
  """A function of the number of the run, which picks the arguments."""
  return lambda i: function(arguments[i % len(arguments)])


def jax_functions(case: c.Case, owner: str) -> dict[str, Callable]:
  """By pass, of a list of arguments; none where an owner has no such layer."""
  import jax

  function = jax_cases.function_of(case, owner)
  if function is None:
    return {}
  forward = jax.jit(lambda *arguments: function(*arguments))
  step = jax.jit(jax_cases.step(function))
  return {
    'forward': lambda arguments: [forward(*arguments)],
    'step': lambda arguments: step(*arguments),
  }


class Jax:
  """Ours, Keras' and flax on one device, and what TensorFlow made of two."""

  def __init__(self, device, folder: pathlib.Path):
    self.device = device
    self.folder = folder
    self.cold = device.platform == 'gpu'
    self.names = ['ours', 'keras']
    if importlib.util.find_spec('flax'):
      self.names.append('flax')
    else:
      print('flax: not installed, left out')
    os.environ['KERAS_BACKEND'] = 'jax'  # For all that is imported from here.

  def load(self, case: c.Case) -> dict[str, float]:
    """Makes the functions of a case; returns the errors of our outputs."""
    import jax
    import numpy as np

    self.functions: dict = {}  # Arrays go before the next ones come.
    arrays = inputs(case)
    copies = [
      jax.device_put(arrays, self.device)
      for _ in range(_copies(case, self.cold))
    ]
    mine = ['ours']
    for name, owner in LOWERED.items():
      for which in PASSES:
        path = c.path_of(self.folder, 'GPU', owner, which, case.name)
        if path.exists():
          run = c.compiled(path.read_text(), self.device).execute
          self._add(name, which, run, copies)
          mine = ['ours', 'ours (TF)']
    for name in self.names:
      for which, run in jax_functions(case, name).items():
        self._add(name, which, run, copies)
    wanted = expected(case, *arrays)
    errors = {}
    for who in mine:
      for which, names in (('forward', OUTPUTS[:1]), ('step', OUTPUTS)):
        outputs = self.functions[who, which](0)
        for name, output in zip(names, outputs, strict=True):
          found = error(np.asarray(output), wanted[name])
          errors[f'{who} {which} {name}'] = found
    return errors

  def _add(self, name, which, run, copies):
    if which == 'forward':
      copies = [arguments[:3] for arguments in copies]
    self.functions[name, which] = _in_turn(run, copies)

  def measure(self, name: str, which: str, seconds: float) -> float | None:
    import jax

    run = self.functions.get((name, which))
    return run and timed(run, jax.block_until_ready, seconds)

  def bandwidth(self) -> float:
    """Bytes a second, read and written."""
    import jax
    import jax.numpy as jnp

    size = 2**30 if self.cold else 2**26
    copy = jax.jit(lambda x: x + 1)  # Adding zero would be elided.
    x = jax.device_put(jnp.zeros(size // 4, jnp.float32), self.device)
    times = [
      timed(lambda _: copy(x), jax.block_until_ready, SECONDS.value)
      for _ in range(ROUNDS.value)
    ]
    return 2 * size / statistics.median(times)

  def dispatch(self) -> float:
    """Seconds that the host needs to launch next to nothing."""
    import jax
    import jax.numpy as jnp

    x = jax.device_put(jnp.zeros(4, jnp.float32), self.device)
    text = jax.jit(lambda x: x + 1).lower(x).as_text()
    run = c.compiled(text, self.device).execute
    times = [
      timed(lambda _: run([x]), jax.block_until_ready, SECONDS.value)
      for _ in range(ROUNDS.value)
    ]
    return statistics.median(times)


def timed(run: Callable, finish: Callable, seconds: float) -> float:
  """Seconds of one run, in a batch that takes about `seconds`."""

  def batch(runs):
    begin = time.perf_counter()
    for i in range(runs):
      last = run(i)
    finish(last)
    return (time.perf_counter() - begin) / runs

  batch(2)
  return batch(min(max(round(seconds / batch(3)), 3), 1000))


# --- Contenders in torch ------------------------------------------------------


def torch_functions(case: c.Case, device: str, compile: bool) -> dict:
  """By pass. Images have their channels first, which torch likes best."""
  import torch

  # Its parameters have the dtype of the input.
  x, gamma, beta, dy = (
    torch.from_numpy(array.astype('float32')).to(
      device, getattr(torch, case.dtype)
    )
    for array in inputs(case)
  )
  x, dy = (c.torch_layout(case, t).contiguous() for t in (x, dy))
  parameters = gamma, beta
  norm = c.by_torch(case)
  if compile:
    torch.compiler.reset()
    norm = torch.compile(norm, dynamic=False)

  def forward(arguments):
    with torch.no_grad():
      return norm(*arguments[:3])

  def step(arguments):
    *wanted, dy = arguments
    y = norm(*wanted)
    return y, torch.autograd.grad(y, wanted, dy)

  copies = []
  for _ in range(_copies(case, device == 'cuda')):
    wanted = [t.clone().requires_grad_() for t in (x, *parameters)]
    copies.append([*wanted, dy.clone()])
  return {
    'forward': _in_turn(forward, copies),
    'step': _in_turn(step, copies),
  }


def _serve_torch(pipe, any_device: bool) -> None:
  """Says what it can run; is then asked for times. `None` if it failed."""
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if device == 'cpu' and not any_device:
    pipe.send(())
    return
  pipe.send(('torch', 'torch.compile'))

  def finish(_):
    if device == 'cuda':
      torch.cuda.synchronize()

  current, functions = None, {}
  while True:
    try:
      case, name, which, seconds = pipe.recv()
    except EOFError:
      return
    try:
      if case != current:
        functions.clear()  # Tensors go before the next ones come.
        current = case
      if name not in functions:
        functions[name] = torch_functions(case, device, name != 'torch')
      run = functions[name]
      pipe.send(run and timed(run[which], finish, seconds))
    except Exception as failure:  # Without a C compiler, for example.
      functions[name] = None
      first = str(failure).strip().partition('\n')[0]
      print(f'{name}, {case.name}: {first}; left out', flush=True)
      pipe.send(None)


class Torch:
  """Torch has a process of its own: both bring their libraries of CUDA."""

  def __init__(self):
    self.names = []
    if not importlib.util.find_spec('torch'):
      print('torch: not installed, left out')
      return
    context = multiprocessing.get_context('spawn')
    self.pipe, other = context.Pipe()
    # No daemon: torch.compile has children.
    self.process = context.Process(target=_serve_torch, args=(other, ANY.value))
    self.process.start()
    other.close()  # If the process dies, reading must fail rather than wait.
    self.names = list(self._answer())
    if not self.names:
      print('torch: sees no GPU, left out')

  def _answer(self):
    try:
      return self.pipe.recv()
    except EOFError:
      print('torch: its process died, left out')
      self.names = []
      return ()

  def measure(self, case, name, which, seconds) -> float | None:
    if name not in self.names:
      return None
    self.pipe.send((case, name, which, seconds))
    return self._answer() or None

  def close(self) -> None:
    if hasattr(self, 'process'):
      self.pipe.close()
      self.process.join(30)
      self.process.terminate()  # If it hangs.


# --- All together -------------------------------------------------------------


def measure(case: c.Case, jax_: Jax, torch_: Torch) -> dict[str, dict]:
  """`{pass: {contender: median seconds}}`."""
  results: dict = {}
  for which in PASSES:
    turns: dict = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS.value):
      for name in CONTENDERS:
        if name in torch_.names:
          seconds = torch_.measure(case, name, which, SECONDS.value)
        else:
          seconds = jax_.measure(name, which, SECONDS.value)
        if seconds is not None:
          turns[name].append(seconds)
    results[which] = {n: statistics.median(t) for n, t in turns.items() if t}
  return results


def versions() -> dict[str, str]:
  found = {}
  for package in ('jax', 'jaxlib', 'flax', 'torch', 'tensorflow', 'keras'):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found


def find_device():
  """JAX's first device, or why there is none to use."""
  if not importlib.util.find_spec('jax'):
    return None, 'JAX is not installed.'
  # Torch wants memory too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  import jax

  try:
    device = jax.devices()[0]
  except RuntimeError as failure:
    return None, f'JAX has no device: {failure}'
  if device.platform != 'gpu' and not ANY.value:
    return None, f'JAX sees no GPU here, only {device.device_kind!r}.'
  return device, ''


def prepare(cases) -> pathlib.Path:
  """The folder in which all StableHLO is."""
  if LOWER.value and not STABLEHLO.value:
    raise app.UsageError('--lower needs --stablehlo=DIR to write to.')
  folder = pathlib.Path(STABLEHLO.value or tempfile.mkdtemp())
  missing = cases if LOWER.value else without_stablehlo(cases, folder)
  if missing:
    if not importlib.util.find_spec('tensorflow'):
      print(
        f"TensorFlow's programs: {len(missing)} cases are not in {folder}, and "
        'TensorFlow, which makes them, is not installed; left out. Where it '
        'is, run\n  python benchmarks/gpu.py --lower --stablehlo=DIR\n'
        'then copy DIR here and pass it as --stablehlo=DIR.'
      )
      return folder
    c.write_stablehlo(missing, ['GPU'], folder)
    print(f'Lowered {len(missing)} cases into {folder}')
  return folder


def show(case: c.Case, results: dict, bandwidth: float, worst: float) -> None:
  for which, traffic in PASSES.items():
    row = f'{case.name:42}{which:9}'
    for name in CONTENDERS:
      seconds = results[which].get(name)
      if seconds is None:
        row += f'{"-":>19}'
      else:
        share = traffic * case.bytes / seconds / bandwidth
        row += f'{seconds * 1e6:12.1f} ({share:4.2f})'
    print(f'{row}{worst:11.1e}' if which == 'step' else row, flush=True)


def main(_):
  if WRITE.value and ANY.value:
    raise app.UsageError('--write is for a GPU; leave out --any_device.')
  chosen = [case for case in ALL if CASES.value in case.name]
  if not chosen:
    raise app.UsageError(f'No case has {CASES.value!r} in its name.')
  if LOWER.value:
    folder = prepare(chosen)
  device, reason = find_device()
  if device is None:
    if LOWER.value:  # That is what was asked for; the rest runs elsewhere.
      print(f'{reason} Run the rest on a GPU, with a copy of {folder}.')
      return
    raise SystemExit(f'{reason} Run this on a GPU, or try --any_device.')
  if not LOWER.value:
    folder = prepare(chosen)

  jax_, torch_ = Jax(device, folder), Torch()
  try:
    run(chosen, jax_, torch_)
  finally:
    torch_.close()


def run(chosen, jax_: Jax, torch_: Torch) -> None:
  bandwidth, dispatch = jax_.bandwidth(), jax_.dispatch()
  print(
    f'{jax_.device.device_kind}: a copy moves {bandwidth / 1e9:.0f} GB/s; '
    f'launching takes {dispatch * 1e6:.1f} us, and nothing is faster.\n'
    'Microseconds (share of the bandwidth); the largest error of ours\n'
    + ' ' * 51
    + ''.join(f'{name:>19}' for name in CONTENDERS)
    + f'{"error":>11}'
  )
  times, all_errors, wrong = [], [], []
  for case in chosen:
    errors = jax_.load(case)
    for output, value in errors.items():
      all_errors.append({'case': case.name, 'output': output, 'error': value})
      if not value <= TOLERANCE[case.dtype]:  # Also if it is not a number.
        wrong.append(f'{case.name}, {output}: error {value:.1e}')
    results = measure(case, jax_, torch_)
    # `max` would hide what is not a number.
    worst = max(errors.values(), key=lambda e: math.inf if e != e else e)
    show(case, results, bandwidth, worst)
    times.extend(
      {
        'case': case.name,
        'pass': which,
        'contender': name,
        'microseconds': round(seconds * 1e6, 2),
        'share': round(PASSES[which] * case.bytes / seconds / bandwidth, 3),
      }
      for which in PASSES
      for name, seconds in results[which].items()
    )
  if wrong:
    raise SystemExit('Beyond the tolerance:\n  ' + '\n  '.join(wrong))
  if WRITE.value:
    about = {
      'device': jax_.device.device_kind,
      'versions': versions(),
      'copy_gigabytes_per_second': round(bandwidth / 1e9, 1),
      'dispatch_microseconds': round(dispatch * 1e6, 2),
    }
    path = HERE / 'results' / 'gpu.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(
      json.dumps(
        {'about': about, 'times': times, 'errors': all_errors}, indent=1
      )
      + '\n'
    )


if __name__ == '__main__':
  sys.path.insert(0, str(HERE.parent))
  app.run(main)
