"""Set before a framework is imported; shared helpers are in `cases`.

`pytest --framework=jax` runs on JAX what is meant for both frameworks, and what
is about JAX. A file that imports TensorFlow, or JAX, is about that one alone;
the others use `frameworks`, and mark what only one of them has.
"""

import gc
import os
import pathlib
import re
import sys

import pytest

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# So that float64 can be tested; `jax_keras_test` is without, as a user is.
os.environ.setdefault('JAX_ENABLE_X64', '1')
# Where Python finds programs, and what they import.
for _folder in ('examples', 'benchmarks'):
  sys.path.append(str(pathlib.Path(__file__).parent.parent / _folder))

# What a file imports that is about one framework.
_OF_ONE = {
  # `programs` are the examples, which are written for TensorFlow.
  'tensorflow': re.compile(
    r'^(import|from) (tensorflow|tf_keras|programs)', re.M
  ),
  'jax': re.compile(r'^(import|from) jax', re.M),
}


def pytest_addoption(parser):
  parser.addoption(
    '--framework',
    choices=list(_OF_ONE),
    default='tensorflow',
    help='on which framework to run the tests',
  )


def pytest_configure(config):
  # Whatever the environment says: that another backend is refused has its test.
  os.environ['KERAS_BACKEND'] = config.getoption('--framework')
  if config.getoption('--framework') == 'jax':  # To which one CPU is 8 devices.
    # One step after the other: the threads of two may wait for each other.
    os.environ['JAX_CPU_ENABLE_ASYNC_DISPATCH'] = '0'
    eight = '--xla_force_host_platform_device_count=8'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {eight}'
  for name in _OF_ONE:
    config.addinivalue_line('markers', f'on_{name}: only on that framework')


def _others(config):
  return [name for name in _OF_ONE if name != config.getoption('--framework')]


def pytest_ignore_collect(collection_path, config):
  """Files about another framework, which may not be installed."""
  if collection_path.suffix != '.py':
    return None
  text = collection_path.read_text()
  return any(_OF_ONE[name].search(text) for name in _others(config)) or None


def pytest_collection_modifyitems(config, items):
  marks = [f'on_{name}' for name in _others(config)]
  out = [item for item in items if any(map(item.get_closest_marker, marks))]
  items[:] = [item for item in items if item not in out]
  if out:
    config.hook.pytest_deselected(items=out)


def pytest_collection_finish():
  """What is imported stays: whoever looks for garbage may leave it out."""
  gc.freeze()


@pytest.fixture(autouse=True)
def compile_at_once(monkeypatch):
  """Lest "auto" leave to op by op what a test wants to see compiled."""
  dispatch = sys.modules.get('tfgroupnorm.kernel.tensorflow.dispatch')
  if dispatch is not None:
    monkeypatch.setattr(dispatch, '_COMPILATION', 1)
    monkeypatch.setattr(dispatch, '_compiled_shapes', {})


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """What JAX compiled for the tests of one file, no other will run."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
