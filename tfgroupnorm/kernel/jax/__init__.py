"""JAX beneath the kernel: its arrays, and its transformations.

- `array.py`: array operations under NumPy's names.
- `linear.py`: derivatives as an operation that JAX can transform.
- `varying.py`: what differs from one device to the next.
- `gradient.py`: the hand-written gradient, in every transformation.
- `dispatch.py`: op by op or compiled, and for which platform.
"""
