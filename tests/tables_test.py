"""The numbers in tables of README and docs/ are those that were measured."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def results(name):
  return json.loads((ROOT / 'benchmarks' / 'results' / name).read_text())


def table(page, heading, least=4):
  """The rows of the table whose first line begins so, by their first cell."""
  lines = (ROOT / page).read_text().splitlines()
  (start,) = [
    i for i, line in enumerate(lines) if line.startswith(f'| {heading} |')
  ]
  rows = {}
  for line in lines[start + 2 :]:
    if not line.startswith('|'):
      break
    name, *cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert name not in rows
    rows[name] = cells
  assert len(rows) >= least
  return rows


def pair(*numbers, digits=1):
  """Several in a cell; one that was not counted is a dash."""
  return ' / '.join(
    '-' if number is None else f'{number:.{digits}f}' for number in numbers
  )


def cpu_times():
  """{case: {pass: {contender: its time by ours}}}."""
  times = {}
  for row in results('cpu.json')['ratios']:
    passes = times.setdefault(row['case'], {'forward': {}, 'step': {}})
    passes[row['pass']][row['contender']] = row['times_slower_than_auto']
  return times


def test_cpu():
  others = ['keras', 'keras, compiled', 'tf-keras', 'torch', 'flax']
  times = {
    case.removesuffix(' float32'): passes
    for case, passes in cpu_times().items()
    if case.endswith('float32')
  }
  shown = table('docs/performance.md', 'norm alone')
  assert shown.keys() == times.keys()
  for case, passes in times.items():
    wanted = [
      pair(passes['forward'][other], passes['step'][other])
      if other in passes['step']
      else '-'
      for other in others
    ]
    assert shown[case] == wanted, case


# Rows of README: a case on the CPU, if any, and blocks on an H100.
README = {
  'GroupNorm, 16 images of 56x56x256': (
    'GN (16,56,56,256)',
    [
      'conv 1x1, GN, ReLU, conv 1x1 (16,56,56,256)',
      'product, GN, ReLU, product (16,56,56,256)',
    ],
  ),
  'GroupNorm, 2 images of 100x152x256': (
    'GN (2,100,152,256)',
    ['conv 3x3, GN, ReLU (2,100,152,256)'],
  ),
  'InstanceNorm, 8 images of 128x128x64': (
    'IN (8,128,128,64)',
    ['conv 3x3, IN per sample, ReLU (8,128,128,64)'],
  ),
  'LayerNorm in a Transformer, 768 wide': (
    'LN (32,256,768)',
    ['x + gelu(LN(x) a) b (32,512,768)'],
  ),
  'HeadNorm of 12 heads of 64': (
    'Head (32,256,12x64)',
    [
      'attention of Head(q), Head(k) flat (8,512,768)',
      'x + Head(x a) b (32,512,768)',
    ],
  ),
  'RMS normalization in a Transformer, 4096 wide': (
    None,
    ['x + gelu(RMS(x) a) b (2,2048,4096)'],
  ),
}


def test_readme():
  shares = {
    row['block']: row['share']
    for row in results('xla_cost_blocks.json')
    if (row['target'], row['pass']) == ('h100', 'step')
  }
  times = cpu_times()
  shown = table('README.md', 'norm')
  assert shown.keys() == README.keys()
  for name, (case, blocks) in README.items():
    wanted = ['not timed', '', '']
    if case:
      step = times[f'{case} float32']['step']
      wanted = [f'{step[o]:.1f}' for o in ('keras', 'keras, compiled', 'torch')]
    better = sorted(1 / shares[f'{block} float32'] for block in blocks)
    found = ' to '.join(f'{times:.1f}' for times in better)
    assert shown[name] == [*wanted, found]


def counted(name, target, owners):
  """{case: {pass: {what: its counts, an owner each}}}."""
  found = {}
  for row in results(name):
    if row['target'] == target:
      passes = found.setdefault(row['case'], {})
      passes.setdefault(row['pass'], {})[row['owner']] = row

  def counts(case, which, what):
    owned = found[case][which]
    return [owned[o][what] if o in owned else None for o in owners]

  return counts


# Of the first, Keras has no masks and is counted without.
ALONE = [
  (
    'docs/performance.md',
    'ours / `keras.layers`',
    'xla_cost.json',
    ['ours', 'keras'],
  ),
  (
    'docs/jax.md',
    'ours / `keras.layers` / flax',
    'jax_cost.json',
    ['ours', 'keras', 'flax'],
  ),
]


@pytest.mark.parametrize('page, heading, name, owners', ALONE)
def test_counts_of_a_norm_alone(page, heading, name, owners):
  gpu = counted(name, 'h100', owners)
  tpu = counted(name, 'v5e', owners)
  for case, cells in table(page, heading).items():
    wanted = [
      pair(*gpu(case, 'forward', 'traffic')),
      pair(*gpu(case, 'step', 'traffic')),
      pair(*tpu(case, 'forward', 'kilocycles'), digits=0),
      pair(*tpu(case, 'step', 'kilocycles'), digits=0),
    ]
    if name == 'xla_cost.json':
      wanted.insert(0, pair(*gpu(case, 'forward', 'kernels'), digits=0))
    assert cells == wanted, case


def blocks_of(name):
  """{block: {(target, pass): its counts}}."""
  blocks = {}
  for row in results(name):
    blocks.setdefault(row['block'], {})[row['target'], row['pass']] = row
  return blocks


def share(row):
  return f'{row["share"]:.2f}' if row and row['share'] is not None else ''


def costs(row, what, digits, owners=('nothing', 'keras', 'ours')):
  if not row:
    return ''
  return pair(*(row[o][what] for o in owners), digits=digits)


def share_of_flax(row, what):
  nothing, flax, keras = (row[o][what] for o in ('nothing', 'flax', 'keras'))
  return f'{(flax - nothing) / (keras - nothing):.2f}'


def test_blocks():
  blocks = blocks_of('xla_cost_blocks.json')
  shown = table('docs/performance.md', 'block, twice')
  assert shown.keys() == blocks.keys()
  for block, rows in blocks.items():
    h100, v5e = rows['h100', 'step'], rows.get(('v5e', 'step'))
    assert shown[block] == [
      share(rows['h100', 'forward']),
      costs(h100, 'traffic', 1),
      share(h100),
      share(rows.get(('v5e', 'forward'))),
      costs(v5e, 'kilocycles', 0),
      share(v5e),
    ], block
  on_a100 = [share(rows['a100', 'step']) for rows in blocks.values()]
  page = (ROOT / 'docs' / 'performance.md').read_text()
  on_h100 = [
    share(rows['h100', 'step'])
    for block, rows in blocks.items()
    if not ('RMS' in block and block.endswith('float32'))
  ]
  assert f'of ours adds {min(on_h100)} to {max(on_h100)} of' in page
  assert f'On an A100 it adds {min(on_a100)} to {max(on_a100)} of' in page


def test_blocks_through_jax():
  blocks = blocks_of('jax_cost_blocks.json')
  assert blocks.keys() == table('docs/performance.md', 'block, twice').keys()
  page = (ROOT / 'docs' / 'jax.md').read_text()
  for target, said in (
    ('h100', 'adds {} to {} of what Keras'),
    ('a100', 'and {} to {} on an A100'),
  ):
    shares = [share(rows[target, 'step']) for rows in blocks.values()]
    assert said.format(min(shares), max(shares)) in page
  assert table('docs/jax.md', 'block, twice, on a v5e') == {
    block: [
      share(rows['v5e', 'forward']),
      costs(
        rows['v5e', 'step'],
        'kilocycles',
        0,
        ('nothing', 'keras', 'flax', 'ours'),
      ),
      share_of_flax(rows['v5e', 'step'], 'kilocycles'),
      share(rows['v5e', 'step']),
    ]
    for block, rows in blocks.items()
  }


def test_flax_in_blocks():
  of_flax = []
  for block, rows in blocks_of('jax_cost_blocks.json').items():
    for target in ('h100', 'a100'):
      row = rows[target, 'step']
      of_flax.append(share_of_flax(row, 'traffic'))
      assert share(row) <= of_flax[-1]
    if 'GN' in block:
      row = rows['v5e', 'step']
      assert share_of_flax(row, 'kilocycles') < share(row)
  page = ' '.join((ROOT / 'docs' / 'jax.md').read_text().split())
  assert f'whose norms add {min(of_flax)} to {max(of_flax)} of' in page


# Parts of blocks' names, and what is said of their steps on a TPU: (page,
# results, target, sentence).
JAX_PAGE = 'docs/jax.md', 'jax'
PERFORMANCE = 'docs/performance.md', 'xla', 'v6e'
PROSE = [
  (['1x1', 'product'], *JAX_PAGE, 'v5e', '`Dense`, a step of ours adds {} of'),
  (['3x3, GN', 'SiLU'], *JAX_PAGE, 'v5e', 'convolutions of 3x3, {} of'),
  (['IN per'], *JAX_PAGE, 'v5e', 'InstanceNorm {},'),
  (['LN(x) a) b (32'], *JAX_PAGE, 'v5e', '768 wide {},'),
  (['x + Head'], *JAX_PAGE, 'v5e', 'heads {}.'),
  (['1x1', 'product'], *JAX_PAGE, 'v6e', 'On a v6e it adds {} after'),
  (['3x3, GN', 'SiLU'], *JAX_PAGE, 'v6e', '`Dense`, {} beside those of 3x3,'),
  (['IN per'], *JAX_PAGE, 'v6e', 'of 3x3, {} with InstanceNorm,'),
  (['LN(x) a) b (32'], *JAX_PAGE, 'v6e', 'InstanceNorm, {} with that'),
  (['x + Head'], *JAX_PAGE, 'v6e', 'and {} with heads.'),
  (['product'], *PERFORMANCE, 'it adds {} after a matrix product,'),
  (['1x1', '3x3, GN', 'SiLU'], *PERFORMANCE, '{} after a convolution,'),
  (['LN(x) a) b (32'], *PERFORMANCE, '{} with LayerNorm in a Transformer'),
  (['x + Head'], *PERFORMANCE, 'and {} with heads'),
]


@pytest.mark.parametrize('parts, page, framework, target, said', PROSE)
def test_what_is_said_of_blocks(parts, page, framework, target, said):
  shares = [
    share(rows[target, 'step'])
    for block, rows in blocks_of(f'{framework}_cost_blocks.json').items()
    if any(part in block for part in parts)
  ]
  text = ' '.join((ROOT / page).read_text().split())
  assert said.format(f'{min(shares)} to {max(shares)}') in text


NETWORKS = {'resnet50': 'ResNet-50', 'transformer': 'Transformer'}
FRAMEWORKS = {'jax': 'JAX', 'xla': 'TensorFlow'}
POLICIES = ('float32', 'mixed_bfloat16')


def whole(framework):
  """{(network, dtype, target): (ours, Keras'), in GB or megacycles}."""
  counts = {}
  for row in results(f'{framework}_cost_networks.json'):
    key = row['network'], row['dtype'], row['target']
    cycles = row['kilocycles']
    cost = row['traffic'] if cycles is None else cycles / 1000
    counts.setdefault(key, {})[row['owner']] = cost
  return {key: (c['ours'], c['keras']) for key, c in counts.items()}


def test_whole_networks():
  assert table('docs/performance.md', "training step, ours / Keras'") == {
    f'{name} through {of}, {policy}': [
      pair(*whole(framework)[network, policy, target], digits=2)
      for target in ('h100', 'v5e', 'v6e')
    ]
    for framework, of in FRAMEWORKS.items()
    for network, name in NETWORKS.items()
    for policy in POLICIES
  }


def ratios(frameworks, network, *targets):
  """The least and the largest of ours by Keras', as a page has them."""
  found = [
    f'{ours / keras:.2f}'
    for framework in frameworks
    for target in targets
    for policy in POLICIES
    for ours, keras in [whole(framework)[network, policy, target]]
  ]
  return ' to '.join(sorted({min(found), max(found)}))


def test_what_is_said_of_whole_networks():
  said = [
    ratios(frameworks, network, *targets)
    for frameworks, network, targets in (
      (['jax'], 'resnet50', ['v5e']),
      (['jax'], 'resnet50', ['v6e']),
      (['jax'], 'transformer', ['v5e', 'v6e']),
      (['xla'], 'resnet50', ['v5e']),
      (['xla'], 'resnet50', ['v6e']),
      (['xla'], 'transformer', ['v5e', 'v6e']),
      (FRAMEWORKS, 'resnet50', ['h100']),
      (FRAMEWORKS, 'transformer', ['h100']),
    )
  ]
  page = (ROOT / 'docs' / 'performance.md').read_text()
  prose = page[page.index('Through JAX, which') :].partition('\n([jax_cost')[0]
  number = r'\d\.\d\d'
  assert re.findall(f'{number}(?: to {number})?', prose) == said


def test_what_readme_says_of_a_whole_network():
  times = [
    keras / ours
    for framework in FRAMEWORKS
    for ours, keras in [whole(framework)['resnet50', 'float32', 'v5e']]
  ]
  text = ' '.join((ROOT / 'README.md').read_text().split())
  assert f'takes {times[0]:.1f} times as many cycles with Keras' in text
  assert f'on TensorFlow it takes {times[1]:.2f} times as many' in text


def test_networks_on_a_cpu():
  names = {
    'resnet50': 'ResNet-50',
    'unet': 'U-Net',
    'transformer': 'Transformer',
    'step': 'later steps',
    'peak': 'peak of memory',
    'served 1': 'SavedModel, batch of 1',
    'served 8': 'SavedModel, batch of 8',
  }
  assert table('docs/performance.md', 'network on a CPU') == {
    f'{names[row["network"]]}: {names.get(row["what"], row["what"])}': [
      pair(row['times_ours'].get(owner), digits=2)
      for owner in ('keras', 'batch')
    ]
    for row in results('networks.json')
    if 'times_ours' in row
  }
  steps = {
    row['network']: row['steps']['keras']
    for row in results('networks.json')
    if row['what'] == 'paid off'
  }
  page = ' '.join((ROOT / 'docs' / 'performance.md').read_text().split())
  said = 'after {resnet50} steps of the ResNet-50 and {unet} of the U-Net'
  assert said.format(**steps) in page


def test_cpu_through_jax():
  times = {}
  for row in results('jax_cpu.json'):
    times.setdefault(row['case'], []).append(row)
  assert table('docs/jax.md', 'norm alone') == {
    case: [
      pair(*(row.get(o) and row[o] / row['ours'] for row in rows))
      for o in ('keras', 'flax')
    ]
    for case, rows in times.items()
  }


def test_memory():
  found = results('memory.json')
  rows = {
    row['case']: [f'{row[owner]:.1f}' for owner in ('ours', 'keras')]
    for row in found['kept']
  }
  for row in found['peak']:
    name = f'peak of {row["layers"]} convolutions with GN and SiLU, '
    rows[name + row['step']] = [f'{row[o]:.0f}' for o in ('ours', 'keras')]
  assert table('docs/performance.md', 'kept, in T') == rows


def test_exactness():
  shown = table('docs/precision.md', 'mean, std')
  wanted = [
    [
      f'{row[who]:.1e}' if who in row else '-'
      for who in ('compiled', 'plain', 'keras', 'torch')
    ]
    for row in results('exactness.json')
  ]
  assert list(shown.values()) == wanted
  assert [tuple(map(float, name.split(', '))) for name in shown] == [
    (row['mean'], row['std']) for row in results('exactness.json')
  ]
  front = table('README.md', 'mean, std', least=3)
  assert front == {name: [shown[name][i] for i in (0, 2, 3)] for name in front}


def test_first_calls():
  rows = {
    row['case'].replace(' float32', ''): [
      f'{row["first_call_to_keras"]:.1f}',
      f'{row["later_call_to_keras"]:.2f}',
      f'{row["pays_off_after_calls"]} calls',
    ]
    for row in results('first_call.json')
    if re.search('graph|eager', row['case']) and 'pays_off_after_calls' in row
  }
  heading = "forward and backward, ours to Keras'"
  assert table('docs/compilation.md', heading) == rows
