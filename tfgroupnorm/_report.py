"""The table of what became of layers, as Keras 3 draws its summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tfgroupnorm import _checks

PrintFn = Callable[[str], Any]


def check_printing(verbose: Any, print_fn: Any) -> None:
  _checks.check_bool('verbose', verbose)
  if print_fn is not None and not callable(print_fn):
    raise TypeError(
      '`print_fn` must be a function of one text. Received: print_fn='
      f'{print_fn!r}. Pass `logging.info`, for example.'
    )


def print_table(
  title: str,
  headers: Sequence[str],
  rows: Sequence[Sequence[str]],
  below: Sequence[str],
  print_fn: PrintFn | None,
) -> None:
  """Prints a table, or gives it to `print_fn` as one text.

  Args:
    title: The line above.
    headers: Of the columns. One in parentheses is of numbers, which stand at
      the right.
    rows: The cells of each.
    below: Lines that follow.
    print_fn: A function of the text, or `None`.
  """
  import rich.console
  import rich.markup
  import rich.table

  table = rich.table.Table(show_lines=True)
  for header in headers:
    name = header.strip('()')
    table.add_column(
      name, justify='left' if name == header else 'right', overflow='fold'
    )
  for row in rows:
    table.add_row(*map(rich.markup.escape, row))
  console = rich.console.Console(highlight=False)
  with console.capture() as capture:
    console.print(title, markup=False)
    if rows:
      console.print(table)
    for line in below:
      console.print(line, markup=False)
  (print_fn or print)(capture.get())
