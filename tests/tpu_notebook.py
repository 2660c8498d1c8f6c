"""The training step of `colab/tpu.ipynb`, made of the notebook's own cell."""

import json
import pathlib

NOTEBOOK = pathlib.Path(__file__).parents[1] / 'colab' / 'tpu.ipynb'


def _made_by_the_cell(keras, layers):
  """What the cell of the notebook defines, with layers of either Keras."""
  (source,) = (
    ''.join(cell['source'])
    for cell in json.loads(NOTEBOOK.read_text())['cells']
    if 'model' in cell['metadata'].get('tags', ())
  )
  names = {'GroupNorm': layers.GroupNorm, 'keras': keras}
  exec(source, names)
  return names


def training_step_of_jax():
  """A step as `fit` takes it on JAX, and the state that it changes."""
  import jax
  import keras

  from tfgroupnorm import layers

  names = _made_by_the_cell(keras, layers)
  model, loss = names['make_model'](), names['make_loss']()
  optimizer = names['make_optimizer']()
  optimizer.build(model.trainable_variables)
  state = [
    [variable.value for variable in variables]
    for variables in (model.trainable_variables, optimizer.variables)
  ]

  def step(state, images, labels):
    weights, moments = state

    def of(weights):
      logits, _ = model.stateless_call(weights, [], images, training=True)
      return loss(labels, logits)

    value, gradients = jax.value_and_grad(of)(weights)
    return value, optimizer.stateless_apply(moments, gradients, weights)

  return step, state


def training_step(batch: int):
  """The same on TensorFlow, and its arguments."""
  import tensorflow as tf
  import tf_keras

  from tfgroupnorm import tf_keras as layers

  names = _made_by_the_cell(tf_keras, layers)
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
