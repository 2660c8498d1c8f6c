"""Runs the programs in `examples/` as their make targets do."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parent.parent


def hear_interrupts():
  """What a shell starts in the background inherits that SIGINT is ignored."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(name, *flags):
  """Starts `examples/<name>.py`."""
  path = os.pathsep.join([str(ROOT), *sys.path])
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'examples' / f'{name}.py'), *flags],
    env={**os.environ, 'PYTHONPATH': path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=hear_interrupts,
  )


def finish(process):
  """Waits for its end: with `returncode`, `stdout` and `stderr`."""
  out, err = process.communicate()
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(name, *flags):
  """Runs `examples/<name>.py` to its end."""
  return finish(start(name, *flags))


@contextlib.contextmanager
def flags_of(module):
  """Meanwhile this program's flags exist; gives what parses a command line."""
  with flagsaver.flagsaver():
    module.define_flags()
    yield lambda *given: flags.FLAGS([module.__name__, *given])


def check_refused(module, *given):
  """The last of these flags is refused, with a message that names it."""
  with flags_of(module) as parse, pytest.raises(flags.Error) as error:
    parse(*given)
  assert flag_name(given[-1]) in str(error.value)


def check_bad_flag(name, *given):
  """The last of these flags ends the program with a message that names it.

  It starts slowly: whatever else it refuses is for `check_refused`.
  """
  result = run(name, *given)
  assert result.returncode != 0
  assert flag_name(given[-1]) in result.stderr
  assert 'Traceback' not in result.stderr


def flag_name(given):
  return given.split('=')[0].lstrip('-')


def is_small_picture(path):
  """A PNG that may be committed, and has something on it."""
  picture = path.read_bytes()
  return picture.startswith(b'\x89PNG') and 2**13 < len(picture) < 150 * 2**10
