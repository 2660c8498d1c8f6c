"""The rooms of the house keep apart what the map in CONTRIBUTING.md says."""

import ast
import pathlib

import pytest

from tfgroupnorm.kernel import forms

ROOT = pathlib.Path(__file__).parent.parent / 'tfgroupnorm'
KERNEL = ROOT / 'kernel'
PAGE = ROOT.parent / 'CONTRIBUTING.md'
SOURCES = sorted(ROOT.rglob('*.py'))
# Of the kernel, what knows no framework.
MATHS = [
  path
  for path in sorted(KERNEL.rglob('*.py'))
  if path.parent.name not in ('tensorflow', 'jax')
  and path.name != 'framework.py'
]

each = pytest.mark.parametrize(
  'path', SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
each_of_the_maths = pytest.mark.parametrize(
  'path', MATHS, ids=lambda path: str(path.relative_to(KERNEL))
)


def imported(path) -> set[str]:
  """Names of modules that a file imports, wherever in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def test_all_is_there():
  assert len(SOURCES) > 20
  assert {'formula.py', 'layout.py', 'orders.py'} <= {p.name for p in MATHS}


@each_of_the_maths
def test_the_maths_knows_no_framework(path):
  """So that a second framework is a second adapter."""
  for name in imported(path):
    if path == KERNEL / '__init__.py' and name.startswith('tfgroupnorm.kernel'):
      continue
    parts = name.split('.')
    assert not {'tensorflow', 'keras', 'tf_keras', 'jax'} & set(parts), name


@each_of_the_maths
def test_no_platform_is_asked_for_outside_forms(path):
  if path.parent.name == 'forms':
    return
  found = [
    node.lineno
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant)
    and node.value in forms.PLATFORMS
    or isinstance(node, ast.Attribute)
    and node.attr == 'platform'
  ]
  assert found == []


@each
def test_nothing_imports_back(path):
  """layer.call -> functional -> kernel.normalize, one way."""
  if path.is_relative_to(KERNEL):
    for name in imported(path):
      inner = name.startswith('tfgroupnorm.kernel')
      assert inner or not name.startswith('tfgroupnorm'), name
  elif path.name == 'functional.py':
    for name in imported(path):
      assert 'layer' not in name, name


@each
def test_no_private_module_of_a_framework(path):
  """But for the one that tells whether a model is being saved."""
  private = {
    name
    for name in imported(path)
    if name.startswith(
      ('tensorflow.python', 'keras.src', 'tf_keras.src', 'jax._src')
    )
  }
  if path.name == 'dispatch.py':
    private -= {'tensorflow.python.saved_model.save_context'}
  assert not private


@each
def test_rooms_that_one_can_take_in(path):
  """At most 400 lines a file and 60 a function in the kernel."""
  if not path.is_relative_to(KERNEL):
    return
  text = path.read_text()
  assert len(text.splitlines()) <= (250 if path.stem == 'formula' else 400)
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 60, node.name


def listing(folder, indent='') -> list[str]:
  """The files of a folder, each with what its docstring says first."""
  lines = []
  for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
    if path.is_dir() and (path / '__init__.py').exists():
      lines += [f'{indent}{path.name}/', *listing(path, indent + '  ')]
    elif path.suffix == '.py':
      said = ast.get_docstring(ast.parse(path.read_text())) or ''
      lines.append(
        f'{indent}{path.name:{24 - len(indent)}}{said.splitlines()[0]}'
      )
  return lines


def the_map() -> str:
  return '\n'.join(['tfgroupnorm/', *listing(ROOT, '  ')]) + '\n'


def test_the_map_is_the_folder():
  """Both what CONTRIBUTING.md shows and the kernel's own."""
  _, shown, _ = PAGE.read_text().split('```\n')
  assert shown == the_map(), 'Run `python tests/house_test.py`.'
  text = (KERNEL / '__init__.py').read_text()
  rooms = {path.name for path in KERNEL.iterdir() if path.suffix == '.py'}
  assert all(name in text for name in rooms - {'__init__.py'})


if __name__ == '__main__':
  before, _, after = PAGE.read_text().split('```\n')
  PAGE.write_text('```\n'.join([before, the_map(), after]))
