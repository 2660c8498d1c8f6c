"""JAX' own programs cost no more than TensorFlow's may, nor than Keras'."""

import pytest

import blocks
import blocks_test
import budgets_test
import jax_cost
import xla_cost

# Kilocycles of heads on a v5e, with what JAX alone has: see `forms/lanes.py`.
HEADS = {
  ('Head (32,512,12x64) float32', 'forward'): 415,
  ('Head (32,512,12x64) float32', 'step'): 1460,
}


KERAS = xla_cost.written('jax_cost.json')


@pytest.fixture(scope='module')
def costs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stablehlo')
  return {
    (target, case.name, name): cost
    for case, target, name, _, cost in jax_cost.costs(
      xla_cost.ALL, list(budgets_test.BUDGETS), folder, ['ours']
    )
  }


@budgets_test.each_program
def test_budget(target, case, name, costs):
  budget = budgets_test.BUDGETS[target][case][name]
  if target == 'v5e' and (case, name) in HEADS:
    budget = {**budget, 'kilocycles': HEADS[case, name]}
  keras = KERAS.get((target, case, name, 'keras'))  # Which has no masks.
  budgets_test.check(budget, costs[target, case, name], keras)


# On a TPU blocks take minutes to compile.
OF_BLOCKS = [
  block for block in blocks.ALL if block.name in blocks_test.BUDGETS['h100']
]
OF_TENSORFLOW = xla_cost.written('xla_cost_blocks.json')
OF_OTHERS = xla_cost.written('jax_cost_blocks.json')


@pytest.fixture(scope='module')
def costs_of_blocks(tmp_path_factory):
  return {
    (block.name, name): found['ours']
    for block, _, name, found in xla_cost.costs_of_blocks(
      OF_BLOCKS,
      ['h100'],
      tmp_path_factory.mktemp('stablehlo'),
      jax_cost.write_blocks,
      ['ours'],
    )
  }


@pytest.mark.parametrize('name', blocks.PASSES)
@pytest.mark.parametrize('block', OF_BLOCKS, ids=lambda block: block.name)
def test_block(block, name, costs_of_blocks):
  """It moves no more than TensorFlow's, and than that of Keras on JAX."""
  ours = costs_of_blocks[block.name, name]
  of_tensorflow = OF_TENSORFLOW['h100', block.name, name, 'ours']
  assert ours.traffic <= 1.01 * of_tensorflow.traffic
  key = 'h100', block.name, name
  assert xla_cost.share(xla_cost.beside_others(OF_OTHERS, key, ours)) <= 1.005
