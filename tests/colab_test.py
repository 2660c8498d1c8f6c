"""The notebooks run from end to end, wherever they are started.

`python tests/colab_test.py [NAME ...]` runs them and keeps their pictures, for
readers on GitHub or in Colab to see before they run anything.
"""

import ast
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest

import frameworks

ROOT = pathlib.Path(__file__).parent.parent
GITHUB = 'https://github.com/tfgroupnorm/tfgroupnorm'
ALL = sorted((ROOT / 'colab').glob('*.ipynb'))
# The one for TPUs trains on JAX, the others on TensorFlow.
NOTEBOOKS = [
  path for path in ALL if (path.stem == 'tpu') == (frameworks.NAME == 'jax')
]
RESULT = 'execute_result'
# Tests train for fewer epochs than a reader does: what is replaced, by what.
SHORTER = {'small_batch': ('epochs=6', 'epochs=4')}

notebooks = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS]
)


def run(notebook, folder, kernel='python3'):
  """In a process of its own, which starts in that folder."""
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name=kernel,
    resources={'metadata': {'path': str(folder)}},
  )
  client.execute()


def outputs(notebook):
  """All that its cells show."""
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  return [output for cell in cells for output in cell.outputs]


def is_picture(output):
  return 'image/png' in output.get('data', {})


# --- Where a reader may be ----------------------------------------------------


def _git(folder, *arguments):
  who = ('-c', 'user.name=test', '-c', 'user.email=test@example.com')
  # Without the settings of whoever runs this, such as one to sign.
  none = {'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_NOSYSTEM': '1'}
  subprocess.run(
    ['git', *who, *arguments],
    cwd=folder,
    env={**os.environ, **none},
    check=True,
  )


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  """The repository, with this tree as its only commit."""
  folder = tmp_path_factory.mktemp('home') / 'tfgroupnorm'
  folder.mkdir()
  ignored = shutil.ignore_patterns('__pycache__', 'BUILD')
  for name in ('tfgroupnorm', 'examples', 'colab'):
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, folder)
  _git(folder, 'init', '-q')
  _git(folder, 'add', '-A')
  _git(folder, 'commit', '-q', '-m', 'All')
  return folder


def _pip_install(target, *what):
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
  into = f'--target={target}'
  subprocess.run([*pip, 'install', '-q', '--no-deps', into, *what], check=True)


@pytest.fixture(scope='module')
def builders(tmp_path_factory):
  """Where there is what pip builds wheels with: it looks nowhere else."""
  if all(map(importlib.util.find_spec, ('setuptools', 'wheel'))):
    return []
  target = tmp_path_factory.mktemp('builders')
  _pip_install(target, 'setuptools>=70.1')
  return [str(target)]


@pytest.fixture(scope='module')
def wheel(clone, builders, tmp_path_factory):
  """A folder into which a wheel of this tree is installed, and nothing else."""
  target = tmp_path_factory.mktemp('installed')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', os.pathsep.join(builders))
    _pip_install(target, '--no-build-isolation', str(clone))
  return target


@pytest.fixture
def elsewhere(clone, builders, tmp_path, monkeypatch):
  """A kernel that has what is installed here, but for this package.

  For it GitHub has `clone`, and pip installs into the folder that is returned.
  """
  target = tmp_path / 'target'
  target.mkdir()
  # Without `site` nobody reads what makes this tree an installed package.
  argv = [sys.executable, '-S', '-m', 'ipykernel_launcher']
  spec = {'argv': [*argv, '-f', '{connection_file}'], 'display_name': 'apart'}
  kernel = tmp_path / 'jupyter' / 'kernels' / 'apart' / 'kernel.json'
  kernel.parent.mkdir(parents=True)
  kernel.write_text(json.dumps({**spec, 'language': 'python'}))
  config = tmp_path / 'gitconfig'
  config.write_text(f'[url "{clone.as_uri()}"]\n  insteadOf = {GITHUB}\n')
  packages = [p for p in sys.path if p.endswith('-packages')]
  environment = {
    'CUDA_VISIBLE_DEVICES': '-1',
    'GIT_CONFIG_GLOBAL': config,
    'JUPYTER_PATH': tmp_path / 'jupyter',
    'PIP_DISABLE_PIP_VERSION_CHECK': '1',
    'PIP_NO_BUILD_ISOLATION': '0',  # As pip understands it: none.
    'PIP_NO_DEPS': '1',
    'PIP_TARGET': target,
    'PYTHONPATH': os.pathsep.join([str(target), *builders, *packages]),
  }
  for name, value in environment.items():
    monkeypatch.setenv(name, str(value))
  monkeypatch.delenv('XLA_FLAGS', raising=False)  # One device, as a CPU has.
  return target


@pytest.fixture
def installed(elsewhere, wheel):
  """As if pip had been here before."""
  shutil.copytree(wheel, elsewhere, dirs_exist_ok=True)
  return elsewhere


# --- The tests ----------------------------------------------------------------


def test_there_are_notebooks():
  wanted = {'quickstart', 'serving', 'small_batch', 'tpu'}
  assert {path.stem for path in ALL} >= wanted


