"""One sample's values never touch another's, nor the past of the future's."""

import numpy as np
import pytest

import cases
import frameworks


@cases.all_cases
@cases.compiled_or_plain
def test_other_samples_have_no_influence(case, jit_compile):
  x, gamma, beta = case.data()
  others = x.copy()
  others[1:] = np.random.default_rng(9).normal(-50, 9, x[1:].shape)
  y, z = (
    np.asarray(case.function(a, gamma, beta, jit_compile=jit_compile))
    for a in (x, others)
  )
  np.testing.assert_array_equal(y[0], z[0])
  assert np.any(y[1] != z[1])
  case.check(y, x, gamma, beta)


@cases.all_cases
@cases.compiled_or_plain
@pytest.mark.parametrize('bad', [np.nan])
def test_nan_stays_in_its_sample(case, jit_compile, bad):
  x, gamma, beta = case.data()
  dirty = x.copy()
  dirty[(0,) * x.ndim] = bad
  results = [
    map(
      np.asarray,
      frameworks.gradients(
        lambda x: case.function(x, gamma, beta, jit_compile=jit_compile),
        [frameworks.tensor(a)],
      ),
    )
    for a in (x, dirty)
  ]
  (y, dx), (z, dz) = results
  case.check(y, x, gamma, beta)
  np.testing.assert_array_equal(y[1:], z[1:])
  np.testing.assert_array_equal(dx[1:], dz[1:])
  assert np.isnan(z[0]).any()


@cases.all_cases
@cases.compiled_or_plain
def test_a_batch_equals_its_samples(case, jit_compile):
  _, gamma, beta = case.data()
  x = np.random.default_rng(3).normal(3, 2, (8, *case.shape[1:])).astype('f')

  def run(x):
    return np.asarray(case.function(x, gamma, beta, jit_compile=jit_compile))

  alone = np.concatenate([run(x[i : i + 1]) for i in range(8)])
  np.testing.assert_allclose(run(x), alone, rtol=0, atol=2e-6)
  case.check(alone, x, gamma, beta)


@cases.compiled_or_plain
@pytest.mark.parametrize(
  'options, shape, time',
  [
    ({'num_heads': 3}, (2, 9, 12), 1),
    ({'head_axis': -2}, (2, 9, 3, 4), 1),
    ({'head_axis': 1}, (2, 3, 9, 4), 2),
  ],
)
def test_heads_are_causal(options, shape, time, jit_compile):
  """The steps before t are the same bit for bit, whatever comes at t."""
  function = cases.KINDS['HeadNorm'].function
  options = {'num_heads': None, **options, 'jit_compile': jit_compile}
  x = np.random.default_rng(0).normal(3, 2, shape).astype('float32')
  before = [slice(None)] * len(shape)
  before[time] = slice(0, 5)
  after = [slice(None)] * len(shape)
  after[time] = slice(5, None)
  changed = x.copy()
  changed[tuple(after)] = 1e3
  y, z = (np.asarray(function(a, **options)) for a in (x, changed))
  np.testing.assert_array_equal(y[tuple(before)], z[tuple(before)])
  assert np.any(y[tuple(after)] != z[tuple(after)])
  assert np.all(y[tuple(before)] != x[tuple(before)])


def test_a_group_norm_over_time_is_not_causal():
  """Why HeadNorm exists: what it replaces leaks the future."""
  function = cases.KINDS['GroupNorm'].function
  x = np.random.default_rng(0).normal(3, 2, (2, 9, 12)).astype('float32')
  changed = x.copy()
  changed[:, 5:] = 1e3
  y, z = (np.asarray(function(a, groups=3)) for a in (x, changed))
  assert np.all(np.abs(y[:, :5] - z[:, :5]).max((1, 2)) > 0.1)


@pytest.mark.parametrize('kind', ['GroupNorm', 'InstanceNorm', 'HeadNorm'])
def test_heads_do_not_mix(kind):
  """Groups, too: a change in one leaves the others bit for bit."""
  case = cases.KINDS[kind]
  x, gamma, beta = case.data()
  changed = x.copy()
  changed[..., 0] += 1  # Channel 0 is in the first group, in every form.
  y, z = (np.asarray(case.function(a, gamma, beta)) for a in (x, changed))
  np.testing.assert_array_equal(y[..., -1], z[..., -1])
  if kind != 'InstanceNorm':  # Whose one channel moves as a whole.
    assert np.any(y[..., 1] != z[..., 1])
  case.check(y, x, gamma, beta)
