"""The figure of VGG-16's features is drawn from what trainings did."""

import re

import pytest
import vgg_distributions

import programs
import tfgroupnorm


def test_two_norms(tmp_path):
  result = programs.run(
    'vgg_distributions',
    '--norms=none,group,none',
    '--epochs=2',
    f'--output={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  found = re.findall(
    r'^(no normalization|Group Norm \(GN\)) +([-\d. ]+)$',
    result.stdout,
    re.MULTILINE,
  )
  # In this order, and each once.
  assert [norm for norm, _ in found] == ['no normalization', 'Group Norm (GN)']
  rows = {
    norm: [float(value) for value in values.split()] for norm, values in found
  }
  for _, *percentiles in rows.values():
    assert percentiles == sorted(percentiles) and len(set(percentiles)) == 4
  # Guessing is wrong 90 times in 100. Two epochs are enough with a norm.
  assert rows['Group Norm (GN)'][0] < 60
  assert programs.is_small_picture(tmp_path / 'vgg_distributions.png')


def test_layer_norm_is_that_of_the_paper():
  model = vgg_distributions.make_model('layer')
  norms = [
    layer for layer in model.layers if isinstance(layer, tfgroupnorm.GroupNorm)
  ]
  assert [norm.groups for norm in norms] == [1] * 13


@pytest.mark.parametrize('flag', ['--norms=none,nothing', '--epochs=0'])
def test_bad_flags(flag):
  programs.check_refused(vgg_distributions, flag)


def test_a_bad_flag_ends_the_program():
  programs.check_bad_flag('vgg_distributions', '--norms=none,nothing')
