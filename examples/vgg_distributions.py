"""What a norm does to the features of VGG-16, as in the paper's Figure 6.

    python examples/vgg_distributions.py
    python examples/vgg_distributions.py --norms=none,layer --epochs=10

Trains VGG-16, with an eighth of its widths, on the handwritten digits that come
with scikit-learn: without normalization, with BatchNorm, and with GroupNorm.
`tfgroupnorm.callbacks.ActivationPercentiles` follows what conv5_3, the last
convolution, returns for the same test images all along, before normalization
and ReLU: the 1, 20, 80 and 99 percentiles of its responses.

In the paper (Wu & He, "Group Normalization", 2018, section 4.1), on ImageNet,
the two norms make features that are alike, and unlike those of the network that
has none. Digits are no ImageNet: mind the form of the curves, not the errors.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import digits  # First: it says how much TensorFlow may print.
import experiment
import keras
import models
import tensorflow as tf
import tqdm.keras
from absl import app, flags, logging
from matplotlib import figure

from tfgroupnorm.callbacks import ActivationPercentiles

LAYER = 'conv5_3'
SIZE = 32  # Pixels. VGG-16 halves its images five times.
SHRINK = 8
GROUPS = 4  # So that a group has 2 to 16 channels, as in the paper.
BATCH_SIZE = 32
WATCHED_IMAGES = 256


class Result(NamedTuple):
  """A training: its norm, what was followed, and the test error in percent."""

  norm: str
  percentiles: ActivationPercentiles
  error: float


def enlarged(images):
  """Images (count, 8, 8, 1) from 0 to 1 -> (count, 32, 32, 1), centred."""
  return tf.image.resize(images, (SIZE, SIZE)).numpy() - 0.5


def make_model(norm: str) -> keras.Model:
  """The network with one norm, a key of `models.NORMS`."""
  return models.vgg16(
    models.norm_factory(norm, GROUPS, BATCH_SIZE),
    input_shape=(SIZE, SIZE, 1),
    classes=digits.CLASSES,
    shrink=SHRINK,
  )


def train(
  norm: str,
  data: digits.Digits,
  *,
  epochs: int,
  records: int,
  learning_rate: float,
  seed: int,
) -> Result:
  """Trains the network with one norm, from the same seed for each."""
  keras.utils.set_random_seed(seed)
  model = make_model(norm)
  steps = len(data.train_labels) // BATCH_SIZE
  model.compile(
    keras.optimizers.SGD(
      keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps),
      momentum=0.9,
    ),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=['accuracy'],
  )
  percentiles = ActivationPercentiles(
    data.test_images[:WATCHED_IMAGES],
    LAYER,
    update_freq=max(1, epochs * steps // records),
  )
  progress = tqdm.keras.TqdmCallback(
    verbose=0, desc=models.NORMS[norm], disable=None
  )
  error = digits.fit(
    model,
    data,
    batch_size=BATCH_SIZE,
    epochs=epochs,
    seed=seed,
    callbacks=[percentiles, progress],
  )
  return Result(norm, percentiles, error)


def plot(results: Sequence[Result], path: pathlib.Path) -> None:
  """Draws the percentiles over the steps, a panel for each norm."""
  # Without pyplot no display is looked for.
  picture = figure.Figure(
    figsize=(1.2 + 2.9 * len(results), 3.3), dpi=110, layout='constrained'
  )
  panels = picture.subplots(1, len(results), sharey=True, squeeze=False)[0]
  for panel, result in zip(panels, results, strict=True):
    result.percentiles.draw(panel)
    panel.set_title(models.NORMS[result.norm], fontsize=11)
  panels[0].set_ylabel(f'responses of {LAYER}')
  handles, labels = panels[0].get_legend_handles_labels()
  picture.legend(
    handles[::-1],
    labels[::-1],
    title='percentile',
    loc='outside right center',
    frameon=False,
  )
  picture.savefig(path)


def table(results: Sequence[Result]) -> str:
  """The outcome in lines for people."""
  names = [f'{each:g}%' for each in results[0].percentiles.percentiles]
  lines = [
    f'{"norm":18}  test error (%)  {LAYER} at the end: '
    + ' '.join(f'{name:>7}' for name in names)
  ]
  for norm, percentiles, error in results:
    values = percentiles.history[LAYER][-1]
    lines.append(
      f'{models.NORMS[norm]:18}  {error:14.2f}  {"":20}'
      + ' '.join(f'{value:7.2f}' for value in values)
    )
  return '\n'.join(lines)


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  flags.DEFINE_list(
    'norms',
    ['none', 'batch', 'group'],
    f'Some of {", ".join(models.NORMS)}, from left to right.',
  )
  flags.register_validator(
    'norms',
    lambda norms: norms and set(norms) <= set(models.NORMS),
    f'must be some of {", ".join(models.NORMS)}.',
  )
  flags.DEFINE_integer('epochs', 24, 'Passes over the data.', lower_bound=1)
  flags.DEFINE_integer(
    'records', 100, 'How often features are looked at.', lower_bound=1
  )
  flags.DEFINE_float(
    'learning_rate', 3e-3, 'Of SGD, at first.', lower_bound=0.0
  )
  flags.DEFINE_string(
    'output', 'out/vgg_distributions', 'Folder for what is written.'
  )
  flags.DEFINE_integer(
    'seed',
    0,
    'Of the split, the weights and the order of the images.',
    lower_bound=0,
    upper_bound=2**32 - 1,
  )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  logging.set_verbosity(logging.WARNING)
  options = flags.FLAGS
  folder = experiment.output_folder()
  data = digits.load_digits(options.seed)
  data = data._replace(
    train_images=enlarged(data.train_images),
    test_images=enlarged(data.test_images),
  )
  print(
    f'{len(data.train_labels)} digits to train on, {len(data.test_labels)} to '
    f'test on, batch size {BATCH_SIZE}, epochs: {options.epochs}',
    flush=True,
  )
  results = [
    train(
      norm,
      data,
      epochs=options.epochs,
      records=options.records,
      learning_rate=options.learning_rate,
      seed=options.seed,
    )
    for norm in dict.fromkeys(options.norms)  # Each once.
  ]
  plot(results, folder / 'vgg_distributions.png')
  print(table(results))
  print(f'Picture: {folder / "vgg_distributions.png"}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
