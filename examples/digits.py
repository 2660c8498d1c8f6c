"""Trains a small ResNet at batch size 2, with GroupNorm and with BatchNorm.

    python examples/digits.py
    python examples/digits.py --batch_size=1
    python examples/digits.py --norm=layer --epochs=4 --output=out/layer

It takes about a minute and a half on two CPU cores. The data are the 1,797
scans of handwritten digits, 8 by 8 pixels each, that come with scikit-learn:
nothing is downloaded. The same network is trained once with
`tfgroupnorm.GroupNorm` and once with `keras.layers.BatchNormalization`, which
has to estimate its statistics from two images at a time. Then each model

  - is saved as `.keras` and exported as a SavedModel,
  - is loaded from both in a fresh process, which has to predict what the
    trained model predicts in memory,
  - has its learning curves drawn, next to digits that the first one got wrong.

Either norm may win. On a few hundred digits a test error is known to about half
a percent, and statistics of few images add noise to training, which can keep so
small a data set from being learned by heart: mind the training loss too, and
try more than one `--seed`.
"""

from __future__ import annotations

import os

# TensorFlow reads this when it is imported. 2: errors only.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import dataclasses
import functools
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import experiment
import keras
import numpy as np
import tensorflow as tf
import tqdm
from absl import app, flags, logging
from matplotlib import axes, figure
from sklearn import datasets, model_selection

import tfgroupnorm

NORMS = {
  'group': 'GroupNorm',
  'batch': 'BatchNormalization',
  'instance': 'InstanceNorm',
  'layer': 'LayerNorm',
}
CLASSES = 10
TRAIN_SIZE = 1200
WIDTHS = (16, 32, 64)
LEARNING_RATE = 1e-3
# How far predictions (probabilities) of a loaded model may be off.
TOLERANCE = 1e-4

# Okabe and Ito's colours, which colour-blind people can tell apart.
LINES = {
  'group': {'color': '#0072B2', 'marker': 'o', 'linestyle': '-'},
  'batch': {'color': '#E69F00', 'marker': 's', 'linestyle': '--'},
  'instance': {'color': '#009E73', 'marker': '^', 'linestyle': '-'},
  'layer': {'color': '#CC79A7', 'marker': 'D', 'linestyle': '-'},
}
MISTAKE_COLOUR = '#D55E00'
GRID_ROWS, GRID_COLUMNS = 4, 6

# The fresh process. Predicts from the SavedModels first, before it has heard of
# tfgroupnorm: TensorFlow alone has to suffice for those.
PREDICT = """
import pathlib
import sys

import numpy as np
import tensorflow as tf

images_path, predictions_path, *stems = sys.argv[1:]
images = np.load(images_path)
predictions = {}
for stem in stems:
  serve = tf.saved_model.load(stem).signatures['serving_default']
  (probabilities,) = serve(image=tf.constant(images)).values()
  predictions[pathlib.Path(stem).name + '/SavedModel'] = probabilities

import keras
import tfgroupnorm

for stem in stems:
  model = keras.models.load_model(stem + '.keras')
  predictions[pathlib.Path(stem).name + '/.keras'] = model.predict(
    images, batch_size=len(images), verbose=0
  )
np.savez(predictions_path, **predictions)
"""
FORMATS = ('.keras', 'SavedModel')


class Digits(NamedTuple):
  """Images (count, 8, 8, 1) from 0 to 1, and labels (count,) from 0 to 9."""

  train_images: np.ndarray
  test_images: np.ndarray
  train_labels: np.ndarray
  test_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
  """A trained model and how it came about.

  Attributes:
    norm: Which norm, a key of `NORMS`.
    model: The trained model.
    losses: Training loss of each epoch.
    errors: Test error after each epoch, in percent.
    probabilities: Predictions for the test images, (count, classes).
  """

  norm: str
  model: keras.Model
  losses: list[float]
  errors: list[float]
  probabilities: np.ndarray

  @property
  def name(self) -> str:
    return NORMS[self.norm]


def load_digits(seed: int, train_size: int = TRAIN_SIZE) -> Digits:
  """Splits scikit-learn's digits at random, all classes in proportion."""
  digits = datasets.load_digits()
  images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
  return Digits(
    *model_selection.train_test_split(
      images,
      digits.target.astype(np.int32),
      train_size=train_size,
      stratify=digits.target,
      random_state=seed,
    )
  )


