"""A grid of runs resumes: after Ctrl-C, after a kill, after a torn line."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import experiment
import numpy as np
import pytest

import programs


def double(settings):
  """A run that leaves a trace of each time that it is computed."""
  with open(settings['trace'], 'a') as trace:
    trace.write(f'{settings["number"]} {os.getpid()}\n')
  if settings['number'] == settings.get('slow'):
    time.sleep(60)
  return {'double': 2 * settings['number']}


def grid_of(folder, numbers, **more):
  trace = str(folder / 'trace')
  return [{'number': n, 'trace': trace, **more} for n in numbers]


def run(folder, grid):
  return experiment.run_grid(
    double, grid, folder / 'runs.jsonl', describe=str, workers=2
  )


def computed(folder):
  """Numbers that were computed, and the processes that did it."""
  lines = (folder / 'trace').read_text().splitlines()
  pairs = [tuple(map(int, line.split())) for line in lines]
  return sorted(n for n, _ in pairs), {process for _, process in pairs}


def test_grid_is_computed_once(tmp_path):
  grid = grid_of(tmp_path, range(5))
  records = run(tmp_path, grid)
  assert [record.result['double'] for record in records] == [0, 2, 4, 6, 8]
  assert [record.settings for record in records] == grid
  numbers, processes = computed(tmp_path)
  assert numbers == [0, 1, 2, 3, 4]
  assert os.getpid() not in processes and len(processes) <= 2
  # More of the same: only what is new. Something else: all of it.
  assert run(tmp_path, grid_of(tmp_path, range(6)))[:5] == records
  assert computed(tmp_path)[0] == [0, 1, 2, 3, 4, 5]
  run(tmp_path, grid_of(tmp_path, [0], other=True))
  assert computed(tmp_path)[0] == [0, 0, 1, 2, 3, 4, 5]


def test_torn_line_is_computed_again(tmp_path):
  grid = grid_of(tmp_path, range(3))
  records = run(tmp_path, grid)
  path = tmp_path / 'runs.jsonl'
  path.write_text(path.read_text()[:-9])
  assert len(experiment.read_records(path)) == 2
  assert run(tmp_path, grid) == records
  assert len(path.read_text().splitlines()) == 3
  assert len(computed(tmp_path)[0]) == 4


def test_other_files_are_refused(tmp_path):
  path = tmp_path / 'runs.jsonl'
  path.write_text('{"loss": 1}\n')
  with pytest.raises(ValueError, match='Line 1 of .*Received.*Delete'):
    run(tmp_path, grid_of(tmp_path, [0]))
  assert path.read_text() == '{"loss": 1}\n'


# A grid whose fourth run never ends: two at a time, it waits there.
PROGRAM = """
import pathlib
import sys

sys.path[:0] = [{tests!r}, {examples!r}]
import experiment_test

if __name__ == '__main__':
  folder = pathlib.Path({folder!r})
  experiment_test.run(
    folder, experiment_test.grid_of(folder, range(4), slow=3)
  )
"""


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_interruption_keeps_what_was_finished(tmp_path, how):
  tests = pathlib.Path(__file__).parent
  program = tmp_path / 'program.py'
  program.write_text(
    PROGRAM.format(
      tests=str(tests),
      examples=str(tests.parent / 'examples'),
      folder=str(tmp_path),
    )
  )
  path = tmp_path / 'runs.jsonl'
  process = subprocess.Popen(
    [sys.executable, str(program)],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
    preexec_fn=programs.hear_interrupts,
  )
  wait_for(lambda: len(experiment.read_records(path)) == 3, process)
  if how == signal.SIGINT:  # As from a terminal: to the workers too.
    os.killpg(process.pid, how)
  else:
    process.send_signal(how)
  assert process.wait(30) != 0
  _, workers = computed(tmp_path)
  wait_for(lambda: not any(is_running(worker) for worker in workers))
  assert len(experiment.read_records(path)) == 3
  kept = path.read_text()
  # What was not finished is another run once it is not slow.
  grid = grid_of(tmp_path, range(3), slow=3) + grid_of(tmp_path, [3])
  records = run(tmp_path, grid)
  assert [record.result['double'] for record in records] == [0, 2, 4, 6]
  assert path.read_text().startswith(kept)
  assert computed(tmp_path)[0] == [0, 1, 2, 3, 3]


def test_interruption_between_two_results(tmp_path):
  """It strikes where results are written, not where they are waited for."""

  def interrupted(record):
    raise KeyboardInterrupt

  # Kept, as an interpreter keeps what it is about to print.
  with pytest.raises(KeyboardInterrupt) as caught:
    experiment.run_grid(
      double,
      grid_of(tmp_path, range(2), slow=1),
      tmp_path / 'runs.jsonl',
      describe=interrupted,
      workers=2,
    )
  assert caught.tb is not None
  _, workers = computed(tmp_path)
  assert not any(is_running(worker) for worker in workers)


def wait_for(condition, process=None):
  """Waits until `condition()`, while the process runs, a minute at most."""
  for _ in range(600):
    if condition():
      return
    assert process is None or process.poll() is None, 'It ended before.'
    time.sleep(0.1)
  raise AssertionError('It has not come true in a minute.')


def is_running(process):
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  # One that has ended and that nobody has asked for yet.
  state = pathlib.Path(f'/proc/{process}/stat')
  return not state.exists() or ') Z ' not in state.read_text()


def test_summaries():
  assert experiment.summary([3.0, 1.0, 2.5]) == (2.5, 1.0, 3.0)
  assert f'{experiment.summary([3.0, 1.0, 2.5]):.1f}' == '2.5 (1.0 to 3.0)'
  records = [
    experiment.Record({'a': a, 'b': b}, {}) for a in (1, 2) for b in (3, 4)
  ]
  assert experiment.select(records, a=2, b=3) == [records[2]]
  assert experiment.markdown(['x', 'long'], [['one', '2']]).splitlines() == [
    '| x   | long |',
    '|-----|------|',
    '| one | 2    |',
  ]


def test_restart():
  """As just compiled: other weights, no momentum, the same learning rate."""
  import keras  # Not at the top: the workers of `run` do without.

  def make():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

  model, fresh = make(), make()
  model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss='mse')
  x, y = np.ones((4, 2)), np.ones((4, 1))
  losses = []
  for _ in range(2):
    experiment.restart(model, fresh)
    history = model.fit(x, y, epochs=3, verbose=0).history
    losses.append(history['loss'])
  assert losses[0] == losses[1] and losses[0][0] > losses[0][-1]
  rate = keras.ops.convert_to_numpy(model.optimizer.learning_rate)
  assert rate == pytest.approx(0.1)


def test_file_is_json_lines(tmp_path):
  run(tmp_path, grid_of(tmp_path, [7]))
  (line,) = (tmp_path / 'runs.jsonl').read_text().splitlines()
  assert json.loads(line)['result'] == {'double': 14}
