"""The code in the README runs."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgroupnorm
from tfgroupnorm import functional

README = pathlib.Path(__file__).parent.parent / 'README.md'
BLOCKS = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


@pytest.mark.filterwarnings('ignore:.*fine-tune the model:UserWarning')
# The model was never trained, which Keras says when it loads the optimizer.
@pytest.mark.filterwarnings('ignore:Skipping variable loading for:UserWarning')
@pytest.mark.parametrize('code', BLOCKS, ids=range(len(BLOCKS)))
def test_code(code, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # Where a block may write.
  if 'model' in code and 'model = ' not in code:  # The one made at the top.
    code = BLOCKS[0] + code
  rng = np.random.default_rng(0)
  images = rng.normal(size=(4, 32, 32, 3)).astype('float32')
  names = {
    **vars(tfgroupnorm.layers),
    'images': images,
    'labels': np.arange(4),
    'x': tf.constant(rng.normal(3, 2, (2, 5, 32)).astype('float32')),
    'mask': np.arange(5)[None] < np.array([[3], [5]]),
    'g': tf.ones((2, 32)),
    'b': tf.zeros((2, 32)),
  }
  gate = 'gate_activation' in code
  if gate:  # Each block means something else by g.
    code, last = code.rsplit('\n', 2)[:2]
    exec(last, {**names, 'g': names['x']})
  exec(code, names)
  if 'percentiles' in names:
    assert len(names['percentiles'].history) == 1
    assert (tmp_path / 'percentiles.png').is_file()
  if 'model' in names:
    model = names['model']
    model.fit(images, np.arange(4), verbose=0)
    assert model(images).shape == (4, 10)
    assert isinstance(model, keras.Model)
  for path in re.findall(r"export_saved_model\(\w+, '(.*?)'", code):
    assert (tmp_path / path / 'saved_model.pb').is_file()


def test_page_of_models(capsys):
  page = README.parent / 'docs' / 'models.md'
  names = {}
  blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
  for code in blocks:
    exec(code, names)
  assert len(blocks) == 2 and 'GroupNorm, silu' in capsys.readouterr().out
  kinds = {type(layer) for layer in names['model'].layers}
  assert {tfgroupnorm.GroupNorm, tfgroupnorm.LayerNorm} <= kinds
  layer = keras.layers.Layer()
  layer.scale, layer.epsilon = layer.add_weight(shape=(3,)), 1e-6
  norm = names['one_more'](layer)
  np.testing.assert_array_equal(norm.gamma, 1 + np.array(layer.scale))
  assert names['rms'](layer).rms


def test_torch_epsilon():
  """The migration table: GroupNorm of torch, by hand, channels first."""
  x = np.random.default_rng(0).normal(1, 1, (2, 10, 3, 3))
  y = functional.group_norm(x, groups=2, axis=1, epsilon=1e-5)
  group = x[0, :5]
  wanted = (x[0, 0, 0, 1] - group.mean()) / np.sqrt(group.var() + 1e-5)
  np.testing.assert_allclose(y[0, 0, 0, 1], wanted, rtol=0, atol=1e-12)
