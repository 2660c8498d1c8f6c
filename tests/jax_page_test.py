"""The code on the page about JAX runs."""

import pathlib
import re

import jax
import keras
import numpy as np

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'jax.md'


def test_page(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {
    'model': keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
  }
  try:
    for code in re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL):
      exec(code, names)
    distribution = keras.distribution.distribution()
  finally:
    keras.distribution.set_distribution(None)
  assert isinstance(distribution, keras.distribution.DataParallel)
  assert (tmp_path / 'model.keras').is_file()
  gradient = jax.grad(names['loss'], argnums=1)(names['x'], names['gamma'])
  assert gradient.shape == (32,) and np.abs(gradient).max() > 1
