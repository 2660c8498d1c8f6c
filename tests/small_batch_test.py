"""Small batches harm BN and not GN; the experiment that shows it resumes."""

import json
import re
import signal
import time

import digits
import experiment
import image_data
import keras
import numpy as np
import pytest
import small_batch
import training

import programs
import tfgroupnorm

RUNS = programs.ROOT / 'examples' / 'results' / small_batch.RESULTS
PAGE = programs.ROOT / 'docs' / 'experiments.md'


def test_main_finding_also_after_an_interruption(tmp_path):
  # One run at a time: those in progress when it ends were for nothing.
  command = 'small_batch', '--quick', '--workers=1', f'--output={tmp_path}'
  path = tmp_path / small_batch.RESULTS
  process = programs.start(*command)
  while process.poll() is None and not (path.exists() and path.read_text()):
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  interrupted = programs.finish(process)
  assert interrupted.returncode == 130, interrupted.stderr
  assert 'same command goes on' in interrupted.stderr
  kept = path.read_text()
  done = len(kept.splitlines())
  assert 1 <= done < 4

  result = programs.run(*command)
  assert result.returncode == 0, result.stdout + result.stderr
  assert f'{done} of 4 runs are in' in result.stdout
  assert path.read_text().startswith(kept)
  errors = {}
  for line in path.read_text().splitlines():
    record = json.loads(line)
    settings = record['settings']
    key = settings['norm'], settings['batch_size']
    assert key not in errors
    errors[key] = record['result']['error']
  rises = {norm: errors[norm, 2] - errors[norm, 32] for norm, _ in errors}
  assert rises['batch'] > rises['group'] + small_batch.QUICK_MARGIN
  # What is printed are these numbers.
  row = re.search(r'^\| Batch Norm .*$', result.stdout, re.MULTILINE)[0]
  for size in (32, 2):
    assert f' {errors["batch", size]:.2f} (' in row
  assert programs.is_small_picture(tmp_path / 'quick.png')


def test_a_model_used_again_starts_anew():
  first, second = training.run_settings(
    norms=['batch'], batch_sizes=[32], seeds=2, epochs=1, train_size=64
  )
  # The second time it has been trained with another seed.
  results = [training.train_run(s) for s in (second, first, second)]
  for result in results:
    del result['seconds']
  assert results[0] == results[2] != results[1]


def test_data_do_not_depend_on_norm_and_batch_size():
  images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1))
  images = images.astype('float32')
  seen = []
  for settings in training.run_settings(
    norms=['group', 'batch'], batch_sizes=[4, 32], seeds=1, epochs=2
  ):
    batches = image_data.batches_of(images, np.arange(64), settings)
    pixels, labels = zip(*batches.as_numpy_iterator(), strict=True)
    assert {len(batch) for batch in labels} == {settings['batch_size']}
    seen.append((np.concatenate(pixels), np.concatenate(labels)))
  for pixels, labels in seen:
    np.testing.assert_array_equal(pixels, seen[0][0])
    np.testing.assert_array_equal(labels, seen[0][1])
  # All images in each epoch, in another order and form, between 0 and 1.
  pixels, labels = seen[0]
  assert sorted(labels[:64]) == sorted(labels[64:]) == list(range(64))
  assert (labels[:64] != labels[64:]).any()
  by_label = [pixels[:64][labels[:64].argsort()]]
  by_label.append(pixels[64:][labels[64:].argsort()])
  assert (by_label[0] != by_label[1]).any(axis=(1, 2, 3)).all()
  assert 0 <= pixels.min() and pixels.max() <= 1


def test_transforms_do_not_follow_from_each_other():
  bar = np.zeros((2048, 8, 8, 1), 'float32')
  bar[:, 2:6, 3:5] = 1
  transform = image_data.transformation(contrast=1.0, seed=0)
  for _ in range(2):
    ink = transform(bar)[..., 0]
    mass = ink.sum((1, 2))
    steps = np.arange(8)
    row = (ink * steps[:, None]).sum((1, 2)) / mass
    column = (ink * steps).sum((1, 2)) / mass
    assert min(each.std() for each in (mass, row, column)) > 0.1
    correlations = np.corrcoef([mass, row, column])
    np.testing.assert_allclose(correlations, np.eye(3), atol=0.15)


def test_norms_are_those_of_the_paper():
  x = np.random.default_rng(0).normal(3, 2, (2, 4, 4, 8)).astype('float32')
  for norm, axes in {'layer': (1, 2, 3), 'instance': (1, 2)}.items():
    y = training.norm_factory(norm, None, 32)()(x).numpy()
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axes), 1, atol=1e-3)
  averages = training.norm_factory('batch', None, 8)()
  assert averages.momentum == pytest.approx(0.9**0.25)
  assert training.norm_factory('group', 4, 32)().groups == 4
  assert training.norm_factory('group', None, 32, 2)().group_size == 2


@pytest.mark.parametrize('norm', ['group', 'batch', 'layer'])
def test_a_head_has_a_norm(norm):
  """That of the convolutions, on the vector before the classes."""
  without, settings = (
    training.run_settings(norms=[norm], batch_sizes=[2], seeds=1, head=head)
    for head in (None, 24)
  )
  without, settings = without[0], settings[0]
  assert settings == {**without, 'head': 24}
  kinds = keras.layers.BatchNormalization, tfgroupnorm.GroupNorm
  few, many = (
    [
      layer
      for layer in training.build_model(each, (8, 8, 1)).layers
      if isinstance(layer, kinds)
    ]
    for each in (without, settings)
  )
  assert len(many) == len(few) + 1
  assert [tuple(layer.output.shape) for layer in many].count((None, 24)) == 1
  assert {type(layer) for layer in many} == {type(layer) for layer in few}


