"""Bad input raises before any computation, and the message teaches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import cases
import tfgroupnorm
from tfgroupnorm import functional

X = np.ones((2, 5, 4, 12), 'float32')


@pytest.fixture(autouse=True)
def no_computation(monkeypatch):
  """Nothing that fails may get as far as the kernel."""

  def reached(*args, **kwargs):
    raise AssertionError('the kernel was called')

  monkeypatch.setattr('tfgroupnorm.kernel.normalize', reached)


# Arguments that no input can make right: (layer, options, error, message).
CONSTRUCTOR = [
  (
    'GroupNorm',
    {'groups': 32, 'group_size': 1},
    ValueError,
    r'Give `groups` or `group_size`, not both\. Received: groups=32, group_size=1',
  ),
  (
    'GroupNorm',
    {'groups': 4, 'group_size': 3},
    ValueError,
    r'Give `groups` or `group_size`, not both\. Received: groups=4, group_size=3\. Leave out `groups`',
  ),
  (
    'GroupNorm',
    {'groups': True},
    TypeError,
    r'`groups` must be an integer\. Received: groups=True of type bool\. Pass a Python or NumPy int',
  ),
  (
    'GroupNorm',
    {'groups': 4.0},
    TypeError,
    r'`groups` must be an integer\. Received: groups=4\.0 of type float',
  ),
  (
    'GroupNorm',
    {'groups': 0},
    ValueError,
    r'`groups` must be a positive integer, or -1.*Received: groups=0',
  ),
  (
    'GroupNorm',
    {'groups': -2},
    ValueError,
    r'`groups` must be a positive integer, or -1.*Received: groups=-2',
  ),
  (
    'GroupNorm',
    {'group_size': 2.0},
    TypeError,
    r'`group_size` must be an integer\. Received: group_size=2\.0',
  ),
  (
    'GroupNorm',
    {'group_size': 0},
    ValueError,
    r'`group_size`.* must be positive\. Received: group_size=0',
  ),
  (
    'GroupNorm',
    {'axis': 0},
    ValueError,
    r'`axis` cannot be 0: that is the batch.*Received: axis=0\. Use the axis of the channels',
  ),
  (
    'GroupNorm',
    {'axis': 1.0},
    TypeError,
    r'`axis` must be an integer\. Received: axis=1\.0',
  ),
  (
    'GroupNorm',
    {'axis': [1, 2]},
    TypeError,
    r'`axis` must be an integer\. Received: axis=\[1, 2\]',
  ),
  (
    'InstanceNorm',
    {'axis': False},
    TypeError,
    r'`axis` must be an integer\. Received: axis=False',
  ),
  (
    'LayerNorm',
    {'axis': []},
    ValueError,
    r'`axis` must name at least one axis\. Received: axis=\[\]',
  ),
  (
    'LayerNorm',
    {'axis': [1, 0]},
    ValueError,
    r'`axis` cannot be 0.*Received: axis=\[1, 0\]',
  ),
  (
    'LayerNorm',
    {'axis': [1, '2']},
    TypeError,
    r"`axis` must be an integer\. Received: axis='2'",
  ),
  (
    'HeadNorm',
    {},
    ValueError,
    r'must know where the heads are.*num_heads=None, head_axis=None\. Give `num_heads`',
  ),
  (
    'HeadNorm',
    {'num_heads': True},
    TypeError,
    r'`num_heads` must be an integer\. Received: num_heads=True',
  ),
  (
    'HeadNorm',
    {'num_heads': 0},
    ValueError,
    r'`num_heads` must be positive\. Received: num_heads=0',
  ),
  (
    'HeadNorm',
    {'head_axis': 0},
    ValueError,
    r'`head_axis` can be neither the batch axis 0 nor the last.*Received: head_axis=0',
  ),
  (
    'HeadNorm',
    {'head_axis': -1},
    ValueError,
    r'`head_axis` can be neither.*Received: head_axis=-1\. Use -2',
  ),
  (
    'HeadNorm',
    {'head_axis': 1.5},
    TypeError,
    r'`head_axis` must be an integer\. Received: head_axis=1\.5',
  ),
]
for _kind, _more in [
  ('GroupNorm', {}),
  ('InstanceNorm', {}),
  ('LayerNorm', {}),
  ('HeadNorm', {'num_heads': 2}),
]:
  CONSTRUCTOR += [
    (
      _kind,
      {**_more, 'epsilon': 0},
      ValueError,
      r'`epsilon` must be positive.*Received: epsilon=0\. Pass a positive',
    ),
    (
      _kind,
      {**_more, 'epsilon': -1e-3},
      ValueError,
      r'`epsilon` must be positive.*Received: epsilon=-0\.001',
    ),
    (
      _kind,
      {**_more, 'epsilon': float('nan')},
      ValueError,
      r'`epsilon` must be positive.*Received: epsilon=nan',
    ),
    (
      _kind,
      {**_more, 'epsilon': True},
      TypeError,
      r'`epsilon` must be a number\. Received: epsilon=True',
    ),
    (
      _kind,
      {**_more, 'epsilon': '1e-3'},
      TypeError,
      r"`epsilon` must be a number\. Received: epsilon='1e-3'",
    ),
    (
      _kind,
      {**_more, 'jit_compile': None},
      ValueError,
      r'`jit_compile` must be True, False or "auto"\. Received: jit_compile=None\. Use "auto"',
    ),
    (
      _kind,
      {**_more, 'jit_compile': 'yes'},
      ValueError,
      r"`jit_compile` must be.*Received: jit_compile='yes'",
    ),
    (
      _kind,
      {**_more, 'jit_compile': 1},
      ValueError,
      r'`jit_compile` must be.*Received: jit_compile=1',
    ),
    (
      _kind,
      {
        **_more,
        ('gate_activation' if _kind == 'HeadNorm' else 'activation'): 'reul',
      },
      ValueError,
      r"Unknown activation\. Received: 'reul'\. Pass a callable, None",
    ),
  ]

# (layer, options, input shape, error, message).
INPUT = [
  (
    'GroupNorm',
    {'groups': 2},
    (2, 5, None),
    ValueError,
    r'The number of channels must be known\. Received: shape \(2, 5, None\) with axis 2 unknown\. Give that axis a size',
  ),
  (
    'GroupNorm',
    {'groups': 5},
    (2, 5, 12),
    ValueError,
    r'The number of channels must be a multiple of `groups`\. Received: 12 channels, groups=5\. Pass a divisor of 12',
  ),
  (
    'GroupNorm',
    {},
    (2, 5, 12),
    ValueError,
    r'There cannot be more groups than channels\. Received: groups=32 for 12 channels\. Pass groups=12 or -1',
  ),
  (
    'GroupNorm',
    {'group_size': 5},
    (2, 5, 12),
    ValueError,
    r'must be a multiple of `group_size`\. Received: 12 channels, group_size=5\. Pass a divisor of 12',
  ),
  (
    'GroupNorm',
    {'groups': 2, 'axis': 3},
    (2, 5, 12),
    ValueError,
    r'`axis` must be an axis of the input\. Received: axis=3 for an input of rank 3, shape \(2, 5, 12\)\. Use a value from 1 to 2',
  ),
  (
    'GroupNorm',
    {'groups': 2, 'axis': -4},
    (2, 5, 12),
    ValueError,
    r'`axis` must be an axis of the input\. Received: axis=-4',
  ),
  (
    'GroupNorm',
    {'groups': 2, 'axis': -3},
    (2, 5, 12),
    ValueError,
    r'`axis` cannot be 0: that is the batch.*Received: axis=-3',
  ),
  (
    'GroupNorm',
    {'groups': 1},
    (12,),
    ValueError,
    r'needs an input of rank 2 or more, the batch first\. Received: shape \(12,\)',
  ),
  (
    'GroupNorm',
    {'groups': 1},
    (2, 0),
    ValueError,
    r'The number of channels must be positive\. Received: shape \(2, 0\)',
  ),
  (
    'InstanceNorm',
    {'axis': 1},
    (2, None, 12),
    ValueError,
    r'The number of channels must be known',
  ),
  (
    'LayerNorm',
    {'axis': [1, -2]},
    (2, 5, 12),
    ValueError,
    r'`axis` must not name an axis twice\. Received: axis=\[1, -2\] for shape \(2, 5, 12\)\. Drop the repetition',
  ),
  (
    'LayerNorm',
    {'axis': 3},
    (2, 5, 12),
    ValueError,
    r'`axis` must be an axis of the input',
  ),
  (
    'LayerNorm',
    {'axis': [1, 2]},
    (2, None, 12),
    ValueError,
    r'features on a normalized axis must be known',
  ),
  (
    'HeadNorm',
    {'num_heads': 5},
    (2, 5, 12),
    ValueError,
    r'The last axis must hold equal heads\. Received: size 12 for num_heads=5\. Pass a divisor of 12',
  ),
  (
    'HeadNorm',
    {'num_heads': 2},
    (2, 5, None),
    ValueError,
    r'The number of features must be known',
  ),
  (
    'HeadNorm',
    {'head_axis': 2},
    (2, 5, 12),
    ValueError,
    r'`head_axis` cannot be the last axis.*Received: head_axis=2',
  ),
  (
    'HeadNorm',
    {'head_axis': -3},
    (2, 5, 12),
    ValueError,
    r'`head_axis` cannot be 0',
  ),
  (
    'HeadNorm',
    {'head_axis': 1},
    (2, None, 5, 12),
    ValueError,
    r'The number of heads must be known',
  ),
  (
    'HeadNorm',
    {'head_axis': 1, 'num_heads': 4},
    (2, 3, 5, 12),
    ValueError,
    r'The head axis must have size `num_heads`\. Received: num_heads=4, head_axis=1 for shape \(2, 3, 5, 12\)',
  ),
  (
    'HeadNorm',
    {'head_axis': 1},
    (2, 12),
    ValueError,
    r'needs an input of rank 3 or more',
  ),
]


@cases.both_kerases
@pytest.mark.parametrize('kind, options, error, message', CONSTRUCTOR)
def test_constructor(generation, kind, options, error, message):
  layer = getattr(cases.layers_of(generation), kind)
  with pytest.raises(error, match=message):
    layer(**options)


@pytest.mark.parametrize('kind, options, error, message', CONSTRUCTOR)
def test_function_options(kind, options, error, message):
  with pytest.raises(error, match=message):
    cases.FUNCTIONS[kind](X, **options)


@cases.both_kerases
@pytest.mark.parametrize('kind, options, shape, error, message', INPUT)
def test_input(generation, kind, options, shape, error, message):
  module = cases.layers_of(generation)
  layer = getattr(module, kind)(**options)
  with pytest.raises(error, match=message):
    layer.build(shape)
  with pytest.raises(error, match=message):
    getattr(module, kind)(**options).compute_output_shape(shape)


@pytest.mark.parametrize('kind, options, shape, error, message', INPUT)
def test_function_input(kind, options, shape, error, message):
  @tf.function(input_signature=[tf.TensorSpec(shape)], autograph=False)
  def run(x):
    return cases.FUNCTIONS[kind](x, **options)

  with pytest.raises(error, match=message):
    run.get_concrete_function()


@pytest.mark.parametrize('value', [np.int32(4), np.int64(4), np.uint8(4)])
def test_numpy_integers_are_integers(value):
  assert tfgroupnorm.GroupNorm(value).groups == 4
  assert tfgroupnorm.GroupNorm(group_size=value).group_size == 4
  assert tfgroupnorm.HeadNorm(num_heads=value).num_heads == 4
  assert tfgroupnorm.LayerNorm(axis=[value]).axis == (4,)


# --- Tensors that do not fit ---


@pytest.mark.parametrize('name', ['gamma', 'beta'])
@pytest.mark.parametrize(
  'call, fits',
  [
    (
      lambda **p: functional.group_norm(X, groups=3, **p),
      r'\(12,\), or \(2, 12\)',
    ),
    (
      lambda **p: functional.instance_norm(X, axis=1, **p),
      r'\(5,\), or \(2, 5\)',
    ),
    (
      lambda **p: functional.layer_norm(X, axis=[1, 3], **p),
      r'\(5, 12\), or \(2, 5, 12\)',
    ),
    (
      lambda **p: functional.head_norm(X, num_heads=3, **p),
      r'\(12,\), or \(2, 12\)',
    ),
    (
      lambda **p: functional.head_norm(X, head_axis=1, **p),
      r'\(5, 12\), or \(2, 5, 12\)',
    ),
    (
      lambda **p: functional.head_norm(X, num_heads=3, per_head=False, **p),
      r'\(4,\), or \(2, 4\)',
    ),
  ],
)
def test_parameters(call, name, fits):
  for shape in [(7,), (1, 1, 1, 12), (3, 12), ()]:
    with pytest.raises(
      ValueError, match=f'`{name}` must have shape {fits}.*Received: shape'
    ):
      call(**{name: np.ones(shape, 'float32')})
  with pytest.raises(TypeError, match=f'`{name}` must be floating.*int32'):
    call(**{name: np.ones(12, 'int32')})


def test_rms_has_no_beta():
  with pytest.raises(ValueError, match='`beta` cannot be given with rms=True'):
    functional.layer_norm(X, beta=np.ones(12, 'float32'), rms=True)
  with pytest.raises(ValueError, match='`beta` cannot be given with rms=True'):
    tfgroupnorm.HeadNorm(3, rms=True)(X, beta=np.ones((2, 12), 'float32'))


@pytest.mark.parametrize(
  'shape', [(3,), (2, 4), (2, 5, 12), (2, 1, 4, 1), (2, 5, 4, 12), ()]
)
def test_masks(shape):
  message = r'`mask` must have the shape of the leading axes.*\(2, 5, 4\).*Received: mask of shape'
  for function in (
    lambda mask: functional.group_norm(X, groups=3, mask=mask),
    lambda mask: functional.head_norm(X, num_heads=3, mask=mask),
    lambda mask: tfgroupnorm.GroupNorm(3)(X, mask=mask),
  ):
    with pytest.raises(ValueError, match=message):
      function(np.ones(shape, bool))


@cases.both_kerases
@cases.one_of_each
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'float64'])
def test_masks_of_floats(generation, case, dtype):
  """Added to scores, they say the contrary of what bools say."""
  x, *_ = case.data()
  added = np.where(case.mask(), 0, -1e9 if dtype != 'float16' else -6e4)
  message = (
    '`mask` must be of bools, or integers 0 and 1: True where the input '
    f'counts. Received: dtype {dtype}. Pass `mask == 0` if'
  )
  with pytest.raises(TypeError, match=message):
    case.function(x, mask=added.astype(dtype))
  with pytest.raises(TypeError, match=message):
    case.layer(generation)(x, mask=added.astype(dtype))


def test_gates():
  layer = tfgroupnorm.HeadNorm(3)
  for gate in (X[..., :4], X[:1], X[0]):
    with pytest.raises(
      ValueError,
      match=r'`gate` must have the shape of the input.*Received: gate of shape',
    ):
      functional.head_norm(X, num_heads=3, gate=gate)
    with pytest.raises(ValueError, match='`gate` must have the shape'):
      layer(X, gate=gate)
  with pytest.raises(TypeError, match='`gate` must be floating'):
    functional.head_norm(X, num_heads=3, gate=X.astype('int32'))


@cases.both_kerases
@cases.one_of_each
@pytest.mark.parametrize(
  'name, option', [('gamma', 'scale'), ('beta', 'center')]
)
def test_a_parameter_that_the_layer_owns(generation, case, name, option):
  x, gamma, _ = case.data()
  layer = case.layer(generation)
  given = np.ones((2, *gamma.shape), 'float32')
  with pytest.raises(
    ValueError,
    match=f'`{name}` cannot be passed to a layer that owns one.*'
    f'{case.kind}.{option}=True.*Create the layer with {option}=False',
  ):
    layer(x, **{name: given})


# --- Things that are not tensors ---


@pytest.mark.parametrize(
  'x, message',
  [
    (
      tf.ragged.constant([[1.0], [1.0, 2.0]]),
      '`x` must be a dense tensor. Received: RaggedTensor',
    ),
    (
      tf.sparse.from_dense([[1.0]]),
      '`x` must be a dense tensor. Received: SparseTensor',
    ),
    (tf.constant([['a']]), '`x` must be real numbers. Received: dtype string'),
    (
      tf.constant([[1j]]),
      '`x` must be real numbers. Received: dtype complex128',
    ),
    (keras.Input((3,)), 'Received: a symbolic tensor of Keras. Use the layer'),
    (
      tf_keras.Input((3,)),
      'Received: a symbolic tensor of Keras. Use the layer',
    ),
  ],
)
def test_function_of_something_else(x, message):
  with pytest.raises(TypeError, match=message):
    functional.layer_norm(x)


def test_unknown_rank():
  @tf.function(input_signature=[tf.TensorSpec(None)], autograph=False)
  def run(x):
    return functional.layer_norm(x)

  with pytest.raises(ValueError, match='The rank of the input must be known'):
    run.get_concrete_function()


@cases.both_kerases
def test_layer_of_something_else(generation):
  for value, dtype in ((1j, 'complex128'), ('a', 'string')):
    layer = cases.layers_of(generation).LayerNorm()
    with pytest.raises(TypeError, match=f'`x` must be real numbers.*{dtype}'):
      layer(tf.constant([[value, value]]))


@cases.both_kerases
@pytest.mark.parametrize('name', ['center', 'scale', 'rms', 'per_head'])
def test_flags(generation, name):
  layer = cases.layers_of(generation).HeadNorm
  for value in ('no', 1, None):
    with pytest.raises(
      TypeError, match=f'`{name}` must be True or False. Received: {name}='
    ):
      layer(2, **{name: value})
  assert layer(2, **{name: np.True_}).get_config()[name] is True


@cases.one_of_each
def test_symbolic_tensor_of_the_other_keras(case):
  keras3, keras2 = keras.Input((5, 4, 12)), tf_keras.Input((5, 4, 12))
  with pytest.raises(
    TypeError,
    match=f'symbolic tensor of tf_keras. Use `from tfgroupnorm.tf_keras import {case.kind}`',
  ):
    case.layer('keras')(keras2)
  with pytest.raises(
    TypeError,
    match=f'symbolic tensor of keras. Use `from tfgroupnorm import {case.kind}`',
  ):
    case.layer('tf_keras')(keras3)


def test_any_argument_of_the_other_keras():
  shape = (5, 4, 12)
  keras3, keras2 = keras.Input(shape), tf_keras.Input(shape)
  for name in ('gate', 'gamma', 'beta', 'mask'):
    options = {'num_heads': 3, 'center': False, 'scale': False}
    layers = cases.layers_of('keras').HeadNorm(**options)
    with pytest.raises(
      TypeError, match='Use `from tfgroupnorm.tf_keras import'
    ):
      layers(keras3, **{name: keras2})
    layers = cases.layers_of('tf_keras').HeadNorm(**options)
    with pytest.raises(
      TypeError, match='Use `from tfgroupnorm import HeadNorm'
    ):
      layers(keras2, **{name: keras3})


def test_names_that_do_not_exist():
  with pytest.raises(AttributeError, match="no attribute 'BatchNorm'"):
    _ = tfgroupnorm.BatchNorm
