"""`tf.function`s whose traces go when the graphs that call them have gone."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

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


def _key(argument: Any) -> Any:
  """What of an argument makes another trace; tensors by dtype and shape."""
  if isinstance(argument, (list, tuple)):
    return tuple(map(_key, argument))
  if tf.is_tensor(argument):
    shape = argument.shape
    return argument.dtype, None if shape.rank is None else tuple(shape)
  return argument


class Function:
  """A `tf.function` of `body`, one for each kind of arguments.

  A `tf.function` of a module holds all its traces for ever. In a graph, these
  are held by the function of the user in which they are called: its layers
  share them, as do other functions meanwhile, and all goes with the last.

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
    self._body, self._options = body, options
    self._lock = threading.Lock()
    self._living: weakref.WeakValueDictionary[Any, Any] = (
      weakref.WeakValueDictionary()
    )
    self._eager = self._made()
    self._latest = None
    if eagerly is not None:
      self._latest = functools.lru_cache(eagerly)(lambda key: self._made())

  def _made(self):
    @functools.wraps(self._body)
    def traced(*args):
      self.traces += 1
      return self._body(*args)

    made = tf.function(traced, autograph=False, **self._options)
    # TensorFlow warns of a function that is traced again and again. This one
    # serves every layer of a model, each of which is traced once.
    made._omit_frequent_tracing_warning = True
    return made

  def __call__(self, *args):
    if tf.executing_eagerly():
      if self._latest is None:
        return self._eager(*args)
      return self._latest(_key(args))(*args)
    key, graph = _key(args), outermost(tf.compat.v1.get_default_graph())
    with self._lock:
      function = self._living.get(key)
      if function is None:
        function = self._living[key] = self._made()
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
