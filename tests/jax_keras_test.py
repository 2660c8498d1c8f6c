"""The layers on Keras 3 with JAX beneath: trained, mapped, masked, copied."""

import subprocess
import sys
import textwrap
import warnings

import jax
import keras
import numpy as np
import pytest
from jax import numpy as jnp

import cases
import reference
import tfgroupnorm
from tfgroupnorm import GroupNorm, HeadNorm, InstanceNorm, LayerNorm, functional
from tfgroupnorm.callbacks import ActivationPercentiles

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (32, 6, 8)).astype('float32')
Y = X[:, :3].mean((1, 2))[:, None] - X[:, 3:].mean((1, 2))[:, None]


def make_model(**options):
  keras.utils.set_random_seed(0)
  return keras.Sequential(
    [
      keras.Input((None, 8)),
      keras.layers.Conv1D(8, 3, padding='same'),
      GroupNorm(4, activation='silu', **options),
      InstanceNorm(**options),
      LayerNorm(activation='gelu', **options),
      LayerNorm(rms=True, **options),
      HeadNorm(2, **options),
      keras.layers.GlobalAveragePooling1D(),
      keras.layers.Dense(1),
    ]
  )


def fit(model, epochs=4, **options):
  model.compile(keras.optimizers.SGD(0.02), 'mse', **options)
  return model.fit(
    X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0
  ).history['loss']


# --- Alone -------------------------------------------------------------------


