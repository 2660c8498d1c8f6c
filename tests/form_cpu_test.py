"""The form for XLA's compiler for CPUs as TensorFlow has it."""

import forms
import frameworks


@frameworks.on_tensorflow
class TestCPU(forms.ExactFormTest):
  platform = 'CPU'
