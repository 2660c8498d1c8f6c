"""Both generations of Keras side by side, and neither without need."""

import inspect
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras

import cases
import tfgroupnorm


def python(code, **environment):
  """Runs `code` in a process of its own."""
  return subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code],
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


def test_in_one_process():
  """Two models with the same layers, trained in turns, give the same."""
  x = np.random.default_rng(0).normal(3, 2, (8, 6, 8)).astype('float32')
  models = []
  for module in (keras, tf_keras):
    ours = cases.layers_of(module.__name__)
    inputs = module.Input((6, 8))
    y = ours.GroupNorm(4)(inputs)
    y = ours.HeadNorm(2, rms=True)(ours.LayerNorm(activation='silu')(y))
    model = module.Model(inputs, y)
    model.compile(module.optimizers.SGD(0.1), 'mse')
    models.append(model)
  for _ in range(2):
    for model in models:
      model.fit(x, x, batch_size=4, shuffle=False, verbose=0)
  predictions = [model.predict(x, verbose=0) for model in models]
  np.testing.assert_allclose(*predictions, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  'steps',
  [
    # In one process: what any of them had asked for would be there at the end.
    [
      ('import tfgroupnorm.saving', ['tfgroupnorm.layers']),
      ('from tfgroupnorm import GroupNorm, functional', ['tf_keras']),
      ('from tfgroupnorm import export_saved_model', ['tf_keras']),
      (
        'from tfgroupnorm.callbacks import ActivationPercentiles',
        ['tf_keras'],
      ),
    ],
    [
      (
        'from tfgroupnorm.tf_keras import GroupNorm',
        ['tfgroupnorm.layers', 'tfgroupnorm.callbacks'],
      )
    ],
  ],
  ids=['keras', 'tf_keras'],
)
def test_imports_no_more_than_asked_for(steps):
  code = 'import sys\n' + '\n'.join(
    f'{first}\nassert not set({never}) & set(sys.modules), {first!r}'
    for first, never in steps
  )
  result = python(code)
  assert result.returncode == 0, result.stderr


def test_another_backend():
  result = python(
    'for code in "import tfgroupnorm", "from tfgroupnorm import GroupNorm":\n'
    '  try:\n'
    '    exec(code)\n'
    '  except ImportError as error:\n'
    '    print(f"ImportError: {error}")',
    KERAS_BACKEND='torch',
  )
  for message in (
    'ImportError: tfgroupnorm runs on TensorFlow and on JAX',
    'Received: KERAS_BACKEND=torch',
    'Set KERAS_BACKEND=tensorflow',
  ):
    assert result.stdout.count(message) == 2, result.stdout + result.stderr


def test_another_backend_in_the_configuration():
  """As keras.json may have it, where no environment variable tells."""
  result = python(
    'import keras; keras.backend.backend = lambda: "numpy"\n'
    'from tfgroupnorm import GroupNorm'
  )
  assert "Received: Keras with backend 'numpy'" in result.stderr
  assert 'Set KERAS_BACKEND=tensorflow' in result.stderr


def test_without_tf_keras():
  result = python(
    'import sys; sys.modules["tf_keras"] = None; import tfgroupnorm.tf_keras'
  )
  assert 'Run `pip install tf-keras`' in result.stderr


def test_legacy_keras_in_tensorflow():
  """Where tf.keras is Keras 2, `tfgroupnorm.tf_keras` serves it."""
  result = python(
    'import tensorflow as tf\n'
    'from tfgroupnorm.tf_keras import GroupNorm\n'
    'model = tf.keras.Sequential([tf.keras.Input((4, 8)), GroupNorm(2)])\n'
    'print(model(tf.ones((1, 4, 8))).shape)',
    TF_USE_LEGACY_KERAS='1',
  )
  assert '(1, 4, 8)' in result.stdout, result.stderr


def test_public_names():
  listed = {name for name in dir(tfgroupnorm) if not name.startswith('_')}
  assert set(tfgroupnorm.__all__) <= listed
  for name in tfgroupnorm.__all__:
    assert getattr(tfgroupnorm, name) is not None


@pytest.mark.parametrize('module', ['tfgroupnorm', 'tfgroupnorm.tf_keras'])
def test_everything_by_a_star(module):
  """The four layers and functions, no module in place of a user's own."""
  names = {'layers': 'mine', 'callbacks': 'mine', 'functional': 'mine'}
  exec(f'from {module} import *', names)
  assert names['layers'] == names['callbacks'] == names['functional'] == 'mine'
  assert {'GroupNorm', 'HeadNorm', 'InstanceNorm', 'LayerNorm'} <= set(names)
  assert not [
    name
    for name, value in names.items()
    if inspect.ismodule(value) and name != '__builtins__'
  ]


def test_modules_are_found():
  for name in ('layers', 'callbacks', 'functional', 'convert', 'saving'):
    assert name in dir(tfgroupnorm)
    assert inspect.ismodule(getattr(tfgroupnorm, name))
