"""What `functional` and the layers ask of a framework besides the kernel.

One file for each, with the same names; `kernel/framework.py` says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfgroupnorm.kernel import framework

if TYPE_CHECKING or framework.NAME == 'tensorflow':
  from tfgroupnorm._tensors.tensorflow import (
    RAGGED,
    SPARSE,
    Shape,
    Tensor,
    as_dtype,
    as_input,
    as_mask,
    as_shape,
    as_tensor,
    cast,
    convert,
    flatten,
    gradients,
    is_tensor,
    map_flat_values,
    map_structure,
    not_converted,
    of_shape,
    packed,
    repeated,
    shape_of,
    split_activation,
    squeeze,
    value_of,
    where_valid,
    widened,
    without_gradient,
  )
else:
  from tfgroupnorm._tensors.jax import (
    RAGGED,
    SPARSE,
    Shape,
    Tensor,
    as_dtype,
    as_input,
    as_mask,
    as_shape,
    as_tensor,
    cast,
    convert,
    flatten,
    gradients,
    is_tensor,
    map_flat_values,
    map_structure,
    not_converted,
    of_shape,
    packed,
    repeated,
    shape_of,
    split_activation,
    squeeze,
    value_of,
    where_valid,
    widened,
    without_gradient,
  )

__all__ = [
  'RAGGED',
  'SPARSE',
  'Shape',
  'Tensor',
  'as_dtype',
  'as_input',
  'as_mask',
  'as_shape',
  'as_tensor',
  'cast',
  'convert',
  'flatten',
  'gradients',
  'is_tensor',
  'map_flat_values',
  'map_structure',
  'not_converted',
  'of_shape',
  'packed',
  'repeated',
  'shape_of',
  'split_activation',
  'squeeze',
  'value_of',
  'where_valid',
  'widened',
  'without_gradient',
]
