"""The training step of `colab/tpu.ipynb`, made of the notebook's own cell."""

import json
import pathlib

NOTEBOOK = pathlib.Path(__file__).parents[1] / 'colab' / 'tpu.ipynb'


def training_step(batch: int):
  """A step as `fit` takes it, and its arguments."""
  import tensorflow as tf
  import tf_keras

  from tfgroupnorm import tf_keras as layers

  (source,) = (
    ''.join(cell['source'])
    for cell in json.loads(NOTEBOOK.read_text())['cells']
    if 'model' in cell['metadata'].get('tags', ())
  )
  names = {**vars(layers), 'keras': tf_keras}
  exec(source, names)
  model, loss = names['make_model'](), names['make_loss']()
  optimizer = names['make_optimizer']()
  optimizer.build(model.trainable_variables)

  def step(images, labels):
    with tf.GradientTape() as tape:
      value = loss(labels, model(images, training=True))
    gradients = tape.gradient(value, model.trainable_variables)
    optimizer.apply_gradients(
      zip(gradients, model.trainable_variables, strict=True)
    )
    return value

  image = tf.zeros((batch, *model.input_shape[1:]))
  return step, (image, tf.zeros(batch, tf.int32))
