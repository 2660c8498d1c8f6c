"""Which order of computation each platform takes for which groups."""

import re

import pytest

import frameworks
from tfgroupnorm.kernel import Spec, forms

# How groups lie: (spec, shape).
GROUPS = {
  'rms': ({'axes': (2,), 'rms': True}, (2, 5, 64)),
  'row': ({'axes': (2,)}, (2, 5, 64)),
  'masked row': ({'axes': (2,), 'mask_axes': (0, 2)}, (2, 5, 64)),
  'long row': ({'axes': (2,)}, (2, 5, 9000)),
  'row of two axes': ({'axes': (2, 3)}, (2, 5, 8, 8)),
  'columns': ({'axes': (1,)}, (2, 5, 64)),
  'side by side': ({'axes': (1, 2), 'split': (3, 4)}, (2, 5, 5, 64)),
  'heads': ({'axes': (3,), 'view': (2, 4)}, (2, 5, 64)),
  'rms heads': ({'axes': (3,), 'view': (2, 4), 'rms': True}, (2, 5, 64)),
  'heads of one': ({'axes': (3,), 'view': (2, 64)}, (2, 5, 64)),
  'heads, no length': ({'axes': (3,), 'view': (2, 4)}, (2, None, 64)),
  'row, no length': ({'axes': (2,)}, (2, 5, None)),
}


def order_of(groups, platform, dtype='float32'):
  spec, shape = GROUPS[groups]
  spec = Spec(epsilon=1e-3, platform=platform, **spec)

  def chosen(x):
    return forms.choose(spec, x).order

  order = type(frameworks.of_symbolic(chosen, shape, dtype))
  module = order.__module__.rpartition('.')[-1]
  general = module in ('formula', 'orders')
  return order.__name__ if general else f'{module}.{order.__name__}'


# Without the module where it is none of a platform.
TABLE = """
                  op by op       CPU          GPU            TPU
rms               AboutZero      AboutZero    gpu.AboutZero  AboutZero
row               TwoPass        cpu.TwoPass  gpu.Chain      tpu.OnePass
masked row        plain.OnePass  cpu.OnePass  gpu.OnePass    tpu.OnePass
long row          plain.OnePass  cpu.OnePass  gpu.OnePass    tpu.OnePass
row of two axes   plain.OnePass  cpu.TwoPass  gpu.Chain      tpu.OnePass
columns           plain.OnePass  cpu.OnePass  gpu.OnePass    tpu.OnePass
side by side      plain.OnePass  cpu.OnePass  gpu.OnePass    tpu.OnePass
heads             TwoPass        cpu.TwoPass  gpu.Chain      lanes.OnePass
rms heads         AboutZero      AboutZero    gpu.AboutZero  lanes.AboutZero
heads of one      TwoPass        cpu.TwoPass  gpu.Chain      tpu.OnePass
heads, no length  TwoPass        cpu.TwoPass  gpu.Chain      lanes.OnePass
row, no length    plain.OnePass  cpu.OnePass  gpu.OnePass    tpu.OnePass
"""
ROWS = [re.split('  +', line) for line in TABLE.splitlines()[2:]]


@pytest.mark.parametrize('groups', GROUPS)
def test_where_it_is_to_be_quantized(groups):
  wanted = 'AboutZero' if 'rms' in groups else 'Order'
  assert order_of(groups, 'quantizable') == wanted


@pytest.mark.parametrize(
  'groups, cpu', [(groups, cpu) for groups, _, cpu, *_ in ROWS]
)
def test_where_jax_compiles_for_a_cpu(groups, cpu):
  name = cpu.removeprefix('cpu.')
  assert order_of(groups, 'YNN') == f'ynn.{name}'


@pytest.mark.parametrize('groups, plain, cpu, gpu, tpu', ROWS)
def test_order(groups, plain, cpu, gpu, tpu):
  wanted = {None: plain, 'CPU': cpu, 'GPU': gpu, 'TPU': tpu}
  assert {*wanted} == {None, *forms.PLATFORMS}
  found = {name: order_of(groups, name) for name in wanted}
  assert found == wanted


def test_heads_of_other_dtypes_on_a_tpu():
  assert order_of('heads', 'TPU', 'float16') == 'lanes.OnePass'
  assert order_of('heads', 'TPU', 'bfloat16') == 'lanes.OfBfloat16'
  assert order_of('rms heads', 'TPU', 'bfloat16') == 'lanes.AboutZero'
  assert order_of('heads', 'TPU', 'float64') == 'tpu.OnePass'
