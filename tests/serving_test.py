"""Stock TensorFlow Serving, without XLA, runs models saved by any route.

There is no server here, but its loader and its switch are in TensorFlow.
"""

import contextlib
import ctypes
import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import cases
import tfgroupnorm

pytestmark = pytest.mark.skipif(
  sys.platform != 'linux',
  reason="Elsewhere TensorFlow's libraries and the linker's flags differ.",
)
HERE = pathlib.Path(__file__).parent


@contextlib.contextmanager
def stock_server():
  """TensorFlow as in a server that was started without flags for XLA."""
  library = ctypes.CDLL(
    os.path.join(tf.sysconfig.get_lib(), 'libtensorflow_cc.so.2')
  )
  library._ZN10tensorflow21DisableXlaCompilationEv()
  try:
    yield
  finally:
    library._ZN10tensorflow20EnableXlaCompilationEv()


def keras_export(model, path):
  model.export(path)


def saved_model(model, path):
  tf.saved_model.save(model, path)


def archive(model, path):
  keras = importlib.import_module(type(model).__module__.partition('.')[0])
  made = keras.export.ExportArchive()
  made.track(model)
  made.add_endpoint('serve', model.__call__, [tf.TensorSpec((None, None, 8))])
  made.write_out(path)


def keras_save(model, path):
  model.save(path, save_format='tf')


ROUTES = [
  (generation, route)
  for generation in cases.GENERATIONS
  for route in (
    keras_export,
    saved_model,
    archive,
    keras_save,
    tfgroupnorm.export_saved_model,
  )
  # Keras 3 saves no SavedModels by `save`.
  if (generation, route) != ('keras', keras_save)
]


def inputs(*shape):
  return (3 + 2 * np.sin(np.arange(np.prod(shape)))).reshape(shape).astype('f')


@pytest.fixture(scope='module')
def models():
  """For each Keras, with all functions traced and compiled already."""
  made = {}
  for generation in cases.GENERATIONS:
    model = made[generation] = cases.everything(generation, jit_compile=True)
    model.predict(inputs(2, 6, 8), verbose=0)
  return made


@pytest.mark.parametrize(
  'generation, route',
  ROUTES,
  ids=[f'{generation}-{route.__name__}' for generation, route in ROUTES],
)
def test_routes(generation, route, models, tmp_path):
  model = models[generation]
  route(model, tmp_path / 'model')
  assert cases.compiled_in_saved_model(tmp_path / 'model') == []
  loaded = tf.saved_model.load(tmp_path / 'model')
  serve = loaded.signatures['serving_default']
  (name,) = serve.structured_input_signature[1]
  for shape in [(2, 6, 8), (1, 3, 8)]:
    with stock_server():
      (y,) = serve(**{name: tf.constant(inputs(*shape))}).values()
    np.testing.assert_allclose(y, model(inputs(*shape)), rtol=0, atol=1e-5)


@cases.both_kerases
def test_auto_with_known_sizes(generation, tmp_path):
  """Where the layers would be compiled in a graph."""
  model = cases.everything(generation, steps=6)
  model(inputs(2, 6, 8))
  model.export(tmp_path / 'model')
  assert cases.compiled_in_saved_model(tmp_path / 'model') == []


def test_the_switch_bites(models, tmp_path):
  """What XLA must compile fails, so that the tests above say something."""
  model = models['keras']
  module = tf.Module()
  module.weights = [v.value for v in model.variables]
  module.serve = tf.function(model, autograph=False).get_concrete_function(
    tf.TensorSpec((None, 6, 8), name='x')
  )
  tf.saved_model.save(module, tmp_path, signatures=module.serve)
  assert cases.compiled_in_saved_model(tmp_path)
  serve = tf.saved_model.load(tmp_path).signatures['serving_default']
  with stock_server():
    with pytest.raises(tf.errors.OpError, match='XLA compilation disabled'):
      serve(x=tf.constant(inputs(2, 6, 8)))
  (y,) = serve(x=tf.constant(inputs(2, 6, 8))).values()
  np.testing.assert_allclose(y, model(inputs(2, 6, 8)), rtol=0, atol=1e-5)


# --- Without Python: the loader that TensorFlow Serving calls ---


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  """Compiles load.cc; returns what runs it."""
  compiler = shutil.which('g++')
  assert compiler, 'This test compiles load.cc: install g++.'
  program = tmp_path_factory.mktemp('load') / 'load'
  library = tf.sysconfig.get_lib()
  subprocess.run(
    [
      compiler,
      *('-w', '-std=c++17', '-O0', HERE / 'load.cc', '-o', program),
      *tf.sysconfig.get_compile_flags(),
      *(f'-L{library}', f'-Wl,-rpath,{library}'),
      *('-l:libtensorflow_cc.so.2', '-l:libtensorflow_framework.so.2'),
    ],
    check=True,
  )

  def run(path, mode, *shape):
    return subprocess.run(
      [program, path, mode, 'x', *map(str, shape)],
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def check_output(result, model, *shape):
  assert result.returncode == 0, result.stderr
  name, *values = result.stdout.split()
  assert name == 'output_0'
  y = np.array(values, 'float32').reshape(shape)
  np.testing.assert_allclose(y, model(inputs(*shape)), rtol=0, atol=1e-5)


@cases.both_kerases
def test_without_python(generation, models, load, tmp_path):
  model = models[generation]
  tfgroupnorm.export_saved_model(model, tmp_path / '1')
  for shape in [(2, 6, 8), (1, 3, 8)]:
    check_output(load(tmp_path / '1', 'stock', *shape), model, *shape)


@cases.both_kerases
def test_compiled_for_servers_with_xla(generation, models, load, tmp_path):
  model = models[generation]
  tfgroupnorm.export_saved_model(model, tmp_path / '1', jit_compile=True)
  assert cases.compiled_in_saved_model(tmp_path / '1')
  check_output(load(tmp_path / '1', 'xla', 1, 3, 8), model, 1, 3, 8)
  result = load(tmp_path / '1', 'stock', 2, 6, 8)
  assert result.returncode == 1
  assert 'XLA compilation disabled' in result.stderr
