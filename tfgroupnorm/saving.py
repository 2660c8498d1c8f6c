"""SavedModels that TensorFlow Serving runs as it comes, without XLA.

The layers stay plain in whatever is traced while it is being saved, so that
`model.export` and its like give a model that any server runs. What was traced
before cannot be mended there: a function marked for XLA is saved as it is, and
a server that was not told to use XLA fails at the first request. So
`export_saved_model` takes the marks out of the file, and then verifies it.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

# The message of the file saved_model.pb, which TensorFlow has nowhere else.
from tensorflow.core.protobuf import saved_model_pb2

from tfgroupnorm import _checks, _layer

DEFAULT = 'serving_default'

# TensorFlow's mark on a function, and on each call of it, that only XLA may run
# it.
_MARK = '_XlaMustCompile'

# More warm-up records TensorFlow Serving refuses, and the model with them.
_MOST_RECORDS = 1000

# Unknown sizes of a made-up batch, tried in turn: some models want a multiple
# of many, some a short sequence.
_SIZES = (32, 64, 8, 256)

# Predictions that are smaller are compared as if they were of this size.
_SMALL = 1e-3

# Names that Keras counts on over all that a process makes.
_AUTOMATIC = {
  'keras': re.compile(r'(keras_tensor|input_layer)(_\d+)?'),
  'tf_keras': re.compile(r'input_\d+'),
}


def export_saved_model(
  model: Any,
  path: str | os.PathLike[str],
  *,
  jit_compile: bool = False,
  warmup: Any = None,
) -> None:
  """Writes a SavedModel that stock TensorFlow Serving runs.

  TensorFlow Serving serves the folders `<base>/<version>`, `version` a number:
  give such a `path`. The model is written beside it under a name that is not a
  number, and gets its name when it has been verified, so that a server never
  sees a part of it, and nothing is left behind if something fails.

  Verified are that no function is marked for XLA, that TensorFlow loads the
  model, that the weights on disk are those in memory, and that the loaded model
  predicts what `model` does. That takes no second copy of the weights, except
  for a `tf.Module` or a model with lookup tables.

  Signatures are `serving_default` and, the same, `serve`. Inputs are called as
  they are in the model, or `input_0`, `input_1` and so on if their names are
  automatic (or after their key in a dict): automatic names depend on what else
  the process has made. Outputs are called `output_0` and so on, or after their
  key in a dict. The batch may have any size, and so may all that is `None` in
  the model's input. A subclassed model has the sizes of its first call; in
  Keras 3 its inputs have the dtypes of `warmup`, or else the model's.

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
    warmup: Example batches. The server runs them before the first request, and
      predictions are compared on them too. A batch is an array, or, for
      more than one input, a dict from input names to arrays; give one, or a
      list of them. Needs `pip install "tfgroupnorm[serving]"`. `None`: no
      records, and predictions are compared on made-up numbers alone.

  Raises:
    FileExistsError: If there is something at `path`.
    ImportError: If `warmup` is given and tensorflow-serving-api is missing.
    RuntimeError: If what was written does not pass verification.
    TypeError: If an argument has the wrong type.
    ValueError: If the model is not built, or a batch does not fit it.

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
  jit_compile = _checks.check_bool('jit_compile', jit_compile)
  path = _check_path(path)
  batches = _check_form(warmup)
  if batches:
    _prediction_log()
  servable = _servable(model, jit_compile, batches)
  if servable.specs is not None:
    batches = _check_batches(batches, servable.specs)

  folder, name = os.path.split(path)
  if folder:
    tf.io.gfile.makedirs(folder)
  unfinished = os.path.join(folder, f'.{name}-{uuid.uuid4().hex}')
  try:
    _save(servable, unfinished)
    if not jit_compile:
      _strip(unfinished)
    saved = _read(unfinished)
    _check_marks(saved, jit_compile)
    specs = servable.specs
    if specs is None:
      specs = _saved_specs(saved)
      batches = _check_batches(batches, specs)
    if batches:
      _write_warmup(unfinished, batches)
    _check_predictions(servable, unfinished, specs, batches, _tolerance(saved))
    # If something else has come there meanwhile, this fails.
    tf.io.gfile.rename(unfinished, path, overwrite=True)
  finally:
    if tf.io.gfile.exists(unfinished):
      tf.io.gfile.rmtree(unfinished)
  if jit_compile:
    logging.info(
      '%s is compiled by XLA: start servers with '
      '--xla_cpu_compilation_enabled or --xla_gpu_compilation_enabled.',
      path,
    )


