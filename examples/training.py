"""A residual network trained with one norm: a run, its settings, its flags.

For the experiments about batch sizes and about the division into groups;
`small_batch.py` says how it trains, and why so.
"""

from __future__ import annotations

import functools
import inspect
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import digits  # First: it says how much TensorFlow may print.
import experiment
import image_data
import keras
import resnet
from absl import flags

import tfgroupnorm

NORMS = {
  'group': 'Group Norm (GN)',
  'batch': 'Batch Norm (BN)',
  'layer': 'Layer Norm (LN)',
  'instance': 'Instance Norm (IN)',
}
BATCH_SIZES = (32, 16, 8, 4, 2)


# --- One run ------------------------------------------------------------------


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
    classes=image_data.classes_of(settings['dataset']),
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
  data = image_data.load_data(settings['dataset'], settings['train_size'], seed)
  validation = image_data.validation_images(data, settings)
  model = _fresh_model(settings, data.train_images.shape[1:])
  history = model.fit(
    image_data.batches_of(data.train_images, data.train_labels, settings),
    validation_data=validation,
    validation_batch_size=min(image_data.CHUNK, len(validation[1])),
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


# --- Many runs ----------------------------------------------------------------


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
    dataset: `'digits'`, or a name in `image_data.DOWNLOADS`.
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
      'transforms': [
        image_data.ROTATION,
        image_data.ZOOM,
        image_data.SHIFT,
        image_data.COPIES,
      ],
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
    image_data.load_data(settings['dataset'], settings['train_size'], seed=0)
  return experiment.run_grid_of_flags(train_run, grid, path, describe=describe)


# --- The command line ---------------------------------------------------------


def define_flags(output: str) -> None:
  """The flags that say what to train, and those of all experiments."""
  defaults = inspect.signature(run_settings).parameters
  experiment.define_flags(output, seeds=defaults['seeds'].default)
  flags.DEFINE_enum(
    'dataset',
    'digits',
    ['digits', *image_data.DOWNLOADS],
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
    f'For {digits.BASE} images a batch; linear in their number.',
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
    lambda given: image_data.is_possible(given['dataset'], given['train_size']),
    '--train_size must leave at least one image of each class: of '
    f'{image_data.DIGITS} digits to validate on. Of other datasets it may also '
    'be all, '
    + ', '.join(
      f'{n} of {name}' for name, (_, n) in image_data.DOWNLOADS.items()
    )
    + '.',
  )


def are_positive(numbers: Sequence[str]) -> bool:
  """Whether these words are whole numbers from 1."""
  return bool(numbers) and all(
    number.isdecimal() and int(number) for number in numbers
  )


def options_of_flags() -> dict[str, Any]:
  """Those arguments of `run_settings` that `define_flags` asks for."""
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
