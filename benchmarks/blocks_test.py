"""In a network no norm costs more than `budgets_of_blocks.json` allows.

The quick half of the blocks: those that compile within seconds.
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


@pytest.fixture(scope='module')
def costs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stablehlo')
  return {
    (target, block.name, name): found
    for target, budgets in BUDGETS.items()
    for block, target, name, found in xla_cost.costs_of_blocks(
      [block for block in blocks.ALL if block.name in budgets],
      [target],
      folder,
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
  found = costs[target, block, name]
  assert xla_cost.share(found) <= most
  # Those of neighbours come and go with the order of kernels.
  keras = found['keras'].temporaries
  assert found['ours'].temporaries <= 1.15 * keras + 0.1
