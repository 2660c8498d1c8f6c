"""Op by op or compiled by XLA, and for which platform.

What is traced by `jax.jit` is compiled with the rest, and what is not is here:
JAX compiles operations one by one otherwise, each for each shape.
"""

from __future__ import annotations

import dataclasses

import jax

from tfgroupnorm.kernel import forms, passes
from tfgroupnorm.kernel.jax import varying
from tfgroupnorm.kernel.jax.gradient import differentiable
from tfgroupnorm.kernel.spec import Spec
from tfgroupnorm.kernel.surroundings import op_by_op_asked

# What JAX calls the devices, and whose form is theirs.
_PLATFORMS = {'cpu': 'YNN', 'cuda': 'GPU', 'gpu': 'GPU', 'rocm': 'GPU'}
_PLATFORMS |= {'tpu': 'TPU'}


def _devices(x: jax.Array) -> str:
  """JAX' name for those on which `x` is, or what is traced will run."""
  if not isinstance(x, jax.core.Tracer):
    return next(iter(x.devices())).platform
  device = jax.config.jax_default_device
  return getattr(device, 'platform', device) or jax.default_backend()


def _platform(compiled: bool, x: jax.Array) -> str | None:
  """Whose XLA compiles this; `None`: it runs op by op, or has no form."""
  # The forms cut and merge axes, and cannot say how that is to be done.
  if not compiled or varying.explicit(x):
    return None
  return _PLATFORMS.get(_devices(x))


def run(spec: Spec, x, gamma, beta, gate, mask, jit_compile) -> jax.Array:
  """`passes.forward`, op by op or compiled, with its gradient."""
  compiled = jit_compile is not False and not op_by_op_asked.get()
  spec = dataclasses.replace(spec, platform=_platform(compiled, x))
  spec, gamma, beta = forms.parameters(spec, x, gamma, beta)
  return differentiable(compiled, spec, x, gamma, beta, gate, mask)


_compiled_moments = jax.jit(passes.moments, static_argnums=0)


def moments(spec: Spec, x, mask) -> list[jax.Array]:
  """`passes.moments`, compiled as a whole."""
  compute = passes.moments if op_by_op_asked.get() else _compiled_moments
  return compute(spec, x, mask)
