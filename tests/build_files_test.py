"""The Bazel files keep up: each module and each test file has its target."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def _without_target(pattern, target):
  """Files like `pattern` for whose stem their BUILD file has no `target`."""
  files = sorted(ROOT.glob(pattern))
  assert files
  build = (files[0].parent / 'BUILD').read_text()
  return [f.name for f in files if target.format(f.stem) not in build]


def test_each_module_has_a_target():
  target = 'py_library(\n    name = "{0}",\n    srcs = ["{0}.py"]'
  assert _without_target('tfgroupnorm/*.py', target) == []


def test_each_test_file_has_a_target():
  target = 'pytest_test(\n    name = "{0}",'
  assert _without_target('tests/*_test.py', target) == []


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
