"""SavedModels that any TensorFlow Serving runs, without XLA.

The layers run op by op in whatever is traced while it is being saved, so that
`model.export` and its like give a model that any server runs. They do not
change what was traced before: a function marked for XLA is saved as it is, and
a server that was not told to use XLA fails at the first request. So
`export_saved_model` takes the marks out of the file, and then verifies it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING, Any

from absl import logging

from tfgroupnorm import _checks, kernel
from tfgroupnorm.kernel import framework

if TYPE_CHECKING or framework.NAME == 'tensorflow':
  import tensorflow as tf

  from tfgroupnorm import _saved_model, _servable, _verify, _warmup


def export_saved_model(
  model: Any,
  path: str | os.PathLike[str],
  *,
  jit_compile: bool = False,
  quantizable: bool = False,
  warmup: Any = None,
) -> None:
  """Writes a SavedModel that TensorFlow Serving runs without further options.

  TensorFlow Serving serves the folders `<base>/<version>`, where `version` is a
  number: pass such a `path`. The model is first written beside it, under a name
  that is not a number, and is renamed once it has been verified. So a server
  never sees a part of it, and nothing is left behind if something fails.

  It is verified that no function is marked for XLA, that TensorFlow loads the
  model, that the weights on disk are those in memory, and that the loaded model
  predicts what `model` does. That takes no second copy of the weights, except
  for a `tf.Module` or a model with lookup tables.

  There are two signatures, `serving_default` and `serve`, which do the same.
  Inputs have their names in the model (or their keys in a dict), or `input_0`,
  `input_1` and so on where Keras made up the names, since these depend on what
  else the process has made. Outputs are called `output_0` and so on, or after
  their key in a dict. The batch may have any size, and so may all that is
  `None` in the model's input. A subclassed model has the sizes of its first
  call; in Keras 3 its inputs have the dtypes of `warmup`, or else the model's.

  Args:
    model: A built `keras.Model` or `tf_keras.Model`. Or a `tf.Module`: each
      attribute that is a `tf.function` with an `input_signature`, or a concrete
      function, becomes a signature; `serving_default` is the one of that name,
      or else `serve`, or the only one.
    path: The folder to write: new, or empty.
    jit_compile: `False`: XLA compiles nothing, whatever was traced before.
      `True`: it compiles the model as a whole, in servers that are started with
      `--xla_cpu_compilation_enabled` or `--xla_gpu_compilation_enabled`; others
      will fail at the first request. Functions of a `tf.Module` are left as
      they were created.
    quantizable: `True`: the layers of this package compute in an order whose
      intermediate results can be rounded to 8 bits, for programs that quantize
      activations, as LiteRT does by a `representative_dataset`. It is the order
      of `keras.layers`, and as inexact as theirs where the mean is large. For a
      model of Keras, and not with `jit_compile=True`.
    warmup: Example batches. The server runs them before the first request, and
      predictions are compared on them too. A batch is an array or, for more
      than one input, a dict from input names to arrays; pass one, or a list of
      them. Needs the extra `serving`, which is tensorflow-serving-api. `None`:
      no records, and predictions are compared on made-up numbers alone.

  Raises:
    FileExistsError: If `path` exists and is not an empty folder.
    ImportError: If `warmup` is given and tensorflow-serving-api is missing; or
      with JAX beneath Keras.
    RuntimeError: If what was written does not pass verification.
    TypeError: If an argument has the wrong type.
    ValueError: If the model is not built, a batch does not fit it, or
      `quantizable=True` comes with `jit_compile=True` or a `tf.Module`.

  Example:

  >>> import os, tempfile, keras, numpy as np, tensorflow as tf
  >>> from tfgroupnorm import GroupNorm, export_saved_model
  >>> model = keras.Sequential([keras.Input((4, 8), name="x"), GroupNorm(2)])
  >>> path = os.path.join(tempfile.mkdtemp(), "model", "1")
  >>> export_saved_model(model, path)
  >>> serve = tf.saved_model.load(path).signatures["serving_default"]
  >>> serve(x=tf.ones((3, 4, 8)))["output_0"].shape
  TensorShape([3, 4, 8])

  References:
    - [TensorFlow Serving](https://www.tensorflow.org/tfx/serving/serving_basic)
    - [SavedModel warmup](
      https://www.tensorflow.org/tfx/serving/saved_model_warmup)
  """
  _check_framework()
  jit_compile = _checks.check_bool('jit_compile', jit_compile)
  quantizable = _checks.check_bool('quantizable', quantizable)
  if quantizable and jit_compile:
    raise ValueError(
      'Programs that quantize do not know what XLA is to compile. Received: '
      'quantizable=True, jit_compile=True. Export one model for each use.'
    )
  path = _check_path(path)
  batches = _warmup.check_form(warmup)
  if batches:
    _warmup.prediction_log()
  servable = _servable.prepare(model, jit_compile, batches)
  if quantizable and servable.root is model:
    raise ValueError(
      'Functions of a tf.Module are saved as they were traced, perhaps not to '
      f'be quantized. Received: quantizable=True, {type(model).__name__}. Pass '
      'a model of Keras.'
    )
  if servable.specs is not None:
    batches = _warmup.check_batches(batches, servable.specs)
  _write(servable, path, batches, jit_compile, quantizable)
  if jit_compile:
    logging.info(
      '%s is compiled by XLA: start servers with '
      '--xla_cpu_compilation_enabled or --xla_gpu_compilation_enabled.',
      path,
    )


def _check_framework() -> None:
  if framework.NAME != 'tensorflow':
    raise ImportError(
      'A SavedModel is written by TensorFlow, of a model that runs on it. '
      f'Received: Keras with backend {framework.NAME!r}. Call `model.save('
      '"model.keras")` here; then, where KERAS_BACKEND=tensorflow, `import '
      'tfgroupnorm`, load that by `keras.models.load_model` and export it.'
    )


def _write(
  servable: _servable.Servable,
  path: str,
  batches: list[Any],
  jit_compile: bool,
  quantizable: bool,
) -> None:
  """Writes and verifies it beside `path`, where it then comes as a whole."""
  folder, name = os.path.split(path)
  if folder:
    tf.io.gfile.makedirs(folder)
  unfinished = os.path.join(folder, f'.{name}-{uuid.uuid4().hex}')
  try:
    with kernel.quantizable() if quantizable else contextlib.nullcontext():
      _save(servable, unfinished)
    if not jit_compile:
      _saved_model.strip(unfinished)
    saved = _saved_model.read(unfinished)
    _verify.check_marks(saved, jit_compile)
    specs = servable.specs
    if specs is None:
      specs = _saved_model.input_specs(saved, _servable.DEFAULT)
      batches = _warmup.check_batches(batches, specs)
    if batches:
      _warmup.write(unfinished, batches)
    tolerance = _verify.tolerance_of(saved)
    _verify.check_predictions(servable, unfinished, specs, batches, tolerance)
    # If something else has come there meanwhile, this fails.
    tf.io.gfile.rename(unfinished, path, overwrite=True)
  finally:
    if tf.io.gfile.exists(unfinished):
      tf.io.gfile.rmtree(unfinished)


def _save(servable: _servable.Servable, folder: str) -> None:
  try:
    tf.saved_model.save(servable.root, folder, signatures=servable.signatures)
  except (TypeError, ValueError) as error:
    if not servable.guessed or servable.specs is None:
      raise
    raise ValueError(
      'Of a subclassed model Keras 3 knows the shapes of its first argument, '
      f'and no dtypes. Received: one that fails with '
      f'{list(servable.specs.values())}. Pass a batch of the right dtypes as '
      '`warmup`; or, with more arguments, serve it from a tf.Module.'
    ) from error


def _check_path(path: Any) -> str:
  if not isinstance(path, (str, os.PathLike)):
    raise TypeError(
      f'`path` must be a path. Received: path={path!r} of type '
      f'{type(path).__name__}. Pass a str or pathlib.Path such as '
      '"models/digits/1".'
    )
  given, path = path, os.fspath(path).rstrip('/' + os.sep)
  if not path or os.path.basename(path) in ('.', '..'):
    raise ValueError(
      '`path` must name a new folder. Received: path='
      f'{given!r}. Pass something like "models/digits/1".'
    )
  if set(path) & set('*?['):
    # TensorFlow takes them for patterns, and reads no such folder.
    raise ValueError(
      '`path` must be free of the characters *, ? and [. Received: path='
      f'{given!r}. Choose another name.'
    )
  if path.startswith('~'):
    raise ValueError(
      '`path` must be a path as it is: nobody expands a ~ in it. Received: '
      f'path={given!r}. Pass {os.path.expanduser(path)!r}.'
    )
  if path.endswith(('.keras', '.h5', '.hdf5')):
    raise ValueError(
      '`path` must name a folder, and a file of Keras is none. Received: path='
      f'{given!r}. Pass something like "models/digits/1"; a file of Keras, '
      'for Python alone, is what `model.save` writes.'
    )
  if os.path.islink(path):
    raise FileExistsError(
      'A link is not replaced by a version. Received: path='
      f'{given!r}. Pass the folder that it is to lead to, or remove it first.'
    )
  if tf.io.gfile.exists(path) and not (
    tf.io.gfile.isdir(path) and not tf.io.gfile.listdir(path)
  ):
    raise FileExistsError(
      'A version is never overwritten: a server may be reading it. Received: '
      f'path={given!r}, which exists. Pass the next version, or '
      'remove that folder first.'
    )
  return path
