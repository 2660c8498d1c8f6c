"""Small images to train on, and what transforms them at random.

They are scikit-learn's scans of digits, or of a dataset that Keras downloads.
`small_batch.py` says why they are transformed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import digits  # First: it says how much TensorFlow may print.
import experiment
import keras
import numpy as np
import tensorflow as tf
from sklearn import model_selection

# Datasets of Keras, which are downloaded: numbers of classes and of images.
DOWNLOADS = {
  'cifar10': (10, 50000),
  'cifar100': (100, 50000),
  'fashion_mnist': (10, 60000),
  'mnist': (10, 60000),
}
DIGITS = 1797  # Images that scikit-learn has.
# How far images are transformed: parts of a turn and of their size.
ROTATION, ZOOM, SHIFT = 0.05, 0.15, 0.075
# Images transformed at a time, and how often each image to validate on is, in
# its own way each time, where there are few of them.
CHUNK, COPIES = 8192, 8


# --- Which --------------------------------------------------------------------


def classes_of(dataset: str) -> int:
  """How many classes it has."""
  return digits.CLASSES if dataset == 'digits' else DOWNLOADS[dataset][0]


def is_possible(dataset: str, train_size: int) -> bool:
  """Whether `load_data` can choose that many images, some of each class."""
  if dataset == 'digits':
    return train_size <= DIGITS - digits.CLASSES
  classes, images = DOWNLOADS[dataset]
  return classes <= train_size <= images - classes or train_size == images


def load_data(dataset: str, train_size: int, seed: int) -> digits.Digits:
  """Images from 0 to 1, of which `train_size` are to train on.

  Args:
    dataset: `'digits'`, or a name in `DOWNLOADS`.
    train_size: Number of images to train on.
    seed: Of the choice of these. What is left of scikit-learn's digits is to
      validate on; other datasets have images of their own for that.
  """
  if dataset == 'digits':
    return digits.load_digits(seed, train_size)
  (images, labels), (test_images, test_labels) = importlib.import_module(
    f'keras.datasets.{dataset}'
  ).load_data()
  labels = labels.reshape(-1)
  if train_size < len(labels):
    images, _, labels, _ = model_selection.train_test_split(
      images, labels, train_size=train_size, stratify=labels, random_state=seed
    )
  images, test_images = (
    (i / 255).astype(np.float32).reshape(*i.shape[:3], -1)
    for i in (images, test_images)
  )
  return digits.Digits(
    images,
    test_images,
    labels.astype(np.int32),
    test_labels.reshape(-1).astype(np.int32),
  )


# --- Transformed --------------------------------------------------------------


def transformation(
  contrast: float, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
  """What turns, scales, moves, dims and brightens each image at random.

  Args:
    contrast: The least part of its contrast that an image keeps. Where it loses
      some, its brightness is drawn from what keeps it between 0 and 1.
    seed: Of all that is random.
  """
  rng = np.random.default_rng(seed)
  # With one seed for all, an image's angle would follow from its size.
  seeds = map(int, rng.integers(2**31, size=3))
  layers = keras.Sequential(
    [
      layer(*factors, fill_mode='constant', seed=own)
      for (layer, factors), own in zip(
        (
          (keras.layers.RandomRotation, (ROTATION,)),
          (keras.layers.RandomZoom, (ZOOM, ZOOM)),
          (keras.layers.RandomTranslation, (SHIFT, SHIFT)),
        ),
        seeds,
        strict=True,
      )
    ]
  )

  def transform(images):
    kept = rng.uniform(contrast, 1, (len(images), 1, 1, 1))
    brightness = rng.uniform(0, 1 - kept)
    result = np.empty(images.shape, np.float32)
    for start in range(0, len(images), CHUNK):
      part = slice(start, start + CHUNK)
      turned = np.asarray(layers(images[part], training=True))
      result[part] = kept[part] * turned + brightness[part]
    return result

  return transform


def validation_images(
  data: digits.Digits, settings: experiment.Settings
) -> tuple[np.ndarray, np.ndarray]:
  """Images to validate on, transformed as those to train on, and labels."""
  count = len(data.test_labels)
  copies = min(COPIES, max(1, CHUNK // count))
  transform = transformation(settings['contrast'], settings['seed'])
  return (
    transform(np.repeat(data.test_images, copies, axis=0)),
    np.repeat(data.test_labels, copies),
  )


def batches_of(
  images: np.ndarray, labels: np.ndarray, settings: experiment.Settings
) -> tf.data.Dataset:
  """Batches for all epochs, in another order and transformed in each.

  They depend on the seed alone: all norms, and all batch sizes that divide the
  number of images, see the same images in the same order.
  """
  batch_size, epochs = settings['batch_size'], settings['epochs']
  rng = np.random.default_rng(settings['seed'])
  transform = transformation(settings['contrast'], settings['seed'])
  used = len(labels) // batch_size * batch_size

  def blocks():
    # Some epochs at a time: all of them may be too many to hold.
    size = max(1, CHUNK // len(labels))
    for start in range(0, epochs, size):
      order = np.concatenate(
        [
          rng.permutation(len(labels))[:used]
          for _ in range(start, min(start + size, epochs))
        ]
      )
      yield (
        transform(images[order]).reshape(-1, batch_size, *images.shape[1:]),
        labels[order].reshape(-1, batch_size),
      )

  return tf.data.Dataset.from_generator(
    blocks,
    output_signature=(
      tf.TensorSpec((None, batch_size, *images.shape[1:]), tf.float32),
      tf.TensorSpec((None, batch_size), tf.int32),
    ),
  ).unbatch()
