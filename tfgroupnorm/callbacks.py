"""What a model's layers do to its features, watched while it trains.

One class serves `fit` of Keras 3 and of tf-keras, which it never imports.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfgroupnorm import _checks, _features, _figures
from tfgroupnorm._reading import reading

# Records, however cheap, come at least this part of the steps so far apart, so
# that their number grows with the logarithm of the steps.
_FINEST = 1 / 500

# Records that are made of a training whatever they cost: a curve of two points
# shows nothing. Then their number grows with the logarithm of the steps.
_LEAST = 20


def _check_percentiles(percentiles: Any) -> tuple[float, ...]:
  values = np.asarray(percentiles)
  if values.ndim != 1 or not values.size or values.dtype.kind not in 'iuf':
    raise ValueError(
      '`percentiles` must be numbers, one at least. Received: percentiles='
      f'{percentiles!r}. Pass a tuple such as (1, 20, 80, 99).'
    )
  if not np.all((values >= 0) & (values <= 100)):
    raise ValueError(
      '`percentiles` must lie between 0 and 100. Received: percentiles='
      f'{percentiles!r}. 50 is the median.'
    )
  return tuple(values.tolist())


def _check_update_freq(update_freq: Any) -> int | str:
  if isinstance(update_freq, str):
    if update_freq in ('auto', 'epoch'):
      return update_freq
    if update_freq == 'batch':
      return 1
    raise ValueError(
      '`update_freq` must be "auto", "epoch", "batch" or a number of steps. '
      f'Received: update_freq={update_freq!r}. Use "auto" to have it chosen by '
      'what records cost.'
    )
  update_freq = _checks.check_int('update_freq', update_freq)
  if update_freq < 1:
    raise ValueError(
      '`update_freq` must be one step or more. Received: update_freq='
      f'{update_freq}. Use "auto" to have it chosen by what records cost.'
    )
  return update_freq


def _check_max_share(max_share: Any) -> float:
  if isinstance(max_share, bool) or not isinstance(
    max_share, (int, float, np.floating)
  ):
    raise TypeError(
      '`max_share` must be a number. Received: max_share='
      f'{max_share!r} of type {type(max_share).__name__}. 0.02 is 2%.'
    )
  if not 0 < max_share <= 1:
    raise ValueError(
      '`max_share` must be a share of the training time, above 0 and at '
      f'most 1. Received: max_share={max_share!r}. 0.02 is 2%.'
    )
  return float(max_share)


class ActivationPercentiles(keras.callbacks.Callback):
  """Follows percentiles of layers' features, on fixed data, over training.

  A callback for `fit` of Keras 3 and of tf-keras alike. Before the first step,
  and again and again while the model trains, the model is called on `data` as
  for inference, and percentiles of what the chosen layers return are recorded:
  kept in `history`, written for TensorBoard, and drawn by `plot`. This is how
  the Group Normalization paper shows what normalization does to the features of
  VGG-16 (its Figure 6).

  Training is not disturbed: no random number is drawn, and no weight, moving
  statistic or metric changes. By default it costs less than 2% of the training
  time: with `update_freq="auto"` the callback measures its own time, and makes
  a record only when it can be afforded. Some 20 records are made whatever they
  cost, often at first and then less often, up to the last step if `fit` knows
  it. Preparing the first takes up to a second, so in a training of less than a
  minute the share may be larger: see `share`. Features of many values are
  sampled, at the same places each time.

  Args:
    data: One batch of inputs: what the model can be called on.
    layers: Which layers' outputs to follow: names (of layers in nested models
      too, or paths such as `"block/norm"`), layers, or a function that takes a
      layer and returns whether to follow it. `None`: all normalization layers,
      ours and those of Keras.
    percentiles: Numbers from 0 to 100.
    update_freq: `"auto"`, `"epoch"`, or a number of steps from one record to
      the next; `"batch"` is 1. Only `"auto"` limits the time.
    max_share: The share of the training time that `"auto"` may take.
    log_dir: Folder for TensorBoard, or `None`. Each percentile is written as a
      run of its own, so that TensorBoard draws them in one chart for a layer.
      Needs TensorFlow, and no `tensorboard`.
    sample_size: How many values of a layer to take at most.

  Attributes:
    history: dict, name of a layer -> array (records, percentiles).
    steps: Array (records,): how many steps the model had been trained for,
      counted from the first `fit` with this callback, over all of them.
    share: The callback's own time, as a share of the time spent in `fit`.

  Raises:
    ValueError: If an argument is not allowed, or does not fit the model; the
      latter when `fit` begins, before any training.
    TypeError: If an argument has the wrong type.

  Example:

  >>> import keras
  >>> import numpy as np
  >>> from tfgroupnorm import GroupNorm
  >>> from tfgroupnorm.callbacks import ActivationPercentiles
  >>> x = np.random.default_rng(0).normal(5.0, 2.0, (64, 8)).astype("float32")
  >>> model = keras.Sequential(
  ...   [keras.Input((8,)), GroupNorm(2, name="norm"), keras.layers.Dense(1)]
  ... )
  >>> model.compile("sgd", "mse")
  >>> percentiles = ActivationPercentiles(x[:16], update_freq=2)
  >>> _ = model.fit(
  ...   x, x[:, :1], batch_size=16, verbose=0, callbacks=[percentiles]
  ... )
  >>> percentiles.steps
  array([0, 2, 4])
  >>> percentiles.history["norm"].shape
  (3, 4)

  References:
    - [Wu & He, 2018](https://arxiv.org/abs/1803.08494), section 4.1
  """

  # A name of tf-keras': it need not turn the logs into arrays for this one.
  _supports_tf_logs = True

  def __init__(
    self,
    data: Any,
    layers: Any = None,
    percentiles: Sequence[float] = (1, 20, 80, 99),
    *,
    update_freq: int | str = 'auto',
    max_share: float = 0.02,
    log_dir: str | os.PathLike | None = None,
    sample_size: int = 2**16,
  ):
    super().__init__()
    self._data = _features.check_data(data)
    self._layers = _features.check_layers(layers)
    self.percentiles = _check_percentiles(percentiles)
    self.update_freq = _check_update_freq(update_freq)
    self.max_share = _check_max_share(max_share)
    self.log_dir = None if log_dir is None else os.fspath(log_dir)
    if self.log_dir is not None:
      reading.Writers.check(self.log_dir)
    self.sample_size = _checks.check_int('sample_size', sample_size)
    if self.sample_size < 1:
      raise ValueError(
        '`sample_size` must be positive. Received: sample_size='
        f'{sample_size}. 65536 values know the 1st percentile to within 0.1%.'
      )
    self._followed: Any = None  # The model.
    self._read: Callable[[], dict[str, Any]] | None = None
    self._writers: reading.Writers | None = None
    self._steps: list[int] = []
    self._records: dict[str, list[np.ndarray]] = {}
    self._step = 0
    self._batch = -1
    self._ask_at = 0
    self._began = 0  # The step at which this fit began,
    self._began_records = 0  # and how many records there were.
    self._least_at = 0  # The step of the next that is made whatever it costs.
    self._planned: int | None = None  # Steps, with those of earlier fits.
    self._ticked = time.perf_counter()
    self._seconds = 0.0  # In all fits, with our own time, up to the last tick.
    self._setup_seconds = 0.0
    self._record_seconds = 0.0

  @property
  def history(self) -> dict[str, np.ndarray]:
    return {
      name: np.reshape(rows, (-1, len(self.percentiles)))
      for name, rows in self._records.items()
    }

  @property
  def steps(self) -> np.ndarray:
    return np.array(self._steps, int)

  @property
  def share(self) -> float:
    own = self._setup_seconds + self._record_seconds
    return own / self._seconds if self._seconds else 0.0

  # --- What Keras calls -------------------------------------------------------

  def on_train_begin(self, logs=None):
    if self._followed is None:
      self._followed = self.model
    elif self._followed is not self.model:
      raise ValueError(
        'A callback follows one model. Received: a second one, '
        f'{self.model.name!r}. Create another ActivationPercentiles for it.'
      )
    # The last training may have been interrupted, and so not have ended.
    self._close_writers()
    self._ticked = time.perf_counter()
    self._planned = None
    self._began, self._began_records = self._step, len(self._steps)
    self._least_at = self._step
    # What is not built yet, is by the first step.
    if self.model.built and not self._steps:
      self._record()

  def on_epoch_begin(self, epoch, logs=None):
    self._batch = -1
    if self._planned is None and self.params.get('steps'):
      epochs = self.params['epochs'] - epoch
      self._planned = self._step + epochs * self.params['steps']

  def on_train_batch_end(self, batch, logs=None):
    self._tick()
    before = self._step
    # One execution may have been several steps, and `batch` the last of them,
    # before Keras 3.11 the first; the last one of an epoch has fewer.
    together = getattr(self.model, 'steps_per_execution', 1)
    # Keras 2 has a variable there, and always tells the last.
    if isinstance(together, int) and batch % together == 0:
      batch += together - 1
    # The first Keras 3 has none before it tells them.
    steps = (getattr(self, 'params', None) or {}).get('steps')
    if steps:
      batch = min(batch, steps - 1)
    self._step += batch - self._batch
    self._batch = batch
    if self.update_freq == 'auto':
      due = self._step >= self._least_at or self._affordable()
    elif self.update_freq == 'epoch':
      due = not self._steps
    else:
      due = self._step // self.update_freq > before // self.update_freq
    if due:
      self._record()
      # Once for many steps: what each of them costs is not measured.
      self._least_at = self._next_of_the_least()

  def on_epoch_end(self, epoch, logs=None):
    if self.update_freq == 'epoch' and self._unrecorded():
      self._record()

  def on_train_end(self, logs=None):
    self._tick()
    if self.update_freq == 'auto' and self._unrecorded():
      # Whatever it costs, so as not to leave its second half without one where
      # it has ended early.
      if 2 * self._steps[-1] < self._step or self._allowed(records=1):
        self._record()
    self._close_writers()
    self._tick()

  # tf-keras asks each callback whether it has anything to do at a step. These
  # are names of its own base class, and the only thing that this one, of
  # Keras 3, lacks for it.

  def _implements_train_batch_hooks(self) -> bool:
    return True

  def _implements_test_batch_hooks(self) -> bool:
    return False

  def _implements_predict_batch_hooks(self) -> bool:
    return False

  # --- When -------------------------------------------------------------------

  def _unrecorded(self) -> bool:
    """Whether there were steps since the last record."""
    return self._step > (self._steps[-1] if self._steps else 0)

  def _tick(self) -> float:
    """Adds the seconds since the last tick to those in `fit`; returns them."""
    now = time.perf_counter()
    passed, self._ticked = now - self._ticked, now
    self._seconds += passed
    return passed

  def _allowed(self, records: int) -> bool:
    """Whether so many more of them keep us under `max_share`."""
    own = self._setup_seconds + self._record_seconds
    # A quarter is for what is not measured, being called at each step, and for
    # the record that takes longer than those before it.
    allowance = 0.75 * self.max_share * (self._seconds - own)
    progress = min(1.0, self._step / self._planned) if self._planned else 1.0
    # The preparation counts little by little, if it is known how long training
    # will be: or it would keep us from the first steps, where most happens.
    setup = progress * self._setup_seconds
    if setup > allowance:
      # This training is too short for the preparation alone. What can be kept
      # small is what comes on top.
      setup = 0.75 * allowance
    each = self._record_seconds / max(1, len(self._steps))
    return self._record_seconds + setup + records * each <= allowance

  def _next_of_the_least(self) -> int:
    """The step of the next record that a training always has."""
    last = max(0, self._steps[-1] - self._began)
    few = len(self._steps) - self._began_records <= _LEAST
    step = last + max(1, last // (8 if few else 1))
    if self._planned:
      total = self._planned - self._began
      parts = last * _LEAST // total + 1
      step = min(step, math.ceil(parts * total / _LEAST))
    return self._began + step

  def _affordable(self) -> bool:
    if self._step < self._ask_at:
      return False
    apart = self._step - self._steps[-1]
    # To ask costs something too.
    self._ask_at = self._step + max(1, apart // 16)
    if apart < math.ceil(self._steps[-1] * _FINEST):
      return False
    return self._allowed(records=2)  # One for the end.

  # --- A record ---------------------------------------------------------------

  def _record(self) -> None:
    # So that what the training still has to do is not taken for our time.
    reading.wait(self.model)
    self._tick()
    if self._read is None:
      self._read = self._prepare()
    if self.log_dir is not None and self._writers is None:
      self._writers = reading.Writers(self.log_dir, self.percentiles)
    self._setup_seconds += self._tick()
    # All of them first: an interruption must not leave a part of a record.
    values = {
      name: self._percentiles_of(np.asarray(each))
      for name, each in self._read().items()
    }
    for name, row in values.items():
      self._records.setdefault(name, []).append(row)
    self._steps.append(self._step)
    self._write()
    self._record_seconds += self._tick()

  def _prepare(self) -> Callable[[], dict[str, Any]]:
    """Makes what reads the features, and has run it once."""
    return _features.reader(
      self.model, self._data, self._layers, self.sample_size
    )

  def _percentiles_of(self, values: np.ndarray) -> np.ndarray:
    if not values.size:
      return np.full(len(self.percentiles), np.nan)
    with np.errstate(invalid='ignore'):  # Features may be infinite.
      return np.percentile(values, self.percentiles)

  def _close_writers(self) -> None:
    if self._writers is not None:
      self._writers.close()
      self._writers = None

  def _write(self) -> None:
    if self._writers is not None:
      for name, rows in self._records.items():
        self._writers.write(self._step, f'features/{name}', rows[-1])

  # --- Figures ----------------------------------------------------------------

  def draw(self, axes, layer: str | None = None) -> None:
    """Draws one layer's percentiles over the steps.

    Args:
      axes: matplotlib's `Axes`.
      layer: A key of `history`; may be left out if there is only one.

    Raises:
      ValueError: If there is no such layer, or nothing recorded.
    """
    history = self.history
    if not self._steps:
      raise ValueError(
        'There must be records to draw. Received: a callback that has seen no '
        'training. Pass it to `fit` in `callbacks` first.'
      )
    if layer is None and len(history) == 1:
      (layer,) = history
    if layer not in history:
      raise ValueError(
        f'`layer` must be one that was followed. Received: layer={layer!r}. '
        f'Give one of {", ".join(map(repr, history))}.'
      )
    _figures.draw(axes, layer, self.steps, self.percentiles, history[layer])

  def plot(self, path=None):
    """Draws all layers that were followed, each in a panel.

    Args:
      path: Where to save the picture, in the format of the name's ending; or
        `None`.

    Returns:
      matplotlib's `Figure`.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: If nothing was recorded.
    """
    picture = _figures.panels(list(self.history) or [None], self.draw)
    if path is not None:
      picture.savefig(path)
    return picture
