"""The Bazel files keep up: each module and each test file has its target."""

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


def test_one_version():
  module = (ROOT / 'MODULE.bazel').read_text()
  package = (ROOT / 'tfgroupnorm' / '__init__.py').read_text()
  version = re.search(r"^__version__ = '(.*)'$", package, re.MULTILINE)[1]
  assert f'    version = "{version}",\n)' in module


def test_bazel_ignores_each_environment():
  """TensorFlow ships Bazel files, which cannot be loaded here."""
  makefile = (ROOT / 'Makefile').read_text()
  environments = set(re.findall(r'^(\.venv[\w-]*)/', makefile, re.MULTILINE))
  environments |= set(re.findall(r' (\.venv[\w-]*)/bin/pip', makefile))
  assert len(environments) > 3
  ignored = (ROOT / '.bazelignore').read_text().split()
  assert environments <= set(ignored)