def test_instance_norm_is_not_in_heads():
  everywhere = training.run_settings(head=24)
  norms = {settings['norm'] for settings in everywhere}
  assert norms == set(training.NORMS) - {'instance'}


def test_runs_that_are_kept_are_those_of_the_program():
  """Who starts it on them has nothing to compute."""
  with programs.flags_of(small_batch) as parse:
    parse()
    grid = small_batch.grid_of_flags()
  kept = [record.settings for record in experiment.read_records(RUNS)]
  keys = (
    sorted(json.dumps(settings, sort_keys=True) for settings in runs)
    for runs in (grid, kept)
  )
  assert next(keys) == next(keys)


def test_the_page_has_what_the_program_prints():
  records = experiment.read_records(RUNS)
  page = [re.sub(' +', ' ', line) for line in PAGE.read_text().splitlines()]
  places = small_batch.by_place(records)
  assert list(places) == list(small_batch.PLACES)
  for runs in places.values():
    for text in (small_batch.table(runs), small_batch.findings(runs)):
      lines = [re.sub(' +', ' ', line) for line in text.splitlines()]
      first = page.index(lines[2])
      assert page[first : first + len(lines) - 2] == lines[2:]


def test_a_panel_for_each_place(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    small_batch, 'plot_errors', lambda runs, _: drawn.append(len(runs))
  )
  records = experiment.read_records(RUNS)
  small_batch.draw(records, tmp_path / 'both.png')
  small_batch.draw(records[:3], tmp_path / 'one.png')
  assert drawn == [100, 75, 3]


def test_other_datasets(monkeypatch):
  """As Keras would bring them; of these all may be trained on."""
  rng = np.random.default_rng(0)

  def load_data():
    return tuple(
      (
        rng.integers(256, size=(count, 8, 8, 3), dtype=np.uint8),
        np.arange(count)[:, np.newaxis] % 10,
      )
      for count in (96, 40)
    )

  monkeypatch.setattr(keras.datasets.cifar10, 'load_data', load_data)
  for train_size in (64, 96):
    data = image_data.load_data('cifar10', train_size, seed=0)
    assert data.train_images.shape == (train_size, 8, 8, 3)
    assert data.test_images.shape == (40, 8, 8, 3)
    assert 0 <= data.train_images.min() < 0.1 < 0.9 < data.train_images.max()
    assert data.train_images.max() <= 1
    assert np.bincount(data.train_labels).min() >= train_size // 10
  (settings,) = training.run_settings(
    dataset='cifar10',
    norms=['group'],
    batch_sizes=[32],
    seeds=1,
    epochs=1,
    train_size=64,
    widths=[8],
  )
  result = training.train_run(settings)
  assert 0 < result['error'] <= 100 and np.isfinite(result['train_loss'])


@pytest.mark.parametrize('count, copies', [(40, 8), (2000, 4), (9000, 1)])
def test_images_to_validate_on(count, copies):
  data = digits.Digits(
    None, np.full((count, 2, 2, 1), 0.5, 'f'), None, np.arange(count)
  )
  images, labels = image_data.validation_images(
    data, {'contrast': 1.0, 'seed': 0}
  )
  assert images.shape == (copies * count, 2, 2, 1)
  np.testing.assert_array_equal(labels, np.repeat(np.arange(count), copies))


def test_another_experiment_is_not_resumed(monkeypatch):
  before = training.run_settings(seeds=1)
  monkeypatch.setattr(image_data, 'ROTATION', 0.1)
  after = training.run_settings(seeds=1)
  assert all(settings not in after for settings in before)


@pytest.mark.parametrize(
  'differences, said',
  [
    ([1.0, 2.0], 'yes'),
    ([-1.0, -2.0], 'no, the opposite'),
    ([1.0, -2.0], 'seeds disagree'),
  ],
)
def test_findings(differences, said):
  """BN at 2 images is above BN at 32, in all seeds, in none, in some."""
  records = [
    experiment.Record(
      {'norm': 'batch', 'batch_size': size, 'seed': seed},
      {'error': 5.0 + (difference if size == 2 else 0.0), 'train_error': 1.0},
    )
    for seed, difference in enumerate(differences)
    for size in (2, 32)
  ]
  (line,) = small_batch.findings(records).splitlines()[2:]
  claim, points, verdict = (cell.strip() for cell in line.split('|')[1:-1])
  assert claim == 'BN at 2 is above BN at 32' and verdict == said
  assert points.startswith(f'{np.median(differences):+.2f} (')


@pytest.mark.parametrize(
  'flags',
  [
    ['--norms=nothing'],
    ['--batch_sizes=2,0'],
    ['--groups=5'],
    ['--places=nothing'],
    ['--places=head', '--norms=instance'],
    ['--train_size=1797'],
    ['--dataset=cifar10', '--train_size=49999'],
  ],
)
def test_bad_flags(flags):
  programs.check_refused(small_batch, *flags)


def test_a_bad_flag_ends_the_program():
  programs.check_bad_flag('small_batch', '--quick', '--epochs=3')
