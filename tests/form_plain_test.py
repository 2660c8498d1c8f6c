"""The form that runs op by op; on JAX it is compiled for these tests."""

import forms
import frameworks


class TestPlain(forms.ExactFormTest):
  platform = None
  jit_compile = frameworks.NAME == 'jax'
