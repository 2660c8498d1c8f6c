"""What a kernel leaves of its operands is not counted."""

import pytest

import xla_cost

HLO = """HloModule m

%fused (x: f32[8,4], y: bf16[8,4]) -> f32[] {{
  %x = f32[8,4]{{1,0}} parameter(0)
  %y = bf16[8,4]{{1,0}} parameter(1)
  %wide = f32[8,4]{{1,0}} convert(%y)
  %product = f32[8,4]{{1,0}} multiply(%x, %wide)
{rest}
}}

ENTRY %main (x: f32[8,4], y: bf16[8,4]) -> f32[] {{
  %x = f32[8,4]{{1,0}} parameter(0)
  %y = bf16[8,4]{{1,0}} parameter(1)
  ROOT %f = f32[] fusion(%x, %y), kind=kLoop, calls=%fused
}}
"""
SLICE = '  ROOT %one = f32[1,2]{1,0} slice(%product), slice={[0:1], [0:2]}'
ALL = '  ROOT %all = f32[8,4]{1,0} negate(%product)'
BOTH = f"""{SLICE.replace('ROOT ', '')}
  %all = f32[8,4]{{1,0}} negate(%product)
  ROOT %both = (f32[1,2], f32[8,4]) tuple(%one, %all)"""


@pytest.mark.parametrize(
  'rest, left',
  [(SLICE, 30 * 4 + 30 * 2), (ALL, 0), (BOTH, 0)],
  ids=['slice', 'all', 'both'],
)
def test_what_a_slice_does_not_read(rest, left):
  assert xla_cost._not_read(HLO.format(rest=rest)) == left
