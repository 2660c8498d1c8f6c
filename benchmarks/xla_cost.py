"""What XLA makes of the kernel on GPUs and TPUs that are not here.

  python benchmarks/xla_cost.py [--targets=h100,v5e] [--cases=GN] [--write]

Compiles TensorFlow's own StableHLO with the compilers for a GPU and a TPU, ours
beside Keras', and counts: kernels, memory traffic in T (the size of the input),
temporaries in T, and on a TPU the compiler's estimate of kilocycles. These are
the compilers' models, no timings. For a TPU compare cycles, not traffic: it
counts copies to on-chip memory too.

`--blocks` compiles blocks of networks instead, with our norms, with Keras' and
with nothing in their place; the share is what ours add over what those of Keras
add. `--whole` compiles training steps of whole networks.

`--write` puts all counts into `results/`. `budgets.json` says what
a case may cost, and `budgets_test.py`, run by `make budgets`, checks that.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import sys
import tempfile

from absl import app, flags

import blocks
import cases as c
import networks

HERE = pathlib.Path(__file__).parent
TARGETS = flags.DEFINE_list(
  'targets', ['h100', 'v5e'], 'Which of a100, h100, v5e, v6e to compile for.'
)
CASES = flags.DEFINE_string('cases', '', 'Only cases with this in their name.')
BLOCKS = flags.DEFINE_bool('blocks', False, 'Norms in blocks, not alone.')
WHOLE = flags.DEFINE_bool('whole', False, 'Whole networks; takes minutes.')
WRITE = flags.DEFINE_bool('write', False, 'Write the counts into results/.')
KEEP = flags.DEFINE_string('keep', '', 'Folder for StableHLO and HLO files.')

_BIG = [
  c.group(16, 56, 56, 256),
  c.group(16, 256, 56, 56, axis=1),
  c.group(4, 64, 64, 320),
  c.instance(8, 128, 128, 64),
  c.instance(8, 64, 128, 128, axis=1),
  c.layer(32, 512, 768),
  c.head(32, 512, 768),
]
ALL = [
  *_BIG,
  *(case.with_dtype('bfloat16') for case in _BIG),
  c.group(16, 56, 56, 256, activation='silu'),
  c.masked(c.group(16, 56, 56, 256)),
  c.adaptive(c.group(16, 56, 56, 256)),
  c.masked(c.group(16, 512, 768)),
  c.group(2, 8, 28, 28, 256),
  c.group(16, 14, 14, 1024),
  c.layer(1, 2048, 4096),
  c.layer(32, 512, 768, rms=True),
  c.head(32, 512, 768, rms=True),
]

# Data sheets of the cards, in the form that XLA wants.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
  l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
_TOPOLOGIES = {
  'h100': _GPU.format(
    shared=233472,
    cores=132,
    fpus=128,
    bandwidth=3352000000000,
    l2=52428800,
    clock=1.98,
    memory=84825604096,
    optin=232448,
    major=9,
    name='NVIDIA H100 80GB HBM3',
  ),
  'a100': _GPU.format(
    shared=167936,
    cores=108,
    fpus=64,
    bandwidth=2039000000000,
    l2=41943040,
    clock=1.41,
    memory=84825604096,
    optin=166912,
    major=8,
    name='NVIDIA A100-SXM4-80GB',
  ),
  'v5e': 'v5e:2x2',
  'v6e': 'v6e:2x2',
}


def platform(target: str) -> str:
  return 'TPU' if target.startswith('v') else 'GPU'


@dataclasses.dataclass
class Cost:
  """What one compiled function costs, by the compiler's own count."""

  kernels: int
  traffic: float
  temporaries: float
  kilocycles: float | None = None


class Unreadable(Exception):
  """A compiled program that this jaxlib cannot read."""


