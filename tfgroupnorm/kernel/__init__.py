"""The one kernel: normalization of a tensor, and its gradient.

One way through, a room each:

  normalize
    -> dispatch.py              op by op or compiled, and for which platform
                                (and gamma, beta as its form wants them)
    -> gradient.py              a gradient of any order attached
    -> passes.py                forward and backward: lay out, compute, leave
    -> forms/                   a platform's layout, order and sums, chosen once
    -> operands.py, layout.py   tensors and sizes laid out; groups; masks
    -> formula.py               THE MATHS: start to read here
         orders.py, near.py     orders of computation that keep all digits; the
                                k near the mean that they subtract
         line.py                d * scale + offset, which costs no pass over x
         activations.py         functions that run inside, and derivatives
    -> framework.py             which framework is beneath, and `xp`: its array
                                operations under NumPy's names

`spec.py` says what is asked for, `surroundings.py` what is said around a call.
`dispatch.py`, `gradient.py` and the operations of `xp` are a framework's own,
in `tensorflow/` or `jax/`, and no framework is called but there. No platform is
named but in `forms/` and where it is found out, in `dispatch.py`. There is no
Keras here, but that `framework.py` asks it what is beneath.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfgroupnorm.kernel import framework
from tfgroupnorm.kernel.operands import compute_dtype
from tfgroupnorm.kernel.spec import Spec
from tfgroupnorm.kernel.surroundings import op_by_op, quantizable

if TYPE_CHECKING or framework.NAME == 'tensorflow':
  from tfgroupnorm.kernel.tensorflow import dispatch
else:
  from tfgroupnorm.kernel.jax import dispatch

__all__ = [
  'Spec',
  'compute_dtype',
  'moments',
  'normalize',
  'op_by_op',
  'quantizable',
]

moments = dispatch.moments


def normalize(
  x: Any,
  gamma: Any = None,
  beta: Any = None,
  *,
  spec: Spec,
  gate: Any = None,
  mask: Any = None,
  jit_compile: bool | str = 'auto',
) -> Any:
  """Normalizes `x` as `spec` says, with a gradient of any order.

  Between forward and backward it keeps its arguments and the statistics of each
  group, no other tensor of the size of `x`; a small eager call of TensorFlow's
  that is compiled keeps copies.

  Args:
    x: A floating tensor of known rank.
    gamma: Scale, spanning `spec.gamma_axes`, or `None`.
    beta: Offset, spanning `spec.beta_axes`, or `None`.
    spec: What to do. Nothing is validated here; `functional` does that.
    gate: Shaped as `x`, or `None`.
    mask: bool, spanning `spec.mask_axes`, or `None`. Where it is False, `x` is
      not in the statistics, the result is 0 and so is the gradient.
    jit_compile: `True`: compiled by XLA; `False`: plain; `'auto'`: compiled
      where that works, no size but the batch's is unknown, and, in a graph for
      a CPU, `x` does not have one of the few sizes that gain nothing; eagerly,
      and in a graph that does not know the batch, when a shape has come often
      enough. A function that is being saved stays plain, and so does one that
      is compiled as a whole.

  Returns:
    A tensor of the shape of `x`, and of its dtype unless `spec.wide`.
  """
  return dispatch.run(spec, x, gamma, beta, gate, mask, jit_compile)
