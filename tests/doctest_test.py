"""Every example in a public docstring runs, and every public name has one."""

import doctest
import importlib
import inspect

import pytest

MODULES = [
  'tfgroupnorm',
  'tfgroupnorm.callbacks',
  'tfgroupnorm.convert',
  'tfgroupnorm.functional',
  'tfgroupnorm.kernel.tensorflow.dispatch',
  'tfgroupnorm.layers',
  'tfgroupnorm.models',
  'tfgroupnorm.saving',
  'tfgroupnorm.tf_keras',
]


@pytest.mark.filterwarnings('ignore:.*fine-tune the model:UserWarning')
@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
  module = importlib.import_module(name)
  result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
  assert result.attempted and not result.failed


PUBLIC = [
  (module, name)
  for module, names in {
    'tfgroupnorm.convert': ['replace_batch_norm'],
    'tfgroupnorm.functional': [
      'group_norm',
      'instance_norm',
      'layer_norm',
      'head_norm',
    ],
    'tfgroupnorm.layers': [
      'GroupNorm',
      'InstanceNorm',
      'LayerNorm',
      'HeadNorm',
    ],
    'tfgroupnorm.tf_keras': [
      'GroupNorm',
      'InstanceNorm',
      'LayerNorm',
      'HeadNorm',
    ],
  }.items()
  for name in names
]


@pytest.mark.parametrize('module, name', PUBLIC)
def test_docstrings_are_complete(module, name):
  thing = getattr(importlib.import_module(module), name)
  sections = ['sqrt(', 'Args:', 'Raises:', 'Example:', '>>> ', 'References:']
  if inspect.isclass(thing):
    sections += ['Call arguments:', 'Input shape:', 'Output shape:']
  else:
    sections += ['Returns:']
  for section in sections:
    assert section in thing.__doc__, section
  arguments = inspect.signature(thing).parameters
  for argument in arguments.values():
    assert f'{argument.name}:' in thing.__doc__, argument
