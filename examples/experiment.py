"""What the experiments share: grids of runs that resume, and their summaries.

A run is a function of its settings, which are numbers, strings and lists of
them. Each finished run is one line of a file,

    {"settings": {"batch_size": 2, ...}, "result": {"error": 7.9, ...}}

so that whoever starts the same grid again gets what is there and computes the
rest. A run with any setting changed is another run. A change of the program is
not noticed: what may be tuned there belongs into the settings too.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tqdm
from absl import flags

if TYPE_CHECKING:
  import keras

Settings = dict[str, Any]
INTERRUPTED = 130  # What a shell calls a program that Ctrl-C ended.

# What TensorFlow reads in each worker: processes are what shares the cores, and
# a GPU, if there is one, is for all of them.
ENVIRONMENT = {
  'TF_NUM_INTRAOP_THREADS': '1',
  'TF_NUM_INTEROP_THREADS': '1',
  'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
}


class Record(NamedTuple):
  """A finished run: what it was asked, and what came of it."""

  settings: Settings
  result: dict[str, Any]


class Summary(NamedTuple):
  """The middle and the ends of what several seeds gave."""

  median: float
  low: float
  high: float

  def __format__(self, form: str) -> str:
    median, low, high = (format(value, form) for value in self)
    return f'{median} ({low} to {high})'


def summary(values: Iterable[float]) -> Summary:
  """Median, least and greatest of `values`."""
  values = list(values)
  return Summary(statistics.median(values), min(values), max(values))


def verdict(
  differences: np.ndarray,
  if_above: str = 'yes',
  if_below: str = 'no, the opposite',
  if_neither: str = 'seeds disagree',
) -> str:
  """Whether one thing is above another, where all seeds agree on it."""
  if (differences > 0).all():
    return if_above
  return if_below if (differences < 0).all() else if_neither


def select(records: Iterable[Record], **settings) -> list[Record]:
  """The records whose settings agree with all of `settings`."""
  return [
    record
    for record in records
    if all(record.settings[name] == value for name, value in settings.items())
  ]


def values(records: Iterable[Record], name: str, **settings) -> np.ndarray:
  """Result `name` of the selected runs, in the order of their seeds."""
  chosen = select(records, **settings)
  chosen.sort(key=lambda record: record.settings['seed'])
  return np.array([record.result[name] for record in chosen])


def present(
  records: Iterable[Record], name: str, known: Iterable[str]
) -> list[str]:
  """Those of `known` that occur as setting `name`, in that order."""
  found = {record.settings[name] for record in records}
  return [each for each in known if each in found]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table that reads well in a terminal and in a document."""
  cells = [header, *rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '| ' + ' | '.join(map(str.ljust, row, widths)) + ' |' for row in cells
  ]
  lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  return '\n'.join(lines)


def findings(claims: Iterable[tuple]) -> str:
  """Which of the paper's findings runs show, as a table with figures.

  Args:
    claims: For each what the paper found, by how many points it is so here, by
      seed, and words of `verdict` in place of the usual ones. One without any
      seed is left out.
  """
  return markdown(
    ["the paper's finding", 'points here', 'reproduced'],
    [
      [claim, f'{summary(points):+.2f}', verdict(points, *words)]
      for claim, points, *words in claims
      if len(points)
    ],
  )


def restart(model: keras.Model, fresh: keras.Model) -> None:
  """Gives a compiled model the weights of `fresh`, and no past.

  That spares each seed but the first the compilation.
  """
  model.set_weights(fresh.get_weights())
  for variable in model.optimizer.variables:
    if variable.name != 'learning_rate':
      variable.assign(np.zeros(variable.shape))


def steps_per_execution(steps: int) -> int:
  """For `compile`: all `steps` at once, where Keras does that well.

  Before 3.7 it drops steps at the end of the data, and refuses more than 32.
  """
  import keras  # Not at the top: workers of other programs do without.

  version = tuple(map(int, keras.__version__.split('.')[:2]))
  return steps if version >= (3, 7) else 1


# --- The file -----------------------------------------------------------------


def _key(settings: Settings) -> str:
  return json.dumps(settings, sort_keys=True)


def read_records(path: pathlib.Path) -> list[Record]:
  """All finished runs in the file; none if there is no file yet.

  Raises:
    ValueError: If a line is not a record. An unfinished last line is not an
      error: that is where a machine stopped while it wrote.
  """
  records = []
  text = path.read_text() if path.exists() else ''
  for number, line in enumerate(text.splitlines(keepends=True), 1):
    if not line.endswith('\n'):
      break
    try:
      records.append(Record(**json.loads(line)))
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'Line {number} of {path} is not a finished run. Received: '
        f'{line[:60]!r}. Delete that line, or name another folder.'
      ) from error
  return records


