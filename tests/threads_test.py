"""One layer may be called from many threads."""

import concurrent.futures
import threading

import numpy as np
import tensorflow as tf

import cases

THREADS = 8


@cases.one_of_each
@cases.both_kerases
def test_one_layer_from_8_threads(case, generation):
  """All start at once, on shapes never seen: tracing and probing included."""
  layer = case.layer(generation)
  x, gamma, beta = case.data()
  layer.build(x.shape)
  layer.set_weights([gamma] if beta is None else [gamma, beta])
  start = threading.Barrier(THREADS)

  def work(seed):
    batch = 3 + seed % 3 + 5 * (generation == 'keras')
    x = np.random.default_rng(seed).normal(3, 2, (batch, *case.shape[1:]))
    x = tf.constant(x.astype('float32'))
    start.wait()
    results = []
    for _ in range(5):
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
      results.append((y.numpy(), tape.gradient(y, x).numpy()))
    return x.numpy(), results

  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    finished = list(pool.map(work, range(THREADS)))
  for x, results in finished:
    wanted = case.reference(*cases.wide(x, gamma, beta))
    for y, dx in results:
      np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6)
      np.testing.assert_array_equal(dx, results[0][1])
