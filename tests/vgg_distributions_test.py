"""The figure of VGG-16's features is drawn from what trainings did."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(*flags):
  """Runs `examples/vgg_distributions.py` as `make vgg-distributions` does."""
  path = os.pathsep.join([str(ROOT), *sys.path])
  return subprocess.run(
    [sys.executable, str(ROOT / 'examples' / 'vgg_distributions.py'), *flags],
    env={**os.environ, 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    check=False,
  )


def test_two_norms(tmp_path):
  result = run(
    '--norms=none', '--norms=group', '--epochs=2', f'--output={tmp_path}'
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
  picture = (tmp_path / 'vgg_distributions.png').read_bytes()
  assert picture.startswith(b'\x89PNG') and 2**13 < len(picture) < 150 * 2**10


@pytest.mark.parametrize('flag', ['--norms=nothing', '--epochs=0'])
def test_bad_flags(flag):
  result = run(flag)
  assert result.returncode != 0
  assert flag.split('=')[0].lstrip('-') in result.stderr
  assert 'Traceback' not in result.stderr