class Compiler:
  """XLA for one absent device."""

  def __init__(self, target: str):
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['TPU_SKIP_MDS_QUERY'] = '1'
    # In several processes at once: there is no TPU to quarrel about.
    os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = 'true'
    from jax.experimental import topologies

    if platform(target) == 'TPU':
      topology = topologies.get_topology_desc(
        platform='tpu', topology_name=_TOPOLOGIES[target]
      )
    else:
      topology = topologies.get_topology_desc(
        platform='cuda',
        topology_name='1x1x1',
        topology='1x1x1',
        target_config=_TOPOLOGIES[target],
      )
    self.topology, self.device = topology, topology.devices[0]
    self.tpu = platform(target) == 'TPU'

  def cost(self, text: str, size: int) -> tuple[Cost, str]:
    """Counts for a program whose input has `size` bytes, and its HLO."""
    import jax
    from jax._src.lib import _jax

    executable = c.compiled(text, self.device, absent=True)
    try:
      module = executable.hlo_modules()[0]
    except jax.errors.JaxRuntimeError as error:
      raise Unreadable from error
    hlo = module.to_string()
    entry = hlo[hlo.index('\nENTRY') :]
    entry = entry[: entry.index('\n}')]
    kinds = collections.Counter(
      re.findall(r' = (?:\([^=]*?\)|\S+) ([a-z\-]+)\(', entry)
    )
    kernels = sum(
      kinds[kind]
      for kind in (
        'fusion',
        'custom-call',
        'copy',
        'transpose',
        'reduce',
        'convert',
        'dot',
      )
    )
    memory = executable.get_compiled_memory_stats()
    cost = Cost(kernels, 0, memory.temp_size_in_bytes / size)
    if self.tpu:
      cost.traffic = executable.cost_analysis()['bytes accessed'] / size
      cycles = re.findall(r'"estimated_cycles":"(\d+)"', entry)
      cost.kilocycles = sum(map(int, cycles)) / 1000
    else:
      client = jax.devices('cpu')[0].client
      counts = _jax.hlo_module_cost_analysis(client, module)
      traffic = counts['bytes accessed'] - _not_read(hlo)
      cost.traffic = (traffic + _by_libraries(entry)) / size
    return cost, hlo


# What computes something of each element, or leaves all as they are.
_OF_EACH = frozenset(
  (
    'abs add and bitcast cbrt ceil clamp compare complex convert copy cosine '
    'divide erf exponential exponential-minus-one floor imag is-finite log '
    'log-plus-one logistic maximum minimum multiply negate not or power real '
    'round-nearest-even rsqrt select sign sine sqrt subtract tanh xor'
  ).split()
)


def _not_read(hlo: str) -> int:
  """Bytes that a count takes for read, but a kernel leaves.

  XLA's count knows that a gather or a slice reads what it returns. But of an
  operand of one that it has fused it counts all, once: of a gather always, of a
  slice where the operand has another shape before the kernel, or where the
  slice is of something that is computed of the operand.
  """
  result = 0
  fused = set(re.findall(r' fusion\(.*calls=%([^\s,]+)', hlo))
  for name, body in re.findall(r'^%(\S+) \((.*?)^}', hlo, re.M | re.S):
    if name not in fused:
      continue
    users, shapes, kinds = collections.defaultdict(list), {}, {}
    for op, shape, kind, operands in re.findall(
      r'^ +(?:ROOT )?%(\S+) = (\S+) ([\w\-]+)\(([^)]*)', body, re.M
    ):
      shapes[op], kinds[op] = shape, kind
      for i, operand in enumerate(re.findall(r'%([^\s,]+)', operands)):
        users[operand].append((op, i))
    for parameter in (op for op, kind in kinds.items() if kind == 'parameter'):
      readers, parts, passed = users[parameter], {'gather'}, set()
      while through := {
        op for op, _ in readers if kinds[op] in _OF_EACH and users[op]
      }:
        parts = {'gather', 'slice'}
        passed |= through
        readers = [*readers, *(r for op in through for r in users[op])]
        readers = [r for r in dict.fromkeys(readers) if r[0] not in passed]
      if readers and all(kinds[op] in parts and not i for op, i in readers):
        read = sum(_elements(shapes[op]) for op, _ in readers)
        part = read / _elements(shapes[parameter])
        result += round(_bytes(shapes[parameter]) * max(1 - part, 0))
  return result


def _by_libraries(entry: str) -> int:
  """Bytes that convolutions and products of libraries read and write.

  XLA's count takes them for nothing.
  """
  shapes = dict(
    re.findall(r'^ +(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ', entry, re.M)
  )
  return sum(
    sum(map(_bytes, re.findall(r'[a-z]+\d*\[[\d,]*\]', text)))
    for name, operands in re.findall(
      r'%(\S+) = [^=]* custom-call\(([^)]*)\).*"__cu(?:dnn|blas)', entry
    )
    for text in (
      shapes[op] for op in (name, *re.findall(r'%([^\s,]+)', operands))
    )
  )