def test_without_tensorflow(tmp_path):
  """One stands in the path that raises, and all is done without it."""
  for name in ('tensorflow', 'tf_keras'):
    (tmp_path / name).mkdir()
    (tmp_path / name / '__init__.py').write_text(
      f'raise ImportError({name!r} " is not wanted here")'
    )
  code = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    import keras
    from tfgroupnorm import *
    from tfgroupnorm import functional
    from tfgroupnorm.callbacks import ActivationPercentiles
    assert not {'tensorflow', 'tf_keras'} & set(sys.modules)
    x = np.random.default_rng(0).normal(3, 2, (32, 6, 8)).astype('float32')
    model = keras.Sequential([
      keras.Input((6, 8)), GroupNorm(2), LayerNorm(), LayerNorm(rms=True),
      InstanceNorm(), HeadNorm(2), keras.layers.BatchNormalization(),
      keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile('sgd', 'mse')
    watching = ActivationPercentiles(x[:4], update_freq='epoch')
    model.fit(x, x[:, 0, :1], epochs=2, verbose=0, callbacks=[watching])
    model.save(sys.argv[1] + '/m.keras')
    again = keras.models.load_model(sys.argv[1] + '/m.keras')
    assert np.array_equal(model(x), again(x))
    replace_batch_norm(model, groups=2, verbose=False)
    try:
      export_saved_model(model, sys.argv[1] + '/served/1')
    except ImportError as error:
      print(error)
    assert not {'tensorflow', 'tf_keras'} & set(sys.modules)
  """
  result = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), tmp_path],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert 'A SavedModel is written by TensorFlow' in result.stdout
  assert 'KERAS_BACKEND=tensorflow' in result.stdout


def test_keras_2_is_refused():
  """Its layers are TensorFlow's, and the kernel of this process is JAX'."""
  with pytest.raises(ImportError, match="Received: Keras 3 with backend 'jax'"):
    import tfgroupnorm.tf_keras  # noqa: F401


def test_a_log_is_refused():
  with pytest.raises(ValueError, match='`log_dir` is for TensorBoard'):
    ActivationPercentiles(X[:4], log_dir='logs')


@pytest.mark.parametrize(
  'x, message',
  [
    (keras.KerasTensor((2, 8)), 'must hold values, or be traced by JAX'),
    (np.array([['a', 'b']]), 'must be an array of numbers. Received: ndarray'),
    (np.ones((2, 8), complex), 'must be real numbers'),
  ],
)
def test_what_is_no_array_of_numbers(x, message):
  with pytest.raises(TypeError, match=message):
    functional.layer_norm(x)


# --- Trained -----------------------------------------------------------------


def test_fit_evaluate_predict():
  model = make_model()
  losses = fit(model, epochs=6)
  assert losses[-1] < 0.5 * losses[0]
  predicted = model.predict(X, verbose=0)
  loss = model.evaluate(X, Y, verbose=0)
  np.testing.assert_allclose(np.mean((predicted - Y) ** 2), loss, rtol=1e-5)
  np.testing.assert_allclose(model(X), predicted, rtol=0, atol=1e-6)


@pytest.mark.parametrize('how', ['run_eagerly', 'plain', 'op_by_op'])
def test_every_way_gives_the_same(how):
  wanted = fit(make_model(), epochs=2)
  if how == 'op_by_op':
    with tfgroupnorm.op_by_op():
      losses = fit(make_model(), epochs=2)
  else:
    model = make_model(jit_compile=how != 'plain')
    losses = fit(model, epochs=2, run_eagerly=how == 'run_eagerly')
  np.testing.assert_allclose(losses, wanted, rtol=1e-4)


@pytest.mark.parametrize('kind', ['DataParallel', 'ModelParallel'])
def test_the_same_losses_on_eight_devices(kind):
  wanted = fit(make_model())
  devices = keras.distribution.list_devices('cpu')
  assert len(devices) == 8
  if kind == 'DataParallel':
    distribution = keras.distribution.DataParallel(devices=devices)
  else:
    mesh = keras.distribution.DeviceMesh((4, 2), ['batch', 'model'], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout['.*(gamma|beta)'] = ('model',)
    layout['.*conv1d.*kernel'] = (None, None, 'model')
    distribution = keras.distribution.ModelParallel(
      layout_map=layout, batch_dim_name='batch'
    )
  with distribution.scope():
    model = make_model()
    losses = fit(model)
  spread = {len(w.value.sharding.device_set) for w in model.weights}
  assert spread == {8}
  if kind == 'ModelParallel':
    gamma = model.layers[1].gamma.value
    assert not gamma.sharding.is_fully_replicated
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_stateless_call():
  model = make_model()
  values = [w.value for w in model.trainable_variables]

  @jax.jit
  def loss(values):
    y, _ = model.stateless_call(values, [], X)
    return jnp.mean((y - Y) ** 2)

  wanted = float(jnp.mean((model(X) - Y) ** 2))
  value, gradients = jax.value_and_grad(loss)(values)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  assert all(np.all(np.isfinite(g)) and np.any(g) for g in gradients[2:])


def test_recomputed():
  """In a `RematScope` the gradients are those without."""
  wanted = fit(make_model(), epochs=2)
  with keras.RematScope(mode='full'):
    model = make_model()
  np.testing.assert_allclose(fit(model, epochs=2), wanted, rtol=1e-5)


@pytest.mark.parametrize('gated', [False, True], ids=['alone', 'gate'])
def test_a_masked_head_recomputed(gated):
  x = RNG.normal(1, 1, (2, 5, 8)).astype('float32')
  mask = np.arange(5)[None] < np.array([[3], [5]])
  more = {'gate': x} if gated else {}
  wanted = HeadNorm(2)(x, mask=mask, **more)
  with keras.RematScope(mode='full'):
    layer = HeadNorm(2)

  @jax.jit
  def run(x):
    return layer(x, mask=mask, **({'gate': x} if gated else {}))

  layer.build(x.shape)
  np.testing.assert_allclose(run(x), wanted, rtol=0, atol=1e-6)


# --- Masks that travel -------------------------------------------------------

TOKENS = np.array([[3, 1, 2, 0, 0], [4, 4, 0, 0, 0], [1, 2, 3, 4, 2]])


@pytest.mark.parametrize('beside', [None, 'gate', 'gamma'])
def test_the_mask_in_what_is_traced(beside):
  """Beside a second tensor too, where Keras passes it by another name."""
  keras.utils.set_random_seed(0)
  inputs = keras.Input((None,), dtype='int32')
  x = keras.layers.Embedding(5, 8, mask_zero=True)(inputs)
  if beside == 'gate':
    y = HeadNorm(2, center=True, beta_initializer='ones')(x, gate=x)
  elif beside == 'gamma':
    scale = keras.layers.Dense(8, bias_initializer='ones')(
      keras.layers.GlobalAveragePooling1D()(x)
    )
    y = GroupNorm(2, scale=False, beta_initializer='ones')(x, gamma=scale)
  else:
    y = GroupNorm(2, beta_initializer='ones')(x)
  pooled = keras.layers.GlobalAveragePooling1D()(y)
  model = keras.Model(inputs, [y, pooled])
  for run in (model, jax.jit(lambda t: model(t)), predict_of(model)):
    y, pooled = map(np.asarray, run(TOKENS))
    valid = TOKENS != 0
    assert not np.any(y[~valid]) and np.all(np.any(y[valid], -1))
    # The pooling leaves masked steps out only if the mask has reached it.
    wanted = y.sum(1) / valid.sum(1, keepdims=True)
    np.testing.assert_allclose(pooled, wanted, rtol=1e-5, atol=1e-6)


def predict_of(model):
  return lambda tokens: model.predict(tokens, verbose=0)


def test_a_mask_and_a_gate_in_training():
  """What is behind the mask changes no weight."""
  keras.utils.set_random_seed(0)
  inputs, gate = keras.Input((5, 8)), keras.Input((5, 8))
  x = keras.layers.Masking()(inputs)
  y = HeadNorm(2, gate_activation='silu')(x, gate=gate)
  y = keras.layers.GlobalAveragePooling1D()(y)
  model = keras.Model([inputs, gate], keras.layers.Dense(1)(y))
  start = model.get_weights()
  x = RNG.normal(1, 1, (8, 5, 8)).astype('float32')
  x[:, 3:] = 0
  results = []
  for garbage in (0.0, 1e3):
    behind = x.copy()
    behind[:, 3:] = garbage
    model.set_weights(start)
    model.compile(keras.optimizers.SGD(0.1), 'mse')
    model.fit([x, behind], np.ones((8, 1)), verbose=0, shuffle=False)
    results.append(model.get_weights())
  for a, b, old in zip(*results, start, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.any(a != old)


# --- Files, and layers of others ---------------------------------------------


def test_files(tmp_path):
  model = make_model()
  fit(model, epochs=1)
  wanted = model.predict(X, verbose=0)
  model.save(tmp_path / 'm.keras')
  again = keras.models.load_model(tmp_path / 'm.keras')
  np.testing.assert_array_equal(again.predict(X, verbose=0), wanted)
  model.save_weights(tmp_path / 'm.weights.h5')
  new = make_model()
  new.load_weights(tmp_path / 'm.weights.h5')
  np.testing.assert_array_equal(new.predict(X, verbose=0), wanted)


@pytest.mark.parametrize(
  'ours, theirs',
  [
    (GroupNorm(4), keras.layers.GroupNormalization(4)),
    (LayerNorm(), keras.layers.LayerNormalization()),
    (LayerNorm(rms=True, epsilon=1e-6), keras.layers.RMSNormalization()),
  ],
)
def test_weights_of_keras(ours, theirs, tmp_path):
  """Both ways, by `set_weights` and by files."""
  models = [keras.Sequential([keras.Input((6, 8)), n]) for n in (ours, theirs)]
  for source, target in (models, models[::-1]):
    source.set_weights([RNG.normal(1, 0.3, w.shape) for w in source.weights])
    target.set_weights(source.get_weights())
    np.testing.assert_allclose(target(X), source(X), rtol=0, atol=2e-5)
    source.set_weights([RNG.normal(1, 0.3, w.shape) for w in source.weights])
    source.save_weights(tmp_path / 'of.weights.h5')
    target.load_weights(tmp_path / 'of.weights.h5')
    np.testing.assert_allclose(target(X), source(X), rtol=0, atol=2e-5)


def test_batch_norms_replaced():
  inputs = x = keras.Input((6, 8))
  x = keras.layers.Conv1D(8, 3)(x)
  x = keras.layers.BatchNormalization(name='norm')(x)
  model = keras.Model(inputs, keras.layers.Flatten()(x))
  gamma, beta = RNG.normal(1, 0.3, (2, 8))
  model.get_layer('norm').set_weights([gamma, beta, np.zeros(8), np.ones(8)])
  with pytest.warns(UserWarning, match='fine-tune the model'):
    new = tfgroupnorm.replace_batch_norm(model, groups=2, verbose=False)
  assert type(new.get_layer('norm')) is GroupNorm
  given = np.asarray(model.layers[1](X)).astype('float64')
  wanted = reference.group_norm(given, gamma, beta, groups=2)
  got = np.reshape(new.predict(X, verbose=0), wanted.shape)
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_norms_of_keras_replaced():
  x = inputs = keras.Input((6, 8))
  for norm in (
    keras.layers.GroupNormalization(4),
    keras.layers.LayerNormalization(),
    keras.layers.RMSNormalization(),
  ):
    x = norm(x)
  model = keras.Model(inputs, x)
  model.set_weights([RNG.normal(1, 0.3, w.shape) for w in model.weights])
  wanted = model.predict(X, verbose=0)
  new = tfgroupnorm.replace_keras_norms(model, verbose=False)
  kinds = [type(layer).__module__ for layer in new.layers[1:]]
  assert kinds == ['tfgroupnorm.layers'] * 3
  got = new.predict(X, verbose=0)
  np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_percentiles_disturb_nothing():
  """They are those of the features, and the training is what it was."""

  def train(*callbacks):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
      [
        keras.Input((6, 8)),
        GroupNorm(2, name='norm'),
        keras.layers.Dropout(0.5),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(1),
      ]
    )
    model.compile('adam', 'mse')
    losses = model.fit(
      X, Y, batch_size=8, epochs=3, verbose=0, callbacks=list(callbacks)
    ).history['loss']
    return model, losses

  watching = ActivationPercentiles(X[:8], update_freq=1)
  model, losses = train(watching)
  plain, wanted = train()
  np.testing.assert_array_equal(losses, wanted)
  for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
  features = np.percentile(model.get_layer('norm')(X[:8]), (1, 20, 80, 99))
  np.testing.assert_allclose(watching.history['norm'][-1], features, atol=1e-5)
  np.testing.assert_array_equal(watching.steps, np.arange(13))
  # Each record is of another state.
  assert len(np.unique(watching.history['norm'], axis=0)) > 10


def test_mixed_dtypes():
  """Parameters stay in float32, results are rounded once."""
  for policy in ('mixed_bfloat16', 'mixed_float16', 'float16'):
    layer = GroupNorm(4, dtype=policy)
    y = layer(X)
    narrow = policy.removeprefix('mixed_')
    assert y.dtype == narrow
    wide = 'float16' if policy == 'float16' else 'float32'
    assert {w.dtype for w in layer.weights} == {wide}
    wanted = reference.group_norm(X.astype('float64'), None, None, groups=4)
    ulp = 2.0 ** -(8 if narrow == 'bfloat16' else 11)
    np.testing.assert_allclose(
      np.asarray(y, 'float64'), wanted, rtol=1.01 * ulp, atol=4e-6
    )


def test_onnx(tmp_path):
  """As far as Keras does it for layers of its own."""

  def export(norm):
    model = keras.Sequential([keras.Input((6, 8)), norm])
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      try:
        model.export(tmp_path / 'm.onnx', format='onnx', verbose=False)
      except Exception as error:
        return type(error)
    return None

  theirs = export(keras.layers.LayerNormalization())
  assert export(cases.KINDS['LayerNorm'].layer()) == theirs
