"""The Bazel files keep up: each module and each test file has its target."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def _without_target(files, target):
  """Files for which the BUILD file beside them has no `target`."""
  files = sorted(files)
  assert files
  return [
    f.name
    for f in files
    if target.format(_name(f), f.name) not in (f.parent / 'BUILD').read_text()
  ]


def _name(path):
  """Of a target: a folder's `__init__.py` goes by the name of the folder."""
  folder = path.parent.relative_to(ROOT)
  inner = path.stem == '__init__' and len(folder.parts) > 1
  return folder.name if inner else path.stem


def test_each_module_has_a_target():
  target = 'py_library(\n    name = "{0}",\n    srcs = ["{1}"]'
  files = (ROOT / 'tfgroupnorm').rglob('*.py')
  assert _without_target(files, target) == []


def test_each_test_file_has_a_target():
  target = 'pytest_test(\n    name = "{0}",'
  assert _without_target((ROOT / 'tests').glob('*_test.py'), target) == []


def _targets():
  """{label: (its files, its deps)} of all BUILD files; Starlark is Python."""
  targets = {}
  for build in [*ROOT.glob('tfgroupnorm/**/BUILD'), ROOT / 'tests' / 'BUILD']:
    folder = build.parent.relative_to(ROOT).as_posix()
    for call in ast.walk(ast.parse(build.read_text())):
      if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        continue
      if call.func.id not in ('py_library', 'pytest_test'):
        continue
      given = {
        k.arg: ast.literal_eval(k.value)
        for k in call.keywords
        if k.arg in ('name', 'srcs', 'deps')
      }
      name = given['name']
      files = given.get('srcs', [])
      if call.func.id == 'pytest_test':
        files = [f'{name}.py']
      targets[f'//{folder}:{name}'] = (
        {f'{folder}/{file}' for file in files},
        [_whole(label, folder) for label in given.get('deps', [])],
      )
  return targets


def _whole(label, folder):
  """A label with its folder and its name, of which either may be left out."""
  if label.startswith(':'):
    return f'//{folder}{label}'
  return label if ':' in label else f'{label}:{label.rpartition("/")[2]}'


def _files_below(label, targets):
  """What Bazel lays beside a target's own files."""
  files, seen, waiting = set(), set(), [label]
  while waiting:
    label = waiting.pop()
    if label not in seen:
      seen.add(label)
      files |= targets[label][0]
      waiting += targets[label][1]
  return files


def _imported(path):
  """Files of this project that a file imports."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {(alias.name,) for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {(f'{node.module}.{a.name}', node.module) for a in node.names}
  return {file for names in found if (file := _file(names))}


def _file(names):
  """Of the first of these modules that there is."""
  for name in names:
    for folder in ('', 'tests/'):
      path = folder + name.replace('.', '/')
      for file in (f'{path}.py', f'{path}/__init__.py'):
        if (ROOT / file).is_file():
          return file
  return None


def test_each_target_has_what_it_imports():
  targets = _targets()
  assert len(targets) > 60
  missing = {
    label: sorted(lacking)
    for label, (files, _) in targets.items()
    # It imports what it is asked for; whoever asks depends on that.
    if label != '//tfgroupnorm:__init__'
    and (
      lacking := {i for file in files for i in _imported(ROOT / file)}
      - _files_below(label, targets)
    )
  }
  assert missing == {}


def test_one_version():
  module = (ROOT / 'MODULE.bazel').read_text()
  package = (ROOT / 'tfgroupnorm' / '__init__.py').read_text()
  version = re.search(r"^__version__ = '(.*)'$", package, re.MULTILINE)[1]
  assert f'    version = "{version}",\n)' in module
  assert f'\nversion: {version}\n' in (ROOT / 'CITATION.cff').read_text()


def pythons():
  """Those that setup.cfg names."""
  settings = (ROOT / 'setup.cfg').read_text()
  return re.findall(r':: Python :: (3\.\d+)$', settings, re.MULTILINE)


def test_each_python_is_tested():
  """By one job or another of the workflow."""
  workflow = (ROOT / '.github' / 'workflows' / 'ci.yml').read_text()
  tested = re.findall(r'python-version: "(.*)"', workflow)
  tested += re.findall(r'"(.+?)"', re.search(r'python: \[.*', workflow)[0])
  assert pythons()
  assert set(tested) == set(pythons())


def test_bazel_ignores_each_environment():
  """TensorFlow ships Bazel files, which cannot be loaded here."""
  makefile = (ROOT / 'Makefile').read_text()
  environments = set(re.findall(r'^(\.venv[\w-]*)/', makefile, re.MULTILINE))
  environments |= set(re.findall(r' (\.venv[\w-]*)/bin/pip', makefile))
  environments |= {f'.venv-python{python}' for python in pythons()}
  assert len(environments) > 7
  ignored = (ROOT / '.bazelignore').read_text().split()
  assert environments <= set(ignored)
