"""The main job runs from end to end: trains, saves, loads, draws."""

import re

import digits
import pytest

import programs


def test_one_epoch(tmp_path):
  result = programs.run(
    'digits',
    '--norm=group',
    '--epochs=1',
    '--batch_size=16',
    f'--output={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  row = re.search(r'^GroupNorm +([\d.]+)', result.stdout, re.MULTILINE)
  assert float(row[1]) < 40  # Guessing is wrong 90 times in 100.
  assert (tmp_path / 'group.keras').is_file()
  assert (tmp_path / 'group' / 'saved_model.pb').is_file()
  assert programs.is_small_picture(tmp_path / 'digits.png')


@pytest.mark.parametrize(
  'flag', ['--norm=nothing', '--batch_size=0', '--epochs=0', '--groups=5']
)
def test_bad_flags(flag):
  programs.check_refused(digits, flag)


def test_a_bad_flag_ends_the_program():
  programs.check_bad_flag('digits', '--groups=5')
