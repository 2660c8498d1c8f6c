"""Draws the charts of docs/ from the numbers in `results/`.

  python benchmarks/charts.py

Of each chart there are two, for light pages and for dark ones. The same numbers
give the same files, and each says in its description what it shows, number by
number: so `tests/charts_test.py` finds those that are older than their numbers.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure

RESULTS = pathlib.Path(__file__).parent / 'results'

# What differs by the page: text, lines of the grid, lines to compare with.
THEMES = {
  '': {'text': '#24292f', 'grid': '#d0d7de', 'mark': '#000000'},
  '_dark': {'text': '#d5d9de', 'grid': '#454c56', 'mark': '#ffffff'},
}
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = {
  'tfgroupnorm': '#0072B2',
  'tfgroupnorm, compiled': '#0072B2',
  'tfgroupnorm, plain': '#56B4E9',
  'tfgroupnorm, float32': '#0072B2',
  'tfgroupnorm, bfloat16': '#56B4E9',
  'keras.layers': '#E69F00',
  'keras.layers, compiled': '#D55E00',
  'PyTorch': '#009E73',
}
STYLE = {
  # Text as text: small files, and the reader's own font if ours is missing.
  'svg.fonttype': 'none',
  'svg.hashsalt': 'tfgroupnorm',
  'font.size': 10,
  'axes.titlesize': 10,
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.spines.left': False,
  'legend.frameon': False,
  'legend.fontsize': 10,
}

# In inches. So wide that a telephone shows text that can be read.
WIDTH = 5.9
ABOVE, BELOW, LEFT, BETWEEN = 0.42, 0.5, 0.06, 0.22
TITLE = 0.24
NAME = 0.19  # A row's name stands over its bars.
GAP = 0.08  # Rows.
BAR, THICK = 0.1, 0.15

# {pass or target: {whose: a value for each row, or None}}
Panels = dict[str, dict[str, list[float | None]]]


def _results(name: str):
  return json.loads((RESULTS / name).read_text())


# --- How all of them are drawn -----------------------------------------------


def _panels(count: int, height: float, left: float, titled: bool):
  """Panels side by side, with room for what stands around them."""
  above = ABOVE + (TITLE if titled else 0)
  whole = above + height + BELOW
  figure = Figure(figsize=(WIDTH, whole))
  width = (WIDTH - left - 0.2 - (count - 1) * BETWEEN) / count
  figure.subplots_adjust(
    left=left / WIDTH,
    right=1 - 0.2 / WIDTH,
    bottom=BELOW / whole,
    top=1 - above / whole,
    wspace=BETWEEN / width,
  )
  return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _legend(figure: Figure) -> None:
  """One for all panels, in a row."""
  shown = {}
  for pane in figure.axes:
    for handle, name in zip(*pane.get_legend_handles_labels(), strict=True):
      shown.setdefault(name, handle)
  figure.legend(
    list(shown.values()),
    list(shown),
    loc='upper left',
    ncols=len(shown),
    bbox_to_anchor=(0, 1),
    borderaxespad=0.2,
    borderpad=0,
    handlelength=1.2,
    handletextpad=0.4,
    columnspacing=1.1,
  )


class Bars:
  """Rows of bars in panels side by side, names over the bars of a row."""

  def __init__(self, names: list[str], panels: Panels, bar=BAR, left=LEFT):
    self.bar, self.series = bar, len(next(iter(panels.values())))
    row = NAME + self.series * bar + GAP
    height = len(names) * row
    self.tops = row * np.arange(len(names)) + NAME
    self.figure, self.panes = _panels(
      len(panels), height, left, titled=any(panels)
    )
    for pane, (title, values) in zip(self.panes, panels.items(), strict=True):
      for i, (name, found) in enumerate(values.items()):
        pane.barh(
          self.tops + (i + 0.5) * bar,
          [np.nan if value is None else value for value in found],
          0.85 * bar,
          color=COLOURS[name],
          label=name,
        )
      pane.set(title=title, ylim=(height, 0))
      pane.set_yticks(self.tops - 0.55 * NAME, names)
      pane.tick_params('y', length=0, pad=0, labelleft=pane is self.panes[0])
      for label in pane.get_yticklabels():
        label.set_horizontalalignment('left')

  def finish(self, panel, xlabel, ticks, mark=None, says='', colour=None):
    """The axis of a panel, and a line to compare its bars with."""
    pane = self.panes[panel]
    labels = [f'{tick:g}'.replace('e-0', 'e-') for tick in ticks]
    pane.set(xlabel=xlabel, xticks=ticks, xticklabels=labels)
    self._lines(pane, ticks, colors=rcParams['grid.color'], linewidth=0.6)
    if mark is not None:
      colour = colour or rcParams['lines.color']
      style = {'linestyle': (0, (3, 1.5)), 'linewidth': 1.4}
      self._lines(pane, [mark], colors=colour, zorder=3, **style)
      pane.plot([], [], color=colour, label=says, **style)
    if panel == len(self.panes) - 1:
      _legend(self.figure)

  def _lines(self, pane, places, zorder=0.5, **options) -> None:
    """Vertical lines beside bars, and not through the names."""
    for top in self.tops:
      bottom = top + self.series * self.bar
      pane.vlines(places, top, bottom, zorder=zorder, **options)

  def write(self, said: Callable[[float], str | None]) -> None:
    """Beside a bar what `said` makes of its value; n/a where there is none."""
    middle = 0.85 * self.bar / 2
    for pane in self.panes:
      for bars in pane.containers:
        for bar in bars:
          value = bar.get_width()
          text = 'n/a' if np.isnan(value) else said(value)
          if text is not None:
            pane.annotate(
              text,
              (max(0, np.nan_to_num(value)), bar.get_y() + middle),
              xytext=(3, 0),
              textcoords='offset points',
              fontsize=8,
              va='center',
            )


def describe(figure: Figure) -> str:
  """All numbers of a chart, in words."""
  said = []
  for pane in figure.axes:
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for bars in pane.containers:
      for name, bar in zip(names, bars, strict=True):
        where = f'{pane.get_title("left")} {name}'.strip()
        said.append((where, bars.get_label(), bar.get_width()))
    for line in pane.lines:
      for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
        if not line.get_label().startswith('_'):
          said.append((f'{pane.get_xlabel()} {x}', line.get_label(), y))
  return '\n'.join(
    f'{name}: {who} {value:.3g}'.replace('\n', ' ') for name, who, value in said
  )


# --- The charts --------------------------------------------------------------

PASSES = {'forward': 'Forward', 'step': 'Step'}


def cpu() -> Figure:
  """Times of others by ours, in float32."""
  contenders = {
    'tfgroupnorm': 'auto',
    'keras.layers': 'keras',
    'keras.layers, compiled': 'keras, compiled',
    'PyTorch': 'torch',
  }
  found = {
    (row['case'], row['pass'], row['contender']): row['times_slower_than_auto']
    for row in _results('cpu.json')['ratios']
    if row['case'].endswith(' float32')
  }
  cases = list(dict.fromkeys(case for case, _, _ in found))
  chart = Bars(
    [case.removesuffix(' float32') for case in cases],
    {
      title: {
        name: [found.get((case, which, key)) for case in cases]
        for name, key in contenders.items()
      }
      for which, title in PASSES.items()
    },
  )
  for panel, which in enumerate(PASSES):
    most = max(
      time
      for (_, timed, contender), time in found.items()
      if timed == which and contender in contenders.values()
    )
    ticks = range(math.floor(most) + 1)
    chart.finish(panel, 'time, ours = 1', ticks, mark=1)
  return chart.figure


def cpu_growth() -> Figure:
  """Time of a step against size, by the smallest of ours."""
  lines = {
    'auto': ('tfgroupnorm', 'o-'),
    'keras': ('keras.layers', 's--'),
    'torch': ('PyTorch', '^-.'),
  }
  rows = [r for r in _results('cpu.json')['growth'] if r['pass'] == 'step']
  varied = list(dict.fromkeys(row['varied'] for row in rows))
  figure, panes = _panels(len(varied), 2.6, left=0.55, titled=False)
  for pane, what in zip(panes, varied, strict=True):
    for key, (name, style) in lines.items():
      points = [
        (row['size'], row['relative_time'])
        for row in rows
        if (row['varied'], row['contender']) == (what, key)
      ]
      if not points:  # PyTorch, where it is not installed.
        continue
      sizes, times = zip(*points, strict=True)
      colour = COLOURS[name]
      pane.plot(sizes, times, style, color=colour, markersize=4, label=name)
    pane.set(xscale='log', yscale='log', xlabel=what, ylim=(0.4, 150))
    pane.minorticks_off()
    pane.set_xticks(sizes, [f'{size}' for size in sizes], fontsize=7)
    ticks = (1, 10, 100)
    pane.set_yticks(ticks, [f'{t}' if pane is panes[0] else '' for t in ticks])
    pane.tick_params('y', length=0)
    pane.grid(linewidth=0.6)
  panes[0].set_ylabel('time of a step')
  _legend(figure)
  return figure


def blocks() -> Figure:
  """What our norms add to blocks, by what those of Keras add."""
  found = {
    (row['block'], row['target'], row['pass']): row['share']
    for row in _results('xla_cost_blocks.json')
  }
  names = [block.rpartition(' ')[0] for block, _, _ in found]
  names = list(dict.fromkeys(names))
  chart = Bars(
    names,
    {
      f'{title}, {which}': {
        f'tfgroupnorm, {dtype}': [
          found.get((f'{name} {dtype}', target, which)) for name in names
        ]
        for dtype in ('float32', 'bfloat16')
      }
      for target, title in (('h100', 'H100'), ('v5e', 'v5e'))
      for which in PASSES
    },
  )
  least, most = -0.3, 1.9
  name = 'keras.layers'
  keras = {'says': name, 'colour': COLOURS[name]}
  for i, pane in enumerate(chart.panes):
    chart.finish(i, 'share', [0, 0.5, 1, 1.5], mark=1, **keras)
    pane.set_xlim(least, most)

  def outside(value):
    return None if least < value < most else f'{value:.2f}'

  chart.write(outside)
  return chart.figure


def alone() -> Figure:
  """Counts for norms with nothing around them, in float32."""
  rows = [
    row for row in _results('xla_cost.json') if row['case'].endswith(' float32')
  ]
  cases = list(dict.fromkeys(row['case'] for row in rows))
  owners = {'tfgroupnorm': 'ours', 'keras.layers': 'keras'}

  def counts(target, which, owner, what):
    found = {
      row['case']: row[what]
      for row in rows
      if (row['target'], row['pass'], row['owner']) == (target, which, owner)
    }
    return [found.get(case) for case in cases]

  chart = Bars(
    [case.removesuffix(' float32') for case in cases],
    {
      f'{title}, {which}': {
        name: counts(target, which, owner, what)
        for name, owner in owners.items()
      }
      for target, title, what in (
        ('h100', 'H100', 'traffic'),
        ('v5e', 'v5e', 'kilocycles'),
      )
      for which in PASSES
    },
  )
  chart.finish(0, 'T moved', range(0, 7, 2), mark=2)
  chart.finish(1, 'T moved', range(0, 13, 3), mark=7, says='least')
  chart.finish(2, 'kilocycles', range(0, 1501, 500))
  chart.finish(3, 'kilocycles', range(0, 3001, 1000))
  return chart.figure


def exactness() -> Figure:
  """Errors at large means, on a logarithmic axis."""
  libraries = {
    'tfgroupnorm, compiled': 'compiled',
    'tfgroupnorm, plain': 'plain',
    'keras.layers': 'keras',
    'PyTorch': 'torch',
  }
  rows = _results('exactness.json')
  chart = Bars(
    [f'mean {row["mean"]:,.0f}, deviation {row["std"]:g}' for row in rows],
    {
      '': {
        name: [row.get(key) for row in rows] for name, key in libraries.items()
      }
    },
    bar=THICK,
    left=0.18,
  )
  ticks = [10.0**exponent for exponent in range(-7, 1)]
  chart.panes[0].set(xscale='log', xlim=(1e-7, 1))
  chart.panes[0].minorticks_off()
  chart.finish(0, 'largest error', ticks)
  chart.write(lambda value: f'{value:.1e}')
  return chart.figure


def memory() -> Figure:
  """What is kept between forward and backward."""
  rows = _results('memory.json')['kept']
  chart = Bars(
    [row['case'].removesuffix(' float32') for row in rows],
    {
      '': {
        'tfgroupnorm': [row['ours'] for row in rows],
        'keras.layers': [row['keras'] for row in rows],
      }
    },
    bar=THICK,
  )
  says = 'the input alone'
  chart.finish(0, 'T kept', range(9), mark=1, says=says)
  chart.write(lambda value: f'{value:.1f}')
  return chart.figure


CHARTS: list[Callable[[], Figure]] = [
  cpu,
  cpu_growth,
  blocks,
  alone,
  exactness,
  memory,
]


def draw(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Writes all charts, each for light pages and for dark ones."""
  for chart in CHARTS:
    for suffix, theme in THEMES.items():
      path = folder / f'{chart.__name__}{suffix}.svg'
      text = {
        key: theme['text']
        for key in (
          'text.color',
          'axes.labelcolor',
          'axes.titlecolor',
          'xtick.color',
          'ytick.color',
        )
      }
      lines = {
        'axes.edgecolor': theme['grid'],
        'grid.color': theme['grid'],
        'lines.color': theme['mark'],
      }
      with rc_context(STYLE | text | lines):
        figure = chart()
        about = {'Date': None, 'Description': describe(figure)}
        figure.savefig(path, transparent=True, metadata=about)
      yield path


if __name__ == '__main__':
  for written in draw(RESULTS):
    print(written)