def _save(servable: _Servable, folder: str) -> None:
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


# --- What is to be saved -----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Servable:
  """A model as `tf.saved_model.save` wants it, and how to run it in memory.

  Attributes:
    root: What is saved.
    signatures: Name -> function.
    specs: Name -> input of `serving_default`; `None`: as it will be saved.
    predict: Runs `serving_default` in memory, on tensors by input name.
    variables: All of the state, saved as `root.variables`; `None` if there may
      be more.
    guessed: Whether of the inputs only the shapes of the first are known.
  """

  root: Any
  signatures: dict[str, Any]
  specs: dict[str, tf.TensorSpec] | None
  predict: Callable[[dict[str, tf.Tensor]], Any]
  variables: list[tf.Variable] | None
  guessed: bool = False


class _Root(tf.Module):
  """A SavedModel with the attributes of one exported by Keras.

  Keras 3 itself saves each variable twice, as its own and as TensorFlow's; a
  server would load both.
  """

  variables: Any = ()
  trainable_variables: Any = ()
  non_trainable_variables: Any = ()


def _servable(model: Any, jit_compile: bool, batches: list[Any]) -> _Servable:
  keras = _layer.generation_of(model)
  if keras is not None:
    return _keras_servable(model, keras.__name__, jit_compile, batches)
  if isinstance(model, tf.Module) and not hasattr(model, 'get_config'):
    return _module_servable(model)
  raise TypeError(
    '`model` must be a model. Received: an object of type '
    f'{type(model).__module__}.{type(model).__qualname__}. Pass a keras.Model '
    'or tf_keras.Model, a layer in a Sequential, or a tf.Module with functions '
    'to serve.'
  )


def _keras_servable(
  model: Any, generation: str, jit_compile: bool, batches: list[Any]
) -> _Servable:
  arguments = _named(_arguments(model, generation), model, generation)
  guessed = generation == 'keras' and not getattr(model, 'inputs', None)
  if guessed and batches:
    arguments = _with_dtypes(arguments, batches[0])
  flat = tf.nest.flatten(arguments)
  variables = {}
  for kind in ('trainable_variables', 'non_trainable_variables'):
    # Keras 3 has a tf.Variable in each of its own.
    variables[kind] = [
      v.value if generation == 'keras' else v
      for v in getattr(model, kind)
      if generation == 'keras' or isinstance(v, tf.Variable)
    ]
  root = _Root()
  root.variables = [v for group in variables.values() for v in group]
  root.trainable_variables = variables['trainable_variables']
  root.non_trainable_variables = variables['non_trainable_variables']
  root.resources = list(_resources(model))

  def serve(*args):
    return model(*args)

  root.serve = tf.function(
    serve,
    input_signature=arguments,
    jit_compile=jit_compile or None,
    # Only in Keras 2 may a layer use Python's `if` and `for` on tensors.
    autograph=generation == 'tf_keras',
  )

  def predict(batch):
    tensors = [batch[spec.name] for spec in flat]
    return model(*tf.nest.pack_sequence_as(arguments, tensors))

  return _Servable(
    root,
    {'serve': root.serve, DEFAULT: root.serve},
    {spec.name: spec for spec in flat},
    predict,
    None if root.resources else list(root.variables),
    guessed,
  )


def _with_dtypes(arguments: list[Any], batch: Any) -> list[Any]:
  """`arguments`, with the dtypes of a batch in which they occur."""

  def like(spec):
    values = batch.get(spec.name) if isinstance(batch, Mapping) else batch
    if values is None:
      return spec
    dtype = tf.convert_to_tensor(values).dtype
    return tf.TensorSpec(spec.shape, dtype, spec.name)

  return tf.nest.map_structure(like, arguments)


def _resources(model: Any) -> Iterator[Any]:
  """State that is not in variables: the tables of lookup layers."""
  for trackable in tf.train.TrackableView(model).descendants():
    # tf-keras does not show a table that never changes.
    table = getattr(trackable, 'lookup_table', trackable)
    if isinstance(table, tf.saved_model.experimental.TrackableResource):
      yield table


