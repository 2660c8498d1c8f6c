"""Every example in a public docstring runs."""

import doctest
import importlib

import pytest

import frameworks

MODULES = [
  'tfgroupnorm',
  'tfgroupnorm.callbacks',
  'tfgroupnorm.convert',
  'tfgroupnorm.functional',
  'tfgroupnorm.keras_norms',
  'tfgroupnorm.layers',
  'tfgroupnorm.models',
]
if frameworks.NAME == 'tensorflow':
  MODULES += [
    'tfgroupnorm.kernel.surroundings',
    'tfgroupnorm.saving',
    'tfgroupnorm.tf_keras',
  ]


@pytest.mark.filterwarnings('ignore:.*fine-tune the model:UserWarning')
@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
  module = importlib.import_module(name)
  result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
  assert result.attempted and not result.failed
