"""The form for XLA's compiler for CPUs."""

import forms


class TestCPU(forms.ExactFormTest):
  platform = 'CPU'