def _bytes(shape: str) -> int:
  """Of a shape in HLO, as `bf16[16,256]{1,0}`."""
  kind = re.match(r'([a-z]+\d*)\[', shape)[1]
  bits = int(re.search(r'\d+$', kind)[0]) if kind != 'pred' else 8
  return _elements(shape) * bits // 8


def _elements(shape: str) -> int:
  sizes = re.match(r'[a-z]+\d*\[([\d,]*)\]', shape)[1]
  return math.prod(map(int, filter(None, sizes.split(','))))


def chosen() -> list[c.Case]:
  return [case for case in ALL if CASES.value in case.name]


def costs(
  cases,
  targets,
  folder: pathlib.Path,
  owners=('ours', 'keras'),
  write_stablehlo=c.write_stablehlo,
):
  """Yields (case, target, pass, owner, cost), if the owner has such a norm."""
  platforms = sorted({platform(target) for target in targets})
  write_stablehlo(cases, platforms, folder, owners)
  for target in targets:
    compiler = Compiler(target)
    for case in cases:
      for name in ('forward', 'step'):
        for owner in owners:
          path = c.path_of(folder, platform(target), owner, name, case.name)
          if path.exists():
            cost, hlo = compiler.cost(path.read_text(), case.bytes)
            path.with_suffix(f'.{target}.hlo').write_text(hlo)
            yield case, target, name, owner, cost


FIELDS = ('kernels', 'traffic', 'temporaries', 'kilocycles')


def row(case, target, name, pair) -> str:
  """A line of the table."""
  text = f'{target:6}{case.name:42}{name:8}'
  for field in FIELDS:
    for who in ('ours', 'keras'):
      value = getattr(pair[who], field)
      shown = '' if value is None else f'{value:.2f}'
      text += f'{value if field == "kernels" else shown:>9}'
  return text


def costs_of_blocks(
  chosen,
  targets,
  folder: pathlib.Path,
  write_stablehlo=blocks.write_stablehlo,
  owners=blocks.OWNERS,
):
  """Yields (block, target, pass, {owner: cost}).

  Without those whose program is unreadable: of a v6e some are, and a share
  that would need one is NaN.
  """
  platforms = sorted({platform(target) for target in targets})
  write_stablehlo(chosen, platforms, folder, owners)
  for target in targets:
    compiler = Compiler(target)
    for block in chosen:
      for name in blocks.PASSES:
        found = {}
        for owner in owners:
          path = c.path_of(folder, platform(target), owner, name, block.name)
          with contextlib.suppress(Unreadable):
            found[owner], hlo = compiler.cost(path.read_text(), block.bytes)
            path.with_suffix(f'.{target}.hlo').write_text(hlo)
        yield block, target, name, found


def share(costs: dict[str, Cost]) -> float:
  """What our norms add to a block, over what those of Keras add."""
  if not costs.keys() >= set(blocks.OWNERS):
    return math.nan
  nothing, ours, keras = (
    cost.traffic if cost.kilocycles is None else cost.kilocycles
    for cost in (costs[owner] for owner in blocks.OWNERS)
  )
  return (ours - nothing) / (keras - nothing)


def beside_others(
  known: dict[tuple[str, str, str, str], Cost],
  key: tuple[str, str, str],
  ours: Cost,
) -> dict[str, Cost]:
  """For `share`: `ours` as just counted, the others as `written` has them."""
  others = {o: known[(*key, o)] for o in blocks.OWNERS if o != 'ours'}
  return {**others, 'ours': ours}


def row_of_block(block, target, name, costs, owners) -> str:
  text = f'{target:6}{block.name:62}{name:8}{share(costs):6.2f}'
  for field in FIELDS:
    form = 'd' if field == 'kernels' else '.1f'
    values = [getattr(costs.get(owner), field, None) for owner in owners]
    text += '  ' + ''.join(
      f'{"-":>8}' if value is None else f'{value:>8{form}}' for value in values
    )
  return text


