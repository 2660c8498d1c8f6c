"""The one kernel: statistics, normalize, affine, activation; their gradient.

    mean = k + delta                     an unevaluated sum, see `_statistics`
    xhat = ((x - k) - delta) * rsqrt(var + epsilon)
    y    = activation(xhat * gamma + beta) * gate_activation(gate)

`forward` and `backward` below are the only maths of this package. They run
plain, op by op, or compiled by XLA; `normalize` chooses and attaches the
hand-written gradient. What is reduced, and how `gamma`, `beta` and `mask` lie
on `x`, is described by a `Spec`; there is no Keras here.

References:
  - Group Normalization, Wu & He, 2018, https://arxiv.org/abs/1803.08494
  - Root Mean Square Layer Normalization, Zhang & Sennrich, 2019,
    https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

# One part in this many of a long axis gives the first estimate of the mean. The
# estimate may then be off by at most sqrt(_SAMPLING) standard deviations,
# whatever the values are, so the variance loses at most 4 of its 24 bits.
_SAMPLING = 16

# Most slices of an axis that `_folded` adds up. More cost XLA:CPU time again.
_SLICES = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
  """What the kernel does to a tensor `x`, known before it sees one.

  Hashable and compared by value, so that one trace serves one (spec, dtypes,
  shapes). `slots` leaves no room for weak references, without which
  `tf.function` keys its cache on the value, not on an object that may be gone.

  Attributes:
    axes: Axes of `x` reduced as a whole, ascending.
    split: `(axis, groups)`: each of `groups` equal runs along this axis is
      reduced together with `axes`. `None`: no axis is split.
    view: `(axis, groups)`: before anything else this axis, of size C, becomes
      two, `(groups, C / groups)`; all other attributes speak of the result.
      `None`: `x` is taken as it is.
    gamma_axes: Axes of `x` that `gamma` spans, ascending; empty: no `gamma`.
    beta_axes: The same for `beta`.
    mask_axes: The same for `mask`.
    epsilon: Added to the variance, inside the root.
    rms: Statistics about zero instead of about the mean.
    activation: A name in `ACTIVATIONS`, or `None`.
    gate_activation: A name in `ACTIVATIONS`, or `None`.
    wide: Leave the result in the dtype of the computation.
    sliced: Take sums in slices, see `_folded`.
  """

  axes: tuple[int, ...]
  split: tuple[int, int] | None = None
  view: tuple[int, int] | None = None
  gamma_axes: tuple[int, ...] = ()
  beta_axes: tuple[int, ...] = ()
  mask_axes: tuple[int, ...] = ()
  epsilon: float
  rms: bool = False
  activation: str | None = None
  gate_activation: str | None = None
  wide: bool = False
  sliced: bool = False


# --- Activations that run inside the kernel ----------------------------------


def _d_silu(z):
  s = tf.sigmoid(z)
  return s * (1 + z * (1 - s))


def _d_sigmoid(z):
  s = tf.sigmoid(z)
  return s * (1 - s)


def _gelu(z):
  return 0.5 * z * (1 + tf.math.erf(z * math.sqrt(0.5)))


def _d_gelu(z):
  cdf = 0.5 * (1 + tf.math.erf(z * math.sqrt(0.5)))
  return cdf + z * tf.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _tanh_of_cubic(z):
  return tf.tanh(math.sqrt(2 / math.pi) * z * (1 + 0.044715 * z * z))


def _gelu_tanh(z):
  return 0.5 * z * (1 + _tanh_of_cubic(z))


def _d_gelu_tanh(z):
  t = _tanh_of_cubic(z)
  slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
  return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * slope


# name: (function, derivative), both of the pre-activation z, so that the
# gradient can rebuild z from x and no tensor of its size is kept.
ACTIVATIONS: dict[str | None, tuple[Callable, Callable]] = {
  None: (tf.identity, tf.ones_like),
  'relu': (tf.nn.relu, lambda z: tf.cast(z > 0, z.dtype)),
  'sigmoid': (tf.sigmoid, _d_sigmoid),
  'silu': (lambda z: z * tf.sigmoid(z), _d_silu),
  'gelu': (_gelu, _d_gelu),
  'gelu_tanh': (_gelu_tanh, _d_gelu_tanh),
}


def compute_dtype(dtype: tf.DType) -> tf.DType:
  """The dtype of all arithmetic on a tensor of `dtype`."""
  return tf.float64 if dtype == tf.float64 else tf.float32


# --- Shapes ------------------------------------------------------------------


def _dims(t: tf.Tensor) -> list[Any]:
  """The shape of `t`: an int where it is known, a scalar tensor where not."""
  static = t.shape.as_list()
  if None not in static:
    return static
  dynamic = tf.shape(t)
  return [dynamic[i] if n is None else n for i, n in enumerate(static)]


def _cut(t: tf.Tensor, axis: int, groups: int) -> tf.Tensor:
  """(..., C, ...) -> (..., groups, C / groups, ...)."""
  dims = _dims(t)
  cut = [groups, dims[axis] // groups]
  return tf.reshape(t, dims[:axis] + cut + dims[axis + 1 :])


def _join(t: tf.Tensor, axis: int) -> tf.Tensor:
  """Undoes `_cut`."""
  dims = _dims(t)
  joined = [dims[axis] * dims[axis + 1]]
  return tf.reshape(t, dims[:axis] + joined + dims[axis + 2 :])


def _product(dims: Sequence[Any], dtype: tf.DType) -> tf.Tensor:
  """Product of sizes, as a float: it does not overflow where an int32 would."""
  result = tf.constant(math.prod(n for n in dims if isinstance(n, int)), dtype)
  for n in dims:
    if not isinstance(n, int):
      result *= tf.cast(n, dtype)
  return result


def _folded(t: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
  """Cuts one of `axes` into up to `_SLICES` equal slices and adds them up.

  A sum of the result over `axes` is a sum of `t` over `axes`. Adding slices is
  elementwise work, which XLA:CPU vectorizes; it does not vectorize a reduction
  of an expression, which takes 4 times as long. The shorter chains of additions
  are more exact besides.
  """
  for axis in axes:
    size = t.shape[axis] or 1
    count = max(n for n in range(1, _SLICES + 1) if size % n == 0)
    if count >= 4:
      return functools.reduce(tf.add, tf.split(t, count, axis))
  return t


class _Operands:
  """The kernel's arguments, widened and laid out to broadcast with `x`.

  Also the reductions over a group, and the way from a group's statistics back
  to its elements. Statistics have the rank of `x`, size 1 on `axes` and
  `groups` on a split axis. The big tensor is not reshaped into groups where
  there is an axis to reduce first: sums over `axes` are taken per channel and
  channels are combined on that small result, which spares a TPU a relayout.
  """

  def __init__(self, spec: Spec, x, gamma, beta, gate, mask):
    self.spec = spec
    self.dtype = compute_dtype(x.dtype)
    self.x = self.enter(x)
    self.gate = None if gate is None else self.enter(gate)
    self.gamma = self._lay(gamma, spec.gamma_axes, self.dtype)
    self.beta = self._lay(beta, spec.beta_axes, self.dtype)
    self.mask = self._lay(mask, spec.mask_axes, tf.bool)
    self.group_size = self._group_size()

  def enter(self, t: tf.Tensor) -> tf.Tensor:
    """A tensor shaped as the caller's `x` -> as the kernel sees it."""
    t = tf.cast(t, self.dtype)
    return _cut(t, *self.spec.view) if self.spec.view else t

  def leave(self, t: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Undoes `enter`."""
    t = tf.cast(t, dtype)
    return _join(t, self.spec.view[0]) if self.spec.view else t

  def _lay(self, p, axes, dtype):
    """Reshapes `p` to the rank of x: its sizes on `axes`, 1 elsewhere."""
    if p is None:
      return None
    dims = _dims(self.x)
    shape = [n if i in axes else 1 for i, n in enumerate(dims)]
    return tf.cast(tf.reshape(p, shape), dtype)

  def _group_size(self) -> tf.Tensor:
    """How many elements a group has: a scalar, or per group under a mask."""
    spec, dims = self.spec, _dims(self.x)
    channels = [dims[spec.split[0]] // spec.split[1]] if spec.split else []
    if self.mask is None:
      return _product([dims[i] for i in spec.axes] + channels, self.dtype)
    masked = [i for i in spec.axes if i in spec.mask_axes]
    free = [dims[i] for i in spec.axes if i not in spec.mask_axes]
    valid = tf.cast(self.mask, self.dtype)
    valid = tf.reduce_sum(valid, masked, keepdims=True)
    # A group with no valid position has no statistics; 1 keeps them finite.
    return tf.maximum(valid * _product(free + channels, self.dtype), 1)

  def valid(self, t: tf.Tensor) -> tf.Tensor:
    """`t`, with zeros where the mask is False even if `t` is NaN there."""
    if self.mask is None:
      return t
    return tf.where(self.mask, t, tf.zeros([], t.dtype))

  def combine(self, t: tf.Tensor, reduce=tf.reduce_sum) -> tf.Tensor:
    """Channels -> groups; `axes` of `t` are reduced already."""
    if self.spec.split is None:
      return t
    return reduce(_cut(t, *self.spec.split), self.spec.split[0] + 1)

  def add_up(self, t: tf.Tensor) -> tf.Tensor:
    """Sums over `axes`: elements -> channels."""
    if self.spec.sliced:
      t = _folded(t, self.spec.axes)
    return tf.reduce_sum(t, self.spec.axes, keepdims=True)

  def sum(self, t: tf.Tensor) -> tf.Tensor:
    """Elements -> groups."""
    return self.combine(self.add_up(t))

  def spread(self, s: tf.Tensor) -> tf.Tensor:
    """Groups -> channels: the result broadcasts with `x`."""
    if self.spec.split is None:
      return s
    axis, groups = self.spec.split
    return tf.repeat(s, _dims(self.x)[axis] // groups, axis)

  def parameter_gradient(self, t, p, axes) -> tf.Tensor:
    """Sums `t` over the axes that the parameter `p` does not span."""
    others = [i for i in range(t.shape.rank) if i not in axes]
    if self.spec.sliced:
      t = _folded(t, others)
    t = tf.reduce_sum(t, others)
    return tf.cast(tf.reshape(t, _dims(p)), p.dtype)


# --- The maths ---------------------------------------------------------------


def _near_mean(o: _Operands) -> tf.Tensor:
  """A value near the mean of each group, and equal to it in a constant group.

  Differences from an element of a constant group are exact zeros. One element
  alone may be an outlier, far from the mean; the average difference of a part
  of the group mends that.
  """
  spec, x = o.spec, o.x
  if o.mask is not None:
    # The first element may be padding; the largest valid one is an element too.
    lowest = tf.constant(x.dtype.min, x.dtype)
    element = tf.where(o.mask, x, lowest)
    element = tf.reduce_max(element, spec.axes, keepdims=True)
    element = o.combine(element, tf.reduce_max)
    element = tf.where(element > lowest, element, tf.zeros([], x.dtype))
    return element + o.sum(o.valid(x - o.spread(element))) / o.group_size

  dims = _dims(x)
  one, part = [slice(None)] * len(dims), [slice(None)] * len(dims)
  channels = []
  for axis in spec.axes:
    one[axis] = slice(0, 1)
  if spec.split:
    axis, groups = spec.split
    channels = [dims[axis] // groups]
    one[axis] = slice(None, None, dims[axis] // groups)
  long = [i for i in spec.axes if x.shape[i] is None or x.shape[i] >= _SAMPLING]
  for axis in long[:1]:
    part[axis] = slice(0, (dims[axis] + _SAMPLING - 1) // _SAMPLING)
  element, some = x[tuple(one)], x[tuple(part)]
  size = _product([_dims(some)[i] for i in spec.axes] + channels, x.dtype)
  return element + o.sum(some - o.spread(element)) / size


def _statistics(o: _Operands) -> tuple[tf.Tensor, ...]:
  """`(k, delta, rstd)` of each group; `(rstd,)` for RMS.

  The mean is kept as an unevaluated sum k + delta. For x near k the difference
  x - k is exact, so nothing is lost where float32 cannot hold the mean: at mean
  1e4 and deviation 1e-2, rounding the mean to float32 moves the result by 5e-2.
  """
  if o.spec.rms:
    variance = o.sum(o.valid(o.x * o.x)) / o.group_size
    return (tf.math.rsqrt(variance + o.spec.epsilon),)
  # In exact arithmetic the result does not depend on k: no gradient through it.
  k = tf.stop_gradient(_near_mean(o))
  d = o.valid(o.x - o.spread(k))
  delta = o.sum(d) / o.group_size
  square = o.sum(d * d) / o.group_size
  variance = tf.maximum(square - delta * delta, 0)
  # Where squares overflow, infinite and not inf - inf: the result is then 0.
  variance = tf.where(tf.math.is_inf(square), square, variance)
  return k, delta, tf.math.rsqrt(variance + o.spec.epsilon)


def _normalized(o: _Operands, statistics) -> tf.Tensor:
  if o.spec.rms:
    return o.valid(o.x * o.spread(statistics[0]))
  k, delta, rstd = (o.spread(s) for s in statistics)
  return o.valid(((o.x - k) - delta) * rstd)


def _affine(o: _Operands, xhat: tf.Tensor) -> tf.Tensor:
  z = xhat if o.gamma is None else xhat * o.gamma
  return z if o.beta is None else z + o.beta


def forward(spec: Spec, x, gamma, beta, gate, mask):
  """Returns `y`, shaped as `x`, and the statistics that `backward` wants."""
  o = _Operands(spec, x, gamma, beta, gate, mask)
  statistics = _statistics(o)
  y = _affine(o, _normalized(o, statistics))
  y = ACTIVATIONS[spec.activation][0](y)
  if o.gate is not None:
    y *= ACTIVATIONS[spec.gate_activation][0](o.gate)
  y = o.leave(o.valid(y), o.dtype if spec.wide else x.dtype)
  y.set_shape(x.shape)
  return y, statistics


def backward(spec: Spec, x, gamma, beta, gate, mask, statistics, dy):
  """Gradients with respect to `x`, `gamma`, `beta` and `gate`.

  With z the pre-activation, rebuilt from `x`, and means over a group:

      dz     = dy * activation'(z) * gate_activation(gate)
      dx     = rstd * (dz * gamma - mean(dz * gamma)
                       - xhat * mean(dz * gamma * xhat))
      dgamma = sum(dz * xhat)
      dbeta  = sum(dz)

  and without mean(dz * gamma) for RMS statistics.

  Args:
    spec, x, gamma, beta, gate, mask: As for `forward`.
    statistics: As `forward` returned them; or `None` to compute them from `x`,
      so that this function may itself be differentiated.
    dy: Gradient with respect to the result of `forward`.

  Returns:
    Four gradients, `None` for an argument that was `None`.
  """
  o = _Operands(spec, x, gamma, beta, gate, mask)
  if statistics is None:
    statistics = _statistics(o)
  xhat = _normalized(o, statistics)
  dz = o.valid(o.enter(dy))
  activation, slope = ACTIVATIONS[spec.activation]
  dgate = None
  if o.gate is not None:
    gating, gate_slope = ACTIVATIONS[spec.gate_activation]
    dgate = dz * activation(_affine(o, xhat)) * gate_slope(o.gate)
    dgate = o.leave(o.valid(dgate), gate.dtype)
    dz = o.valid(dz * gating(o.gate))
  if spec.activation:
    dz *= slope(_affine(o, xhat))

  # Where gamma and beta are constant along `axes`, the same two sums per
  # channel give dgamma, dbeta and both means: one pass over x and dy, not two.
  sums = [dz, dz * xhat]
  axes_left = spec.axes
  if not set(spec.gamma_axes + spec.beta_axes) & set(spec.axes):
    sums = [o.add_up(t) for t in sums]
    axes_left = ()

  def times_gamma(t):
    return t if o.gamma is None else t * o.gamma

  def group_mean(t):
    t = tf.reduce_sum(times_gamma(t), axes_left, keepdims=True)
    return o.combine(t) / o.group_size

  dx = times_gamma(dz) - xhat * o.spread(group_mean(sums[1]))
  if not spec.rms:
    dx -= o.spread(group_mean(sums[0]))
  dx = o.valid(dx * o.spread(statistics[-1]))

  dgamma = dbeta = None
  if gamma is not None:
    dgamma = o.parameter_gradient(sums[1], gamma, spec.gamma_axes)
  if beta is not None:
    dbeta = o.parameter_gradient(sums[0], beta, spec.beta_axes)
  return o.leave(dx, x.dtype), dgamma, dbeta, dgate


# --- Plain or compiled -------------------------------------------------------


@functools.partial(tf.function, jit_compile=True, autograph=False)
def compiled(body, *args):
  """`body(*args)`, compiled by XLA: the only compilation in this package."""
  return body(*args)


# TensorFlow warns of a function that is traced again and again. This one serves
# every layer of a model, each of which is traced once.
compiled._omit_frequent_tracing_warning = True


def plain(body, *args):
  """`body(*args)`, op by op."""
  return body(*args)


def _in_save_context() -> bool:
  """Whether a SavedModel is being traced in this thread.

  TensorFlow tells this to its own private module only.
  """
  try:
    from tensorflow.python.saved_model import save_context
  except ImportError:
    return False
  return save_context.in_save_context()


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
  return types & {'CPU', 'GPU', 'TPU'}


def _runner(jit_compile: bool | str, x: tf.Tensor) -> Callable:
  """`compiled` or `plain`, by the rules of `jit_compile`."""
  if jit_compile is False or _in_xla_trace() or _in_tpu_replica():
    return plain
  if jit_compile is True:
    return compiled
  # Each new shape costs a compilation, some 0.1 s for forward and backward; a
  # size unknown to the graph is one that changes. A new batch size is rare.
  if None in x.shape[1:]:
    return plain
  return compiled if all(map(_device_compiles, _device_types(x))) else plain


def _form(spec: Spec, run: Callable, x: tf.Tensor) -> Spec:
  """The form of the sums that suits the platform.

  Slices of a tensor are views to XLA and copies to everybody else.
  """
  xla = run is compiled or _in_xla_trace()
  return dataclasses.replace(spec, sliced=xla and _device_types(x) == {'CPU'})


@functools.partial(tf.function, autograph=False)
def _backward_of_backward(spec, arguments, mask, dy, upstream):
  """Gradients of `backward` with respect to `dy` and the given `arguments`.

  Rebuilt from `x` by differentiable ops, so that any order follows. A
  `tf.function` for its graph: a `ForwardAccumulator` at work stops the tapes
  that would do this eagerly, but not symbolic gradients.
  """
  # Slices would come back as a concatenation, whose own gradient XLA does not
  # compile inside a loop.
  spec = dataclasses.replace(spec, sliced=False)
  wanted = [dy, *(t for t in arguments if t is not None)]
  with tf.GradientTape() as tape:
    tape.watch(wanted)
    first = backward(spec, *arguments, mask, None, dy)
    first = [t for t in first if t is not None]
  if tf.executing_eagerly():  # Only under `tf.config.run_functions_eagerly`.
    return tape.gradient(first, wanted, upstream)
  return tf.gradients(first, wanted, upstream)


def _differentiable(run, spec, mask, *arguments):
  """`forward` through `run`, with `backward` as its gradient, of any order."""
  given = [t is not None for t in arguments]
  masks = [] if mask is None else [mask]

  def fill(present):
    present = iter(present)
    return [next(present) if g else None for g in given]

  def only_mask(masks):
    return masks[0] if masks else None

  def hidden(*tensors):
    # From gradient tapes: one would differentiate `compiled` by itself, which
    # then returns, and keeps, every intermediate tensor. In a graph no tape
    # sees inside the function that this is part of.
    if not tf.executing_eagerly():
      return tensors
    return [None if t is None else tf.stop_gradient(t) for t in tensors]

  @tf.custom_gradient
  def first_order(dy, statistics, masks, *present):
    operands = hidden(*fill(present), only_mask(masks))
    gradients = run(backward, spec, *operands, hidden(*statistics), *hidden(dy))

    def second_order(*upstream):
      results = _backward_of_backward(
        spec, fill(present), only_mask(masks), dy, list(upstream)
      )
      nothing = [None for _ in (*statistics, *masks)]
      return [results[0], *nothing, *results[1:]]

    return [t for t in gradients if t is not None], second_order

  @tf.custom_gradient
  def zeroth_order(*present):
    operands = hidden(*fill(present), mask)
    y, statistics = run(forward, spec, *operands)
    # Their part is in `backward`. TensorFlow would derive them once more for
    # gradients of gradients, only to multiply by zero.
    statistics = [tf.stop_gradient(s) for s in statistics]

    def gradient(dy):
      # Copies, because the graph of a gradient's gradient can reach tensors of
      # the graph of the gradient, but not those one further out.
      copies = tf.nest.map_structure(tf.identity, (statistics, masks, *present))
      return first_order(dy, *copies)

    return y, gradient

  return zeroth_order(*(t for t in arguments if t is not None))


# In a graph it is a function of its own, into which tapes cannot see. Forward
# mode needs that too: TensorFlow ignores a custom gradient in the very graph
# where a `ForwardAccumulator` is at work. Eagerly it must not be one, because
# TensorFlow's gradients of functions are not thread-safe at the first call.
differentiable = tf.function(_differentiable, autograph=False)
differentiable._omit_frequent_tracing_warning = True


@tf.autograph.experimental.do_not_convert
def normalize(
  x: tf.Tensor,
  gamma: tf.Tensor | None = None,
  beta: tf.Tensor | None = None,
  *,
  spec: Spec,
  gate: tf.Tensor | None = None,
  mask: tf.Tensor | None = None,
  jit_compile: bool | str = 'auto',
) -> tf.Tensor:
  """Normalizes `x` as `spec` says, with a gradient of any order.

  Between forward and backward it keeps its arguments and the statistics of each
  group, no other tensor of the size of `x`.

  Args:
    x: A floating tensor of known rank.
    gamma: Scale, spanning `spec.gamma_axes`, or `None`.
    beta: Offset, spanning `spec.beta_axes`, or `None`.
    spec: What to do. Nothing is validated here; `functional` does that.
    gate: Shaped as `x`, or `None`.
    mask: bool, spanning `spec.mask_axes`, or `None`. Where it is False, `x` is
      not in the statistics, the result is 0 and so is the gradient.
    jit_compile: `True`: compiled by XLA; `False`: plain; `'auto'`: compiled
      where that works and no size but the batch's is unknown. A function that
      is being saved stays plain, and so does one that is compiled as a whole.

  Returns:
    A tensor of the shape of `x`, and of its dtype unless `spec.wide`.
  """
  if _in_save_context():
    # A server without XLA must be able to run it, and a reloaded model to
    # differentiate it: ordinary ops with their ordinary gradients.
    y, _ = forward(spec, x, gamma, beta, gate, mask)
  else:
    run = _runner(jit_compile, x)
    spec = _form(spec, run, x)
    attach = _differentiable if tf.executing_eagerly() else differentiable
    y = attach(run, spec, mask, x, gamma, beta, gate)
  return y
