"""The kernel hands XLA the programs of `programs.json`, and no others."""

import programs


def test_no_program_changes_unmeant(tmp_path):
  found = programs.digests(tmp_path)
  assert not programs.changed(found), (
    'If this was meant, run `benchmarks/programs.py --write`.'
  )


def test_names_are_no_part_of_a_program():
  text = (
    '#loc1 = loc("x.1")\n'
    'module @a_{0} {{\n'
    '  func.func private @f_{0}(%arg0: tensor<f32> loc("x{0}")) loc(#loc{0})\n'
    '  call @f_{0}(%arg0) : tensor<f32> loc(#loc)\n'
  )
  assert programs.bare(text.format(1)) == programs.bare(text.format(22))
  assert 'loc' not in programs.bare(text.format(1))
  other = text.replace('tensor<f32> loc', 'tensor<f64> loc')
  assert programs.bare(text.format(1)) != programs.bare(other.format(1))
