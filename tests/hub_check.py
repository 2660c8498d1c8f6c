"""What docs/models.md says of KerasHub and segmentation_models is so.

Run by `make test-hub`, in an environment with these programs. All weights are
random, and drawn anew, so that no norm is what it is at first.
"""

import importlib
import os
import pathlib
import re
import subprocess
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import keras
import numpy as np
import pytest

import hub_models
import tfgroupnorm
from tfgroupnorm import LayerNorm, _comparing, _layer, models

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'models.md'
# Of the page's first table: `name`, norms found, replaced, largest difference.
ROW = re.compile(r'^\| [^|]*`(\w+)` \| (\d+) \| (\d+) \| ([\de-]+) \|', re.M)
ROWS = {name: rest for name, *rest in ROW.findall(PAGE.read_text())}
BATCH_NORMED = [
  'resnet_classifier',
  'deeplab',
  'segformer',
  'mobilenet',
  'efficientnet',
]

pytestmark = [
  # KerasHub about masks that it does not use.
  pytest.mark.filterwarnings('ignore:Layer .* was passed an input with a mask'),
  pytest.mark.filterwarnings('ignore:.*fine-tune the model:UserWarning'),
  # Of LLaMA's backbone, which has a weight for its head.
  pytest.mark.filterwarnings('ignore:Gradients do not exist:UserWarning'),
]


def made(name):
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)
  model = getattr(hub_models, name)()
  rng = np.random.default_rng(0)
  for weight in model.trainable_weights:
    noise = rng.normal(0, 0.05, weight.shape)
    weight.assign(np.array(weight) + noise.astype('float32'))
  return model


def batch_of(model):
  return next(iter(_comparing.batches(model)))


def outputs(model):
  return _comparing.results(model, batch_of(model), []).outputs


# --- Norms of Keras, and of KerasHub -----------------------------------------


def rms(layer):
  return LayerNorm(rms=True, epsilon=layer.epsilon)


def one_more(layer):
  """Gemma's stores w, and multiplies by 1 + w."""
  norm = LayerNorm(rms=True, epsilon=layer.epsilon)
  norm.build((None, layer.scale.shape[0]))
  norm.set_weights([1 + w for w in layer.get_weights()])
  return norm


def also_of(model):
  """Functions for the classes of KerasHub's own, found by their names."""
  functions = {}
  for _, layer in models.walk(model):
    kind = type(layer)
    if kind.__module__.startswith('keras_hub'):
      if re.search('(Llama|Mistral|Qwen|T5).*Norm', kind.__name__):
        functions[kind] = rms
      elif '.gemma.' in kind.__module__ and kind.__name__.startswith('RMSNorm'):
        functions[kind] = one_more
  return functions


def test_the_table_is_of_many():
  assert len(ROWS) >= 16 and set(ROWS) < set(vars(hub_models))


@pytest.mark.parametrize('name', ROWS)
def test_as_in_the_table(name):
  found, replaced, largest = ROWS[name]
  model = made(name)
  told = []
  tfgroupnorm.replace_keras_norms(
    model, also=also_of(model), print_fn=told.append
  )
  left = re.findall(r'^Left, (\d+)', told[0], re.M)
  ours = sum(isinstance(x, _layer.Norm) for _, x in models.walk(model))
  assert ours == int(replaced)
  assert ours + sum(map(int, left)) == int(found), told[0]
  differences = re.search(
    r'outputs differ by (\S+), gradients by (\S+)\.', told[0]
  )
  assert max(map(float, differences.groups())) <= 10 * float(largest), told[0]


@pytest.mark.parametrize('name', ['bert', 'llama', 'vae', 'vit'])
def test_training_goes_on(name):
  """Losses of some steps before and after, as those without."""

  def losses(replace):
    model = made(name)
    batch = batch_of(model)
    model.compile(keras.optimizers.Adam(1e-3), 'mse')
    targets = model.predict(batch, verbose=0)
    shift = lambda y: 0.5 * y + 1  # noqa: E731
    targets = keras.tree.map_structure(shift, targets)
    fit = dict(epochs=3, verbose=0, shuffle=False)
    first = model.fit(batch, targets, **fit).history['loss']
    if replace:
      tfgroupnorm.replace_keras_norms(model, also=also_of(model), verbose=False)
    return [*first, *model.fit(batch, targets, **fit).history['loss']]

  np.testing.assert_allclose(losses(True), losses(False), rtol=1e-5)


