"""The demo trains, shows where BatchNorm fails, saves, loads and draws."""

import re

import digits
import numpy as np
import pytest

import programs


def test_where_batch_norm_fails(tmp_path):
  result = programs.run(
    'digits', '--seeds=1', '--epochs=2', f'--output={tmp_path}'
  )
  assert result.returncode == 0, result.stderr
  rows = re.findall(
    r'^\| (.+?) +\| (32|2) +\| ([\d.]+) .*?\| ([\d.]+) ',
    result.stdout,
    re.MULTILINE,
  )
  errors = {
    (norm, place, size): float(error)
    for place, size, *both in rows
    for norm, error in zip(digits.NORMS, both, strict=True)
  }
  assert len(errors) == 8
  failing = errors.pop(('batch', digits.PLACES[True], '2'))
  assert failing > 2 * max(errors.values())
  assert max(errors.values()) < 10  # Guessing is wrong 90 times in 100.
  assert 'they predict the same' in result.stdout
  for norm in digits.NORMS:
    assert (tmp_path / f'{norm}.keras').is_file()
    assert (tmp_path / norm / 'saved_model.pb').is_file()
  assert programs.is_small_picture(tmp_path / 'digits.png')


def test_what_batch_norm_makes_of_two_values():
  """The reason that the demo gives."""
  x = np.random.default_rng(0).normal(3, 20, (2, 64)).astype('float32')
  norm = digits.norm_factory('batch', 2)()
  y = norm(x, training=True).numpy()
  wanted = np.where(x > x[::-1], 1, -1)
  np.testing.assert_allclose(y, wanted, atol=0.01)


@pytest.mark.parametrize('flag', ['--seeds=0', '--epochs=0'])
def test_bad_flags(flag):
  programs.check_refused(digits, flag)


def test_a_bad_flag_ends_the_program():
  programs.check_bad_flag('digits', '--epochs=0')
