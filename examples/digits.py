"""Shows where BatchNorm needs large batches, and that GroupNorm does not.

    python examples/digits.py
    python examples/digits.py --seeds=10 --epochs=8 --output=out/longer

It trains for less than two minutes on two CPU cores. The data are the 1,797
scans of handwritten digits, 8 by 8 pixels each, that come with scikit-learn:
nothing is downloaded. One network, four convolutions and a dense layer before
its classes, is trained with `tfgroupnorm.GroupNorm` and with
`keras.layers.BatchNormalization`

  - in its convolutions only, and after the dense layer too,
  - with 32 and with 2 images a batch,

several times each. What comes of it is printed, with the reason, and drawn.
Then the models with 2 images a batch and a norm after the dense layer are saved
as `.keras` and exported as a SavedModel. A fresh process loads both, and has to
predict what they predict in memory.
"""

from __future__ import annotations

import os

# TensorFlow reads this when it is imported. 2: errors only.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import functools
import itertools
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

NORMS = {'group': 'GroupNorm', 'batch': 'BatchNorm'}
# Whether the dense layer has a norm -> what to call the network.
PLACES = {False: 'convolutions only', True: 'the dense layer too'}
BATCH_SIZES = (32, 2)
WHY = """\
After the dense layer BatchNorm sees one value of each image, and of two values
it makes about -1 and +1, whatever they were: all that is left of a feature is
which of the two images has more of it. After a convolution it sees a value for
each position too, and GroupNorm never looks at another image."""

CLASSES = 10
TRAIN_SIZE = 1200
WIDTHS, STRIDES = (16, 16, 32, 32), (1, 1, 2, 1)  # Of the convolutions.
HEAD = 128  # Outputs of the dense layer.
GROUPS = 8
# The learning rate is that of `BASE` images a batch, and linear in their number
# as in the paper. BatchNorm's moving averages have `MOMENTUM` there.
BASE = 32
LEARNING_RATE = 0.05
MOMENTUM = 0.9
# How far predictions (probabilities) of a loaded model may be off.
TOLERANCE = 1e-4

# Okabe and Ito's colours, which colour-blind people can tell apart.
LINES = {
  'group': {'color': '#0072B2', 'marker': 'o', 'linestyle': '-'},
  'batch': {'color': '#E69F00', 'marker': 's', 'linestyle': '--'},
  'instance': {'color': '#009E73', 'marker': '^', 'linestyle': '-'},
  'layer': {'color': '#CC79A7', 'marker': 'D', 'linestyle': '-'},
}

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


class Digits(NamedTuple):
  """Images (count, 8, 8, 1) from 0 to 1, and labels (count,) from 0 to 9."""

  train_images: np.ndarray
  test_images: np.ndarray
  train_labels: np.ndarray
  test_labels: np.ndarray


class Case(NamedTuple):
  """What differs between trainings, besides the seed."""

  norm: str  # A key of `NORMS`.
  in_head: bool  # Whether it is after the dense layer too.
  batch_size: int


class Result(NamedTuple):
  """Test errors in percent of all seeds, and the model of the last one."""

  errors: list[float]
  model: keras.Model


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


def batches_of(data: Digits, batch_size: int, seed: int) -> tf.data.Dataset:
  """Images to train on and labels, in another order in each epoch."""
  # Every batch has the same shape, so the step is compiled once.
  return (
    tf.data.Dataset.from_tensor_slices((data.train_images, data.train_labels))
    .shuffle(len(data.train_labels), seed=seed)
    .batch(batch_size, drop_remainder=True)
  )


def batch_norm(batch_size: int, **options) -> keras.layers.Layer:
  """BN whose moving averages span as many images at any batch size."""
  return keras.layers.BatchNormalization(
    momentum=MOMENTUM ** (batch_size / BASE), **options
  )


def norm_factory(
  norm: str, batch_size: int
) -> Callable[[], keras.layers.Layer]:
  """What makes a normalization layer: `norm` is a key of `NORMS`."""
  return {
    'group': functools.partial(tfgroupnorm.GroupNorm, groups=GROUPS),
    'batch': functools.partial(batch_norm, batch_size),
  }[norm]


def make_model(case: Case) -> keras.Model:
  """From images (batch, 8, 8, 1) to probabilities (batch, classes)."""
  make_norm = norm_factory(case.norm, case.batch_size)
  # A SavedModel calls its inputs by these names.
  image = x = keras.Input((8, 8, 1), name='image')
  for width, strides in zip(WIDTHS, STRIDES, strict=True):
    x = keras.layers.Conv2D(
      width, 3, strides=strides, padding='same', use_bias=False
    )(x)
    x = keras.layers.ReLU()(make_norm()(x))
  x = keras.layers.Flatten()(x)
  x = keras.layers.Dense(HEAD, use_bias=not case.in_head, name='head')(x)
  if case.in_head:
    x = make_norm()(x)
  x = keras.layers.ReLU()(x)
  x = keras.layers.Dense(CLASSES, activation='softmax')(x)
  return keras.Model(image, x)


