"""The notebooks run from end to end, each in a kernel of its own."""

import os
import pathlib
import sys

import nbclient
import nbformat
import pytest

import frameworks

ROOT = pathlib.Path(__file__).parent.parent
ALL = sorted((ROOT / 'colab').glob('*.ipynb'))
# The one for TPUs trains on JAX, the others on TensorFlow.
NOTEBOOKS = [
  path for path in ALL if (path.stem == 'tpu') == (frameworks.NAME == 'jax')
]
# How long a notebook trains for its reader, and what shows the same.
SHORTER = {'small_batch': ('epochs=10', 'epochs=4')}

notebooks = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS]
)


def test_there_are_notebooks():
  wanted = {'quickstart', 'serving', 'small_batch', 'tpu'}
  assert {path.stem for path in ALL} >= wanted


@notebooks
def test_runs(path, tmp_path, monkeypatch):
  """Its cells check what they show; a failed check fails the run."""
  notebook = nbformat.read(path, as_version=4)
  if path.stem in SHORTER:
    long, short = SHORTER[path.stem]
    (cell,) = (cell for cell in notebook.cells if long in cell.source)
    cell.source = cell.source.replace(long, short)
  places = [str(ROOT), str(ROOT / 'examples'), *sys.path]
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(places))
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  monkeypatch.delenv('XLA_FLAGS', raising=False)  # One device, as a CPU has.
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  client.execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]
  assert any('image/png' in output.get('data', {}) for output in outputs)


@notebooks
def test_is_stripped(path):
  """Outputs would make every run a change."""
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == 'code':
      assert cell.outputs == [] and cell.execution_count is None


@notebooks
def test_opens_in_colab(path):
  first = nbformat.read(path, as_version=4).cells[0].source
  assert f'/blob/main/colab/{path.name})' in first
  readme = (ROOT / 'README.md').read_text()
  assert f'/blob/main/colab/{path.name})' in readme
