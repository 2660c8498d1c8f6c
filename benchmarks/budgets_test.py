"""No case costs more than `budgets.json` allows, by the compilers' count.

What Keras' norms cost is read from `results/`: it changes only with the pinned
compilers and Keras.
"""

import json
import pathlib

import pytest

import xla_cost

# target: {case: {pass: {what: most}}}; `to_keras` is a ratio of kilocycles.
BUDGETS = json.loads(
  (pathlib.Path(__file__).parent / 'budgets.json').read_text()
)


KERAS = xla_cost.written('xla_cost.json')


@pytest.fixture(scope='module')
def costs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stablehlo')
  return {
    (target, case.name, name): cost
    for case, target, name, _, cost in xla_cost.costs(
      xla_cost.ALL, list(BUDGETS), folder, ['ours']
    )
  }


def test_every_case_has_a_budget():
  names = [case.name for case in xla_cost.ALL]
  for budgets in BUDGETS.values():
    assert sorted(budgets) == sorted(names)


each_program = pytest.mark.parametrize(
  'target, case, name',
  [
    (target, case, name)
    for target, cases in BUDGETS.items()
    for case, passes in cases.items()
    for name in passes
  ],
)


def check(budget, ours, keras):
  """Asserts that `ours` keeps to it; `keras` is `None` where Keras has none."""
  for what, most in budget.items():
    if what != 'to_keras':
      found = getattr(ours, what)
    elif keras is not None:
      found = ours.kilocycles / keras.kilocycles
    else:
      continue
    assert found <= most, f'{what}: {found:.3f} exceeds the budget of {most}'


@each_program
def test_budget(target, case, name, costs):
  keras = KERAS[target, case, name, 'keras']
  check(BUDGETS[target][case][name], costs[target, case, name], keras)
