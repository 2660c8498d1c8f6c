"""The example models are what they say, and learn with any norm."""

import functools
import os
import re
import subprocess
import sys

import keras
import models
import numpy as np
import pytest
from absl import flags

import programs
import tfgroupnorm

GROUP_NORM = tfgroupnorm.GroupNorm
# Of which ResNet-50 has one for each convolution.
CONVOLUTIONS = 53


def norms(model, kind):
  """How many layers of this kind, also of the model in a layer."""
  layers = model._flatten_layers()
  return sum(isinstance(layer, kind) for layer in layers)


def learns(model, batch_size=2, steps=3, idle=()):
  """Asserts that the loss on one batch falls, and that kernels move."""
  models.compile_model(model)
  before = [np.copy(weight) for weight in model.trainable_weights]
  batch = models.made_batch(model, batch_size)
  losses = list(models.train(model, batch, steps))
  assert np.all(np.isfinite(losses))
  assert losses[-1] < 0.9 * losses[0], losses
  for weight, old in zip(model.trainable_weights, before, strict=True):
    # A step may be too small for a `gamma` of 1 to change.
    if old.ndim > 1 and weight.path not in idle:
      assert np.any(weight.numpy() != old), weight.path


@pytest.fixture(autouse=True)
def _seed():
  keras.utils.set_random_seed(0)
  yield
  keras.backend.clear_session()


def kernels(model):
  """Names of convolutions -> shapes of their kernels."""
  return {
    layer.name: tuple(layer.kernel.shape)
    for layer in model._flatten_layers()
    if isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv3D))
  }


def test_resnet50():
  group = models.resnet50(GROUP_NORM)
  assert group.count_params() == 25_557_032
  assert norms(group, GROUP_NORM) == CONVOLUTIONS == len(kernels(group))
  batch = models.resnet50(keras.layers.BatchNormalization)
  # Two moving statistics for each of 26,560 channels more.
  assert batch.count_params() == 25_557_032 + 53_120
  assert norms(batch, GROUP_NORM) == 0
  # With biases of convolutions it is the one of Keras.
  theirs = keras.applications.ResNet50(weights=None)
  assert theirs.count_params() == batch.count_params() + 26_560
  for name, shape in kernels(group).items():
    assert shape[2:] == (shape[2], shape[3]), name
  ours = sorted(kernels(group).values())
  assert ours == sorted(kernels(theirs).values())


def test_resnet50_learns():
  model = models.resnet50(GROUP_NORM, input_shape=(64, 64, 3), classes=10)
  # Blocks are the identity at first: the last norm of each makes zeros.
  gammas = [
    layer.gamma.numpy()
    for layer in model.layers
    if isinstance(layer, GROUP_NORM)
  ]
  assert sum(not gamma.any() for gamma in gammas) == 16
  learns(model, steps=4)


def test_vgg16():
  model = models.vgg16(GROUP_NORM)
  assert model.count_params() == 138_357_544 + 2 * 4224
  # Right after each convolution, before the activation.
  for i, layer in enumerate(model.layers):
    if isinstance(layer, keras.layers.Conv2D):
      norm, activation = model.layers[i + 1 : i + 3]
      assert isinstance(norm, GROUP_NORM)
      assert isinstance(activation, keras.layers.ReLU)
  assert norms(model, GROUP_NORM) == len(kernels(model)) == 13


@pytest.mark.parametrize(
  'make_norm',
  [None, keras.layers.BatchNormalization, functools.partial(GROUP_NORM, 8)],
  ids=['none', 'batch', 'group'],
)
def test_vgg16_learns(make_norm):
  model = models.vgg16(make_norm, input_shape=(32, 32, 3), classes=10, shrink=8)
  assert len(kernels(model)) == 13
  assert norms(model, GROUP_NORM) == (
    13 if isinstance(make_norm, functools.partial) else 0
  )
  learns(model, batch_size=8, steps=8)


