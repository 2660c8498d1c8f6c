"""The framework beneath the maths: `xp`, its array operations.

Formula, layout and forms call no framework but through `xp`, an adapter with
NumPy's names; a second framework is a second adapter, chosen here.
"""

from tfgroupnorm.kernel.tensorflow import array as xp

__all__ = ['xp']
