"""How a framework reads features of a model that trains, and records them.

`reading`: one file for each, with the same names;
`kernel/framework.py` says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfgroupnorm.kernel import framework

if TYPE_CHECKING or framework.NAME == 'tensorflow':
  from tfgroupnorm._reading import tensorflow as reading
else:
  from tfgroupnorm._reading import jax as reading

__all__ = ['reading']
