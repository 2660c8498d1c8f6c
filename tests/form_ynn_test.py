"""The form for XLA's compiler for CPUs as JAX has it."""

import forms
import frameworks


@frameworks.on_jax
class TestYNN(forms.ExactFormTest):
  platform = 'YNN'
