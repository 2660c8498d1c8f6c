"""Normalization in float64 NumPy, straight from the definitions.

Nothing here is shared with the package. All functions take complex arrays too,
so that derivatives come from the complex step: for analytic f,
f'(x) = imag(f(x + ih)) / h with no subtraction, hence to full precision.
"""

from __future__ import annotations

import numpy as np
from scipy import special

_STEP = 1e-150  # Squares of it vanish, and nothing is rounded.


def _statistics(x, axes, mask, rms):
  """Mean and biased variance over `axes` of the values where `mask` holds."""
  count = mask.sum(axes, keepdims=True)
  count = np.where(count == 0, 1, count)
  if rms:
    return 0, np.where(mask, x * x, 0).sum(axes, keepdims=True) / count
  mean = np.where(mask, x, 0).sum(axes, keepdims=True) / count
  squares = np.where(mask, (x - mean) ** 2, 0)
  return mean, squares.sum(axes, keepdims=True) / count


def _normalized(x, axes, epsilon, mask=None, rms=False):
  mask = np.ones(x.shape, bool) if mask is None else mask
  with np.errstate(invalid='ignore'):
    x = np.where(mask, x, 0)
  mean, variance = _statistics(x, axes, mask, rms)
  return (x - mean) / np.sqrt(variance + epsilon)


def _on(p, axes, shape):
  """`p`, whose axes lie on `axes` of an array of `shape`, to broadcast."""
  if p is None:
    return None
  order = np.argsort(axes)
  p = np.transpose(p, order)
  return p.reshape([shape[i] if i in axes else 1 for i in range(len(shape))])


def _affine(xhat, gamma, beta):
  y = xhat if gamma is None else xhat * gamma
  return y if beta is None else y + beta


def _full_mask(mask, axes, shape):
  if mask is None:
    return None
  mask = mask.reshape([shape[i] if i in axes else 1 for i in range(len(shape))])
  return np.broadcast_to(mask, shape)


def group_norm(x, gamma, beta, *, groups, axis=-1, epsilon=1e-3, mask=None):
  x = np.moveaxis(x, axis, -1)
  shape = x.shape
  positions = tuple(range(len(shape) - 1))
  if mask is not None:
    mask = _full_mask(mask, positions[: mask.ndim], shape)
  cut = (shape[0], -1, groups, shape[-1] // groups)
  xhat = _normalized(
    x.reshape(cut),
    (1, 3),
    epsilon,
    None if mask is None else mask.reshape(cut),
  ).reshape(shape)

  def per_sample(p):
    return (0, len(shape) - 1) if p.ndim == 2 else (len(shape) - 1,)

  gamma, beta = (
    None if p is None else _on(p, per_sample(p), shape) for p in (gamma, beta)
  )
  y = _affine(xhat, gamma, beta)
  if mask is not None:
    y = np.where(mask, y, 0)
  return np.moveaxis(y, -1, axis)


def layer_norm(x, gamma, beta, *, axis=-1, epsilon=1e-3, rms=False, mask=None):
  axes = (axis,) if isinstance(axis, int) else axis
  axes = tuple(sorted(a % x.ndim for a in axes))
  mask = None if mask is None else _full_mask(mask, range(mask.ndim), x.shape)
  xhat = _normalized(x, axes, epsilon, mask, rms)

  def where(p):
    return (0, *axes) if p.ndim == len(axes) + 1 else axes

  gamma, beta = (
    None if p is None else _on(p, where(p), x.shape) for p in (gamma, beta)
  )
  y = _affine(xhat, gamma, beta)
  return y if mask is None else np.where(mask, y, 0)


def head_norm(
  x,
  gamma,
  beta,
  *,
  num_heads=None,
  head_axis=None,
  epsilon=1e-3,
  per_head=True,
  rms=False,
  mask=None,
):
  """One head at a time, in a loop."""
  if head_axis is None:
    heads = np.split(x, num_heads, axis=-1)
  else:
    heads = list(np.moveaxis(x, head_axis, 0))
  features = heads[0].shape[-1]
  own_rank = 2 if per_head and head_axis is not None else 1

  def of_head(p, h, rank):
    if p is None:
      return None
    batch = p.shape[: p.ndim - own_rank]  # One for each sample, or ().
    if per_head:
      p = p.reshape(*batch, -1, features)[..., h, :]
    return p.reshape(*batch, *[1] * (rank - 2), features) if batch else p

  results = []
  for h, head in enumerate(heads):
    g, b = (of_head(p, h, head.ndim) for p in (gamma, beta))
    y = _affine(_normalized(head, (-1,), epsilon, rms=rms), g, b)
    if mask is not None:
      y = np.where(_full_mask(mask, range(mask.ndim), y.shape), y, 0)
    results.append(y)
  if head_axis is None:
    return np.concatenate(results, axis=-1)
  return np.moveaxis(np.stack(results), 0, head_axis)


def closed_form(x, gamma, dy, epsilon=1e-3):
  """`(y, dx, dgamma)` for large arrays, which `vjp` would take too long for.

  Args:
    x: (samples, positions, groups, size); a group of a sample is one group.
    gamma: (groups, size).
    dy: Gradient with respect to y, shaped as `x`.
    epsilon: Added to the variance.
  """

  def mean(t):
    return t.mean((1, 3), keepdims=True)

  d = x - mean(x)
  rstd = 1 / np.sqrt(mean(d * d) + epsilon)
  xhat = d * rstd
  g = dy * gamma
  dx = rstd * (g - mean(g) - xhat * mean(g * xhat))
  return xhat * gamma, dx, (dy * xhat).sum((0, 1))


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


ACTIVATIONS = {
  None: lambda z: z,
  'relu': lambda z: np.where(np.real(z) > 0, z, 0),
  'sigmoid': sigmoid,
  'silu': lambda z: z * sigmoid(z),
  'gelu': lambda z: z * (1 + special.erf(z / np.sqrt(2))) / 2,
  'gelu_tanh': lambda z: (
    z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2
  ),
  'tanh': np.tanh,
}


# --- Derivatives of any f(*arrays) -> array ----------------------------------


def jvp(f, arguments, tangents):
  """Derivative of `f` along `tangents`."""
  moved = [a + 1j * _STEP * t for a, t in zip(arguments, tangents, strict=True)]
  return np.imag(f(*moved)) / _STEP


def vjp(f, arguments, dy):
  """Gradients of sum(dy * f(*arguments)), one element at a time."""
  gradients = []
  for i, argument in enumerate(arguments):
    gradient = np.zeros(argument.shape)
    for index in np.ndindex(argument.shape):
      tangents = [np.zeros(a.shape) for a in arguments]
      tangents[i][index] = 1
      gradient[index] = np.sum(dy * jvp(f, arguments, tangents))
    gradients.append(gradient)
  return gradients


def second_order(f, arguments, dy, tangents, step=1e-5):
  """Derivative of `vjp` along `tangents`, by central differences."""

  def at(sign):
    return vjp(
      f,
      [a + sign * step * t for a, t in zip(arguments, tangents, strict=True)],
      dy,
    )

  return [(p - m) / (2 * step) for p, m in zip(at(1), at(-1), strict=True)]
