"""The form that runs op by op."""

import forms


class TestPlain(forms.ExactFormTest):
  platform = None
  jit_compile = False
