"""TensorFlow beneath the kernel: its arrays, its gradients, its compilation.

- `array.py`: array operations under NumPy's names.
- `gradient.py`: the hand-written gradient, of any order.
- `dispatch.py`: op by op or compiled, and for which platform.
"""
