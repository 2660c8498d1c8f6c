"""`tf.function`s whose traces go when the graphs that call them have gone."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

# Where a graph keeps the functions that are called in it.
_HOME = '_tfgroupnorm_functions'


def outermost(graph: tf.Graph) -> tf.Graph:
  """The function in which `graph` is traced, and not one inside it."""
  while True:
    outer = getattr(graph, 'outer_graph', None)
    # Around the outermost is the graph of the process, which never goes.
    if not hasattr(outer, 'outer_graph'):
      return graph
    graph = outer


class _Kind(NamedTuple):
  """What of a tensor makes another trace, and where eager ones lie."""

  dtype: tf.DType
  shape: tuple[int | None, ...] | None
  device: str | None = None


def _key(argument: Any, eagerly: bool = False) -> Any:
  """What of an argument makes another trace."""
  if isinstance(argument, (list, tuple)):
    return tuple([_key(each, eagerly) for each in argument])
  if isinstance(argument, tf.Tensor):
    shape = argument.shape
    sizes = None if shape.rank is None else tuple(shape)
    return _Kind(argument.dtype, sizes, argument.device if eagerly else None)
  return argument


def _tensors_of(arguments: Any) -> list[tf.Tensor]:
  """Those among arguments and in lists of these."""
  return [t for t in tf.nest.flatten(arguments) if isinstance(t, tf.Tensor)]


class Function:
  """A `tf.function` of `body`, one for each kind of arguments.

  A `tf.function` of a module holds all its traces for ever. In a graph, these
  are held by the function of the user in which they are called: its layers
  share them, as do other functions meanwhile, and all goes with the last.

  Eagerly, a `tf.function` takes a third of a small layer's time to find the
  trace that serves its arguments. Here their kind finds a concrete function.

  Attributes:
    traces: How often `body` has been traced.
  """

  def __init__(self, body: Callable, *, eagerly: int | None = None, **options):
    """Args:

    body: A function of tensors, lists of these and hashable objects.
    eagerly: How many kinds of arguments of eager calls are kept, the latest;
      `None`: all of them.
    **options: Of the `tf.function`.
    """
    self.traces = 0
    self._options = options
    self._lock = threading.Lock()
    self._living: weakref.WeakValueDictionary[Any, Any] = (
      weakref.WeakValueDictionary()
    )
    self._concrete = functools.lru_cache(eagerly)(self._concrete_of)

    @functools.wraps(body)
    def traced(*args):
      self.traces += 1
      return body(*args)

    self._traced = traced

  def _made(self, body: Callable):
    made = tf.function(body, autograph=False, **self._options)
    # TensorFlow warns of a function that is traced again and again. This one
    # serves every layer of a model, each of which is traced once.
    made._omit_frequent_tracing_warning = True
    return made

  def _concrete_of(self, key):
    """The body as a function of the tensors alone of arguments of this kind."""

    def of(kinds, tensors):
      if isinstance(kinds, _Kind):
        return next(tensors)
      if isinstance(kinds, tuple):
        return [of(kind, tensors) for kind in kinds]
      return kinds

    def body(*tensors):
      return self._traced(*of(key, iter(tensors)))

    def specs(kinds):
      if isinstance(kinds, _Kind):
        yield tf.TensorSpec(kinds.shape, kinds.dtype)
      elif isinstance(kinds, tuple):
        for kind in kinds:
          yield from specs(kind)

    with tf.device(None):  # It runs where its arguments are.
      return self._made(body).get_concrete_function(*specs(key))

  def __call__(self, *args):
    if tf.executing_eagerly():
      if tf.config.functions_run_eagerly():
        return self._traced(*args)
      return self._concrete(_key(args, eagerly=True))(*_tensors_of(args))
    key, graph = _key(args), outermost(tf.compat.v1.get_default_graph())
    with self._lock:
      function = self._living.get(key)
      if function is None:
        function = self._living[key] = self._made(self._traced)
      if not hasattr(graph, _HOME):
        setattr(graph, _HOME, set())
      getattr(graph, _HOME).add(function)
    return function(*args)


@functools.partial(Function, jit_compile=True)
def compiled(body, *args):
  """`body(*args)`, compiled by XLA: the only compilation in this package."""
  return body(*args)


def plain(body, *args):
  """`body(*args)`, op by op."""
  return body(*args)
