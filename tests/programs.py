"""Runs the programs in `examples/` as their make targets do."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def start(name, *flags):
  """Starts `examples/<name>.py`."""
  path = os.pathsep.join([str(ROOT), *sys.path])
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'examples' / f'{name}.py'), *flags],
    env={**os.environ, 'PYTHONPATH': path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """Waits for its end: with `returncode`, `stdout` and `stderr`."""
  out, err = process.communicate()
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(name, *flags):
  """Runs `examples/<name>.py` to its end."""
  return finish(start(name, *flags))


def check_bad_flag(name, *given):
  """The last of these flags ends the program with a message that names it."""
  result = run(name, *given)
  assert result.returncode != 0
  assert given[-1].split('=')[0].lstrip('-') in result.stderr
  assert 'Traceback' not in result.stderr


def is_small_picture(path):
  """A PNG that may be committed, and has something on it."""
  picture = path.read_bytes()
  return picture.startswith(b'\x89PNG') and 2**13 < len(picture) < 150 * 2**10
