"""The textbook's order of computation, `formula.Order`, which others override.

It keeps fewer digits at large means, and serves only programs that quantize:
it is here to show that the formula is right as it stands, and what a new
platform has to bring.
"""

import pytest

import forms
import frameworks
from tfgroupnorm.kernel import forms as kernel_forms
from tfgroupnorm.kernel import formula
from tfgroupnorm.kernel.forms.sums import Sums


@frameworks.on_tensorflow
class TestTextbook(forms.FormTest):
  platform = 'textbook'

  @pytest.fixture(autouse=True)
  def a_platform(self, monkeypatch):
    order = formula.Order(Sums())
    platform = kernel_forms.Platform(
      about_zero=formula.AboutZero(Sums()), rows=order, others=order
    )
    monkeypatch.setitem(kernel_forms._FORMS, self.platform, platform)
