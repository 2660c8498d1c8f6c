"""The form for XLA's compiler for TPUs; `form_lanes_test` has heads."""

import forms


class TestTPU(forms.ExactFormTest):
  platform = 'TPU'
  names = [name for name in forms.BY_NAME if 'flat' not in name]
  masked = [name for name in forms.MASKED if 'flat' not in name]
  narrow = ['head_time_first', 'layer_last', 'instance_image', 'group_image']
