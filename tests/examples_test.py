"""The paper's smaller experiments run, and show what they are for."""

import re

import group_division
import head_norm
import keras
import numpy as np
import pytest
import tensorflow as tf
import training

import programs
import tfgroupnorm


def rows(stdout):
  """The cells of the table that a program printed."""
  lines = re.findall(r'^\|(.*)\|$', stdout, re.MULTILINE)[2:]
  return [[cell.strip() for cell in line.split('|')] for line in lines]


def test_group_division(tmp_path):
  result = programs.run(
    'group_division',
    '--divisions=1',
    '--widths=8,16',
    '--epochs=6',
    '--train_size=512',
    '--contrast=1',
    '--seeds=1',
    '--workers=1',
    f'--output={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  table = rows(result.stdout)
  assert [row[1] for row in table] == ['1 (LN)', '1 (IN)']
  # Better than guessing, which is wrong 90 times in 100, and not all alike.
  errors = [float(row[2].split()[0]) for row in table]
  assert max(errors) < 80 and len(set(errors)) > 1
  assert programs.is_small_picture(tmp_path / group_division.PICTURE)


def test_divisions_are_of_all_layers():
  for settings in group_division.run_settings([2], seeds=1):
    model = training.build_model(settings, (8, 8, 1))
    layers = [
      layer
      for layer in model.layers
      if isinstance(layer, tfgroupnorm.GroupNorm)
    ]
    assert len(layers) == 9
    if settings['groups']:
      assert {layer.groups for layer in layers} == {2}
    else:
      assert {layer.group_size for layer in layers} == {2}


def test_head_norm(tmp_path):
  result = programs.run(
    'head_norm',
    '--variants=output,leak_channels',
    '--seeds=1',
    '--steps=100',
    '--workers=1',
    f'--output={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  causal, leaking = rows(result.stdout)
  # Guessing among all characters costs 4.57 nats, by their frequency 3.1.
  assert float(causal[1].split()[0]) < 2.9
  # Without the future HeadNorm predicts the same, and InstanceNorm worse.
  assert causal[2] == causal[3] and causal[4] == '0'
  assert float(leaking[3]) > float(leaking[2]) + 0.005
  assert float(leaking[4]) > 0.01
  assert 'InstanceNorm over time: LEAKS the future' in result.stdout
  assert programs.is_small_picture(tmp_path / head_norm.PICTURE)


@pytest.mark.parametrize('variant', head_norm.VARIANTS)
def test_only_norms_over_time_leak(variant):
  keras.utils.set_random_seed(0)
  model = head_norm.build_model(variant)
  characters = np.random.default_rng(0).integers(
    0, head_norm.CHARACTERS, (2, 12)
  )
  influence = head_norm.influence_of_future(model, characters)
  # The same by other means: other characters later, the same before?
  changed = characters.copy()
  changed[:, 6:] = (changed[:, 6:] + 1) % head_norm.CHARACTERS
  before, after = (model(each)[:, :6] for each in (characters, changed))
  differs = bool(tf.reduce_any(before != after))
  leaks = variant in head_norm.LEAKS
  assert (influence > 1e-3, differs) == (leaks, leaks)
  assert leaks or influence == 0


@pytest.mark.parametrize(
  'name, flag',
  [('group_division', '--divisions=3'), ('head_norm', '--steps=70')],
)
def test_bad_flags(name, flag):
  programs.check_bad_flag(name, flag)
