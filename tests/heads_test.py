"""Each published way to normalize heads, against its own formula."""

import pathlib
import re

import numpy as np
import pytest

import cases
import frameworks
import reference
from reference import ACTIVATIONS, sigmoid
from tfgroupnorm import functional

B, T, H, D = 2, 5, 3, 4
RNG = np.random.default_rng(0)


def sample(*shape, mean=0.7):
  return RNG.normal(mean, 1.5, shape).astype('float32').astype('float64')


def silu(z):
  return z * sigmoid(z)


def rms(x, epsilon):
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon)


def centred(x, epsilon):
  d = x - x.mean(-1, keepdims=True)
  return d / np.sqrt(np.mean(d * d, -1, keepdims=True) + epsilon)


def as_heads(x):
  return x.reshape(*x.shape[:-1], H, D)


def flat(x):
  return x.reshape(*x.shape[:-2], H * D)


X = sample(B, T, H * D, mean=2.0)
GATE = sample(B, T, H * D)
W, BIAS = sample(H * D), sample(H * D)
SHARED = sample(D)
SPLIT = np.moveaxis(as_heads(X), 2, 1)  # (B, H, T, D)
# The difference of two attentions, of twice the size: (B, H, T, 2D).
DOUBLE, DOUBLE_W = sample(B, H, T, 2 * D, mean=2.0), sample(2 * D)
LAMBDA = 0.8 - 0.6 * np.exp(-0.3)

# model: (layer, its options, weights, input, call arguments, what is done to
# the result, the model's formula).
MODELS = {
  'each head as a group of channels': (
    'HeadNorm',
    {'num_heads': H, 'epsilon': 1e-6},
    [W, BIAS],
    X,
    {},
    None,
    lambda: flat(centred(as_heads(X), 1e-6)) * W + BIAS,
  ),
  'RetNet': (
    'HeadNorm',
    {
      'num_heads': H,
      'rms': True,
      'scale': False,
      'epsilon': 1e-6,
      'gate_activation': 'swish',
    },
    [],
    X,
    {'gate': GATE},
    None,
    lambda: silu(GATE) * flat(rms(as_heads(X), 1e-6)),
  ),
  'RWKV': (
    'HeadNorm',
    {'num_heads': H, 'epsilon': 64e-5},
    [W, BIAS],
    X.reshape(B * T, H * D),
    {},
    None,
    lambda: (
      centred(X.reshape(B * T, H, D), 64e-5).reshape(B * T, H * D) * W + BIAS
    ),
  ),
  'xLSTM MultiHeadLayerNorm': (
    'HeadNorm',
    {'head_axis': 1, 'center': False, 'epsilon': 1e-5},
    [1 + W.reshape(H, D)],
    SPLIT,
    {},
    None,
    # Stored as w, used as 1 + w, laid out as (B, S, H * D) at the end.
    lambda: centred(SPLIT, 1e-5) * (1 + W.reshape(H, 1, D)),
  ),
  'Differential Transformer': (
    'HeadNorm',
    {'head_axis': 1, 'per_head': False, 'rms': True, 'epsilon': 1e-5},
    [DOUBLE_W],
    DOUBLE,
    {},
    lambda y: y * (1 - LAMBDA),
    lambda: rms(DOUBLE, 1e-5) * DOUBLE_W * (1 - LAMBDA),
  ),
  'GLA and Gated DeltaNet': (
    'HeadNorm',
    {
      'head_axis': -2,
      'per_head': False,
      'rms': True,
      'epsilon': 1e-5,
      'gate_activation': 'silu',
    },
    [SHARED],
    as_heads(X),
    {'gate': as_heads(GATE)},
    None,
    lambda: rms(as_heads(X), 1e-5) * SHARED * silu(as_heads(GATE)),
  ),
  'KDA': (
    'HeadNorm',
    {
      'num_heads': H,
      'per_head': False,
      'rms': True,
      'epsilon': 1e-5,
      'gate_activation': 'sigmoid',
    },
    [SHARED],
    X,
    {'gate': GATE},
    None,
    lambda: flat(rms(as_heads(X), 1e-5) * SHARED) * sigmoid(GATE),
  ),
  'Mamba-2, gate before': (
    'HeadNorm',
    {'num_heads': H, 'rms': True, 'epsilon': 1e-5},
    [W],
    X * silu(GATE),
    {},
    None,
    lambda: flat(rms(as_heads(X * silu(GATE)), 1e-5)) * W,
  ),
  'Mamba-2, gate after': (
    'HeadNorm',
    {'num_heads': H, 'rms': True, 'epsilon': 1e-5, 'gate_activation': 'silu'},
    [W],
    X,
    {'gate': GATE},
    None,
    lambda: flat(rms(as_heads(X), 1e-5)) * W * silu(GATE),
  ),
  'Mamba-2, centred': (
    'HeadNorm',
    {'num_heads': H, 'epsilon': 1e-5},
    [W, BIAS],
    X * silu(GATE),
    {},
    None,
    lambda: flat(centred(as_heads(X * silu(GATE)), 1e-5)) * W + BIAS,
  ),
  'Qwen3, queries and keys': (
    'HeadNorm',
    {'head_axis': -2, 'per_head': False, 'rms': True, 'epsilon': 1e-6},
    [SHARED],
    as_heads(X),
    {},
    None,
    lambda: rms(as_heads(X), 1e-6) * SHARED,
  ),
  'Cohere, queries and keys': (
    'HeadNorm',
    {'head_axis': -2, 'center': False, 'epsilon': 1e-5},
    [W.reshape(H, D)],
    as_heads(X),
    {},
    None,
    lambda: centred(as_heads(X), 1e-5) * W.reshape(H, D),
  ),
  'Chameleon, queries and keys': (
    'HeadNorm',
    {'head_axis': -2, 'epsilon': 1e-5},
    [W.reshape(H, D), BIAS.reshape(H, D)],
    as_heads(X),
    {},
    None,
    lambda: centred(as_heads(X), 1e-5) * W.reshape(H, D) + BIAS.reshape(H, D),
  ),
  'StableLM-2, queries and keys': (
    'HeadNorm',
    {'head_axis': 1, 'center': False, 'epsilon': 1e-5},
    [W.reshape(H, D)],
    SPLIT,
    {},
    None,
    # H layers of their own, each on its head.
    lambda: np.stack(
      [centred(SPLIT[:, h], 1e-5) * W.reshape(H, D)[h] for h in range(H)],
      1,
    ),
  ),
  'StableLM-2, with bias': (
    'HeadNorm',
    {'head_axis': 1, 'epsilon': 1e-5},
    [W.reshape(H, D), BIAS.reshape(H, D)],
    SPLIT,
    {},
    None,
    lambda: np.stack(
      [
        centred(SPLIT[:, h], 1e-5) * W.reshape(H, D)[h] + BIAS.reshape(H, D)[h]
        for h in range(H)
      ],
      1,
    ),
  ),
  'OLMo-2, all heads before the split': (
    'LayerNorm',
    {'rms': True, 'epsilon': 1e-6},
    [W],
    X,
    {},
    None,
    lambda: rms(X, 1e-6) * W,
  ),
  'Gemma-3, queries and keys': (
    'HeadNorm',
    {'head_axis': 1, 'per_head': False, 'rms': True, 'epsilon': 1e-6},
    [1 + SHARED],
    SPLIT,
    {},
    None,
    lambda: rms(SPLIT, 1e-6) * (1 + SHARED),
  ),
}


