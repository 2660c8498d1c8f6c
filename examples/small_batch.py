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
import inspect
import pathlib
import sys
from collections.abc import Iterator, Sequence

import digits  # First: it says how much TensorFlow may print.
import experiment
import numpy as np
import training
from absl import app, flags
from matplotlib import axes, figure, ticker

# Where norms are: a key for --places -> what to call it.
PLACES = {
  'convolutions': 'norms in convolutions only',
  'head': 'norms after a dense layer too',
}
HEAD = 128  # Outputs of the head's dense layer.
BASE = digits.BASE  # To this batch size others are compared.
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


# --- The runs, and what they show ---------------------------------------------


def describe(record: experiment.Record) -> str:
  settings, result = record
  return (
    f'{training.NORMS[settings["norm"]]:18}  {place_of(record):12}  '
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


def errors(
  records: Sequence[experiment.Record], norm: str, batch_size: int
) -> np.ndarray:
  """Those of the runs with one norm and batch size, by seed."""
  return experiment.values(records, 'error', norm=norm, batch_size=batch_size)


def table(records: Sequence[experiment.Record]) -> str:
  """Median and range of the error, by norm and batch size."""
  batch_sizes = sorted(
    {record.settings['batch_size'] for record in records}, reverse=True
  )
  return experiment.markdown(
    ['images a batch', *map(str, batch_sizes)],
    [
      [
        training.NORMS[norm],
        *(
          f'{experiment.summary(errors(records, norm, batch_size)):.2f}'
          for batch_size in batch_sizes
        ),
      ]
      for norm in experiment.present(records, 'norm', training.NORMS)
    ],
  )


def rise(
  records: Sequence[experiment.Record], norm: str, batch_size: int
) -> np.ndarray:
  """By how many points the error is above that of `BASE` images, by seed."""
  return errors(records, norm, batch_size) - errors(records, norm, BASE)


def span(records: Sequence[experiment.Record], norm: str) -> np.ndarray:
  """How far its errors at all batch sizes are apart, by seed."""
  sizes = {record.settings['batch_size'] for record in records}
  return np.ptp([errors(records, norm, size) for size in sizes], axis=0)


def _difference(
  records: Sequence[experiment.Record],
  above: str,
  below: str,
  batch_size: int,
  name: str = 'error',
) -> np.ndarray:
  """By how many points one norm is above another; empty if one is missing."""
  high, low = (
    experiment.values(records, name, norm=norm, batch_size=batch_size)
    for norm in (above, below)
  )
  return high - low if len(high) == len(low) else np.array([])


def findings(records: Sequence[experiment.Record]) -> str:
  """Which of the paper's findings these runs show, as a table with figures.

  Runs of one seed have the same images in the same order, so they are compared
  seed by seed: a difference counts if all seeds agree on its sign. Where there
  is none, 5 seeds agree by chance once in 16 times, 3 once in 4.
  """
  return experiment.findings(_claims(records))


def _claims(records: Sequence[experiment.Record]) -> Iterator[tuple]:
  """What the paper found, by how many points it is so here, what to say."""
  norms = experiment.present(records, 'norm', training.NORMS)
  sizes = sorted({record.settings['batch_size'] for record in records})
  least = sizes[0]
  difference = functools.partial(_difference, records)
  if BASE in sizes and 'batch' in norms:
    for size in sizes[:2]:
      if size < BASE:
        claim = f'BN at {size} is above BN at {BASE}'
        yield claim, rise(records, 'batch', size)
  if BASE in sizes and least < BASE and 'group' in norms:
    yield (
      f'GN at {least} is as at {BASE}',
      rise(records, 'group', least),
      'no, it is above',
      'no, it is below',
      'nothing against it: seeds disagree',
    )
    if 'batch' in norms:
      yield (
        f'From {BASE} to {least}, BN rises more than GN',
        rise(records, 'batch', least) - rise(records, 'group', least),
      )
      if len(sizes) > 2:
        yield (
          f'From {BASE} to {least}, BN spans more than GN',
          span(records, 'batch') - span(records, 'group'),
        )
  if least < BASE:
    yield f'At {least}, BN is above GN', difference('batch', 'group', least)
  yield f'At {BASE}, GN is above BN', difference('group', 'batch', BASE)
  yield (
    f'At {BASE}, BN is above GN in training error',
    difference('batch', 'group', BASE, 'train_error'),
  )
  yield f'At {BASE}, LN is above GN', difference('layer', 'group', BASE)
  yield f'At {BASE}, IN is above LN', difference('instance', 'layer', BASE)


# --- The picture --------------------------------------------------------------


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
  norms = experiment.present(records, 'norm', training.NORMS)
  batch_sizes = sorted({record.settings['batch_size'] for record in records})
  for i, norm in enumerate(norms):
    digits.plot_summaries(
      # Side by side, so that no bar hides another.
      np.log2(batch_sizes) + 0.06 * (i - (len(norms) - 1) / 2),
      [
        experiment.summary(errors(records, norm, batch_size))
        for batch_size in batch_sizes
      ],
      chart,
      label=training.NORMS[norm],
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
  training.define_flags('out/small_batch')
  flags.adopt_module_key_flags(training)  # `--help` lists them too.
  flags.DEFINE_bool(
    'quick',
    False,
    'Only whether BN rises from batches of 32 to 2 by clearly more than GN, '
    'in about a minute. It fails if not. What is trained it chooses itself.',
  )
  names = ', '.join(training.NORMS)
  flags.DEFINE_list('norms', list(training.NORMS), f'Some of {names}')
  flags.DEFINE_list(
    'places',
    list(PLACES),
    'Which layers have norms: convolutions, those and a dense layer in the '
    'head, or both in turn.',
  )
  flags.DEFINE_list(
    'batch_sizes', list(map(str, training.BATCH_SIZES)), 'Batch sizes.'
  )
  flags.DEFINE_integer(
    'groups', 4, 'Groups of GN, a divisor of all widths.', lower_bound=1
  )
  flags.register_validator(
    'norms',
    lambda norms: norms and set(norms) <= set(training.NORMS),
    f'must be some of {names}.',
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
      training.are_positive(given['batch_sizes'])
      and max(map(int, given['batch_sizes'])) <= given['train_size']
    ),
    'must be whole numbers from 1 to --train_size.',
  )
  flags.register_multi_flags_validator(
    ['groups', 'widths'],
    lambda given: all(int(w) % given['groups'] == 0 for w in given['widths']),
    '--groups must divide all --widths.',
  )


def grid_of_flags() -> list[experiment.Settings]:
  """The runs that the flags ask for, those with heads last."""
  options = flags.FLAGS
  common = {
    **training.options_of_flags(),
    'norms': tuple(dict.fromkeys(options.norms)),
    'batch_sizes': sorted(set(map(int, options.batch_sizes))),
    'groups': options.groups,
  }
  shorter = {**common, 'epochs': max(1, options.epochs // 2)}
  grid = []
  if 'convolutions' in options.places:
    grid += training.run_settings(**common)
  if 'head' in options.places:
    grid += training.run_settings(**shorter, head=HEAD)
  return grid


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  options = flags.FLAGS
  chosen = [
    f
    for f in ('places', *inspect.signature(training.run_settings).parameters)
    if f in options and options[f].present
  ]
  if options.quick and chosen:
    raise app.UsageError(
      '--quick chooses itself what to train. Received also: '
      f'--{", --".join(chosen)}. Leave these out, or --quick.'
    )
  folder = experiment.output_folder()
  if options.quick:
    grid = training.run_settings(**QUICK)
  else:
    grid = grid_of_flags()
  records = training.run_grid(grid, folder / RESULTS, describe=describe)
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