def compile_model(
  model: keras.Model,
  *,
  batch_size: int,
  steps: int,
  epochs: int,
  learning_rate: float,
) -> None:
  """Readies a model for `epochs` of `steps` steps each."""
  rate = learning_rate * batch_size / BASE
  model.compile(
    optimizer=keras.optimizers.SGD(
      keras.optimizers.schedules.CosineDecay(rate, epochs * steps),
      momentum=MOMENTUM,
    ),
    loss='sparse_categorical_crossentropy',
    metrics=['accuracy'],
    # Steps are short: XLA compiles each as a whole, and Python hears of them
    # once an epoch.
    jit_compile=True,
    steps_per_execution=experiment.steps_per_execution(steps),
  )


def error_percent(accuracy: float) -> float:
  return 100 * (1 - accuracy)


def fit(
  model: keras.Model,
  data: Digits,
  *,
  batch_size: int,
  epochs: int,
  seed: int,
  callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
  """Trains a compiled model; its test error at the end, in percent."""
  history = model.fit(
    batches_of(data, batch_size, seed),
    validation_data=(data.test_images, data.test_labels),
    validation_batch_size=len(data.test_labels),
    epochs=epochs,
    shuffle=False,  # `batches_of` shuffles.
    verbose=0,
    callbacks=list(callbacks),
  ).history
  return error_percent(history['val_accuracy'][-1])


def train(case: Case, *, seeds: int, epochs: int, bar: tqdm.tqdm) -> Result:
  """Trains the network once a seed, which all cases share."""
  model = None
  errors = []
  for seed in range(seeds):
    data = load_digits(seed)
    keras.utils.set_random_seed(seed)
    fresh = make_model(case)
    if model is None:
      model = fresh
      compile_model(
        model,
        batch_size=case.batch_size,
        steps=len(data.train_labels) // case.batch_size,
        epochs=epochs,
        learning_rate=LEARNING_RATE,
      )
    else:
      experiment.restart(model, fresh)
    errors.append(
      fit(model, data, batch_size=case.batch_size, epochs=epochs, seed=seed)
    )
    bar.update()
  return Result(errors, model)


def table(results: dict[Case, Result]) -> str:
  """Wrong test digits in percent: median and range of the seeds."""
  return experiment.markdown(
    ['norms in', 'images a batch', *NORMS.values()],
    [
      [
        place,
        str(batch_size),
        *(
          f'{experiment.summary(results[norm, in_head, batch_size].errors):.1f}'
          for norm in NORMS
        ),
      ]
      for in_head, place in PLACES.items()
      for batch_size in BATCH_SIZES
    ],
  )


# --- Saving -------------------------------------------------------------------


def save(model: keras.Model, stem: pathlib.Path) -> None:
  """Saves `<stem>.keras` and, for serving, a SavedModel in folder `stem`."""
  model.save(f'{stem}.keras')
  model.export(stem)


def predict_in_fresh_process(
  stems: Sequence[pathlib.Path], images: np.ndarray
) -> dict[str, np.ndarray]:
  """Loads saved models in another Python and predicts there.

  Args:
    stems: What models were given to `save` as.
    images: (count, 8, 8, 1).

  Returns:
    `<name of the stem>/<format>` -> probabilities, where a format is `.keras`
    or `SavedModel`.

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


def largest_difference(
  models: dict[str, keras.Model], folder: pathlib.Path, images: np.ndarray
) -> float:
  """How far models of a fresh process, saved in `folder`, are from these."""
  for name, model in models.items():
    save(model, folder / name)
  loaded = predict_in_fresh_process([folder / name for name in models], images)
  return np.max(
    [
      abs(probabilities - models[name.split('/')[0]].predict_on_batch(images))
      for name, probabilities in loaded.items()
    ]
  )


# --- The picture --------------------------------------------------------------


def plot(
  results: dict[Case, Result], images: np.ndarray, path: pathlib.Path
) -> None:
  """Draws the errors, and what norms make of pairs of images there."""
  # Without pyplot no display is looked for.
  picture = figure.Figure(figsize=(10, 4), dpi=110, layout='constrained')
  *charts, cloud = picture.subplots(1, 3, width_ratios=(1, 1, 1.5))
  charts[1].sharey(charts[0])
  for chart, (in_head, place) in zip(charts, PLACES.items(), strict=True):
    for i, (norm, name) in enumerate(NORMS.items()):
      plot_summaries(
        # Side by side, so that no bar hides another.
        np.arange(len(BATCH_SIZES)) + 0.08 * (i - 0.5),
        [
          experiment.summary(results[norm, in_head, batch_size].errors)
          for batch_size in BATCH_SIZES
        ],
        chart,
        label=name,
        **LINES[norm],
      )
    chart.set_title(f'Norms in {place}', fontsize=11)
    chart.set_xticks(range(len(BATCH_SIZES)), list(map(str, BATCH_SIZES)))
    chart.set(xlabel='images a batch', xlim=(-0.4, len(BATCH_SIZES) - 0.6))
    tidy(chart)
  charts[0].set_ylabel('wrong digits (%), median and range')
  charts[0].set_ylim(bottom=0)  # Last: nothing is fitted after it.
  charts[1].tick_params(labelleft=False)
  plot_pairs(results, images, cloud)
  picture.legend(
    *charts[0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=len(NORMS),
    frameon=False,
  )
  picture.savefig(path)


def plot_summaries(
  x: Sequence[float],
  summaries: Sequence[experiment.Summary],
  chart: axes.Axes,
  **line,
) -> None:
  """Medians, and bars from the least to the greatest of all seeds."""
  median, low, high = np.transpose(summaries)
  chart.errorbar(
    x,
    median,
    [median - low, high - median],
    markersize=5,
    capsize=2,
    elinewidth=1,
    **line,
  )


def plot_pairs(
  results: dict[Case, Result], images: np.ndarray, chart: axes.Axes
) -> None:
  """What enters the norm of the dense layer, and what comes out of it."""
  for norm in reversed(NORMS):
    model = results[norm, True, 2].model
    dense = keras.Model(model.input, model.get_layer('head').output)
    for i in range(0, len(images), 2):
      x = dense(images[i : i + 2])
      y = norm_factory(norm, 2)()(x, training=True)
      chart.plot(
        np.ravel(x),
        np.ravel(y),
        '.',
        color=LINES[norm]['color'],
        markersize=2,
      )
  chart.set_title("The dense layer's norm, 2 images a batch", fontsize=11)
  chart.set(xlabel='a feature before the norm', ylabel='that feature after it')
  tidy(chart)


def tidy(chart: axes.Axes) -> None:
  """The look of all charts."""
  chart.grid(alpha=0.3)
  chart.spines[['top', 'right']].set_visible(False)


# --- The command --------------------------------------------------------------


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  flags.DEFINE_integer('seeds', 5, 'Trainings of each kind.', lower_bound=1)
  flags.DEFINE_integer('epochs', 4, 'Passes over the data.', lower_bound=1)
  flags.DEFINE_string('output', 'out/digits', 'Folder for what is written.')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  # TensorFlow and Keras tell each step of saving a model.
  logging.set_verbosity(logging.WARNING)
  keras.utils.disable_interactive_logging()
  options = flags.FLAGS
  folder = experiment.output_folder()
  cases = [
    Case(*each) for each in itertools.product(NORMS, PLACES, BATCH_SIZES)
  ]
  images = load_digits(options.seeds - 1).test_images
  print(
    f'{TRAIN_SIZE} digits to train on, {len(images)} to test on; epochs: '
    f'{options.epochs}, trainings of each kind: {options.seeds}',
    flush=True,
  )
  with tqdm.tqdm(
    total=len(cases) * options.seeds, unit='training', disable=None
  ) as bar:
    results = {
      case: train(case, seeds=options.seeds, epochs=options.epochs, bar=bar)
      for case in cases
    }
  print('\nWrong test digits in percent, median and range of all trainings:\n')
  print(table(results))
  print(f'\n{WHY}\n')
  plot(results, images[:16], folder / 'digits.png')
  difference = largest_difference(
    {norm: results[norm, True, 2].model for norm in NORMS}, folder, images
  )
  print(f'Models and picture: {folder}')
  if not difference <= TOLERANCE:  # So that NaN fails too.
    sys.exit(
      'A model loaded in a fresh process predicts something else than in '
      f'memory. Received: a difference of {difference:.1e}, which may be '
      f'{TOLERANCE:.0e} at most.'
    )
  print(
    'Loaded in a fresh process, from .keras and SavedModel, they predict the '
    f'same\nprobabilities as in memory: {difference:.0e} is the largest '
    'difference.'
  )


if __name__ == '__main__':
  define_flags()
  app.run(main)