def norm_factory(norm: str, groups: int) -> Callable[[], keras.layers.Layer]:
  """What makes a normalization layer: `norm` is a key of `NORMS`.

  This program shows layers under their own names, each as it is if nothing but
  `groups` is said: `LayerNorm` normalizes each position over its channels. What
  papers on images call layer normalization also spans height and width; for
  that see `norm_factory` in `small_batch.py`.
  """
  return {
    'group': functools.partial(tfgroupnorm.GroupNorm, groups=groups),
    'batch': keras.layers.BatchNormalization,
    'instance': tfgroupnorm.InstanceNorm,
    'layer': tfgroupnorm.LayerNorm,
  }[norm]


def convolution(
  x: keras.KerasTensor,
  width: int,
  make_norm: Callable[[], keras.layers.Layer],
  *,
  size: int = 3,
  strides: int = 1,
) -> keras.KerasTensor:
  """A convolution and its norm; the norm's `beta` serves as bias."""
  x = keras.layers.Conv2D(
    width, size, strides=strides, padding='same', use_bias=False
  )(x)
  return make_norm()(x)


def residual_block(
  x: keras.KerasTensor,
  width: int,
  make_norm: Callable[[], keras.layers.Layer],
  *,
  make_last_norm: Callable[[], keras.layers.Layer] | None = None,
  strides: int = 1,
) -> keras.KerasTensor:
  """Adds two convolutions to `x`, which is projected if its shape changes."""
  y = convolution(x, width, make_norm, strides=strides)
  y = keras.layers.ReLU()(y)
  y = convolution(y, width, make_last_norm or make_norm)
  if strides != 1 or x.shape[-1] != width:
    x = convolution(x, width, make_norm, size=1, strides=strides)
  return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def make_model(
  make_norm: Callable[[], keras.layers.Layer],
  *,
  make_last_norm: Callable[[], keras.layers.Layer] | None = None,
  shape: Sequence[int] = (8, 8, 1),
  widths: Sequence[int] = WIDTHS,
  classes: int = CLASSES,
) -> keras.Model:
  """A ResNet from images (batch, *shape) to probabilities (batch, classes).

  Args:
    make_norm: Makes a normalization layer.
    make_last_norm: Makes the last one of each residual block; `make_norm` if
      left out.
    shape: Height, width and channels of an image.
    widths: Channels of each stage. All but the first halve height and width.
    classes: Number of classes.
  """
  # A SavedModel calls its inputs by these names.
  image = keras.Input(shape, name='image')
  x = convolution(image, widths[0], make_norm)
  x = keras.layers.ReLU()(x)
  for i, width in enumerate(widths):
    x = residual_block(
      x,
      width,
      make_norm,
      make_last_norm=make_last_norm,
      strides=1 if i == 0 else 2,
    )
  x = keras.layers.GlobalAveragePooling2D()(x)
  x = keras.layers.Dense(classes, activation='softmax')(x)
  return keras.Model(image, x)


def error_percent(accuracy: float) -> float:
  return 100 * (1 - accuracy)


class Progress(keras.callbacks.Callback):
  """One bar for the steps of all epochs, where there is a terminal."""

  def __init__(self, title: str):
    super().__init__()
    self._title = title

  def on_train_begin(self, logs=None):
    self._steps_before = 0
    self._bar = tqdm.tqdm(
      desc=self._title,
      total=self.params['epochs'] * self.params['steps'],
      bar_format='{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'
      '{postfix}',
      dynamic_ncols=True,
      disable=None,
    )

  def on_train_batch_end(self, batch, logs=None):
    self._bar.update(self._steps_before + batch + 1 - self._bar.n)

  def on_epoch_end(self, epoch, logs=None):
    self._steps_before += self.params['steps']
    error = error_percent(logs['val_accuracy'])
    self._bar.set_postfix_str(f'loss {logs["loss"]:.3f}, error {error:.2f}%')

  def on_train_end(self, logs=None):
    self._bar.close()


def fit(
  model: keras.Model,
  digits: Digits,
  *,
  batch_size: int,
  epochs: int,
  seed: int,
  title: str,
  callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, list[float]]:
  """Trains a compiled model.

  Args:
    model: What to train, compiled with the metric `'accuracy'`.
    digits: To train on, and to test on after each epoch.
    batch_size: Images in a batch. What does not fill one is left out.
    epochs: Passes over the data.
    seed: Of the order of the images.
    title: For the progress bar.
    callbacks: What else is to be called.

  Returns:
    `loss`, `accuracy`, `val_loss` and `val_accuracy`, a value an epoch each.
  """
  # Every batch has the same shape, so each layer's kernel is compiled once.
  batches = (
    tf.data.Dataset.from_tensor_slices(
      (digits.train_images, digits.train_labels)
    )
    .shuffle(len(digits.train_labels), seed=seed)
    .batch(batch_size, drop_remainder=True)
  )
  return model.fit(
    batches,
    validation_data=(digits.test_images, digits.test_labels),
    validation_batch_size=len(digits.test_labels),
    epochs=epochs,
    shuffle=False,  # `batches` are already.
    verbose=0,
    callbacks=[*callbacks, Progress(f'{title:18}')],
  ).history


