"""One model on TensorFlow and on JAX: the same numbers, files that fit both.

For an environment that has both: `make test-jax` runs this file.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

BACKENDS = ('tensorflow', 'jax')

# Each process makes the same model and data.
COMMON = """
import json, pathlib, sys
import keras
import numpy as np
from tfgroupnorm import GroupNorm, HeadNorm, InstanceNorm, LayerNorm

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
x = rng.normal(3, 2, (32, 6, 8)).astype('float32')
y = x[:, :3].mean((1, 2))[:, None] - x[:, 3:].mean((1, 2))[:, None]

def make():
  model = keras.Sequential([
    keras.Input((None, 8)),
    keras.layers.Conv1D(8, 3, padding='same'),
    GroupNorm(4, activation='silu'), InstanceNorm(),
    LayerNorm(activation='gelu'), LayerNorm(rms=True), HeadNorm(2),
    keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)])
  rng = np.random.default_rng(1)
  model.set_weights(
    [rng.normal(0.6, 0.3, w.shape) for w in model.get_weights()])
  model.compile(keras.optimizers.SGD(0.01), 'mse')
  return model
"""

TRAIN = """
model = make()
model.fit(x[:8], y[:8], batch_size=8, verbose=0)
np.savez(folder / 'step.npz', *model.get_weights())
model = make()
losses = model.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0)
(folder / 'losses.json').write_text(json.dumps(losses.history['loss']))
np.save(folder / 'predicted.npy', model.predict(x, verbose=0))
model.save(folder / 'model.keras')
model.save_weights(folder / 'model.weights.h5')
"""

LOAD = """
model = keras.models.load_model(folder / 'model.keras')
np.save(folder / 'loaded.npy', model.predict(x, verbose=0))
model = make()
model.load_weights(folder / 'model.weights.h5')
np.save(folder / 'weights.npy', model.predict(x, verbose=0))
"""

EXPORT = """
from tfgroupnorm import export_saved_model
model = keras.models.load_model(folder / 'model.keras')
export_saved_model(model, folder / 'served' / '1')
"""


def run(backend, code, folder):
  result = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', COMMON + code, folder],
    env={**os.environ, 'KERAS_BACKEND': backend, 'JAX_ENABLE_X64': '0'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict[str, pathlib.Path]:
  folders = {name: tmp_path_factory.mktemp(name) for name in BACKENDS}
  for backend, folder in folders.items():
    run(backend, TRAIN, folder)
  return folders


def test_one_step(trained):
  steps = [np.load(trained[name] / 'step.npz') for name in BACKENDS]
  for name in steps[0]:
    a, b = (step[name] for step in steps)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-7 * max(1, abs(a).max()))


def test_losses(trained):
  losses = [
    json.loads((trained[name] / 'losses.json').read_text()) for name in BACKENDS
  ]
  assert len(losses[0]) == 4 and losses[0][-1] < losses[0][0]
  np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize('source, target', [BACKENDS, BACKENDS[::-1]])
def test_files(trained, source, target):
  folder = trained[source]
  run(target, LOAD, folder)
  wanted = np.load(folder / 'predicted.npy')
  for name in ('loaded', 'weights'):
    got = np.load(folder / f'{name}.npy')
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_what_jax_trained_is_served(trained):
  """By TensorFlow, which verifies what it writes."""
  run('tensorflow', EXPORT, trained['jax'])
  assert (trained['jax'] / 'served' / '1' / 'saved_model.pb').exists()