def _arguments(model: Any, generation: str) -> list[Any]:
  """The arguments of a call, with `tf.TensorSpec` for each tensor."""
  if not model.built:
    raise ValueError(
      'The model must be built. Received: a model without weights, '
      f'{model.name!r}. Call it once on a batch of the kind to serve.'
    )
  if generation == 'tf_keras':
    args, kwargs = model.save_spec(dynamic_batch=True) or ((), {})
    named = [key for key, value in kwargs.items() if tf.nest.flatten(value)]
    if named:
      raise ValueError(
        'Tensors must be positional arguments of the call to be inputs of a '
        f'signature. Received: {named} by name in the first call of '
        f'{model.name!r}. Serve it from a tf.Module instead.'
      )
    # Of the type that Keras wraps them in, TensorFlow makes no signature.
    return tf.nest.map_structure(lambda spec: spec, list(args))
  if getattr(model, 'inputs', None):
    structure = model.inputs
    if isinstance(model, _layer.generation_of(model).Sequential):
      (structure,) = structure
    elif isinstance(model.input, (dict, list, tuple)):
      structure = model.input
    else:
      (structure,) = structure
    return [
      tf.nest.map_structure(
        lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype, t.name),
        structure,
      )
    ]
  config = model.get_build_config() or {}
  shapes = config.get('shapes_dict') or {'': config.get('input_shape')}
  return [_from_shape(shape, model) for shape in shapes.values()]


def _from_shape(shape: Any, model: Any) -> Any:
  """`tf.TensorSpec` for each shape in a structure of them."""
  if isinstance(shape, Mapping):
    return {key: _from_shape(value, model) for key, value in shape.items()}
  if shape is None:
    raise ValueError(
      'The shapes of the inputs must be known. Received: a model that was '
      f'never called, {model.name!r}. Call it once on a batch.'
    )
  if all(size is None or isinstance(size, int) for size in shape):
    return tf.TensorSpec([None, *shape[1:]], model.input_dtype)
  return [_from_shape(value, model) for value in shape]


def _named(arguments: list[Any], model: Any, generation: str) -> list[Any]:
  """`arguments`, with names that do not depend on the process."""
  layers = getattr(model, 'layers', ())
  named = []
  for i, (path, spec) in enumerate(_with_keys(arguments)):
    name = spec.name or ''
    if (
      not name
      or _AUTOMATIC[generation].fullmatch(name)
      # Of a Sequential without an Input.
      or (layers and name == f'{layers[0].name}_input')
    ):
      name = path or f'input_{i}'
    # As TensorFlow would do.
    name = re.sub(r'\W', '_', name)
    named.append(tf.TensorSpec(spec.shape, spec.dtype, name))
  names = [spec.name for spec in named]
  if len(set(names)) < len(names):
    raise ValueError(
      f'Each input must have a name of its own. Received: {names}. Name them, '
      'for example by `keras.Input(shape, name=...)`.'
    )
  return tf.nest.pack_sequence_as(arguments, named)


def _with_keys(structure: Any, key: str = '') -> Iterator[tuple[str, Any]]:
  """Leaves in the order of `tf.nest.flatten`, with the keys of dicts."""
  if isinstance(structure, Mapping):
    for name in sorted(structure):
      yield from _with_keys(structure[name], f'{key}_{name}' if key else name)
  elif isinstance(structure, (list, tuple)):
    for value in structure:
      yield from _with_keys(value)
  else:
    yield key, structure


def _module_servable(module: tf.Module) -> _Servable:
  concrete = tf.types.experimental.ConcreteFunction
  polymorphic = tf.types.experimental.PolymorphicFunction
  functions = {
    name: function
    for name, function in inspect.getmembers(module)
    if not name.startswith('_')
    and (
      isinstance(function, concrete)
      or isinstance(function, polymorphic)
      and function.input_signature is not None
    )
  }
  choices = [name for name in (DEFAULT, 'serve') if name in functions]
  if not choices and len(functions) == 1:
    choices = list(functions)
  if not choices:
    raise ValueError(
      'A tf.Module must tell what to serve. Received: '
      f'{type(module).__name__} with functions {list(functions)}. Give it an '
      'attribute `serve`, a tf.function with an `input_signature`.'
    )
  function = functions[choices[0]]

  def predict(batch):
    if isinstance(function, concrete):
      return function(**batch)
    return function.get_concrete_function()(**batch)

  return _Servable(
    module, {**functions, DEFAULT: function}, None, predict, None
  )