def test_roi_align():
  """On a map of coordinates, the features are where the cells lie."""
  height, width = 512, 768
  levels = []
  for stride in (4, 8, 16, 32):
    y, x = (
      (np.arange(size // stride) + 0.5) * stride for size in (height, width)
    )
    levels.append(
      np.stack(
        [*np.meshgrid(y, x, indexing='ij'), np.full((len(y), len(x)), stride)],
        -1,
      )[None].astype('float32')
    )
  # Areas of 40, 150, 250 and 460 pixels square, and one narrow box.
  pixels = np.array(
    [
      [100, 200, 140, 240],
      [100, 200, 250, 350],
      [60, 100, 310, 350],
      [20, 50, 480, 510],
      [100, 100, 164, 500],
    ],
    'float32',
  )
  boxes = pixels / [height, width, height, width]
  found = models.RoIAlign()([boxes[None].astype('float32'), *levels])[0]
  cells = (np.arange(7) + 0.5) / 7
  for box, features in zip(pixels, found.numpy(), strict=True):
    top, left, bottom, right = box
    wanted = np.meshgrid(
      top + cells * (bottom - top), left + cells * (right - left), indexing='ij'
    )
    np.testing.assert_allclose(features[..., 0], wanted[0], atol=1e-2)
    np.testing.assert_allclose(features[..., 1], wanted[1], atol=1e-2)
  np.testing.assert_allclose(found[:, 3, 3, 2], [4, 8, 16, 32, 8], atol=1e-4)


def sampling(size, low, high):
  """Weights (7, size) of the pixels in 7 cells from `low` to `high`, a part.

  A cell is the mean of two linear interpolations, which go on as constants.
  """
  points = low + (np.arange(14) + 0.5) / 14 * (high - low)
  centres = (np.arange(size) + 0.5) / size
  weights = [np.interp(points, centres, pixel) for pixel in np.eye(size)]
  return np.transpose(weights).reshape(7, 2, size).mean(1)


@pytest.mark.parametrize(
  ('height', 'width', 'boxes'),
  [
    # In two corners, along an edge, and of all the image.
    (
      64,
      96,
      [[0, 0, 0.4, 0.3], [0.5, 0.8, 1, 1], [0, 0.2, 0.2, 0.7], [0, 0, 1, 1]],
    ),
    # Its coarsest map has one pixel.
    (32, 32, [[0, 0, 1, 1]]),
  ],
  ids=['64x96', '32x32'],
)
def test_roi_align_at_the_border(height, width, boxes):
  rng = np.random.default_rng(0)
  levels = [
    rng.normal(size=(1, height // stride, width // stride, 3))
    for stride in (4, 8, 16, 32)
  ]
  found = models.RoIAlign()(
    [np.array([boxes], 'float32'), *(x.astype('float32') for x in levels)]
  )[0]
  for (top, left, bottom, right), features in zip(boxes, found, strict=True):
    # Boxes as small as these belong to the finest level.
    _, rows, columns, _ = levels[0].shape
    wanted = np.einsum(
      'iy,jx,yxc->ijc',
      sampling(rows, top, bottom),
      sampling(columns, left, right),
      levels[0][0],
    )
    np.testing.assert_allclose(features, wanted, atol=1e-5)


def test_fpn_detector():
  """Steps on 2 images of 320x352; `make fpn` takes them at 800x1088."""
  model = models.fpn_detector(GROUP_NORM, input_shape=(320, 352, 3), boxes=32)
  # Of the backbone, of two convolutions at each of four levels, of the head.
  assert norms(model, GROUP_NORM) == CONVOLUTIONS + 8 + 4
  assert len(kernels(model)) == CONVOLUTIONS + 8 + 4
  # No box in so small an image belongs to the coarsest level.
  learns(model, steps=3, idle=['fpn5/kernel'])


def test_a_box_does_not_see_another():
  """The norms in the head are for each box; a BatchNorm's are not."""
  x = np.random.default_rng(0).normal(size=(2, 3, 7, 7, 256)).astype('float32')
  changed = x.copy()
  changed[0, 0] = 5.0
  for make_norm, same in [
    (GROUP_NORM, True),
    (keras.layers.BatchNormalization, False),
  ]:
    inputs = keras.Input(x.shape[1:])
    head = models.PerBox(models.box_head(make_norm, 81))
    model = keras.Model(inputs, head(inputs))
    before, after = (
      model(each, training=True)[0].numpy() for each in (x, changed)
    )
    assert before.shape == (2, 3, 81)
    assert np.any(before[0, 0] != after[0, 0])
    close = np.allclose(before[0, 1:], after[0, 1:], atol=1e-4)
    assert close == same


@pytest.mark.parametrize('frames', [32, 64])
def test_resnet3d(frames):
  model = models.resnet3d(GROUP_NORM, input_shape=(frames, 224, 224, 3))
  lengths = {
    name: model.get_layer(name).output.shape[1:]
    for name in ('conv1', 'pool1', 'pool2', 'res5_3_3')
  }
  assert lengths == {
    'conv1': (frames // 2, 112, 112, 64),
    'pool1': (frames // 4, 56, 56, 64),
    'pool2': (frames // 8, 56, 56, 256),
    'res5_3_3': (frames // 8, 7, 7, 2048),
  }
  assert norms(model, GROUP_NORM) == CONVOLUTIONS
  sizes = {name: shape[0] for name, shape in kernels(model).items()}
  inflated = {name for name, size in sizes.items() if size == 3}
  assert sizes['conv1'] == 5 and len(inflated) == 2 + 2 + 3 + 2
  # One in every two blocks.
  assert {name[4:] for name in inflated} == {'_1_1', '_3_1', '_5_1'}
  others = {size for name, size in sizes.items() if name not in inflated}
  assert others == {1, 5}


@pytest.mark.parametrize('frames', [32, 64])
def test_resnet3d_learns(frames):
  model = models.resnet3d(
    GROUP_NORM, input_shape=(frames, 32, 32, 3), classes=10
  )
  learns(model, steps=3)


def test_inflate():
  """Where nothing moves, conv1 makes the same of a video as of its frame."""
  images = models.resnet50(GROUP_NORM, input_shape=(64, 64, 3), classes=10)
  videos = models.resnet3d(GROUP_NORM, input_shape=(48, 64, 64, 3), classes=10)
  models.inflate(images, videos)
  image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype('f')
  video = np.repeat(image[:, None], 48, 1)
  conv = [
    np.asarray(keras.Model(model.input, model.get_layer('conv1').output)(x))
    for model, x in ((images, image), (videos, video))
  ]
  # Not at the ends, where a kernel sees what is before and after the video.
  np.testing.assert_allclose(conv[1][:, 12], conv[0], rtol=0, atol=1e-4)
  assert np.abs(conv[1][:, 0] - conv[0]).max() > 0.1
  for name, shape in kernels(images).items():
    kernel = videos.get_layer(name).kernel.numpy()
    assert kernel.shape[1:] == shape
    np.testing.assert_allclose(
      kernel.sum(0), images.get_layer(name).kernel.numpy(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize('attention', models.ATTENTION)
def test_transformer(attention):
  model = models.transformer(*models.ATTENTION[attention])
  inside = norms(model, tfgroupnorm.HeadNorm)
  assert inside == (0 if attention == 'layer' else 2 * 3)
  ours = [layer for layer in model.layers if hasattr(layer, 'rms')]
  assert len(ours) == inside + 2 * 2 + 1
  assert all(layer.rms == (attention == 'rms') for layer in ours)
  text, _ = models.made_batch(model, 4)
  changed = text.copy()
  changed[:, 20:] = (text[:, 20:] + 1) % 64
  before, after = model(text).numpy(), model(changed).numpy()
  np.testing.assert_array_equal(before[:, :20], after[:, :20])
  assert np.all(np.abs(before[:, 20:] - after[:, 20:]).max((0, 2)) > 1e-3)
  learns(model, batch_size=4, steps=6)


def test_peak_memory():
  """It rises by what is taken, and is not known without `resource`."""
  script = """
import sys
sys.modules['resource'] = None  # As on Windows: to import it is an error.
import models
import numpy as np

print(models.describe_memory(models.peak_memory()))
del sys.modules['resource']
before = models.peak_memory()
taken = np.ones(2**27)
print(before, taken.nbytes / 1e9, models.peak_memory())
"""
  # Linux hands on the peak of who starts a program, these tests' own; a shell's
  # is small.
  result = subprocess.run(
    ['sh', '-c', '"$0" -c "$1"; exit $?', sys.executable, script],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  unknown, numbers = result.stdout.splitlines()
  assert unknown == 'memory not known'
  before, taken, after = map(float, numbers.split())
  # By less where a machine that is short of memory drops pages of libraries.
  assert before < taken < after < before + 1.05 * taken


def test_program():
  result = programs.run('models', '--model=transformer', '--steps=2')
  assert result.returncode == 0, result.stderr
  assert re.search(r'^transformer: 446,\d{3} parameters$', result.stdout, re.M)
  losses = re.findall(
    r'^step \d: loss ([\d.]+), .* memory [\d.]+ GB', result.stdout, re.M
  )
  assert len(losses) == 2 and float(losses[1]) < float(losses[0])


@pytest.fixture
def parse():
  """Parses a command line; the flags exist for one test."""
  with programs.flags_of(models) as parse:
    yield parse


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('--model=fpn --norm=none', '--norm=none is for --model=vgg16.'),
    (
      '--model=transformer --norm=group',
      'model=transformer, norm=group: --norm is for --model=resnet50, vgg16, '
      'fpn, resnet3d. Leave it out.',
    ),
    ('--model=transformer --groups=8', '--groups is for --model=resnet50, '),
    (
      '--model=vgg16 --attention=head',
      '--attention is for --model=transf',
    ),
    ('--model=fpn --frames=32', '--frames is for --model=resnet3d. '),
    ('--norm=batch --groups=32', '--groups is for --norm=group. '),
    ('--groups=7', 'groups=7: must divide 64'),
  ],
)
def test_a_flag_without_effect_is_refused(parse, given, message):
  with pytest.raises(flags.IllegalFlagValueError) as error:
    parse(*given.split())
  assert message in str(error.value)


@pytest.mark.parametrize(
  'given',
  [
    '',
    '--model=fpn --norm=batch',
    '--model=resnet3d --frames=64 --groups=16',
    '--model=transformer --attention=rms',
    '--model=vgg16 --norm=none',
  ],
)
def test_good_flags(parse, given):
  assert parse(*given.split()) == ['models']


@pytest.mark.parametrize(
  ('given', 'groups'),
  # Layer normalization as the paper has it: over height and width too.
  [('--norm=layer', 1), ('--norm=group', 32), ('--groups=16', 16)],
)
def test_flags_choose_the_norm(parse, monkeypatch, given, groups):
  monkeypatch.setattr(models, 'resnet50', lambda make_norm: make_norm())
  parse(given)
  norm = models.build(flags.FLAGS)
  assert isinstance(norm, GROUP_NORM) and norm.groups == groups


def test_bad_flags():
  programs.check_bad_flag('models', '--groups=7')
