"""The main experiment of Group Normalization: error against batch size.

    python examples/small_batch.py
    python examples/small_batch.py --quick
    python examples/small_batch.py --places=head --norms=group,batch
    python examples/small_batch.py --dataset=cifar10 --train_size=10000

A residual network is trained with batch (BN), group (GN), layer (LN) and
instance normalization (IN), with 32, 16, 8, 4 and 2 images a batch and several
seeds each. As in the paper (Wu & He, 2018):

  - LN is `GroupNorm(groups=1)`, over height, width and channels. It is not
    `LayerNorm` over the last axis alone;
  - the learning rate is linear in the batch size, and every run sees the same
    number of images;
  - `gamma` starts at 0 in the last norm of each residual block, at 1 elsewhere.

BN gets its best chance: its moving averages span the same number of images at
any batch size (momentum 0.9 at 32 images, the paper's, 0.9 ** (2 / 32) at 2).

All this twice. In the first network only convolutions have norms; the second
has a dense layer with a norm before its classes too. There the norm sees one
value of each image, so that IN would make all of them 0, and is left out. The
second trains for half as many epochs.

The images are scikit-learn's 8 by 8 scans of digits, so nothing is downloaded.
As they are, a thousand of them are soon learned by heart, and noise in the
statistics only helps against that. So each image is turned, scaled, moved,
dimmed and brightened at random, anew in each epoch, and so are those to
validate on: then, as with photographs, there is more to fit than a network can,
and images differ in contrast. (`--contrast=1` neither dims nor brightens.)

Finished runs are kept in `--output`: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import digits  # First: it says how much TensorFlow may print.
import experiment
import keras
import numpy as np
import resnet
import tensorflow as tf
from absl import app, flags
from matplotlib import axes, figure, ticker
from sklearn import model_selection

import tfgroupnorm

NORMS = {
  'group': 'Group Norm (GN)',
  'batch': 'Batch Norm (BN)',
  'layer': 'Layer Norm (LN)',
  'instance': 'Instance Norm (IN)',
}
# Datasets of Keras, which are downloaded: numbers of classes and of images.
DOWNLOADS = {
  'cifar10': (10, 50000),
  'cifar100': (100, 50000),
  'fashion_mnist': (10, 60000),
  'mnist': (10, 60000),
}
# Where norms are: a key for --places -> what to call it.
PLACES = {
  'convolutions': 'norms in convolutions only',
  'head': 'norms after a dense layer too',
}
HEAD = 128  # Outputs of the head's dense layer.
DIGITS = 1797
BATCH_SIZES = (32, 16, 8, 4, 2)
# To this batch size others are compared, and the learning rate refers to it.
BASE = digits.BASE
# How far images are transformed: parts of a turn and of their size.
ROTATION, ZOOM, SHIFT = 0.05, 0.15, 0.075
# Images transformed at a time, and how often each image to validate on is, in
# its own way each time, where there are few of them.
CHUNK, COPIES = 8192, 8
# What --quick changes, and by how many points BN has to rise, more than GN too.
QUICK = {
  'norms': ('group', 'batch'),
  'batch_sizes': (BASE, 2),
  'epochs': 4,
  'seeds': 1,
  'head': HEAD,
}
QUICK_MARGIN = 5.0
RESULTS = 'small_batch.jsonl'
PICTURE = 'small_batch.png'


# --- One run ------------------------------------------------------------------


def load_data(dataset: str, train_size: int, seed: int) -> digits.Digits:
  """Images from 0 to 1, of which `train_size` are to train on.

  Args:
    dataset: `'digits'`, or a name in `DOWNLOADS`.
    train_size: Number of images to train on.
    seed: Of the choice of these. What is left of scikit-learn's digits is to
      validate on; other datasets have images of their own for that.
  """
  if dataset == 'digits':
    return digits.load_digits(seed, train_size)
  (images, labels), (test_images, test_labels) = importlib.import_module(
    f'keras.datasets.{dataset}'
  ).load_data()
  labels = labels.reshape(-1)
  if train_size < len(labels):
    images, _, labels, _ = model_selection.train_test_split(
      images, labels, train_size=train_size, stratify=labels, random_state=seed
    )
  images, test_images = (
    (i / 255).astype(np.float32).reshape(*i.shape[:3], -1)
    for i in (images, test_images)
  )
  return digits.Digits(
    images,
    test_images,
    labels.astype(np.int32),
    test_labels.reshape(-1).astype(np.int32),
  )


def transformation(
  contrast: float, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
  """What turns, scales, moves, dims and brightens each image at random.

  Args:
    contrast: The least part of its contrast that an image keeps. Where it loses
      some, its brightness is drawn from what keeps it between 0 and 1.
    seed: Of all that is random.
  """
  rng = np.random.default_rng(seed)
  # With one seed for all, an image's angle would follow from its size.
  seeds = map(int, rng.integers(2**31, size=3))
  layers = keras.Sequential(
    [
      layer(*factors, fill_mode='constant', seed=own)
      for (layer, factors), own in zip(
        (
          (keras.layers.RandomRotation, (ROTATION,)),
          (keras.layers.RandomZoom, (ZOOM, ZOOM)),
          (keras.layers.RandomTranslation, (SHIFT, SHIFT)),
        ),
        seeds,
        strict=True,
      )
    ]
  )

  def transform(images):
    kept = rng.uniform(contrast, 1, (len(images), 1, 1, 1))
    brightness = rng.uniform(0, 1 - kept)
    result = np.empty(images.shape, np.float32)
    for start in range(0, len(images), CHUNK):
      part = slice(start, start + CHUNK)
      turned = np.asarray(layers(images[part], training=True))
      result[part] = kept[part] * turned + brightness[part]
    return result

  return transform


def validation_images(
  data: digits.Digits, settings: experiment.Settings
) -> tuple[np.ndarray, np.ndarray]:
  """Images to validate on, transformed as those to train on, and labels."""
  count = len(data.test_labels)
  copies = min(COPIES, max(1, CHUNK // count))
  transform = transformation(settings['contrast'], settings['seed'])
  return (
    transform(np.repeat(data.test_images, copies, axis=0)),
    np.repeat(data.test_labels, copies),
  )


def batches_of(
  images: np.ndarray, labels: np.ndarray, settings: experiment.Settings
) -> tf.data.Dataset:
  """Batches for all epochs, in another order and transformed in each.

  They depend on the seed alone: all norms, and all batch sizes that divide the
  number of images, see the same images in the same order.
  """
  batch_size, epochs = settings['batch_size'], settings['epochs']
  rng = np.random.default_rng(settings['seed'])
  transform = transformation(settings['contrast'], settings['seed'])
  used = len(labels) // batch_size * batch_size

  def blocks():
    # Some epochs at a time: all of them may be too many to hold.
    size = max(1, CHUNK // len(labels))
    for start in range(0, epochs, size):
      order = np.concatenate(
        [
          rng.permutation(len(labels))[:used]
          for _ in range(start, min(start + size, epochs))
        ]
      )
      yield (
        transform(images[order]).reshape(-1, batch_size, *images.shape[1:]),
        labels[order].reshape(-1, batch_size),
      )

  return tf.data.Dataset.from_generator(
    blocks,
    output_signature=(
      tf.TensorSpec((None, batch_size, *images.shape[1:]), tf.float32),
      tf.TensorSpec((None, batch_size), tf.int32),
    ),
  ).unbatch()


def norm_factory(
  norm: str, groups: int | None, batch_size: int, group_size: int | None = None
) -> Callable[..., keras.layers.Layer]:
  """What makes the paper's normalization layers: `norm` is a key of `NORMS`.

  Args:
    norm: Which.
    groups: Groups of GN.
    batch_size: For the moving averages of BN.
    group_size: Channels in a group of GN, in place of `groups`.
  """
  if group_size is not None:
    group = functools.partial(tfgroupnorm.GroupNorm, group_size=group_size)
  else:
    group = functools.partial(tfgroupnorm.GroupNorm, groups=groups)
  return {
    'group': group,
    'batch': functools.partial(digits.batch_norm, batch_size),
    'layer': functools.partial(tfgroupnorm.GroupNorm, groups=1),
    'instance': tfgroupnorm.InstanceNorm,
  }[norm]


def build_model(
  settings: experiment.Settings, shape: Sequence[int]
) -> keras.Model:
  """The network for images of that shape; for `settings` see `run_settings`."""
  make_norm = norm_factory(
    settings['norm'],
    settings['groups'],
    settings['batch_size'],
    settings.get('group_size'),
  )
  return resnet.resnet(
    make_norm,
    make_last_norm=functools.partial(make_norm, gamma_initializer='zeros'),
    shape=shape,
    widths=settings['widths'],
    classes=DOWNLOADS.get(settings['dataset'], (digits.CLASSES, DIGITS))[0],
    head=settings.get('head'),
  )


@functools.lru_cache(maxsize=1)
def _compiled_model(key: str, shape: tuple[int, ...]) -> keras.Model:
  """Compiled once for all seeds: that takes as long as some epochs."""
  keras.utils.clear_session()
  settings = json.loads(key)
  model = build_model(settings, shape)
  digits.compile_model(
    model,
    batch_size=settings['batch_size'],
    steps=settings['train_size'] // settings['batch_size'],
    epochs=settings['epochs'],
    learning_rate=settings['learning_rate'],
  )
  return model


def _fresh_model(
  settings: experiment.Settings, shape: tuple[int, ...]
) -> keras.Model:
  """A model as if just compiled, with weights drawn from its seed."""
  common = {name: v for name, v in settings.items() if name != 'seed'}
  model = _compiled_model(json.dumps(common, sort_keys=True), shape)
  keras.utils.set_random_seed(settings['seed'])
  experiment.restart(model, build_model(settings, shape))
  return model


def train_run(settings: experiment.Settings) -> dict[str, Any]:
  """Trains one network.

  Args:
    settings: As `run_settings` makes them.

  Returns:
    Errors in percent after each epoch, `train_errors` and
    `validation_errors`, the last ones as `train_error` and `error`, the
    training loss `train_loss`, and the `seconds` of CPU time that all took.
  """
  began = time.process_time()
  seed = settings['seed']
  data = load_data(settings['dataset'], settings['train_size'], seed)
  validation = validation_images(data, settings)
  model = _fresh_model(settings, data.train_images.shape[1:])
  history = model.fit(
    batches_of(data.train_images, data.train_labels, settings),
    validation_data=validation,
    validation_batch_size=min(CHUNK, len(validation[1])),
    epochs=settings['epochs'],
    steps_per_epoch=settings['train_size'] // settings['batch_size'],
    shuffle=False,  # They are in order already.
    verbose=0,
  ).history
  train_errors, errors = (
    [round(digits.error_percent(value), 3) for value in history[name]]
    for name in ('accuracy', 'val_accuracy')
  )
  return {
    'error': errors[-1],
    'train_error': train_errors[-1],
    'train_loss': round(history['loss'][-1], 5),
    'train_errors': train_errors,
    'validation_errors': errors,
    'seconds': round(time.process_time() - began, 1),
  }


# --- All runs -----------------------------------------------------------------


def run_settings(
  *,
  dataset: str = 'digits',
  norms: Sequence[str] = tuple(NORMS),
  batch_sizes: Sequence[int] = BATCH_SIZES,
  seeds: int = 5,
  epochs: int = 30,
  train_size: int = 1024,
  widths: Sequence[int] = (8, 16, 32),
  groups: int = 4,
  learning_rate: float = 0.05,
  contrast: float = 0.2,
  head: int | None = None,
) -> list[experiment.Settings]:
  """The settings of all runs, the longest first.

  Args:
    dataset: `'digits'`, or a name in `DOWNLOADS`.
    norms: Keys of `NORMS`.
    batch_sizes: Images in a batch.
    seeds: Number of runs for each norm and batch size.
    epochs: Passes over the images.
    train_size: Number of images to train on.
    widths: Channels of each stage of the network.
    groups: Groups of GN.
    learning_rate: That of 32 images, linear in the batch size.
    contrast: The least part of its contrast that an image keeps.
    head: Outputs of a dense layer with a norm before the classes, if there is
      to be one. Then there are no runs of IN, which would make them all 0.
  """
  return [
    {
      'dataset': dataset,
      'norm': norm,
      'batch_size': batch_size,
      'seed': seed,
      'epochs': epochs,
      'train_size': train_size,
      'widths': list(widths),
      # So that runs without groups are the same whatever these are.
      'groups': groups if norm == 'group' else None,
      'learning_rate': learning_rate,
      'contrast': contrast,
      'transforms': [ROTATION, ZOOM, SHIFT, COPIES],
      'momentum': digits.MOMENTUM,
      # Runs without are what they were before there were heads.
      **({'head': head} if head else {}),
    }
    for batch_size in sorted(batch_sizes)
    for norm in norms
    if not (head and norm == 'instance')
    for seed in range(seeds)
  ]


def run_grid(
  grid: Sequence[experiment.Settings],
  path: pathlib.Path,
  *,
  describe: Callable[[experiment.Record], str],
) -> list[experiment.Record]:
  """`train_run` of all of `grid`; what has to be downloaded is, before."""
  settings = grid[0]
  if settings['dataset'] != 'digits':
    # Not by all workers at once: Keras writes where others already read.
    load_data(settings['dataset'], settings['train_size'], seed=0)
  return experiment.run_grid_of_flags(train_run, grid, path, describe=describe)


def describe(record: experiment.Record) -> str:
  settings, result = record
  return (
    f'{NORMS[settings["norm"]]:18}  {place_of(record):12}  '
    f'batch {settings["batch_size"]:3}  '
    f'seed {settings["seed"]}  error {result["error"]:6.2f}%  '
    f'{result["seconds"]:.0f} s'
  )


def place_of(record: experiment.Record) -> str:
  """Where this run has norms, a key of `PLACES`."""
  return 'head' if record.settings.get('head') else 'convolutions'


def by_place(
  records: Sequence[experiment.Record],
) -> dict[str, list[experiment.Record]]:
  """The runs of each place that occurs, in the order of `PLACES`."""
  places = {
    place: [record for record in records if place_of(record) == place]
    for place in PLACES
  }
  return {place: runs for place, runs in places.items() if runs}


def values(
  records: Sequence[experiment.Record], name: str, **settings
) -> np.ndarray:
  """Result `name` of the selected runs, in the order of their seeds."""
  chosen = experiment.select(records, **settings)
  chosen.sort(key=lambda record: record.settings['seed'])
  return np.array([record.result[name] for record in chosen])


def _present(records: Sequence[experiment.Record], name: str, known: Sequence):
  """Those of `known` that occur as setting `name`, in that order."""
  found = {record.settings[name] for record in records}
  return [each for each in known if each in found]


def table(records: Sequence[experiment.Record]) -> str:
  """Median and range of the error, by norm and batch size."""
  batch_sizes = sorted(
    {record.settings['batch_size'] for record in records}, reverse=True
  )
  return experiment.markdown(
    ['images a batch', *map(str, batch_sizes)],
    [
      [
        NORMS[norm],
        *(
          format(
            experiment.summary(
              values(records, 'error', norm=norm, batch_size=batch_size)
            ),
            '.2f',
          )
          for batch_size in batch_sizes
        ),
      ]
      for norm in _present(records, 'norm', list(NORMS))
    ],
  )


def rise(
  records: Sequence[experiment.Record], norm: str, batch_size: int
) -> np.ndarray:
  """By how many points the error is above that of `BASE` images, by seed."""
  return values(records, 'error', norm=norm, batch_size=batch_size) - values(
    records, 'error', norm=norm, batch_size=BASE
  )


def span(records: Sequence[experiment.Record], norm: str) -> np.ndarray:
  """How far its errors at all batch sizes are apart, by seed."""
  sizes = {record.settings['batch_size'] for record in records}
  return np.ptp(
    [values(records, 'error', norm=norm, batch_size=size) for size in sizes],
    axis=0,
  )


def _difference(
  records: Sequence[experiment.Record],
  above: str,
  below: str,
  batch_size: int,
  name: str = 'error',
) -> np.ndarray:
  """By how many points one norm is above another; empty if one is missing."""
  high, low = (
    values(records, name, norm=norm, batch_size=batch_size)
    for norm in (above, below)
  )
  return high - low if len(high) == len(low) else np.array([])


def findings(records: Sequence[experiment.Record]) -> str:
  """Which of the paper's findings these runs show, as a table with figures.

  Runs of one seed have the same images in the same order, so they are compared
  seed by seed: a difference counts if all seeds agree on its sign. Where there
  is none, 5 seeds agree by chance once in 16 times, 3 once in 4.
  """
  norms = _present(records, 'norm', list(NORMS))
  sizes = sorted({record.settings['batch_size'] for record in records})
  least = sizes[0]
  rows = []

  def add(claim, differences, *words) -> None:
    if len(differences):
      rows.append(
        [
          claim,
          f'{experiment.summary(differences):+.2f}',
          experiment.verdict(differences, *words),
        ]
      )

  difference = functools.partial(_difference, records)
  if BASE in sizes and 'batch' in norms:
    for size in sizes[:2]:
      if size < BASE:
        add(f'BN at {size} is above BN at {BASE}', rise(records, 'batch', size))
  if BASE in sizes and least < BASE and 'group' in norms:
    add(
      f'GN at {least} is as at {BASE}',
      rise(records, 'group', least),
      'no, it is above',
      'no, it is below',
      'nothing against it: seeds disagree',
    )
    if 'batch' in norms:
      add(
        f'From {BASE} to {least}, BN rises more than GN',
        rise(records, 'batch', least) - rise(records, 'group', least),
      )
      if len(sizes) > 2:
        add(
          f'From {BASE} to {least}, BN spans more than GN',
          span(records, 'batch') - span(records, 'group'),
        )
  if least < BASE:
    add(f'At {least}, BN is above GN', difference('batch', 'group', least))
  add(f'At {BASE}, GN is above BN', difference('group', 'batch', BASE))
  add(
    f'At {BASE}, BN is above GN in training error',
    difference('batch', 'group', BASE, 'train_error'),
  )
  add(f'At {BASE}, LN is above GN', difference('layer', 'group', BASE))
  add(f'At {BASE}, IN is above LN', difference('instance', 'layer', BASE))
  return experiment.markdown(
    ["the paper's finding", 'points here', 'reproduced'], rows
  )


def draw(records: Sequence[experiment.Record], path: pathlib.Path) -> None:
  """Error against batch size, a panel for each place that norms are in."""
  places = by_place(records)
  # Without pyplot no display is looked for.
  picture = figure.Figure(
    figsize=(1 + 4.5 * len(places), 4.2), dpi=110, layout='constrained'
  )
  charts = picture.subplots(1, len(places), sharey=True, squeeze=False)[0]
  for chart, (place, runs) in zip(charts, places.items(), strict=True):
    plot_errors(runs, chart)
    chart.set_title(PLACES[place].capitalize(), fontsize=12)
  charts[0].set_ylabel('wrong images (%), median and range')
  handles, labels = charts[0].get_legend_handles_labels()
  picture.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=len(labels),
    frameon=False,
  )
  picture.savefig(path)


def plot_errors(records: Sequence[experiment.Record], chart: axes.Axes) -> None:
  """Medians, and bars from the least to the greatest of all seeds."""
  norms = _present(records, 'norm', list(NORMS))
  batch_sizes = sorted({record.settings['batch_size'] for record in records})
  for i, norm in enumerate(norms):
    digits.plot_summaries(
      # Side by side, so that no bar hides another.
      np.log2(batch_sizes) + 0.06 * (i - (len(norms) - 1) / 2),
      [
        experiment.summary(
          values(records, 'error', norm=norm, batch_size=batch_size)
        )
        for batch_size in batch_sizes
      ],
      chart,
      label=NORMS[norm],
      **digits.LINES[norm],
    )
  chart.set(xlabel='images a batch', yscale='log')
  chart.set_xticks(np.log2(batch_sizes), list(map(str, batch_sizes)))
  chart.invert_xaxis()  # As in the paper.
  chart.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 4, 5, 7)))
  chart.yaxis.set_major_formatter('{x:g}')
  chart.yaxis.set_minor_locator(ticker.NullLocator())
  digits.tidy(chart)


# --- The command --------------------------------------------------------------


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  define_training_flags('out/small_batch')
  flags.DEFINE_bool(
    'quick',
    False,
    'Only whether BN rises from batches of 32 to 2 by clearly more than GN, '
    'in about a minute. It fails if not. What is trained it chooses itself.',
  )
  flags.DEFINE_list('norms', list(NORMS), 'Some of ' + ', '.join(NORMS))
  flags.DEFINE_list(
    'places',
    list(PLACES),
    'Which layers have norms: convolutions, those and a dense layer in the '
    'head, or both in turn.',
  )
  flags.DEFINE_list('batch_sizes', list(map(str, BATCH_SIZES)), 'Batch sizes.')
  flags.DEFINE_integer(
    'groups', 4, 'Groups of GN, a divisor of all widths.', lower_bound=1
  )
  flags.register_validator(
    'norms',
    lambda norms: norms and set(norms) <= set(NORMS),
    f'must be some of {", ".join(NORMS)}.',
  )
  flags.register_validator(
    'places',
    lambda places: places and set(places) <= set(PLACES),
    f'must be some of {", ".join(PLACES)}.',
  )
  flags.register_multi_flags_validator(
    ['places', 'norms'],
    lambda given: (
      set(given['places']) != {'head'} or set(given['norms']) != {'instance'}
    ),
    '--norms must name more than instance: in the head it would make all 0.',
  )
  flags.register_multi_flags_validator(
    ['batch_sizes', 'train_size'],
    lambda given: (
      are_positive(given['batch_sizes'])
      and max(map(int, given['batch_sizes'])) <= given['train_size']
    ),
    'must be whole numbers from 1 to --train_size.',
  )
  flags.register_multi_flags_validator(
    ['groups', 'widths'],
    lambda given: all(int(w) % given['groups'] == 0 for w in given['widths']),
    '--groups must divide all --widths.',
  )


def define_training_flags(output: str) -> None:
  """The flags that `group_division.py` has too."""
  defaults = inspect.signature(run_settings).parameters
  experiment.define_flags(output, seeds=defaults['seeds'].default)
  flags.DEFINE_enum(
    'dataset',
    'digits',
    ['digits', *DOWNLOADS],
    'digits comes with scikit-learn; others are downloaded by Keras.',
  )
  flags.DEFINE_integer(
    'epochs',
    defaults['epochs'].default,
    'Passes over the images.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'train_size',
    defaults['train_size'].default,
    'Images to train on.',
    lower_bound=32,
  )
  flags.DEFINE_list(
    'widths',
    list(map(str, defaults['widths'].default)),
    'Channels of each stage of the network.',
  )
  flags.DEFINE_float(
    'learning_rate',
    defaults['learning_rate'].default,
    f'For {BASE} images a batch; linear in their number.',
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    'contrast',
    defaults['contrast'].default,
    'The least part of its contrast that an image keeps; 1: all of it.',
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.register_validator(
    'widths', are_positive, 'must be whole numbers from 1.'
  )
  flags.register_multi_flags_validator(
    ['dataset', 'train_size'],
    lambda given: is_possible(given['dataset'], given['train_size']),
    f'--train_size must leave at least one image of each class: of {DIGITS} '
    'digits to validate on. Of other datasets it may also be all, '
    + ', '.join(f'{n} of {name}' for name, (_, n) in DOWNLOADS.items())
    + '.',
  )


def is_possible(dataset: str, train_size: int) -> bool:
  """Whether `load_data` can choose that many images, some of each class."""
  if dataset == 'digits':
    return train_size <= DIGITS - digits.CLASSES
  classes, images = DOWNLOADS[dataset]
  return classes <= train_size <= images - classes or train_size == images


def are_positive(numbers: Sequence[str]) -> bool:
  """Whether these words are whole numbers from 1."""
  return bool(numbers) and all(
    number.isdecimal() and int(number) for number in numbers
  )


def training_options() -> dict[str, Any]:
  """Those arguments of `run_settings` that `define_training_flags` asks for."""
  options = flags.FLAGS
  return {
    'dataset': options.dataset,
    'seeds': options.seeds,
    'epochs': options.epochs,
    'train_size': options.train_size,
    'widths': tuple(map(int, options.widths)),
    'learning_rate': options.learning_rate,
    'contrast': options.contrast,
  }


def grid_of_flags() -> list[experiment.Settings]:
  """The runs that the flags ask for, those with heads last."""
  options = flags.FLAGS
  common = {
    **training_options(),
    'norms': tuple(dict.fromkeys(options.norms)),
    'batch_sizes': sorted(set(map(int, options.batch_sizes))),
    'groups': options.groups,
  }
  shorter = {**common, 'epochs': max(1, options.epochs // 2)}
  grid = []
  if 'convolutions' in options.places:
    grid += run_settings(**common)
  if 'head' in options.places:
    grid += run_settings(**shorter, head=HEAD)
  return grid


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  options = flags.FLAGS
  chosen = [
    f
    for f in ('places', *inspect.signature(run_settings).parameters)
    if f in options and options[f].present
  ]
  if options.quick and chosen:
    raise app.UsageError(
      '--quick chooses itself what to train. Received also: '
      f'--{", --".join(chosen)}. Leave these out, or --quick.'
    )
  folder = experiment.output_folder()
  if options.quick:
    grid = run_settings(**QUICK)
  else:
    grid = grid_of_flags()
  records = run_grid(grid, folder / RESULTS, describe=describe)
  for place, runs in by_place(records).items():
    print(f'\n{PLACES[place].capitalize()}:\n')
    print(table(runs))
    print()
    print(findings(runs))
  picture = folder / ('quick.png' if options.quick else PICTURE)
  draw(records, picture)
  print(f'Picture: {picture}')
  if options.quick:
    batch, group = (rise(records, norm, 2)[0] for norm in ('batch', 'group'))
    if not min(batch, batch - group) >= QUICK_MARGIN:  # So that NaN fails too.
      sys.exit(
        'BN does not rise, or not clearly more than GN, from batches of '
        f'{BASE} to 2. Received: BN {batch:+.2f} points, GN {group:+.2f}, '
        f'where BN has to rise by {QUICK_MARGIN} and by that more than GN.'
      )


if __name__ == '__main__':
  define_flags()
  app.run(main)