def test_the_page_has_these():
  """In the table of docs/heads.md, in this order."""
  page = pathlib.Path(__file__).parent.parent / 'docs' / 'heads.md'
  rows = re.findall(
    r'^\| .*? \| `(\w+)\((.*?)\)` \|', page.read_text(), re.MULTILINE
  )
  shown = [
    (kind, eval(f'dict({re.sub("^H,", "num_heads=H,", options)})', {'H': H}))
    for kind, options in rows
  ]
  # The page names the model; with a bias it is in the row of that without.
  left_out = {'each head as a group of channels', 'StableLM-2, with bias'}
  assert left_out < set(MODELS)
  assert shown == [MODELS[name][:2] for name in MODELS if name not in left_out]


@cases.both_kerases
@pytest.mark.parametrize('jit_compile', [True, False])
@pytest.mark.parametrize('model', MODELS)
def test_published_variant(generation, model, jit_compile):
  kind, options, weights, x, call, after, formula = MODELS[model]
  layer = getattr(cases.layers_of(generation), kind)(
    **options, dtype='float64', jit_compile=jit_compile
  )
  layer.build(x.shape)
  layer.set_weights(weights)
  y = layer(x, **call)
  y = after(y) if after else y
  np.testing.assert_allclose(y, formula(), rtol=0, atol=1e-12)


def test_queries_and_keys_of_different_numbers():
  """Grouped-query attention: one HeadNorm each, with the same features."""
  layers = cases.layers_of('keras')
  q, k = sample(B, T, 6, D), sample(B, T, 2, D)
  for heads in (q, k):
    layer = layers.HeadNorm(
      head_axis=-2, rms=True, per_head=False, dtype='float64', epsilon=1e-6
    )
    np.testing.assert_allclose(
      layer(heads), rms(heads, 1e-6), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize('name', [None, 'silu', 'sigmoid', 'gelu', 'tanh'])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_gates_and_their_gradients(name, dtype):
  arrays = [a.astype(dtype) for a in (X, W, BIAS, GATE)]
  dy = sample(*X.shape).astype(dtype)

  def formula(x, gamma, beta, gate):
    y = flat(centred(as_heads(x), 1e-3)) * gamma + beta
    return y * ACTIVATIONS[name](gate)

  y, *got = frameworks.gradients(
    lambda x, gamma, beta, gate: functional.head_norm(
      x, gamma, beta, num_heads=H, gate=gate, gate_activation=name
    ),
    [frameworks.tensor(a) for a in arrays],
    dy,
  )
  wide = [a.astype('float64') for a in arrays]
  tolerance = 1e-11 if dtype == 'float64' else 1e-4
  np.testing.assert_allclose(y, formula(*wide), rtol=0, atol=tolerance)
  wanted = reference.vjp(formula, wide, dy.astype('float64'))
  for g, w in zip(got, wanted, strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance)
