"""The main job runs from end to end: trains, saves, loads, draws."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(*flags):
  """Runs `examples/digits.py` as `make demo` does."""
  path = os.pathsep.join([str(ROOT), *sys.path])
  return subprocess.run(
    [sys.executable, str(ROOT / 'examples' / 'digits.py'), *flags],
    env={**os.environ, 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    check=False,
  )


def test_one_epoch(tmp_path):
  result = run('--norm=group', '--epochs=1', f'--output={tmp_path}')
  assert result.returncode == 0, result.stderr
  row = re.search(r'^GroupNorm +([\d.]+)', result.stdout, re.MULTILINE)
  assert float(row[1]) < 40  # Guessing is wrong 90 times in 100.
  assert (tmp_path / 'group.keras').is_file()
  assert (tmp_path / 'group' / 'saved_model.pb').is_file()
  picture = (tmp_path / 'digits.png').read_bytes()
  assert picture.startswith(b'\x89PNG') and 2**13 < len(picture) < 150 * 2**10


@pytest.mark.parametrize(
  'flag', ['--norm=nothing', '--batch_size=0', '--epochs=0', '--groups=5']
)
def test_bad_flags(flag):
  result = run(flag)
  assert result.returncode != 0
  assert flag.split('=')[0].lstrip('-') in result.stderr
  assert 'Traceback' not in result.stderr