def main_of_blocks(
  folder: pathlib.Path,
  name_of_results='xla_cost_blocks.json',
  write_stablehlo=blocks.write_stablehlo,
  owners=blocks.OWNERS,
):
  chosen = [block for block in blocks.ALL if CASES.value in block.name]
  head = ('kernels', 'traffic, T', 'temporaries, T', 'kilocycles')
  width = 8 * len(owners) + 2
  print(' ' * 76 + ' share' + ''.join(f'{title:>{width}}' for title in head))
  print(' ' * 82 + ('  ' + ''.join(f'{o:>8}' for o in owners)) * 4)
  for block, target, name, found in costs_of_blocks(
    chosen, TARGETS.value, folder, write_stablehlo, owners
  ):
    print(row_of_block(block, target, name, found, owners), flush=True)
    result = {
      'block': block.name,
      'target': target,
      'pass': name,
      'share': None if math.isnan(share(found)) else round(share(found), 3),
      **{owner: rounded(cost) for owner, cost in found.items()},
    }
    if WRITE.value:  # One by one: all of them take an hour.
      write(name_of_results, [result])


WHOLE_NETWORKS = ('resnet50', 'transformer')
POLICIES = ('float32', 'mixed_bfloat16')


def main_of_networks(
  folder: pathlib.Path,
  name_of_results='xla_cost_networks.json',
  write_stablehlo=networks.write_stablehlo,
):
  """Training steps of whole networks; each takes minutes for a TPU."""
  for target, name, policy in itertools.product(
    TARGETS.value, WHOLE_NETWORKS, POLICIES
  ):
    if CASES.value not in f'{name} {policy}':
      continue
    compiler = Compiler(target)
    for owner in ('ours', 'keras'):
      path = folder / f'{name}.{owner}.{policy}.{target}.mlir'
      c.alone(write_stablehlo, name, owner, policy, platform(target), str(path))
      # Per GB, not per T: the input is the least of what moves.
      cost, _ = compiler.cost(path.read_text(), 10**9)
      result = {'network': name, 'dtype': policy, 'target': target}
      result |= {'owner': owner, **rounded(cost)}
      print(
        f'{target:6}{name:12}{policy:16}{owner:8}{rounded(cost)}', flush=True
      )
      if WRITE.value:
        write(name_of_results, [result])


def rounded(cost: Cost) -> dict:
  return {k: v and round(v, 3) for k, v in dataclasses.asdict(cost).items()}


def result_of(case, target, name, owner, cost) -> dict:
  """What is written of one of `costs`."""
  return {
    'case': case.name,
    'target': target,
    'pass': name,
    'owner': owner,
    **rounded(cost),
  }


def written(name: str) -> dict[tuple[str, str, str, str], Cost]:
  """What was written of norms: {(target, case or block, pass, owner): cost}."""
  costs = {}
  fields = [field.name for field in dataclasses.fields(Cost)]
  for row in json.loads((HERE / 'results' / name).read_text()):
    key = row['target'], row.get('case', row.get('block')), row['pass']
    by_owner = {row['owner']: row} if 'owner' in row else row
    for owner, counts in by_owner.items():
      if isinstance(counts, dict):
        costs[(*key, owner)] = Cost(**{f: counts[f] for f in fields})
  return costs


def write(name: str, results: list[dict]) -> None:
  """Puts `results` in the place of older ones of the same name."""
  (HERE / 'results').mkdir(exist_ok=True)
  path = HERE / 'results' / name
  known = json.loads(path.read_text()) if path.exists() else []

  def of(result):
    keys = ('block', 'network', 'dtype', 'case', 'target', 'pass', 'owner')
    return tuple(result.get(key) for key in keys)

  all_ = {of(result): result for result in [*known, *results]}
  path.write_text(json.dumps(list(all_.values()), indent=1) + '\n')


def main(_):
  folder = pathlib.Path(KEEP.value or tempfile.mkdtemp())
  if WHOLE.value:
    return main_of_networks(folder)
  if BLOCKS.value:
    return main_of_blocks(folder)
  head = ('kernels', 'traffic, T', 'temporaries, T', 'kilocycles')
  print(' ' * 56 + ''.join(f'{title:>18}' for title in head))
  print(' ' * 56 + f'{"ours":>9}{"keras":>9}' * 4)
  pair, results = {}, []
  for case, target, name, owner, cost in costs(chosen(), TARGETS.value, folder):
    results.append(result_of(case, target, name, owner, cost))
    pair[owner] = cost
    if owner == 'keras':
      print(row(case, target, name, pair), flush=True)
  if WRITE.value:
    write('xla_cost.json', results)


if __name__ == '__main__':
  sys.path.insert(0, str(HERE.parent))
  app.run(main)
