"""Whether the kernel still hands the same programs to XLA.

  python benchmarks/programs.py [--write] [--keep=FOLDER]

Traces every case of the ledger in `xla_cost.py`, in float32 and bfloat16,
forward and a training step, in the forms for a CPU, a GPU and a TPU, and
compares the digests of the StableHLO with those in `programs.json`. Names of
modules and functions and debug locations are left out: XLA does not look at
them. `programs_test.py`, run by `make budgets`, does the same.

A change that is meant to leave the programs alone leaves the digests alone. One
that is not renews them by `--write`; then look at the counts of `xla_cost.py`
too. To see what differs, `--keep` the texts of both states and diff the
folders.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import sys
import tempfile

from absl import app

import cases as c
import xla_cost

DIGESTS = pathlib.Path(__file__).with_suffix('.json')
PLATFORMS = ('CPU', 'GPU', 'TPU')

# By name: the ledger has some cases in either dtype.
CASES = {
  case.name: case
  for one in xla_cost.ALL
  for case in (one.with_dtype('float32'), one.with_dtype('bfloat16'))
}


def bare(text: str) -> str:
  """StableHLO without what XLA does not look at."""
  text = re.sub(r'^#loc.*\n', '', text, flags=re.M)
  text = re.sub(r' loc\((?:#loc\d*|"[^"]*"|unknown)\)', '', text)
  text = re.sub(r'^module @\S+', 'module', text, flags=re.M)
  names: dict[str, str] = {}
  return re.sub(
    r'@[\w.]+', lambda m: names.setdefault(m[0], f'@{len(names)}'), text
  )


def digests(folder: pathlib.Path) -> dict[str, str]:
  """{'PLATFORM PASS CASE': digest} of the programs; `folder` has the texts."""
  c.write_stablehlo(CASES.values(), PLATFORMS, folder, owners=['ours'])
  result = {}
  for platform in PLATFORMS:
    for name in ('forward', 'step'):
      for case in CASES:
        path = c.path_of(folder, platform, 'ours', name, case)
        text = bare(path.read_text())
        path.write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        result[f'{platform} {name} {case}'] = digest
  return result


def changed(found: dict[str, str]) -> list[str]:
  """Names of programs that are not, or not only, where they were."""
  wanted = json.loads(DIGESTS.read_text())
  names = sorted({*wanted, *found})
  return [name for name in names if wanted.get(name) != found.get(name)]


def main(_):
  folder = pathlib.Path(xla_cost.KEEP.value or tempfile.mkdtemp())
  found = digests(folder)
  if xla_cost.WRITE.value:
    DIGESTS.write_text(json.dumps(found, indent=1) + '\n')
  for name in changed(found):
    print('changed:', name)
  print(f'{len(found)} programs, {len(changed(found))} changed')
  sys.exit(bool(changed(found)))


if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  app.run(main)
