"""Whether a layer or a model computes what another does, on made-up data.

Both are called as for inference, and the gradients of one number are compared
too: of the outputs multiplied by fixed random factors and added up.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfgroupnorm import _checks, models
from tfgroupnorm._tensors import ops
from tfgroupnorm.kernel.framework import xp
from tfgroupnorm.models import Layer

# What differences may be, relative to what is compared: of one norm, and of a
# model, where those of its norms add up and are amplified.
_ROUNDING = {
  'float64': 1e-9,
  'float32': 1e-5,
  'bfloat16': 0.03,
  'float16': 4e-3,
}
_IN_A_MODEL = {
  'float64': 1e-8,
  'float32': 1e-4,
  'bfloat16': 0.3,
  'float16': 0.05,
}
# A bias before a norm may have a gradient of 0, and what is computed for it is
# rounding: both count as 0 where they are below this part of the median of all.
# Gradients above it count as no smaller than `_FLOOR` of the median.
_ZERO = 1e-4
_FLOOR = 0.01
# Sizes to try for those that a model does not tell.
_SIZES = (8, 32, 64, 224)
_BATCH = 2
# More gradients than this are not kept, but for those of the norms.
MOST_WEIGHTS = 300_000_000


def tolerance(dtype: str, *, model: bool = False) -> float:
  """For results computed in `dtype`."""
  table = _IN_A_MODEL if model else _ROUNDING
  return table.get(dtype, table['float32'])


# --- Made-up data ------------------------------------------------------------


def made_up(shape: Sequence[int | None], dtype: Any, unknown: int = 8) -> Any:
  """A batch that no formula likes: shifted, scaled, and the same each time.

  Whole numbers are 0 and 1, which any vocabulary has and any mask may be.
  """
  sizes = [_BATCH, *(n or unknown for n in shape[1:])]
  rng = np.random.default_rng(0)
  dtype = getattr(dtype, 'name', dtype)
  if dtype == 'string':
    return np.full(sizes, 'a b')
  if 'float' in dtype:
    x = rng.normal(0.5, 2, sizes)
    if len(sizes) > 2:
      x[-1, -1] = 0  # Where `Masking` masks.
    return ops.cast(ops.convert(x), dtype)
  bits = rng.uniform(size=sizes) < 0.75
  if len(sizes) > 1:
    bits[:, 0], bits[-1, -1] = True, False
  return ops.cast(ops.convert(bits), dtype)


def batches(model: Layer) -> Iterator[Any]:
  """Batches that the model may take; which of them fit, one must try."""
  inputs = models.inputs_of(model)
  if inputs is not None:
    known = {tuple(x.shape[1:]) for x in ops.flatten(inputs)}
    sizes = _SIZES if any(None in shape for shape in known) else _SIZES[:1]
    for unknown in sizes:
      yield ops.map_structure(
        lambda x, n=unknown: made_up(tuple(x.shape), x.dtype, n), inputs
      )
    return
  shapes = models.shape_of_build(model)
  if shapes is not None:
    yield _from_shapes(shapes)


def _from_shapes(shapes: Any) -> Any:
  if isinstance(shapes, ops.Shape):
    shapes = tuple(shapes)
  if isinstance(shapes, dict):
    return {name: _from_shapes(shape) for name, shape in shapes.items()}
  if all(n is None or isinstance(n, int) for n in shapes):
    return made_up(shapes, 'float32')
  return [_from_shapes(shape) for shape in shapes]


def refused(error: Exception) -> str:
  """Why nothing was compared, in a line."""
  said = str(error).strip().partition('\n')[0]
  return f'it does not take a made-up batch ({said[:200]})'


# --- Outputs and gradients ---------------------------------------------------


@dataclasses.dataclass
class Results:
  """What was computed, as arrays; masked positions of outputs are 0."""

  outputs: list[np.ndarray]
  gradients: list[np.ndarray]


def results(layer: Layer, inputs: Any, weights: Sequence[Any]) -> Results:
  """Outputs, and gradients by floating inputs and by `weights`."""
  flat = [ops.convert(x) for x in ops.flatten(inputs)]
  by = [i for i, x in enumerate(flat) if _checks.is_floating(x)]
  outputs = _outputs(layer, ops.packed(inputs, flat))
  # Of what is traced for a gradient, not every framework tells the masks.
  masks = [getattr(y, '_keras_mask', None) for y in outputs]

  def total(moved):
    given = list(flat)
    for i, x in zip(by, moved, strict=True):
      given[i] = x
    found = _outputs(layer, ops.packed(inputs, given))
    return sum(map(_weighted_sum, map(_valid, found, masks)))

  gradients = ops.gradients(total, [flat[i] for i in by], weights)
  return Results(
    [_as_array(y) for y in map(_valid, outputs, masks)],
    [_as_array(g) for g in gradients],
  )


def _outputs(layer: Layer, inputs: Any) -> list[Any]:
  """Floating ones."""
  parameters = inspect.signature(layer.call).parameters
  options = {'training': False} if 'training' in parameters else {}
  outputs = ops.flatten(layer(inputs, **options))
  return [y for y in outputs if ops.is_tensor(y) and _checks.is_floating(y)]


def _valid(y: Any, mask: Any) -> Any:
  """`y`, with 0 where it is masked."""
  if mask is None:
    return y
  mask = xp.reshape(
    mask, [*mask.shape, *[1] * (len(y.shape) - len(mask.shape))]
  )
  return xp.where(mask, y, xp.zeros([], y.dtype))


def _weighted_sum(y: Any) -> Any:
  wide = xp.float64 if y.dtype == xp.float64 else xp.float32
  # Not those of `made_up`: along x itself a norm has no derivative.
  factors = np.random.default_rng(1).normal(size=tuple(y.shape))
  return xp.sum(xp.astype(y, wide) * xp.asarray(factors, wide))


def _as_array(x: Any) -> np.ndarray:
  x = np.asarray(ops.convert(x))
  return x.astype('float32') if x.itemsize < 4 else x


def differences(a: Results, b: Results) -> tuple[float, float]:
  """The largest of outputs, and of gradients, relative to what they are of.

  Each counts by the largest of its own values, but for gradients that are much
  smaller than the others: see `_ZERO` and `_FLOOR`.
  """
  of_outputs, of_gradients = [0.0], [0.0]
  for y, other in zip(a.outputs, b.outputs, strict=True):
    of_outputs.append(_relative(y, other, 0.0))
  sizes = [_size(g) for g in a.gradients]
  median = float(np.median([s for s in sizes if s > 0] or [0.0]))
  for g, other in zip(a.gradients, b.gradients, strict=True):
    if not max(_size(g), _size(other)) <= _ZERO * median:
      of_gradients.append(_relative(g, other, _FLOOR * median))
  return max(of_outputs), max(of_gradients)


def _size(x: np.ndarray) -> float:
  return float(np.max(np.abs(x), initial=0.0))


def _relative(a: np.ndarray, b: np.ndarray, floor: float) -> float:
  same = (a == b) | (np.isnan(a) & np.isnan(b))
  distance = np.zeros_like(a)
  np.subtract(a, b, where=~same, out=distance)
  distance = np.max(np.abs(distance), initial=0)
  if np.isnan(distance):
    return float('inf')
  size = np.max(np.abs(a), where=np.isfinite(a), initial=floor)
  return float(distance / (size or 1.0))