@notebooks
def test_runs_where_a_wheel_is_installed(path, installed, tmp_path):
  """All of it. Its cells check what they show; a failed check fails the run."""
  notebook = nbformat.read(path, as_version=4)
  if path.stem in SHORTER:
    long, short = SHORTER[path.stem]
    (cell,) = (cell for cell in notebook.cells if long in cell.source)
    cell.source = cell.source.replace(long, short)
  run(notebook, tmp_path, 'apart')
  assert any(map(is_picture, outputs(notebook)))


def places_after_setup(path, folder):
  """Where Python finds the package and the examples, if the notebook does."""
  notebook = nbformat.read(path, as_version=4)
  setup = next(c for c in notebook.cells if c.cell_type == 'code')
  names = ['tfgroupnorm']
  if path.stem == 'small_batch':
    names += ['small_batch', 'experiment']
  asking = (
    'import importlib.util\n'
    f'[importlib.util.find_spec(name).origin for name in {names}]'
  )
  notebook.cells = [setup, nbformat.v4.new_code_cell(asking)]
  run(notebook, folder, 'apart')
  # Whatever else is said: what the cell itself returns.
  (output,) = (o for o in outputs(notebook) if o.output_type == RESULT)
  return list(map(pathlib.Path, ast.literal_eval(output.data['text/plain'])))


@notebooks
@pytest.mark.parametrize('folder', ['.', 'colab', '..'])
def test_finds_the_clone(path, folder, clone, installed):
  """From its root, from `colab` and beside it, whatever is installed."""
  package, *examples = places_after_setup(path, clone / folder)
  assert package.parent == clone / 'tfgroupnorm'
  assert all(place.parent == clone / 'examples' for place in examples)
  assert not (clone / 'tfgroupnorm' / 'examples').exists()


@notebooks
def test_installs_itself_where_nothing_is(path, elsewhere, tmp_path):
  """As in Colab."""
  package, *examples = places_after_setup(path, tmp_path)
  assert package.parent == elsewhere / 'tfgroupnorm'
  assert all(place.is_relative_to(tmp_path) for place in examples)


@frameworks.on_tensorflow
def test_examples_are_those_of_the_installed_version(
  clone, installed, tmp_path, tmp_path_factory
):
  from tfgroupnorm import __version__

  newer = tmp_path_factory.mktemp('newer') / 'tfgroupnorm'
  shutil.copytree(clone, newer)
  _git(newer, 'tag', f'v{__version__}')
  (newer / 'examples' / 'small_batch.py').unlink()
  _git(newer, 'commit', '-q', '-a', '-m', 'Without the example')
  config = tmp_path / 'gitconfig'
  config.write_text(f'[url "{newer.as_uri()}"]\n  insteadOf = {GITHUB}\n')
  path = ROOT / 'colab' / 'small_batch.ipynb'
  package, *examples = places_after_setup(path, tmp_path)
  assert package.parent == installed / 'tfgroupnorm'
  assert [place.name for place in examples] == [
    'small_batch.py',
    'experiment.py',
  ]


@notebooks
def test_can_be_taken_in(path):
  """At most ten cells; what comes first says what there will be to see."""
  first, *others = nbformat.read(path, as_version=4).cells
  assert len(others) < 10
  assert first.cell_type == 'markdown' and 'You will see' in first.source


@notebooks
def test_keeps_its_pictures_and_nothing_else(path):
  """Other outputs would make every run a change."""
  assert path.stat().st_size < 300_000
  notebook = nbformat.read(path, as_version=4)
  shown = outputs(notebook)
  assert shown and all(map(is_picture, shown)), (
    f'Run `python tests/colab_test.py {path.stem}`.'
  )
  assert all(output.output_type == 'display_data' for output in shown)
  for cell in notebook.cells:
    assert cell.get('execution_count') is None
    shows = 'plt.show()' in cell.source or 'Image(' in cell.source
    assert shows == bool(cell.get('outputs'))


@notebooks
def test_opens_in_colab(path):
  first = nbformat.read(path, as_version=4).cells[0].source
  assert f'/blob/main/colab/{path.name})' in first
  readme = (ROOT / 'README.md').read_text()
  assert f'/blob/main/colab/{path.name})' in readme


def keep_pictures(path):
  """Runs a notebook and writes it again, with its pictures and nothing else."""
  kept, ran = (nbformat.read(path, as_version=4) for _ in range(2))
  run(ran, path.parent)
  for cell, after in zip(kept.cells, ran.cells, strict=True):
    if cell.cell_type == 'code':
      cell.outputs = [
        nbformat.v4.new_output('display_data', data=output.data)
        for output in after.outputs
        if is_picture(output)
      ]
  nbformat.write(kept, path)


if __name__ == '__main__':
  names = [each.stem for each in NOTEBOOKS]
  if not set(sys.argv[1:]) <= set(names):
    sys.exit(
      f'On {frameworks.NAME} there are {names}. Received: {sys.argv[1:]}.'
    )
  for each in NOTEBOOKS:
    if each.stem in sys.argv[1:] or not sys.argv[1:]:
      keep_pictures(each)
