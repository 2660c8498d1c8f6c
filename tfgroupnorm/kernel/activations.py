"""Activations that run inside the kernel, and their derivatives.

Both are functions of the pre-activation z, so that the gradient can rebuild z
from x, and no tensor of its size is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from tfgroupnorm.kernel.framework import xp


class Activation(NamedTuple):
  function: Callable
  derivative: Callable | None  # `None`: it is 1.


def _silu(z):
  return z * xp.sigmoid(z)


def _d_silu(z):
  s = xp.sigmoid(z)
  return s * (1 + z * (1 - s))


def _d_sigmoid(z):
  s = xp.sigmoid(z)
  return s * (1 - s)


def _d_relu(z):
  return xp.astype(z > 0, z.dtype)


def _gelu(z):
  return 0.5 * z * (1 + xp.erf(z * math.sqrt(0.5)))


def _d_gelu(z):
  cdf = 0.5 * (1 + xp.erf(z * math.sqrt(0.5)))
  return cdf + z * xp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _tanh_of_cubic(z):
  return xp.tanh(math.sqrt(2 / math.pi) * z * (1 + 0.044715 * z * z))


def _gelu_tanh(z):
  return 0.5 * z * (1 + _tanh_of_cubic(z))


def _d_gelu_tanh(z):
  # Beyond these the result is 0 or 1, and z * z would overflow.
  z = xp.clip(z, -100.0, 100.0)
  t = _tanh_of_cubic(z)
  slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
  return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * slope


ACTIVATIONS: dict[str | None, Activation] = {
  None: Activation(lambda z: z, None),
  'relu': Activation(xp.relu, _d_relu),
  'sigmoid': Activation(xp.sigmoid, _d_sigmoid),
  'silu': Activation(_silu, _d_silu),
  'gelu': Activation(_gelu, _d_gelu),
  'gelu_tanh': Activation(_gelu_tanh, _d_gelu_tanh),
}
