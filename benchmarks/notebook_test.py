"""The model of the TPU notebook compiles for TPUs: its whole training step.

On JAX, as the notebook trains it, for one chip and for four; on TensorFlow for
one.
"""

import math
import os
import pathlib
import re
import sys

import pytest

import cases as c
import xla_cost

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 64


def write_step(path: pathlib.Path) -> None:
  sys.path.append(str(ROOT / 'tests'))
  import tpu_notebook

  function, arguments = tpu_notebook.training_step(batch=BATCH)
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


def compiled_by_jax(target: str, chips: int) -> tuple[str, int]:
  """The HLO of a step on so many chips, and the bytes of its gradients."""
  os.environ['KERAS_BACKEND'] = 'jax'
  topology = xla_cost.Compiler(target).topology
  import jax
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from tfgroupnorm.kernel.jax import dispatch

  sys.path.append(str(ROOT / 'tests'))
  import tpu_notebook

  dispatch._platform = lambda *_: 'TPU'  # Nothing runs here.
  function, state = tpu_notebook.training_step_of_jax()
  mesh = Mesh(np.array(topology.devices[:chips]), ('batch',))
  whole = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec('batch'))

  def kind(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  state = jax.tree.map(lambda a: kind(a.shape, a.dtype, whole), state)
  step = jax.jit(function, out_shardings=whole)
  traced = step.trace(
    state,
    kind((BATCH, 16, 16, 1), 'float32', rows),
    kind((BATCH,), 'int32', rows),
  )
  hlo = traced.lower().compile().as_text()
  return hlo, sum(4 * math.prod(a.shape) for a in state[0])


_COLLECTIVE = re.compile(
  r' = (.*?) (all-reduce|all-gather|all-to-all|collective-permute|'
  r'reduce-scatter|collective-broadcast)(?:-start)?\('
)


@pytest.mark.parametrize('target', ['v5e', 'v6e'])
@pytest.mark.parametrize('chips', [1, 4])
def test_training_step_of_jax(target, chips):
  """What chips send each other are the gradients, and the loss."""
  hlo, gradients = c.alone(compiled_by_jax, target, chips)
  assert 'convolution' in hlo
  found = _COLLECTIVE.findall(hlo)
  if chips == 1:
    assert not found
    return
  assert {kind for _, kind in found} == {'all-reduce'}
  sent = sum(
    xla_cost._bytes(shape)
    for shapes, _ in found
    for shape in re.findall(r'[a-z]+\d+\[[\d,]*\]', shapes)
  )
  assert gradients <= sent <= gradients + 8
