"""How a framework reads features of a model that trains, and records them.

One file for each, with the same names; `kernel/framework.py` says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfgroupnorm.kernel import framework

if TYPE_CHECKING or framework.NAME == 'tensorflow':
  from tfgroupnorm._reading.tensorflow import (
    DATASET,
    Writers,
    check_outside,
    runner,
    sample,
    wait,
  )
else:
  from tfgroupnorm._reading.jax import (
    DATASET,
    Writers,
    check_outside,
    runner,
    sample,
    wait,
  )

__all__ = ['DATASET', 'Writers', 'check_outside', 'runner', 'sample', 'wait']
