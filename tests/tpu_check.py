"""Every op of the layers has a lowering for TPUs in tensorflow-tpu.

Needs no TPU, but an environment of its own: `make tpu-check`.
"""

import importlib.metadata
import os

# Or it waits minutes for a cloud's answer about TPUs.
os.environ['TPU_SKIP_MDS_QUERY'] = '1'

import pytest
import tensorflow as tf

import tpu_notebook
from tfgroupnorm import functional

FUNCTIONS = {
  'group': lambda x, g, b: functional.group_norm(
    x, g, b, groups=4, activation='silu'
  ),
  'instance': functional.instance_norm,
  'layer': lambda x, g, b: functional.layer_norm(x, g, b, activation='gelu'),
  'rms': lambda x, g, b: functional.layer_norm(x, g, rms=True) + b,
  'head': lambda x, g, b: functional.head_norm(
    x, g, b, num_heads=4, gate=x, gate_activation='sigmoid'
  ),
  'masked': lambda x, g, b: functional.group_norm(
    x, g, b, groups=4, mask=x[..., 0] > 0
  ),
}


def lowered(function, *arguments):
  """The HLO for a TPU; raises an error for an op that has none."""

  @tf.function(jit_compile=True, autograph=False)
  def placed(*arguments):
    # The kernel chooses its form by where its input is.
    with tf.device('/device:TPU:0'):
      return function(*(tf.identity(a) for a in arguments))

  compiler_ir = placed.experimental_get_compiler_ir(*arguments)
  return compiler_ir(stage='hlo', platform_name='TPU')


def test_this_is_the_build_for_tpus():
  assert importlib.metadata.version('tensorflow-tpu')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_layers(name, dtype):
  def step(x, gamma, beta):
    with tf.GradientTape() as tape:
      tape.watch([x, gamma, beta])
      y = FUNCTIONS[name](x, gamma, beta)
    return y, tape.gradient(y, [x, gamma, beta])

  x, p = tf.ones((2, 24, 32), dtype), tf.ones(32, dtype)
  assert 'ENTRY' in lowered(step, x, p, p)


def test_an_op_without_a_lowering():
  """So that the others can fail."""
  with pytest.raises((tf.errors.OpError, ValueError)):
    lowered(lambda x: tf.strings.as_string(x), tf.ones(3))


def test_training_step_of_the_notebook():
  """Op by op: without a device TensorFlow lowers nothing that has variables."""
  from tensorflow.python.framework import kernels

  step, arguments = tpu_notebook.training_step(batch=64)
  graph = tf.function(step).get_concrete_function(*arguments).graph
  graph = graph.as_graph_def()
  nodes = [
    *graph.node,
    *(n for f in graph.library.function for n in f.node_def),
  ]
  ops = {node.op for node in nodes} - {'Placeholder'}  # Its arguments.
  assert ops >= {'Conv2D', 'Rsqrt', 'AssignSubVariableOp'}

  def devices(op):
    found = kernels.get_registered_kernels_for_op(op).kernel
    return {kernel.device_type for kernel in found}

  assert 'XLA_TPU_JIT' not in devices('AsString')
  assert [op for op in sorted(ops) if 'XLA_TPU_JIT' not in devices(op)] == []
