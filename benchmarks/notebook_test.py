"""The model of the TPU notebook compiles for a TPU: its whole training step."""

import pathlib
import sys

import pytest

import cases as c
import xla_cost

ROOT = pathlib.Path(__file__).parent.parent


def write_step(path: pathlib.Path) -> None:
  sys.path.append(str(ROOT / 'tests'))
  import tpu_notebook

  function, arguments = tpu_notebook.training_step(batch=64)
  path.write_text(c.lower(function, arguments, 'TPU'))


@pytest.fixture(scope='module')
def stablehlo(tmp_path_factory):
  path = tmp_path_factory.mktemp('stablehlo') / 'step.mlir'
  c.alone(write_step, path)
  return path.read_text()


@pytest.mark.parametrize('target', ['v5e', 'v6e'])
def test_training_step(target, stablehlo):
  cost, hlo = xla_cost.Compiler(target).cost(stablehlo, 1)
  assert cost.kilocycles > 0
  assert 'convolution' in hlo
