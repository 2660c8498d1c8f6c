"""Pictures of percentiles over the steps of a training, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's colours, which colour-blind people can tell apart.
_LINES: tuple[dict[str, Any], ...] = (
  {'color': '#0072B2', 'linestyle': '-'},
  {'color': '#56B4E9', 'linestyle': '--'},
  {'color': '#E69F00', 'linestyle': '--'},
  {'color': '#D55E00', 'linestyle': '-'},
  {'color': '#009E73', 'linestyle': ':'},
  {'color': '#CC79A7', 'linestyle': '-.'},
)


def draw(
  axes: Any,
  title: str,
  steps: np.ndarray,
  percentiles: Sequence[float],
  rows: np.ndarray,
) -> None:
  """Draws `rows`, (steps, percentiles), into one panel."""
  marker = '.' if len(steps) < 30 else None
  for i, (each, values) in enumerate(zip(percentiles, rows.T, strict=True)):
    style = _LINES[i % len(_LINES)]
    axes.plot(steps, values, label=f'{each:g}%', marker=marker, **style)
  axes.set(title=title, xlabel='step')
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)


def panels(names: Sequence[Any], draw_panel: Callable[[Any, Any], None]) -> Any:
  """A `Figure` with a panel for each name, and one legend."""
  try:
    from matplotlib import figure
  except ImportError as error:
    raise ImportError(
      'A figure needs matplotlib. Run `pip install matplotlib`; the numbers '
      'are in `history`.'
    ) from error
  columns = min(3, len(names))
  rows = math.ceil(len(names) / columns)
  # Without pyplot no display is looked for.
  picture = figure.Figure(
    figsize=(1.2 + 3.2 * columns, 0.6 + 2.4 * rows),
    dpi=110,
    layout='constrained',
  )
  axes = list(picture.subplots(rows, columns, squeeze=False).flat)
  for panel, name in zip(axes, names, strict=False):
    draw_panel(panel, name)
  for panel in axes[len(names) :]:
    panel.remove()
  picture.legend(
    *_reversed(axes[0].get_legend_handles_labels()),
    loc='outside right center',
    title='percentile',
    frameon=False,
  )
  return picture


def _reversed(handles_and_labels):
  """A legend's entries from the top down, as the lines lie."""
  return [each[::-1] for each in handles_and_labels]
