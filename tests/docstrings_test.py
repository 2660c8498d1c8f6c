"""Public docstrings are whole: sections, arguments, no placeholder left."""

import importlib
import inspect
import pathlib
import pydoc
import re

import pytest

import cases
import tfgroupnorm

MODULES = [
  'tfgroupnorm',
  'tfgroupnorm.callbacks',
  'tfgroupnorm.convert',
  'tfgroupnorm.functional',
  'tfgroupnorm.saving',
  *cases.GENERATIONS.values(),
]
FUNCTIONS = list(cases.FUNCTIONS.values())
LAYERS = [
  pytest.param(module, kind, id=f'{module}.{kind}')
  for module in cases.GENERATIONS.values()
  for kind in cases.FUNCTIONS
]


def section(doc, title):
  """The lines under `title`, without their indentation."""
  found = re.search(
    rf'^{title}:\n((?:  .*\n|\n(?=  ))+)', doc + '\n', re.MULTILINE
  )
  assert found, f'no section {title!r}'
  return inspect.cleandoc(found[1])


def documented(doc, title):
  """The names of the arguments that a section describes, in its order."""
  return re.findall(r'^(\*{0,2}\w+): \S', section(doc, title), re.MULTILINE)


def arguments(function):
  """The names of the arguments of a function or of a class's constructor."""
  stars = {inspect.Parameter.VAR_KEYWORD: '**'}
  of_class = isinstance(function, type)
  # In Python 3.10 a class has the signature of its `__new__`, as in Keras.
  function = function.__init__ if of_class else function
  parameters = list(inspect.signature(function).parameters.values())
  return [stars.get(p.kind, '') + p.name for p in parameters[of_class:]]


def is_whole(doc, sections):
  assert 'sqrt(' in doc and '\n>>> ' in doc
  for title in (*sections, 'Raises', 'References'):
    assert section(doc, title)
  assert '\nExample:\n' in doc


@pytest.mark.parametrize('function', FUNCTIONS)
def test_functions(function):
  doc = inspect.getdoc(function)
  is_whole(doc, ['Returns'])
  assert documented(doc, 'Args') == arguments(function)


@pytest.mark.parametrize('module, kind', LAYERS)
def test_layers(module, kind):
  layer = getattr(importlib.import_module(module), kind)
  doc = inspect.getdoc(layer)
  is_whole(doc, ['Input shape', 'Output shape'])
  assert documented(doc, 'Args') == arguments(layer)
  said = documented(doc, 'Call arguments')
  assert ['self', *said] == arguments(layer.call)


@pytest.mark.parametrize('module, kind', LAYERS)
def test_an_example_imports_from_where_its_layer_is(module, kind):
  layer = getattr(importlib.import_module(module), kind)
  imports = re.findall(r'>>> from (\S+) import', layer.__doc__)
  # `tfgroupnorm` is short for the layers of Keras 3.
  assert imports == [module.removesuffix('.layers')]


REPRS = [
  (
    'GroupNorm',
    {'groups': 8, 'activation': 'silu'},
    '<GroupNorm groups=8, activation=silu, name=n, built=False>',
  ),
  ('GroupNorm', {}, '<GroupNorm groups=32, name=n, built=False>'),
  (
    'GroupNorm',
    {'group_size': 4, 'axis': 1},
    '<GroupNorm axis=1, group_size=4, name=n, built=False>',
  ),
  ('InstanceNorm', {}, '<InstanceNorm name=n, built=False>'),
  (
    'LayerNorm',
    {'axis': [1, 2]},
    '<LayerNorm axis=[1, 2], name=n, built=False>',
  ),
  ('LayerNorm', {'rms': True}, '<LayerNorm rms=True, name=n, built=False>'),
  (
    'HeadNorm',
    {'num_heads': 4, 'per_head': False},
    '<HeadNorm num_heads=4, per_head=False, name=n, built=False>',
  ),
]


@cases.both_kerases
@pytest.mark.parametrize('kind, options, wanted', REPRS)
def test_repr(generation, kind, options, wanted):
  """Keras would show its own name for it, and no options."""
  layer = getattr(cases.layers_of(generation), kind)
  assert repr(layer(**options, name='n')).replace('swish', 'silu') == wanted
  mine = type('Mine', (layer,), {})
  assert repr(mine(**options)).startswith('<Mine ')


@pytest.mark.parametrize('module, kind', LAYERS)
def test_help_tells_whose_layer_it_is(module, kind):
  layer = getattr(importlib.import_module(module), kind)
  shown = pydoc.plain(pydoc.render_doc(layer))
  home = module.removesuffix('.layers')
  assert f'This is `{home}.{kind}`; Keras calls it `{kind}alization`' in shown


def test_the_reference_has_each_public_name():
  page = pathlib.Path(__file__).parent.parent / 'docs' / 'api.md'
  shown = re.findall(r'^::: ([\w.]+)$', page.read_text(), re.MULTILINE)
  (members,) = re.findall(r'members: \[(\w+, .*)\]', page.read_text())
  functions = [f.__name__ for f in FUNCTIONS]
  assert sorted(members.split(', ')) == sorted([*functions, 'moments'])
  assert sorted(shown) == sorted(
    [
      *(f'tfgroupnorm.{name}' for name in tfgroupnorm.__all__),
      'tfgroupnorm.callbacks.ActivationPercentiles',
      'tfgroupnorm.functional',
      'tfgroupnorm.tf_keras.custom_objects',
    ]
  )


@pytest.mark.parametrize('name', MODULES)
def test_no_placeholder_is_left(name):
  module = importlib.import_module(name)
  public = [thing for n, thing in vars(module).items() if n[0] != '_']
  public += [
    member
    for thing in public
    if inspect.isclass(thing)
    for member in vars(thing).values()
  ]
  for thing in (module, *public):
    assert not re.search(r'\{\{|\}\}', inspect.getdoc(thing) or ''), thing
