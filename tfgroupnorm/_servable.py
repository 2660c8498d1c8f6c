"""A model of either Keras, or a `tf.Module`, as a server is to call it.

That is what `tf.saved_model.save` takes: functions with signatures, whose
inputs have names, dtypes and shapes, and the state that they use.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfgroupnorm import models

DEFAULT = 'serving_default'

# Names that Keras counts on over all that a process makes.
_AUTOMATIC = {
  'keras': re.compile(r'(keras_tensor|input_layer)(_\d+)?'),
  'tf_keras': re.compile(r'input_\d+'),
}


@dataclasses.dataclass(frozen=True)
class Servable:
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


def prepare(model: Any, jit_compile: bool, batches: list[Any]) -> Servable:
  keras = models.generation_of(model)
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
) -> Servable:
  arguments = _named(_arguments(model, generation), model, generation)
  guessed = generation == 'keras' and models.inputs_of(model) is None
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

  return Servable(
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
  inputs = models.inputs_of(model)
  if inputs is not None:
    return [
      tf.nest.map_structure(
        lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype, t.name), inputs
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


def _module_servable(module: tf.Module) -> Servable:
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

  return Servable(module, {**functions, DEFAULT: function}, None, predict, None)
