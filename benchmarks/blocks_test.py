"""In a network no norm costs more than `budgets_of_blocks.json` allows.

The quick half of the blocks: those that compile within seconds. What they cost
with the norms of Keras, and without any, is in `results/`.
"""

import json
import pathlib

import pytest

import blocks
import xla_cost

# target: {block: {pass: largest share of what the norms of Keras add}}.
BUDGETS = json.loads(
  (pathlib.Path(__file__).parent / 'budgets_of_blocks.json').read_text()
)


OTHERS = xla_cost.written('xla_cost_blocks.json')


@pytest.fixture(scope='module')
def costs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stablehlo')
  return {
    (target, block.name, name): found['ours']
    for target, budgets in BUDGETS.items()
    for block, target, name, found in xla_cost.costs_of_blocks(
      [block for block in blocks.ALL if block.name in budgets],
      [target],
      folder,
      owners=['ours'],
    )
  }


@pytest.mark.parametrize(
  'target, block, name, most',
  [
    (target, block, name, most)
    for target, budgets in BUDGETS.items()
    for block, passes in budgets.items()
    for name, most in passes.items()
  ],
)
def test_share(target, block, name, most, costs):
  key = target, block, name
  found = xla_cost.beside_others(OTHERS, key, costs[key])
  assert xla_cost.share(found) <= most
  # Those of neighbours come and go with the order of kernels.
  keras = found['keras'].temporaries
  assert found['ours'].temporaries <= 1.15 * keras + 0.1
