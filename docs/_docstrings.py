"""For the API reference: docstrings as Python has them once it has run them.

mkdocstrings reads source text and imports nothing. So the places in docstrings
(`tfgroupnorm/_docs.py`) are filled here, a layer gets the docstring of what it
is made of, and examples become blocks of code.
"""

import importlib.util
import inspect
import pathlib
import re

import griffe

ROOT = pathlib.Path(__file__).parent.parent


def _docs():
  """`tfgroupnorm._docs` alone: the package would import Keras."""
  path = ROOT / 'tfgroupnorm' / '_docs.py'
  spec = importlib.util.spec_from_file_location('_docs', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# An example: from a line that begins with `>>>` to an empty one.
_EXAMPLE = re.compile(r'^>>> .*(?:\n.+)*', re.MULTILINE)
# Titles that mkdocstrings does not know; it knows `Args:` and the like.
_TITLE = re.compile(
  r'^(Examples?.*|References|(?:Call arguments|Input shape|Output shape).*):$',
  re.MULTILINE,
)


def as_markdown(doc: str) -> str:
  """A docstring as mkdocstrings wants it."""
  titled = _TITLE.sub(lambda t: f'**{t[1]}**\n', inspect.cleandoc(doc))
  parts = re.split(r'^(\*\*(?:.*)\*\*)\n', titled, flags=re.MULTILINE)
  # What stands below one of those titles is indented no more.
  for i in range(2, len(parts), 2):
    parts[i] = _outdented(parts[i])
  return _EXAMPLE.sub(lambda e: f'```pycon\n{e[0]}\n```', '\n'.join(parts))


def _outdented(text: str) -> str:
  """The indented lines at its beginning, as a list or a paragraph."""
  lines = text.split('\n')
  n = 0
  while n < len(lines) and (not lines[n] or lines[n].startswith('  ')):
    n += 1
  body = inspect.cleandoc('\n'.join(lines[:n]))
  # `name: what it is`, and what belongs to it, as an item.
  body = re.sub(r'^(\w+): ', r'- **`\1`**: ', body, flags=re.MULTILINE)
  return '\n' + body + '\n\n' + '\n'.join(lines[n:])


class Filled(griffe.Extension):
  """Fills and adds docstrings when the package has been read."""

  def on_package(self, *, pkg, **kwargs) -> None:
    filled = _docs().filled
    for home in ('layers', 'tf_keras'):
      for name in ('GroupNorm', 'InstanceNorm', 'LayerNorm', 'HeadNorm'):
        layer, source = pkg[f'{home}.{name}'], pkg[f'_norms.{name}']
        where = 'tfgroupnorm' if home == 'layers' else 'tfgroupnorm.tf_keras'
        layer.docstring = griffe.Docstring(
          filled(source.docstring.value, home=where),
          parent=layer,
          parser=source.docstring.parser,
          parser_options=source.docstring.parser_options,
        )
        self._show_defaults(source['__init__'], pkg)
    for function in pkg['functional'].functions.values():
      self._show_defaults(function, pkg)
    self._walk(pkg, filled)

  def _show_defaults(self, function, pkg) -> None:
    """The value in place of the name that a default has in `_checks`."""
    for parameter in function.parameters:
      if str(parameter.default).startswith('_checks.'):
        value = str(pkg[str(parameter.default)].value)
        # `_Default(32)` is 32 that nobody asked for.
        parameter.default = re.sub(r'^_Default\((.*)\)$', r'\1', value)

  def _walk(self, module, filled) -> None:
    for name, member in module.members.items():
      if member.is_alias or name.startswith('_'):
        continue
      if member.docstring and not member.is_module:
        member.docstring.value = as_markdown(filled(member.docstring.value))
      if member.is_module or member.is_class:
        self._walk(member, filled)