def train(
  norm: str,
  digits: Digits,
  *,
  groups: int,
  batch_size: int,
  epochs: int,
  seed: int,
) -> Result:
  """Trains the network with one norm, from the same seed for each."""
  keras.utils.set_random_seed(seed)
  model = make_model(norm_factory(norm, groups))
  steps = len(digits.train_labels) // batch_size
  model.compile(
    optimizer=keras.optimizers.Adam(
      keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * steps)
    ),
    loss='sparse_categorical_crossentropy',
    metrics=['accuracy'],
  )
  history = fit(
    model,
    digits,
    batch_size=batch_size,
    epochs=epochs,
    seed=seed,
    title=NORMS[norm],
  )
  return Result(
    norm=norm,
    model=model,
    losses=history['loss'],
    errors=[error_percent(value) for value in history['val_accuracy']],
    probabilities=model.predict(
      digits.test_images, batch_size=len(digits.test_images), verbose=0
    ),
  )


def save(result: Result, stem: pathlib.Path) -> None:
  """Saves `<stem>.keras` and, for serving, a SavedModel in folder `stem`."""
  result.model.save(f'{stem}.keras')
  result.model.export(stem)


def predict_in_fresh_process(
  stems: Sequence[pathlib.Path], images: np.ndarray
) -> dict[str, np.ndarray]:
  """Loads saved models in another Python and predicts there.

  Args:
    stems: What models were given to `save` as.
    images: (count, 8, 8, 1).

  Returns:
    `<name of the stem>/<format>` -> probabilities, for both `FORMATS`.

  Raises:
    RuntimeError: If that process fails, with all it had to say.
  """
  with tempfile.TemporaryDirectory() as folder:
    images_path = pathlib.Path(folder, 'images.npy')
    predictions_path = pathlib.Path(folder, 'predictions.npz')
    np.save(images_path, images)
    process = subprocess.run(
      [
        sys.executable,
        '-c',
        PREDICT,
        *map(str, (images_path, predictions_path, *stems)),
      ],
      # Packages are where they are found here.
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
      capture_output=True,
      check=False,
      text=True,
    )
    if process.returncode:
      raise RuntimeError(
        'A fresh process could not load the saved models. Received:\n'
        f'{process.stderr}'
      )
    with np.load(predictions_path) as predictions:
      return dict(predictions)


def largest_differences(
  results: Sequence[Result], predictions: dict[str, np.ndarray]
) -> np.ndarray:
  """How far loaded models are from those in memory: (results, formats)."""
  return np.array(
    [
      [
        abs(predictions[f'{result.norm}/{form}'] - result.probabilities).max()
        for form in FORMATS
      ]
      for result in results
    ]
  )


def table(results: Sequence[Result], gaps: np.ndarray) -> str:
  """The outcome in lines for people; `gaps` are `largest_differences`."""
  lines = [
    f'{"norm":18}  test error (%)  training loss      .keras  SavedModel'
  ]
  for result, (keras_gap, saved_model_gap) in zip(results, gaps, strict=True):
    error = result.errors[-1]
    deviation = np.sqrt(error * (100 - error) / len(result.probabilities))
    lines.append(
      f'{result.name:18}  {error:6.2f} +- {deviation:4.2f}'
      f'  {result.losses[-1]:13.4f}'
      f'  {keras_gap:10.1e}  {saved_model_gap:10.1e}'
    )
  return '\n'.join(lines)


def plot(results: Sequence[Result], digits: Digits, path: pathlib.Path) -> None:
  """Draws learning curves, and what the first model makes of some digits."""
  # Without pyplot no display is looked for.
  picture = figure.Figure(figsize=(10, 4.2), dpi=110, layout='constrained')
  left, right = picture.subfigures(1, 2, width_ratios=(1.15, 1))
  loss_axes, error_axes = left.subplots(1, 2)
  plot_curves(results, loss_axes, error_axes)
  left.legend(
    handles=loss_axes.lines,
    loc='outside lower center',
    ncols=len(results),
    frameon=False,
  )
  plot_digits(results[0], digits, right)
  picture.savefig(path)


