"""The figure of VGG-16's features is drawn from what trainings did."""

import re

import pytest

import programs


def test_two_norms(tmp_path):
  result = programs.run(
    'vgg_distributions',
    '--norms=none',
    '--norms=group',
    '--epochs=2',
    f'--output={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  rows = {
    norm: [float(value) for value in values.split()]
    for norm, values in re.findall(
      r'^(no normalization|GroupNorm) +([-\d. ]+)$', result.stdout, re.MULTILINE
    )
  }
  assert set(rows) == {'no normalization', 'GroupNorm'}
  for _, *percentiles in rows.values():
    assert percentiles == sorted(percentiles) and len(set(percentiles)) == 4
  # Guessing is wrong 90 times in 100. Two epochs are enough with a norm.
  assert rows['GroupNorm'][0] < 60
  assert programs.is_small_picture(tmp_path / 'vgg_distributions.png')


@pytest.mark.parametrize('flag', ['--norms=nothing', '--epochs=0'])
def test_bad_flags(flag):
  programs.check_bad_flag('vgg_distributions', flag)
