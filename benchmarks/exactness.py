"""How exact the layers are at large means, beside Keras and PyTorch.

  python benchmarks/exactness.py [--write]

The largest error against float64, as `tests/exactness_test.py` takes it.
PyTorch joins where it is installed.

`--write` puts the errors into `results/exactness.json`.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

from absl import app, flags

HERE = pathlib.Path(__file__).parent
WRITE = flags.DEFINE_bool('write', False, 'Write results/exactness.json.')


def main(_):
  import exactness_test

  rows = []
  for mean, std in exactness_test.TABLE:
    errors = exactness_test.errors(mean, std)
    rows.append({'mean': mean, 'std': std, **errors})
    said = '  '.join(f'{who} {value:.1e}' for who, value in errors.items())
    print(f'{f"N({mean:g}, {std:g})":14}{said}')
  if WRITE.value:
    text = json.dumps(rows, indent=1) + '\n'
    (HERE / 'results' / 'exactness.json').write_text(text)


if __name__ == '__main__':
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  # First, because here and there is a module `cases`.
  sys.path[:0] = [str(HERE.parent / 'tests'), str(HERE.parent)]
  app.run(main)
