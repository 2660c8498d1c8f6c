"""Set before TensorFlow is imported; shared helpers are in `cases`."""

import gc
import os
import pathlib
import sys

import pytest

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
# Whatever the environment says: that another backend is refused has its test.
os.environ['KERAS_BACKEND'] = 'tensorflow'
# Where Python finds what a program there imports.
sys.path.append(str(pathlib.Path(__file__).parent.parent / 'examples'))


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