# --- BatchNormalization ------------------------------------------------------


def by_hand(name, model, monkeypatch):
  """As if KerasHub's code had said GroupNorm, with the weights of `model`."""

  def group_norm(axis=-1, epsilon=1e-3, momentum=0, **options):
    del momentum
    return tfgroupnorm.GroupNorm(4, axis=axis, epsilon=epsilon, **options)

  with monkeypatch.context() as patch:
    patch.setattr(keras.layers, 'BatchNormalization', group_norm)
    keras.backend.clear_session()
    result = getattr(hub_models, name)()
  result.set_weights(
    [np.array(w) for w in model.weights if 'moving_' not in w.name]
  )
  return result


def losses(model, batch, targets):
  for i, variable in enumerate(model.variables):
    if 'seed_generator' in variable.path:  # Of what is dropped.
      variable.assign([i, 0])
  # Or KerasHub has metrics of its own.
  model.compile(keras.optimizers.SGD(1e-3), 'mse', metrics=[])
  fit = {'epochs': 5, 'verbose': 0, 'shuffle': False}
  return model.fit(batch, targets, **fit).history['loss']


@pytest.mark.parametrize('name', BATCH_NORMED)
def test_batch_norms(name, monkeypatch):
  model = made(name)
  kind = keras.layers.BatchNormalization
  count = sum(isinstance(x, kind) for _, x in models.walk(model))
  result = tfgroupnorm.replace_batch_norm(model, groups=4, verbose=False)
  assert type(result) is type(model) and count > 0
  ours = [x for _, x in models.walk(result) if isinstance(x, _layer.Norm)]
  assert len(ours) == count
  assert not any(isinstance(x, kind) for _, x in models.walk(result))
  wanted = by_hand(name, model, monkeypatch)
  for a, b in zip(outputs(result), outputs(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
  batch = batch_of(model)
  targets = keras.tree.map_structure(lambda y: 0.5 * y + 1, wanted(batch))
  np.testing.assert_allclose(
    losses(result, batch, targets), losses(wanted, batch, targets), rtol=1e-5
  )


@pytest.mark.parametrize('name', BATCH_NORMED)
def test_the_copy_with_none_replaced_is_the_model(name):
  model = made(name)
  same = tfgroupnorm.replace_batch_norm(
    model, groups=7, on_indivisible='skip', verbose=False
  )
  assert not any(isinstance(x, _layer.Norm) for _, x in models.walk(same))
  for a, b in zip(outputs(same), outputs(model), strict=True):
    np.testing.assert_array_equal(a, b)
  assert not {id(w) for w in same.weights} & {id(w) for w in model.weights}


SEGMENTATION = """
import segmentation_models, tf_keras, tfgroupnorm
from tfgroupnorm import _layer, models
for make in (segmentation_models.Unet, segmentation_models.FPN):
  model = make('resnet18', encoder_weights=None, input_shape=(64, 64, 3))
  result = tfgroupnorm.replace_batch_norm(model, verbose=False)
  kinds = [type(x) for _, x in models.walk(result)]
  assert tf_keras.layers.BatchNormalization not in kinds
  print(sum(issubclass(kind, _layer.Norm) for kind in kinds))
"""


def test_segmentation_models():
  """Which need Keras 2 by the name of `tf.keras`."""
  environment = {
    **os.environ,
    'SM_FRAMEWORK': 'tf.keras',
    'TF_USE_LEGACY_KERAS': '1',
  }
  run = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', SEGMENTATION],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  assert run.stdout.split()[-2:] == ['29', '28']
  assert importlib.util.find_spec('tf_keras')