# --- Marks -------------------------------------------------------------------


def _read(folder: str) -> saved_model_pb2.SavedModel:
  with tf.io.gfile.GFile(os.path.join(folder, 'saved_model.pb'), 'rb') as file:
    return saved_model_pb2.SavedModel.FromString(file.read())


def _saved_specs(
  saved: saved_model_pb2.SavedModel,
) -> dict[str, tf.TensorSpec]:
  inputs = saved.meta_graphs[0].signature_def[DEFAULT].inputs
  return {
    name: tf.TensorSpec(
      tf.TensorShape(inputs[name].tensor_shape),
      tf.as_dtype(inputs[name].dtype),
      name,
    )
    for name in sorted(inputs)
  }


def _functions(saved: saved_model_pb2.SavedModel) -> Iterator[Any]:
  for meta_graph in saved.meta_graphs:
    yield from meta_graph.graph_def.library.function


def _nodes(saved: saved_model_pb2.SavedModel) -> Iterator[Any]:
  for meta_graph in saved.meta_graphs:
    yield from meta_graph.graph_def.node
  for function in _functions(saved):
    yield from function.node_def


def _marked(saved: saved_model_pb2.SavedModel) -> list[str]:
  """Names of functions and calls that only XLA may run."""
  return [
    *(f.signature.name for f in _functions(saved) if _has_mark(f)),
    *(node.name for node in _nodes(saved) if _has_mark(node)),
  ]


def _has_mark(function_or_node: Any) -> bool:
  # Asking for an attribute that is not there would create it.
  attributes = function_or_node.attr
  return _MARK in attributes and attributes[_MARK].b


def _strip(folder: str) -> None:
  """Takes the marks out of a SavedModel."""
  saved = _read(folder)
  if not _marked(saved):
    return
  for function in _functions(saved):
    # XLA alone wants these not to be inlined, and LiteRT then fails.
    if _has_mark(function) and '_noinline' in function.attr:
      del function.attr['_noinline']
  for function_or_node in (*_functions(saved), *_nodes(saved)):
    if _MARK in function_or_node.attr:
      del function_or_node.attr[_MARK]
  with tf.io.gfile.GFile(os.path.join(folder, 'saved_model.pb'), 'wb') as file:
    file.write(saved.SerializeToString())
  # Optional, and of the file as it was.
  fingerprint = os.path.join(folder, 'fingerprint.pb')
  if tf.io.gfile.exists(fingerprint):
    tf.io.gfile.remove(fingerprint)


# --- Warm-up -----------------------------------------------------------------


def _prediction_log() -> Any:
  """The protocol buffers of TensorFlow Serving."""
  try:
    from tensorflow_serving.apis import prediction_log_pb2
  except ImportError as error:
    raise ImportError(
      'Warm-up records are written with tensorflow-serving-api, which is not '
      'installed. Run `pip install "tfgroupnorm[serving]"`, or leave out '
      '`warmup`.'
    ) from error
  return prediction_log_pb2


def _check_form(warmup: Any) -> list[Any]:
  """`warmup` as a list of batches."""
  if warmup is None:
    return []
  if isinstance(warmup, (np.ndarray, tf.Tensor, Mapping)):
    return [warmup]
  if not isinstance(warmup, list) or not all(
    isinstance(batch, (np.ndarray, tf.Tensor, Mapping)) for batch in warmup
  ):
    what = type(warmup).__name__
    if isinstance(warmup, list):
      what += f' of {sorted({type(batch).__name__ for batch in warmup})}'
    raise TypeError(
      '`warmup` must be a batch or a list of batches, a batch being an array '
      'or a tensor, or a dict from input names to such. Received: warmup of '
      f'type {what}. Pass `images[:8]`, or, for more than one input, '
      '`{"image": images[:8], "mask": masks[:8]}`.'
    )
  if not 1 <= len(warmup) <= _MOST_RECORDS:
    raise ValueError(
      f'`warmup` must have 1 to {_MOST_RECORDS} batches: TensorFlow Serving '
      f'takes no more. Received: {len(warmup)}. Pass one for each batch size '
      'that the server will see.'
    )
  return warmup


def _check_batches(
  batches: list[Any], specs: Mapping[str, tf.TensorSpec]
) -> list[dict[str, tf.Tensor]]:
  """Each of `batches` by input name, as `specs` have it."""
  return [_check_batch(batch, specs) for batch in batches]


