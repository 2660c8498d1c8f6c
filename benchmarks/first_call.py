"""What the first call costs, and shapes that keep changing, beside Keras.

  python benchmarks/first_call.py [--write]

Ratios of times, ours to Keras', of a forward and backward pass: above 1 ours
takes longer. The first call includes tracing and compiling; the last columns
say after how many further calls that has paid off. For the changing shapes, 20
heights are run once, and then ten times, either by a function that is traced
once for an unknown height or eagerly. Every measurement has a process of its
own.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time

from absl import app, flags

import cases as c

RESULTS = pathlib.Path(__file__).parent / 'results'
WRITE = flags.DEFINE_bool('write', False, 'Write results/first_call.json.')

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


def first(case: c.Case, owner: str, graph: bool) -> tuple[float, float]:
  """Seconds of the first call, and of a later one."""
  import tensorflow as tf

  # What is paid once a process is not the layer's.
  tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros([]))
  _step(c.layer(2, 4), 'keras', graph)(tf.zeros((2, 4)))
  step = _step(case, owner, graph)
  x = tf.random.normal(case.shape)
  times = []
  for _ in range(21):
    begin = time.perf_counter()
    step(x)
    times.append(time.perf_counter() - begin)
  return times[0], statistics.median(times[1:])


def heights(owner: str, graph: bool, calls: int) -> float:
  """Seconds for `calls` of each of 20 heights."""
  import tensorflow as tf

  case = c.group(2, 64, 64, 64)
  tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros([]))
  _step(c.layer(2, 4), 'keras', graph)(tf.zeros((2, 4)))
  step = _step(case, owner, graph, unknown_height=True)
  xs = [tf.random.normal((2, h, 64, 64)) for h in range(44, 64)]
  begin = time.perf_counter()
  for _ in range(calls):
    for x in xs:
      step(x)
  return time.perf_counter() - begin


def main(_):
  results: list[dict] = []
  titles = ('first call', 'later call', 'pays off after')
  print(f'{"":40}' + ''.join(f'{title:>16}' for title in titles))
  for case in CASES:
    for graph in (True, False):
      ours, keras = (c.alone(first, case, w, graph) for w in ('ours', 'keras'))
      gain, extra = keras[1] - ours[1], ours[0] - keras[0]
      pays = max(0, round(extra / gain)) if gain > 0 else None
      name = f'{case.name}, {"graph" if graph else "eager"}'
      results.append(
        {
          'case': name,
          'first_call_to_keras': round(ours[0] / keras[0], 2),
          'later_call_to_keras': round(ours[1] / keras[1], 2),
          'pays_off_after_calls': pays,
        }
      )
      print(
        f'{name:40}{ours[0] / keras[0]:16.2f}{ours[1] / keras[1]:16.2f}'
        f'{"never" if pays is None else pays:>16}',
        flush=True,
      )
  for graph in (True, False):
    for calls in (1, 10):
      ours, keras = (
        c.alone(heights, w, graph, calls) for w in ('ours', 'keras')
      )
      name = f'20 heights, {"graph" if graph else "eager"}, {calls} each'
      results.append({'case': name, 'total_to_keras': round(ours / keras, 2)})
      print(f'{name:40}{ours / keras:16.2f}', flush=True)
  if WRITE.value:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / 'first_call.json'
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  app.run(main)
