"""What the first call costs, and shapes that keep changing, beside Keras.

  python benchmarks/first_call.py [--write]

Ratios of times, ours to Keras', of a forward and backward pass: above 1 ours
takes longer. The first call includes tracing and, in a graph, compiling;
eagerly a shape is compiled when it has come often enough, and a later call is
one after that. The last column says after how many calls ours have taken no
longer in all than Keras'. For the changing shapes, 20 heights are run once, and
then ten times, either by a function that is traced once for an unknown height
or eagerly. Every measurement has a process of its own.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import statistics
import sys
import time

from absl import app, flags

import cases as c

RESULTS = pathlib.Path(__file__).parent / 'results'
WRITE = flags.DEFINE_bool('write', False, 'Write results/first_call.json.')

CALLS = 40  # Eagerly, a small shape is compiled at the twentieth.
CASES = [
  c.group(16, 56, 56, 256),
  c.group(2, 32, 32, 64),
  c.layer(8, 128, 512),
  c.head(8, 128, 768),
]


def _step(case: c.Case, owner: str, graph: bool, unknown_height: bool = False):
  import tensorflow as tf

  function = {'ours': c.ours, 'keras': c.theirs}[owner](case)
  gamma, beta = (tf.ones(case.parameter_shape) for _ in range(2))

  def step(x):
    with tf.GradientTape() as tape:
      tape.watch([x, gamma, beta])
      y = function(x, gamma, beta)
    return tape.gradient(y, [x, gamma, beta])

  if not graph:
    return step
  shape = list(case.shape)
  if unknown_height:
    shape[1] = None
  return tf.function(
    step, input_signature=[tf.TensorSpec(shape)], autograph=False
  )


def calls(case: c.Case, owner: str, graph: bool) -> list[float]:
  """Seconds of each of the first `CALLS` calls."""
  import tensorflow as tf

  # What is paid once a process is not the layer's.
  tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros([]))
  _step(c.layer(2, 4), 'keras', graph)(tf.zeros((2, 4)))
  step = _step(case, owner, graph)
  x = tf.random.normal(case.shape)
  times = []
  for _ in range(CALLS):
    begin = time.perf_counter()
    step(x)
    times.append(time.perf_counter() - begin)
  return times


def pays_off(ours: list[float], keras: list[float]) -> int | None:
  """After how many calls ours have taken no longer in all; `None`: never."""
  totals = [
    o - k
    for o, k in zip(
      itertools.accumulate(ours), itertools.accumulate(keras), strict=True
    )
  ]
  # For good: a compilation may come late.
  behind = [i for i, more in enumerate(totals) if more > 0]
  if not behind:
    return 0
  if behind[-1] < len(totals) - 1:
    return behind[-1] + 1
  gain = later(keras) - later(ours)
  return math.ceil(len(totals) + totals[-1] / gain) if gain > 0 else None


def later(times: list[float]) -> float:
  """Seconds of a call when all has been compiled."""
  return statistics.median(times[-10:])


def heights(owner: str, graph: bool, each: int) -> float:
  """Seconds for `each` calls of 20 heights."""
  import tensorflow as tf

  case = c.group(2, 64, 64, 64)
  tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros([]))
  _step(c.layer(2, 4), 'keras', graph)(tf.zeros((2, 4)))
  step = _step(case, owner, graph, unknown_height=True)
  xs = [tf.random.normal((2, h, 64, 64)) for h in range(44, 64)]
  begin = time.perf_counter()
  for _ in range(each):
    for x in xs:
      step(x)
  return time.perf_counter() - begin


def main(_):
  results: list[dict] = []
  titles = ('first call', 'later call', 'pays off after')
  print(f'{"":40}' + ''.join(f'{title:>16}' for title in titles))
  for case in CASES:
    for graph in (True, False):
      ours, keras = (c.alone(calls, case, w, graph) for w in ('ours', 'keras'))
      first_ratio, later_ratio = ours[0] / keras[0], later(ours) / later(keras)
      pays = pays_off(ours, keras)
      name = f'{case.name}, {"graph" if graph else "eager"}'
      results.append(
        {
          'case': name,
          'first_call_to_keras': round(first_ratio, 2),
          'later_call_to_keras': round(later_ratio, 2),
          'pays_off_after_calls': pays,
        }
      )
      print(
        f'{name:40}{first_ratio:16.2f}{later_ratio:16.2f}'
        f'{"never" if pays is None else pays:>16}',
        flush=True,
      )
  for graph in (True, False):
    for each in (1, 10):
      ours, keras = (
        c.alone(heights, w, graph, each) for w in ('ours', 'keras')
      )
      name = f'20 heights, {"graph" if graph else "eager"}, {each} each'
      results.append({'case': name, 'total_to_keras': round(ours / keras, 2)})
      print(f'{name:40}{ours / keras:16.2f}', flush=True)
  if WRITE.value:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / 'first_call.json'
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  app.run(main)
