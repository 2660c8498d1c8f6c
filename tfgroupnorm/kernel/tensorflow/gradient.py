"""The hand-written gradient, of any order, on TensorFlow."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import threading
import uuid
import weakref
from collections.abc import Callable

import tensorflow as tf

from tfgroupnorm.kernel.passes import backward, forward
from tfgroupnorm.kernel.spec import Spec
from tfgroupnorm.kernel.tensorflow.functions import Function, compiled, plain

# --- A gradient of one's own -------------------------------------------------

# Where a graph keeps the gradients of operations in it.
_HOME = '_tfgroupnorm_gradients'


@dataclasses.dataclass(frozen=True)
class _Gradient:
  """What the gradient of an operation calls with that of its first results."""

  count: int
  function: Callable

  def __call__(self, *upstream):
    return [None] * self.count + list(self.function(*upstream[: self.count]))


def _registered(gradient: _Gradient) -> str:
  """A name for `gradient`, which it does not keep alive."""
  name = f'tfgroupnorm-{uuid.uuid4()}'
  living = weakref.ref(gradient)

  # TensorFlow passes an operation, or `None` where it saves the gradient.
  @tf.RegisterGradient(name)
  def of_an_operation(_, *upstream):
    own = living()
    if own is None:  # The graph that keeps it is gone, this is a copy of it.
      raise LookupError(
        'The gradient of a normalization goes with the function in which it '
        'was traced. Received: an operation of a copy of a graph, whose '
        'original is gone. Keep the original `tf.function`, or trace it anew.'
      )
    return own(*upstream)

  return name


@tf.custom_gradient
def _eagerly(*args, function):
  return function(*args)


def _with_gradient(function: Callable, *args):
  """`tf.custom_gradient(function)(*args)`, without variables.

  In a graph that one registers a gradient for ever, and the graph with it.
  This one goes with the graph.
  """
  if tf.executing_eagerly():
    return _eagerly(*args, function=function)
  results, gradient = function(*args)
  outputs = tf.nest.flatten(results)
  own = _Gradient(len(outputs), gradient)
  graph = tf.compat.v1.get_default_graph()
  if not hasattr(graph, _HOME):
    setattr(graph, _HOME, [])
  getattr(graph, _HOME).append(own)
  with graph.gradient_override_map({'IdentityN': _registered(own)}):
    copies = tf.identity_n([*outputs, *tf.nest.flatten(args)])
  return tf.nest.pack_sequence_as(results, copies[: len(outputs)])


# --- Forward, backward, and backward of that ---------------------------------


def _second_order(spec, arguments, mask, dy, upstream):
  """Gradients of `backward` with respect to `dy` and the given `arguments`.

  Rebuilt from `x` by differentiable ops, so that any order follows. A
  function for its graph: a `ForwardAccumulator` at work stops the tapes that
  would do this eagerly, but not symbolic gradients.
  """
  # As op by op: slices would come back as a concatenation, whose own gradient
  # XLA does not compile inside a loop.
  spec = dataclasses.replace(spec, platform=None)
  wanted = [dy, *(t for t in arguments if t is not None)]
  with tf.GradientTape() as tape:
    tape.watch(wanted)
    first = backward(spec, *arguments, mask, None, dy)
    first = [t for t in first if t is not None]
  if tf.executing_eagerly():  # Only under `tf.config.run_functions_eagerly`.
    return tape.gradient(first, wanted, upstream)
  return tf.gradients(first, wanted, upstream)


_backward_of_backward = Function(_second_order, eagerly=64)


def _unseen():
  """Hides operations from gradient tapes.

  One would differentiate `compiled` by itself, which then returns, and keeps,
  every intermediate tensor. In a graph no tape sees inside the function that
  this is part of; eagerly `tf.init_scope` pauses those at work.
  """
  return tf.init_scope() if tf.executing_eagerly() else contextlib.nullcontext()


def _differentiable(run, spec, often, mask, *arguments):
  """`forward` through `run`, with `backward` as its gradient, of any order."""
  if often is not None:
    run = run(often)
  given = [t is not None for t in arguments]
  masks = [] if mask is None else [mask]

  def fill(present):
    present = iter(present)
    return [next(present) if g else None for g in given]

  def only_mask(masks):
    return masks[0] if masks else None

  def first_order(dy, statistics, masks, *present):
    with _unseen():
      gradients = run(
        backward, spec, *fill(present), only_mask(masks), statistics, dy
      )

    def second_order(*upstream):
      if _calling.get():
        raise _ForwardModeError('A `ForwardAccumulator` is at work.')
      results = _backward_of_backward(
        spec, fill(present), only_mask(masks), dy, list(upstream)
      )
      nothing = [None for _ in (*statistics, *masks)]
      return [results[0], *nothing, *results[1:]]

    return [t for t in gradients if t is not None], second_order

  def zeroth_order(*present):
    with _unseen():
      y, statistics = run(forward, spec, *fill(present), mask)
    if not tf.executing_eagerly():
      # Their part is in `backward`. TensorFlow would derive them once more for
      # gradients of gradients, only to multiply by zero.
      statistics = [tf.stop_gradient(s) for s in statistics]

    def gradient(dy):
      # Copies, because the graph of a gradient's gradient can reach tensors of
      # the graph of the gradient, but not those one further out.
      copies = tf.nest.map_structure(tf.identity, (statistics, masks, *present))
      return _with_gradient(first_order, dy, *copies)

    return y, gradient

  present = [t for t in arguments if t is not None]
  return _with_gradient(zeroth_order, *present)


# Into a function of its own tapes cannot see. Forward mode needs that too:
# TensorFlow ignores a custom gradient in the very graph where a
# `ForwardAccumulator` is at work.
_in_graph = Function(_differentiable)


# --- Small eager calls --------------------------------------------------------
#
# TensorFlow's own `custom_gradient` costs such a call 0.1 ms and a step 0.4 ms,
# as much as all else. So they are one compiled function with its gradient, but
# not beside a `ForwardAccumulator`: there TensorFlow fails to differentiate
# functions with respect to tangents ("returned too few gradients").

# Most elements. Between forward and backward such a function keeps a copy of x.
# On a CPU that costs more than it gains from 2**20 elements on.
_SMALL = 2**18

# Whether such a function is being called; and the specs that have met a
# `ForwardAccumulator`, which do without for the rest of the process.
_calling = contextvars.ContextVar('tfgroupnorm.calling', default=False)
_forward_mode: set[Spec] = set()


class _ForwardModeError(Exception):
  """There is a `ForwardAccumulator`.

  Nothing public says so, but for it alone TensorFlow wants gradients of
  gradients while a function is being called.
  """


def _fits_one_function(run: Callable, spec: Spec, x: tf.Tensor) -> bool:
  """Whether an eager call is to be one function with its gradient."""
  return (
    run is compiled
    and math.prod(x.shape) <= _SMALL
    and spec not in _forward_mode
    and not tf.config.functions_run_eagerly()
    # TensorFlow's gradients of functions are not thread-safe at the first call.
    and threading.current_thread() is threading.main_thread()
  )


def _eagerly_differentiable(run, spec, often, mask, x, *parameters):
  """`_differentiable` of an eager call, compiled as a whole if small."""
  arguments = spec, often, mask, x, *parameters
  if _fits_one_function(run, spec, x):
    before = _calling.set(True)
    try:
      return compiled(_differentiable, plain, *arguments)
    except _ForwardModeError:
      _forward_mode.add(spec)
    finally:
      _calling.reset(before)
  return _differentiable(run, *arguments)


# --- Eagerly or in a graph ----------------------------------------------------


def differentiable(
  run: Callable, spec: Spec, x, gamma, beta, gate, mask, often=None
) -> tf.Tensor:
  """`run(passes.forward, ...)`, with a gradient of any order.

  If `often` is given, `run(often)` runs the passes.
  """
  eager = tf.executing_eagerly()
  attach = _eagerly_differentiable if eager else _in_graph
  return attach(run, spec, often, mask, x, gamma, beta, gate)