def _check_batch(
  batch: Any, specs: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
  if not isinstance(batch, Mapping):
    if len(specs) != 1:
      raise ValueError(
        'A batch for a model with more than one input must be a dict. '
        f'Received: an array in `warmup`, for the inputs {list(specs)}. Pass '
        'a dict with an array for each of these.'
      )
    batch = {name: batch for name in specs}
  if set(batch) != set(specs):
    raise ValueError(
      'A batch must have an array for each input. Received: a dict in '
      f'`warmup` with the keys {list(batch)}, for the inputs {list(specs)}.'
    )
  tensors = {name: tf.convert_to_tensor(batch[name]) for name in specs}
  for name, spec in specs.items():
    tensor = tensors[name]
    if 0 in tensor.shape:
      raise ValueError(
        'A batch must hold something, to warm a server up. Received: shape '
        f'{_sizes(tensor.shape)} for the input {name!r} in `warmup`. Leave it '
        'out.'
      )
    # A server casts nothing.
    if tensor.dtype != spec.dtype or not spec.shape.is_compatible_with(
      tensor.shape
    ):
      raise ValueError(
        f'A batch must fit the input {name!r}: shape '
        f'{_sizes(spec.shape)}, dtype {spec.dtype.name}. Received: shape '
        f'{_sizes(tensor.shape)}, dtype {tensor.dtype.name} in `warmup`. '
        'Reshape it, or cast it with `astype`.'
      )
  return tensors


def _sizes(shape: tf.TensorShape) -> tuple[int | None, ...] | None:
  return None if shape.rank is None else tuple(shape)


def _write_warmup(folder: str, batches: list[dict[str, tf.Tensor]]) -> None:
  logs = _prediction_log()
  extra = os.path.join(folder, 'assets.extra')
  tf.io.gfile.makedirs(extra)
  path = os.path.join(extra, 'tf_serving_warmup_requests')
  with tf.io.TFRecordWriter(path) as writer:
    for batch in batches:
      log = logs.PredictionLog()
      request = log.predict_log.request
      request.model_spec.signature_name = DEFAULT
      for name, tensor in batch.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(tensor))
      writer.write(log.SerializeToString())


# --- Verification ------------------------------------------------------------


def _check_marks(saved: saved_model_pb2.SavedModel, jit_compile: bool) -> None:
  marked = _marked(saved)
  if jit_compile and not marked:
    raise ValueError(
      '`jit_compile=True` keeps the functions of a tf.Module as they are. '
      'Received: none that XLA compiles. Create them with '
      '`tf.function(..., jit_compile=True)`.'
    )
  if marked and not jit_compile:
    raise RuntimeError(
      f'The SavedModel still has functions for XLA. Received: {marked}. Please '
      'report this.'
    )


def _check_predictions(
  servable: _Servable,
  folder: str,
  specs: Mapping[str, tf.TensorSpec],
  batches: list[dict[str, tf.Tensor]],
  tolerance: float,
) -> None:
  """Loads what was written, and runs it beside the model in memory."""
  loaded = _load(servable, folder)
  serve = loaded.signatures[DEFAULT]
  # On made-up numbers too: a batch may be all zeros, say. Some models run on
  # none, and are compared on the given batches alone.
  try:
    batches = [*batches, _made_up(servable, specs)]
  except ValueError:
    if not batches:
      raise
  for batch in batches:
    wanted = _predictions(servable, batch)
    received = serve(**batch)
    worst = _difference(received, wanted)
    if worst <= tolerance:
      continue
    again = _difference(_predictions(servable, batch), wanted)
    if again > tolerance:
      logging.warning(
        'Predictions of this model are random: they differ by %.1e of the '
        'largest from one call to the next. That of the SavedModel was not '
        'compared.',
        again,
      )
      continue
    raise RuntimeError(
      'The SavedModel must predict what the model in memory does. Received: a '
      f'difference of {worst:.1e} of the largest, over {tolerance:.1e}. Does '
      'the model depend on whether it runs eagerly?'
    )