def _append(path: pathlib.Path, record: Record) -> None:
  """Writes one line, over an unfinished one if there is one."""
  with open(path, 'ab+') as file:
    file.seek(0)
    text = file.read()
    file.truncate(text.rfind(b'\n') + 1)
    file.write(json.dumps(record._asdict()).encode() + b'\n')
    file.flush()
    os.fsync(file.fileno())


# --- The grid -----------------------------------------------------------------


def run_grid(
  train: Callable[[Settings], dict[str, Any]],
  grid: Sequence[Settings],
  path: pathlib.Path,
  *,
  describe: Callable[[Record], str],
  workers: int | None = None,
) -> list[Record]:
  """Computes what the file does not have yet, in one process a core.

  Ctrl-C ends the runs in progress; all that had finished stays in the file.

  Args:
    train: The experiment: settings to a result, both JSON. A function of a
      module, so that other processes find it.
    grid: The settings of all runs, in the order in which they are to start.
    path: The file. Its folder must exist.
    describe: What to print of a run that has finished.
    workers: Number of processes; the number of cores if left out.

  Returns:
    A record for each run of `grid`, in that order.

  Raises:
    ValueError: If the file holds something else.
  """
  done = {_key(record.settings): record for record in read_records(path)}
  waiting = [settings for settings in grid if _key(settings) not in done]
  bar = tqdm.tqdm(
    total=len(grid),
    initial=len(grid) - len(waiting),
    unit='run',
    dynamic_ncols=True,
    disable=None,
  )
  if waiting:
    print(
      f'{len(grid) - len(waiting)} of {len(grid)} runs are in {path}, '
      f'{len(waiting)} to go.',
      flush=True,
    )
  finished = _finished(train, waiting, workers or _cores())
  # Closed at once when Ctrl-C strikes in the loop: only then do workers end.
  with bar, contextlib.closing(finished):
    for record in finished:
      _append(path, record)
      done[_key(record.settings)] = record
      bar.update()
      bar.write(describe(record))
      sys.stdout.flush()
  return [done[_key(settings)] for settings in grid]


def _cores() -> int:
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _finished(train, waiting, workers):
  """Yields a record whenever a run has finished."""
  waiting = list(reversed(waiting))
  workers = min(workers, len(waiting))
  if not workers:
    return
  others = set(multiprocessing.active_children())
  # Forked processes would share TensorFlow's threads, which do not survive.
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_worker,
  ) as pool:
    running: dict[concurrent.futures.Future, Settings] = {}
    try:
      while waiting or running:
        # No more than can run: what a pool has queued, it cannot take back.
        while waiting and len(running) < workers:
          settings = waiting.pop()
          running[pool.submit(train, settings)] = settings
        finished, _ = concurrent.futures.wait(
          running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          yield Record(running.pop(future), future.result())
    except BaseException:
      for process in set(multiprocessing.active_children()) - others:
        process.terminate()
      raise


def _start_worker() -> None:
  """Readies a process that shares the machine with its like."""
  os.environ.update(ENVIRONMENT)  # Nothing has run yet.
  # Ctrl-C in a terminal reaches all; the parent ends its workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  # Else a worker would outlive a parent that was killed.
  threading.Thread(target=follow, daemon=True).start()


# --- The command line ---------------------------------------------------------


def define_flags(output: str, seeds: int) -> None:
  """The flags that all experiments have."""
  flags.DEFINE_string('output', output, 'Folder for what is written.')
  flags.DEFINE_integer('seeds', seeds, 'Runs of each kind.', lower_bound=1)
  flags.DEFINE_integer(
    'workers',
    None,
    'Processes that share the work; one for each core if left out.',
    lower_bound=1,
  )


def output_folder() -> pathlib.Path:
  """The folder of --output, made if need be."""
  folder = pathlib.Path(flags.FLAGS.output)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    sys.exit(f'Cannot create the folder of --output: {error}')
  return folder


def run_grid_of_flags(train, grid, path, *, describe) -> list[Record]:
  """`run_grid` as a command: a bad file and Ctrl-C end with a message."""
  try:
    read_records(path)
  except (OSError, ValueError) as error:
    sys.exit(str(error))
  try:
    return run_grid(
      train, grid, path, describe=describe, workers=flags.FLAGS.workers
    )
  except KeyboardInterrupt:
    print(
      f'Interrupted. {path} has what was finished; the same command goes on '
      'from there.',
      file=sys.stderr,
    )
    sys.exit(INTERRUPTED)
