"""The form for programs that quantize, before they do.

What they make of it `consumers_check.py` sees. It keeps no more digits than the
textbook's order does.
"""

import forms
import frameworks


@frameworks.on_tensorflow  # Only SavedModels have it.
class TestQuantizable(forms.FormTest):
  platform = 'quantizable'
  jit_compile = False
