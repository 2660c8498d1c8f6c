"""Op by op or compiled by XLA, and for which platform.

The rules of `jit_compile`, one function for each question they ask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from tfgroupnorm.kernel import forms
from tfgroupnorm.kernel.passes import forward
from tfgroupnorm.kernel.passes import moments as moments
from tfgroupnorm.kernel.spec import Spec
from tfgroupnorm.kernel.surroundings import op_by_op_asked, quantizable_asked
from tfgroupnorm.kernel.tensorflow.functions import compiled, outermost, plain
from tfgroupnorm.kernel.tensorflow.gradient import differentiable
from tfgroupnorm.kernel.tensorflow.sizes import came_often, either

# What a compilation costs under "auto", in elements that eager calls normalize
# op by op, and what such a call costs whatever its size. Where a shape comes
# once or ten times it is not worth its time on a CPU, by `first_call.py`.
_COMPILATION, _CALL = 20_000_000, 1_000_000

# How many elements, of 2 or 4 bytes, "auto" leaves op by op in a CPU's graph.
# XLA cuts the loops over so many for its threads and waits for them longer than
# that saves: a step of LN (2,64,512) takes 0.61 ms compiled, 0.44 op by op, of
# (1,128,768) 0.63 and 0.76. Of fewer it cuts few loops.
_NO_GAIN = {2: range(2**13, 2**16 + 1), 4: range(2**15, 2**16 + 1)}

# Names the nodes that call what is compiled. Nothing of ours runs when such a
# graph is converted to ONNX; but ONNX Runtime shows this when it refuses it.
_REMEDY = 'xla_unless_traced_under_tfgroupnorm.op_by_op'

# Most shapes that are compiled of one kind of tensor, and in a process; most
# not compiled yet whose eager calls are counted.
_MOST_SHAPES, _MOST_SHAPES_OF_ALL, _MOST_COUNTED = 8, 512, 1000


def _is_handed_over(x: tf.Tensor, jit_compile: bool | str) -> bool:
  """Whether the graph being traced seems to be for another program.

  No program says so, unless it makes a SavedModel. But these trace functions of
  a name: TensorFlow's own `trace_model_call`, by which tf2onnx reads a model of
  either Keras; a model's bare `__call__`, as the `export` of Keras 3 does for
  ONNX; and `model_fn`, tf2onnx' second try. Others have functions of the last
  two names as well, so they count under "auto" only and where the batch is
  unknown: what this then costs is speed.
  """
  if tf.executing_eagerly():
    return False
  name = getattr(outermost(tf.compat.v1.get_default_graph()), 'name', None)
  if name in ('__call__', 'model_fn'):
    return jit_compile == 'auto' and x.shape[0] is None
  return name == '_wrapped_model'


def _in_save_context() -> bool:
  """Whether a SavedModel is being traced in this thread.

  TensorFlow tells this to its own private module only.
  """
  try:
    from tensorflow.python.saved_model import save_context
  except ImportError:
    return False
  return save_context.in_save_context()


def _deterministic() -> bool:
  """Whether `tf.config.experimental.enable_op_determinism` was called.

  Nothing public says so, but random pooling without a seed, which documents
  that it raises then. It takes longer than a small norm: ask rarely.
  """
  with tf.init_scope(), tf.device('/CPU:0'):
    try:
      tf.nn.fractional_max_pool(tf.ones((1, 1, 1, 1)), 1.0)
    except ValueError:
      return True
  return False


def _in_xla_trace() -> bool:
  """Whether the graph being traced will be compiled as a whole anyway.

  True inside an outer `tf.function(jit_compile=True)`. Should a TensorFlow no
  longer tell, the compiled call is merely nested there, and XLA inlines it.
  """
  if tf.executing_eagerly():
    return False
  graph = tf.compat.v1.get_default_graph()
  while graph is not None:
    get_context = getattr(graph, '_get_control_flow_context', lambda: None)
    context = get_context()
    while context is not None:
      if context.IsXLAContext():
        return True
      context = context.outer_context
    graph = getattr(graph, 'outer_graph', None)
  return False


def _in_tpu_replica() -> bool:
  """Whether a TPUStrategy is in charge: it compiles the whole step."""
  return type(tf.distribute.get_strategy()).__name__.startswith('TPUStrategy')


@functools.cache
def _device_compiles(device_type: str) -> bool:
  """Whether XLA compiles for this kind of device, found out by trying once.

  tensorflow-tpu, for one, has no compiler for its host CPU.
  """
  with tf.init_scope(), tf.device(f'/device:{device_type}:0'):
    try:
      compiled(tf.identity, tf.zeros([]))
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
      logging.info('XLA does not compile for %s: %s', device_type, error)
      return False
  return True


def _device_types(x: tf.Tensor) -> set[str]:
  """The kinds of device on which `x` may be computed."""
  placed = tf.DeviceSpec.from_string(x.device or '').device_type
  if placed:
    return {placed}
  types = {device.device_type for device in tf.config.list_logical_devices()}
  return types & set(forms.PLATFORMS)


# (spec, dtype, channels): shapes that are compiled under "auto".
_compiled_shapes: dict[tuple, set[tuple]] = {}
# The same and a shape: elements that eager calls have brought, until then.
_eager_work: dict[tuple, int] = {}


def _kind(spec: Spec, x: tf.Tensor) -> tuple:
  """What the tensors of a layer have in common, whatever their sizes."""
  axes = {i for i in spec.gamma_axes if i} if spec.view is None else set()
  axes |= {at[0] for at in (spec.split, spec.view) if at}
  return spec, x.dtype, tuple(x.shape[i] for i in sorted(axes))


def _worth_compiling(spec: Spec, x: tf.Tensor) -> bool:
  """Whether the shape of `x`, in an eager call, has come often enough.

  And whether it is not one of too many: what has been compiled stays so, in a
  graph as well, and XLA keeps it as long as the process lives.
  """
  kind, shape = _kind(spec, x), tuple(x.shape)
  shapes = _compiled_shapes.setdefault(kind, set())
  if shape in shapes:
    return True
  if len(shapes) >= _MOST_SHAPES:
    return False
  if sum(map(len, _compiled_shapes.values())) >= _MOST_SHAPES_OF_ALL:
    return False
  if tf.executing_eagerly() and not _came_often(kind, shape):
    return False
  shapes.add(shape)
  return True


def _came_often(kind: tuple, shape: tuple) -> bool:
  """Whether eager calls have brought this shape often; counts it if not."""
  if len(_eager_work) >= _MOST_COUNTED:
    _eager_work.clear()  # Those that come often are soon back.
  work = _eager_work.get((kind, shape), 0) + math.prod(shape) + _CALL
  _eager_work[kind, shape] = work
  if work < _COMPILATION:
    return False
  del _eager_work[kind, shape]
  return not _deterministic()  # Compiled, it would change in the last place.


def _no_gain(x: tf.Tensor, types: set[str]) -> range:
  """How many elements are not worth compiling, however often they come."""
  known = _NO_GAIN if types == {'CPU'} else {}
  return known.get(x.dtype.size, range(0))


def _runner(jit_compile: bool | str, spec: Spec, x: tf.Tensor) -> Callable:
  """`compiled`, `plain` or `either`, by the rules of `jit_compile`."""
  if jit_compile is False or op_by_op_asked.get() or _in_xla_trace():
    return plain
  if _in_tpu_replica() or _is_handed_over(x, jit_compile):
    return plain
  if jit_compile is True:
    return compiled
  # Each new shape costs a compilation, some 0.1 s for forward and backward; a
  # size unknown to the graph is one that changes. Of batches a few come often.
  if None in x.shape[1:]:
    return plain
  types = _device_types(x)
  if x.shape[0] is None:
    wanted = compiled if 'TPU' in types or _deterministic() else either
  elif not tf.executing_eagerly() and x.shape.num_elements() in _no_gain(
    x, types
  ):
    wanted = plain
  else:
    wanted = compiled if _worth_compiling(spec, x) else plain
  if wanted is plain or all(map(_device_compiles, types)):
    return wanted
  return plain


def _platform(run: Callable, x: tf.Tensor) -> str | None:
  """Whose XLA compiles what `run` runs on `x`; `None`: it runs op by op."""
  if _in_tpu_replica():
    return 'TPU'
  if run is not plain or _in_xla_trace():
    types = _device_types(x)
    return next((name for name in forms.PLATFORMS if name in types), None)
  return None


@tf.autograph.experimental.do_not_convert
def run(spec: Spec, x, gamma, beta, gate, mask, jit_compile) -> tf.Tensor:
  """`passes.forward`, op by op or compiled, with its gradient."""
  if _in_save_context():
    # A server without XLA must be able to run it, and a reloaded model to
    # differentiate it: ordinary ops with their ordinary gradients.
    platform = 'quantizable' if quantizable_asked.get() else None
    spec = dataclasses.replace(spec, platform=platform)
    y, _ = forward(spec, x, gamma, beta, gate, mask)
    return y
  runner = _runner(jit_compile, spec, x)
  spec = dataclasses.replace(spec, platform=_platform(runner, x))
  spec, gamma, beta = forms.parameters(spec, x, gamma, beta)
  told = runner is not plain and not tf.executing_eagerly()
  with tf.name_scope(_REMEDY) if told else contextlib.nullcontext():
    often = None
    if runner is either:
      no_gain = _no_gain(x, _device_types(x))
      rule = _COMPILATION, _CALL, no_gain.start, no_gain.stop - 1
      often = came_often(spec, x, rule)
    return differentiable(runner, spec, x, gamma, beta, gate, mask, often)
