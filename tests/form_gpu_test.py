"""The form for XLA's compiler for GPUs."""

import forms


class TestGPU(forms.ExactFormTest):
  platform = 'GPU'
