"""The framework beneath the maths: `xp`, its array operations.

Formula, layout and forms call no framework but through `xp`, an adapter with
NumPy's names. Which framework that is, Keras 3 says, and this is where it is
asked: `KERAS_BACKEND` or keras.json, TensorFlow if neither does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

# 'jax' or 'tensorflow'; the layers refuse the others that Keras may have.
NAME = 'jax' if keras.backend.backend() == 'jax' else 'tensorflow'

if TYPE_CHECKING or NAME == 'tensorflow':
  from tfgroupnorm.kernel.tensorflow import array as xp
else:
  from tfgroupnorm.kernel.jax import array as xp

__all__ = ['NAME', 'xp']