def plot_curves(
  results: Sequence[Result], loss_axes: axes.Axes, error_axes: axes.Axes
) -> None:
  """Training loss and test error over the epochs, one line a norm."""
  for result in results:
    epochs = range(1, len(result.losses) + 1)
    line = {'label': result.name, 'markersize': 4, **LINES[result.norm]}
    loss_axes.plot(epochs, result.losses, **line)
    error_axes.plot(epochs, result.errors, **line)
  loss_axes.set_title('Training loss', fontsize=11)
  loss_axes.set(ylabel='cross-entropy (nats)', yscale='log')
  error_axes.set_title('Test error', fontsize=11)
  error_axes.set_ylabel('wrong digits (%)')
  error_axes.set_ylim(bottom=0)
  for each in (loss_axes, error_axes):
    each.set(xlabel='epoch', xlim=(0.5, len(results[0].losses) + 0.5))
    each.xaxis.get_major_locator().set_params(integer=True)
    tidy(each)


def tidy(chart: axes.Axes) -> None:
  """The look of all charts."""
  chart.grid(alpha=0.3)
  chart.spines[['top', 'right']].set_visible(False)


def plot_digits(
  result: Result, digits: Digits, panel: figure.SubFigure
) -> None:
  """A grid of test digits and what they were taken for, mistakes first."""
  guesses = result.probabilities.argmax(axis=1)
  wrong = guesses != digits.test_labels
  cells = GRID_ROWS * GRID_COLUMNS
  mistakes = np.flatnonzero(wrong)[: cells // 2]
  hits = np.flatnonzero(~wrong)[: cells - len(mistakes)]
  panel.suptitle(
    f'Read by {result.name}: {wrong.sum()} of {len(wrong)} wrong (framed)',
    fontsize=11,
  )
  grid = panel.subplots(GRID_ROWS, GRID_COLUMNS)
  for cell, i in zip(grid.flat, (*mistakes, *hits), strict=False):
    cell.imshow(digits.test_images[i, ..., 0], cmap='gray_r')
    cell.set(xticks=[], yticks=[])
    if wrong[i]:
      cell.set_xlabel(
        f'{guesses[i]}, is {digits.test_labels[i]}',
        color=MISTAKE_COLOUR,
        weight='bold',
      )
      cell.spines[:].set(color=MISTAKE_COLOUR, linewidth=2.5)
    else:
      cell.set_xlabel(str(guesses[i]))


def define_seed_flag() -> None:
  flags.DEFINE_integer(
    'seed',
    0,
    'Of the split, the weights and the order of the images.',
    lower_bound=0,
    upper_bound=2**32 - 1,
  )


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  flags.DEFINE_enum('norm', 'both', ['both', *NORMS], 'both: group and batch.')
  flags.DEFINE_integer(
    'batch_size',
    2,
    'Images in a batch.',
    lower_bound=1,
    upper_bound=TRAIN_SIZE,
  )
  flags.DEFINE_integer('epochs', 8, 'Passes over the data.', lower_bound=1)
  flags.DEFINE_integer('groups', 8, "GroupNorm's groups.", lower_bound=1)
  flags.DEFINE_string('output', 'out/digits', 'Folder for what is written.')
  define_seed_flag()
  flags.register_validator(
    'groups',
    lambda groups: all(width % groups == 0 for width in WIDTHS),
    f'must divide the widths of the network, {WIDTHS}.',
  )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  # TensorFlow and Keras tell each step of saving a model.
  logging.set_verbosity(logging.WARNING)
  keras.utils.disable_interactive_logging()
  options = flags.FLAGS
  folder = experiment.output_folder()

  digits = load_digits(options.seed)
  print(
    f'{TRAIN_SIZE} digits to train on, {len(digits.test_labels)} to test on, '
    f'batch size {options.batch_size}, epochs: {options.epochs}',
    flush=True,
  )
  norms = ('group', 'batch') if options.norm == 'both' else (options.norm,)
  results = [
    train(
      norm,
      digits,
      groups=options.groups,
      batch_size=options.batch_size,
      epochs=options.epochs,
      seed=options.seed,
    )
    for norm in norms
  ]
  for result in results:
    save(result, folder / result.norm)
  plot(results, digits, folder / 'digits.png')
  predictions = predict_in_fresh_process(
    [folder / norm for norm in norms], digits.test_images
  )
  gaps = largest_differences(results, predictions)
  print(table(results, gaps))
  print(
    '(+- one standard error; .keras, SavedModel: the largest difference '
    'between\n probabilities of the model loaded in a fresh process and '
    'in memory)'
  )
  print(f'Models and picture: {folder}')
  if not np.max(gaps) <= TOLERANCE:  # So that NaN fails too.
    sys.exit(
      'A model loaded in a fresh process predicts something else than in '
      f'memory. Received: a difference of {np.max(gaps):.1e}, which may be '
      f'{TOLERANCE:.0e} at most.'
    )


if __name__ == '__main__':
  define_flags()
  app.run(main)
