"""What `functional` and the layers ask of a framework besides the kernel.

`ops`: one file for each, with the same names; `kernel/framework.py` says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfgroupnorm.kernel import framework

if TYPE_CHECKING or framework.NAME == 'tensorflow':
  from tfgroupnorm._tensors import tensorflow as ops
else:
  from tfgroupnorm._tensors import jax as ops

__all__ = ['ops']
