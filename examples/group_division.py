"""How to divide channels into groups: by their number, or by their size.

    python examples/group_division.py

The network and the images are those of `small_batch.py`, with 32 images a
batch. The number of groups is the same in all layers, as the first row of the
paper's table has it (Wu & He, 2018), or each group has the same number of
channels, as in the second. One group is layer normalization as the paper means
it, one channel a group is instance normalization: the ends of the rows. The
first stage has 8 channels, so that there 8 groups are instance normalization,
and groups of 8 channels layer normalization.

Finished runs are kept in `--output`: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import digits  # First: it says how much TensorFlow may print.
import experiment
import numpy as np
import training
from absl import app, flags
from matplotlib import figure

# What is fixed in a row -> its title.
ROWS = {
  'groups': 'groups',
  'group_size': 'channels in a group',
}
# Which end of a row is which norm, where a 1 stands.
ENDS = {'groups': 'LN', 'group_size': 'IN'}
COLOURS = {'groups': '#0072B2', 'group_size': '#009E73'}
DIVISIONS = (8, 4, 2, 1)
RESULTS = 'group_division.jsonl'
PICTURE = 'group_division.png'


def run_settings(
  divisions: Sequence[int] = DIVISIONS, **options
) -> list[experiment.Settings]:
  """The settings of all runs, for `training.train_run`.

  Args:
    divisions: Numbers of groups, and of channels in a group.
    **options: As for `training.run_settings`.
  """
  common = training.run_settings(
    norms=['group'], batch_sizes=[digits.BASE], **options
  )
  return [
    {**settings, **dict.fromkeys(ROWS), row: division}
    for row in ROWS
    for division in divisions
    for settings in common
  ]


def describe(record: experiment.Record) -> str:
  settings, result = record
  row = next(row for row in ROWS if settings[row])
  return (
    f'{ROWS[row]:20} {settings[row]:3}  seed {settings["seed"]}  '
    f'error {result["error"]:6.2f}%  {result["seconds"]:.0f} s'
  )


def errors(
  records: Sequence[experiment.Record], row: str
) -> dict[int, np.ndarray]:
  """Number in that row -> errors of all seeds, the largest number first."""
  numbers = {record.settings[row] for record in records} - {None}
  return {
    number: experiment.values(records, 'error', **{row: number})
    for number in sorted(numbers, reverse=True)
  }


def table(records: Sequence[experiment.Record]) -> str:
  """Median and range of the error, for both rows of the paper's table."""
  rows = []
  for row, title in ROWS.items():
    for number, values in errors(records, row).items():
      end = f' ({ENDS[row]})' if number == 1 else ''
      rows.append(
        [title, f'{number}{end}', f'{experiment.summary(values):.2f}']
      )
  return experiment.markdown(['the same everywhere', '', 'error (%)'], rows)


def findings(records: Sequence[experiment.Record]) -> str:
  """How far each end is above the best of its row, by seed."""
  claims = []
  for row, title in ROWS.items():
    found = errors(records, row)
    end = found.pop(1)
    best = min(found, key=lambda n: np.median(found[n]))
    claims.append((f'{ENDS[row]} is above {best} {title}', end - found[best]))
  return experiment.findings(claims)


def draw(records: Sequence[experiment.Record], path: pathlib.Path) -> None:
  """The error of each seed and the medians, a panel a row of the table."""
  # Without pyplot no display is looked for.
  picture = figure.Figure(figsize=(8, 3.6), dpi=110, layout='constrained')
  charts = picture.subplots(1, 2, sharey=True)
  for chart, (row, title) in zip(charts, ROWS.items(), strict=True):
    found = errors(records, row)
    places = range(len(found))
    chart.plot(
      places,
      [np.median(values) for values in found.values()],
      'o-',
      color=COLOURS[row],
      label='median',
    )
    for place, values in zip(places, found.values(), strict=True):
      chart.plot(
        [place] * len(values),
        values,
        '_',
        color=COLOURS[row],
        markersize=10,
        label=None if place else 'each seed',
      )
    chart.set_xticks(
      places, [f'1\n({ENDS[row]})' if n == 1 else str(n) for n in found]
    )
    chart.set(xlabel=title)
    chart.set_ylim(bottom=0)
    chart.legend(loc='lower right', frameon=False)
    digits.tidy(chart)
  charts[0].set_ylabel('wrong images (%)')
  picture.suptitle(
    f'Validation error, {digits.BASE} images a batch', fontsize=11
  )
  picture.savefig(path)


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  training.define_flags('out/group_division')
  flags.DEFINE_list(
    'divisions',
    list(map(str, DIVISIONS)),
    'Numbers of groups, and of channels in a group, that divide all --widths.',
  )
  flags.register_multi_flags_validator(
    ['divisions', 'widths'],
    lambda given: (
      training.are_positive(given['divisions'])
      and all(
        int(width) % int(division) == 0
        for width in given['widths']
        for division in given['divisions']
      )
    ),
    '--divisions must be whole numbers that divide all --widths.',
  )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  folder = experiment.output_folder()
  divisions = sorted(set(map(int, flags.FLAGS.divisions)), reverse=True)
  records = training.run_grid(
    run_settings(divisions, **training.options_of_flags()),
    folder / RESULTS,
    describe=describe,
  )
  print()
  print(table(records))
  if len(divisions) > 1 and 1 in divisions:
    print()
    print(findings(records))
  draw(records, folder / PICTURE)
  print(f'Picture: {folder / PICTURE}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
