"""The code in the README and on the pages of docs/ runs."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgroupnorm
from tfgroupnorm import functional

README = pathlib.Path(__file__).parent.parent / 'README.md'
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype('float32')
BLOCKS = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


@pytest.mark.filterwarnings('ignore:.*fine-tune the model:UserWarning')
# The model was never trained, which Keras says when it loads the optimizer.
@pytest.mark.filterwarnings('ignore:Skipping variable loading for:UserWarning')
@pytest.mark.parametrize('code', BLOCKS, ids=range(len(BLOCKS)))
def test_code(code, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # Where a block may write.
  if 'model' in code and 'model = ' not in code:  # The one made at the top.
    code = BLOCKS[0] + code
  names = {'images': IMAGES, 'labels': np.arange(4)}
  exec(code, names)
  if 'model' in names:
    model = names['model']
    model.fit(IMAGES, names['labels'], verbose=0)
    assert model(IMAGES).shape == (4, 10)
    assert isinstance(model, keras.Model)
  for path in re.findall(r"export_saved_model\(\w+, '(.*?)'", code):
    assert (tmp_path / path / 'saved_model.pb').is_file()


# Those about JAX run in `jax_page_test`.
PAGES = sorted(
  path
  for path in README.with_name('docs').glob('*.md')
  if path.name != 'jax.md' and '```python' in path.read_text()
)


# A model was never trained, which Keras says when it loads the optimizer.
@pytest.mark.filterwarnings('ignore:Skipping variable loading for:UserWarning')
@pytest.mark.filterwarnings('ignore:.*fine-tune the model:UserWarning')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_page(page, tmp_path, monkeypatch, capsys):
  """From its top to its end, beside the model of the README and its images."""
  monkeypatch.chdir(tmp_path)
  names = {'images': IMAGES}
  exec(BLOCKS[0], names)
  for code in re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL):
    exec(code, names)
  if page.stem in CHECKS:
    CHECKS[page.stem](names, tmp_path, capsys.readouterr().out)


def _models(names, folder, said):
  assert 'GroupNorm, silu' in said
  kinds = {type(layer) for layer in names['model'].layers}
  assert {tfgroupnorm.GroupNorm, tfgroupnorm.LayerNorm} <= kinds
  layer = keras.layers.Layer()
  layer.scale, layer.epsilon = layer.add_weight(shape=(3,)), 1e-6
  norm = names['one_more'](layer)
  np.testing.assert_array_equal(norm.gamma, 1 + np.array(layer.scale))
  assert names['rms'](layer).rms
  assert names['group_normed'](IMAGES).shape == (4, 10)


def _quickstart(names, folder, said):
  assert len(names['percentiles'].history) == 1
  assert (folder / 'percentiles.png').is_file()
  assert (folder / 'served' / '1' / 'saved_model.pb').is_file()


def _serving(names, folder, said):
  (record,) = folder.glob('models/digits/1/assets.extra/*')
  assert record.stat().st_size > 4 * 32 * 32 * 3 * 4


def _runtimes(names, folder, said):
  for name in ('served', 'quantizable'):
    served = tf.saved_model.load(folder / name / '1')
    np.testing.assert_allclose(
      served.serve(IMAGES), names['model'](IMAGES), atol=1e-5
    )
  assert names['function'](tf.zeros((2, 32, 32, 3))).shape == (2, 10)


# What a page leaves behind, besides that its code runs.
CHECKS = {
  'models': _models,
  'quickstart': _quickstart,
  'runtimes': _runtimes,
  'serving': _serving,
}


def test_pages_with_code():
  assert set(CHECKS) < {page.stem for page in PAGES}


def test_torch_epsilon():
  """The migration table: GroupNorm of torch, by hand, channels first."""
  x = np.random.default_rng(0).normal(1, 1, (2, 10, 3, 3))
  y = functional.group_norm(x, groups=2, axis=1, epsilon=1e-5)
  group = x[0, :5]
  wanted = (x[0, 0, 0, 1] - group.mean()) / np.sqrt(group.var() + 1e-5)
  np.testing.assert_allclose(y[0, 0, 0, 1], wanted, rtol=0, atol=1e-12)