def _load(servable: _Servable, folder: str) -> Any:
  """The SavedModel at `folder`, with the weights of the one in memory.

  Theirs are read one at a time, to be compared, and ours put in their place:
  TensorFlow copies a variable when one of two that share it is written.
  """
  if servable.variables is None:
    return tf.saved_model.load(folder)
  loaded = tf.saved_model.load(
    folder,
    options=tf.saved_model.LoadOptions(experimental_skip_checkpoint=True),
  )
  prefix = os.path.join(folder, 'variables', 'variables')
  for i, (ours, theirs) in enumerate(
    zip(servable.variables, loaded.variables, strict=True)
  ):
    with tf.device('/CPU:0'):
      (saved,) = tf.raw_ops.RestoreV2(
        prefix=prefix,
        tensor_names=[f'variables/{i}/.ATTRIBUTES/VARIABLE_VALUE'],
        shape_and_slices=[''],
        dtypes=[theirs.dtype],
      )
      if not _equal(saved, tf.convert_to_tensor(ours)):
        raise RuntimeError(
          'The weights on disk must be those in memory. Received: another '
          f'{ours.name!r}. Was the model trained while it was exported?'
        )
    theirs.assign(ours)
  return loaded


def _equal(a: tf.Tensor, b: tf.Tensor) -> bool:
  equal = a == b
  if b.dtype.is_floating:
    equal |= b != b  # NaN
  return bool(tf.reduce_all(equal))


def _predictions(
  servable: _Servable, batch: dict[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
  """Of the model in memory, called as TensorFlow calls those of a signature."""
  outputs = servable.predict(batch)
  if isinstance(outputs, Mapping):
    return dict(outputs)
  return {f'output_{i}': y for i, y in enumerate(tf.nest.flatten(outputs))}


def _made_up(
  servable: _Servable, specs: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.Tensor]:
  """A batch that the model takes."""
  for size in _SIZES:
    rng = np.random.default_rng(0)
    batch = {name: _random(spec, size, rng) for name, spec in specs.items()}
    try:
      _predictions(servable, batch)
      return batch
    except Exception as caught:  # Whatever a model may do.
      error = caught
  raise ValueError(
    'The model in memory must run, to be compared with what was written. '
    f'Received: {type(error).__name__} on made-up numbers for '
    f'{list(specs.values())}. Pass an example batch as `warmup`.'
  ) from error


def _random(spec: tf.TensorSpec, size: int, rng: np.random.Generator):
  if spec.shape.rank is None:
    raise ValueError(
      'A batch can be made up only for inputs of known rank. Received: '
      f'{spec}. Pass an example batch as `warmup`.'
    )
  shape = [size if n is None else n for n in spec.shape]
  if shape and spec.shape[0] is None:
    shape[0] = 2
  if spec.dtype == tf.string:
    return tf.fill(shape, '')
  if spec.dtype.is_floating or spec.dtype.is_complex:
    return tf.cast(rng.normal(1, 1, shape), spec.dtype)
  return tf.cast(rng.integers(0, 2, shape), spec.dtype)


def _difference(
  received: Mapping[str, tf.Tensor], wanted: Mapping[str, tf.Tensor]
) -> float:
  """The largest difference of any output, in parts of its largest number.

  Or of `_SMALL`, if that is larger: zeros may be rounding errors of ones.
  """
  if set(received) != set(wanted):
    raise RuntimeError(
      'The SavedModel must have the outputs of the model in memory. Received: '
      f'{sorted(received)} for {sorted(wanted)}.'
    )
  worst = 0.0
  for name, y in wanted.items():
    a, b = np.asarray(received[name]), np.asarray(y)
    if a.dtype != b.dtype or a.shape != b.shape:
      return np.inf
    if a.dtype.kind in 'OSUb':
      difference = float(np.any(a != b))
    else:
      a, b = (t.astype('complex128') for t in (a, b))
      finite = np.isfinite(b)
      if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
      gap = np.abs(a - b)[finite].max(initial=0)
      difference = gap / max(np.abs(b)[finite].max(initial=0), _SMALL)
    worst = max(worst, difference)
  return worst


def _tolerance(saved: saved_model_pb2.SavedModel) -> float:
  """How far predictions may be apart, of the largest: half of the digits.

  The digits are those of the coarsest dtype that the model computes in.
  """
  used = {value.type for n in _nodes(saved) for value in n.attr.values()}
  for dtype, digits in _DIGITS.items():
    if dtype.as_datatype_enum in used:
      return 2.0 ** (-digits / 2)
  return 2.0**-26


# Binary digits after the first.
_DIGITS = {tf.bfloat16: 7, tf.float16: 10, tf.float32: 23}
