"""Does head normalization improve a Transformer, and why not along length?

    python examples/head_norm.py
    python examples/head_norm.py --steps=5000 --seeds=10

A small causal Transformer learns to predict the next character of the English
text that comes with every CPython, the topics of `help()`: nothing is
downloaded. Its blocks have a layer normalization (LN) before attention and
before the feed-forward part. On top of that baseline, attention gets

  - `HeadNorm` on its output, with parameters per head or shared by all heads;
  - `HeadNorm` on queries and keys: root mean square, shared (as in Qwen3), or
    centred, per head (as in Chameleon);
  - both,

and, to see what goes wrong, `GroupNorm` on its output with the heads as groups,
or `InstanceNorm`, one channel a group. These pool over time: what is predicted
then depends on the characters that follow. The derivative of outputs by later
inputs shows whether it does, and so does the loss if the future is withheld, as
it is when a text is written: each prediction from a window that ends there.

All variants start from the same weights and see the same text in the same
order, seed by seed, and so they are compared.

Finished runs are kept in `--output`: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import functools
import inspect
import pathlib
import pydoc_data.topics
import time
from collections.abc import Sequence
from typing import Any

import digits  # First: it says how much TensorFlow may print.
import experiment
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import ops
from matplotlib import axes, figure

import tfgroupnorm

VARIANTS = {
  'none': 'LN only',
  'output': 'output, per head',
  'output_shared': 'output, shared',
  'qk': 'Q and K, RMS, shared',
  'qk_centred': 'Q and K, centred, per head',
  'both': 'output; Q and K, RMS',
  'leak': 'GroupNorm over time',
  'leak_channels': 'InstanceNorm over time',
}
LEAKS = ('leak', 'leak_channels')
# Printable ASCII and the end of a line; other characters count as one more.
ALPHABET = '\n' + ''.join(map(chr, range(32, 127)))
CHARACTERS = len(ALPHABET) + 1
TRAIN_PART = 0.9  # The end of the text is to validate on.
LENGTH, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2
BATCH_SIZE = 32
EPSILON = 1e-5
LEARNING_RATE = 3e-3
WARMUP = 0.1  # Part of the steps.
STEPS_PER_POINT = 50  # Of the curves.
# Windows of which the loss is computed with the future withheld.
WITHHELD = 64
RESULTS = 'head_norm.jsonl'
PICTURE = 'head_norm.png'

# Okabe and Ito's colours and lines of several kinds.
LINES = {
  'none': {'color': '#000000', 'linestyle': '-'},
  'output': {'color': '#0072B2', 'linestyle': '-'},
  'output_shared': {'color': '#56B4E9', 'linestyle': '--'},
  'qk': {'color': '#009E73', 'linestyle': '-'},
  'qk_centred': {'color': '#E69F00', 'linestyle': '--'},
  'both': {'color': '#CC79A7', 'linestyle': '-.'},
  'leak': {'color': '#D55E00', 'linestyle': ':'},
  'leak_channels': {'color': '#8C6D00', 'linestyle': ':'},
}


# --- The text -----------------------------------------------------------------


@functools.cache
def text() -> str:
  """The topics of Python's `help()`, in alphabetical order.

  Topics quote each other. Each paragraph stays where it comes first: else a
  part of what is to validate on would have been trained on, to the letter.
  """
  topics = pydoc_data.topics.topics
  paragraphs = '\n\n'.join(topics[name] for name in sorted(topics)).split(
    '\n\n'
  )
  return '\n\n'.join(dict.fromkeys(paragraphs))


@functools.cache
def load_text() -> tuple[np.ndarray, np.ndarray]:
  """The characters to train on, as numbers, and those to validate on."""
  numbers = {character: i for i, character in enumerate(ALPHABET)}
  all_of_it = np.array([numbers.get(c, len(numbers)) for c in text()], np.int32)
  return tuple(np.split(all_of_it, [int(TRAIN_PART * len(all_of_it))]))


def windows(numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Windows of LENGTH + 1 characters: (*starts.shape, LENGTH + 1)."""
  return numbers[starts[..., np.newaxis] + np.arange(LENGTH + 1)]


def validation_windows() -> np.ndarray:
  """Windows side by side, as many as fill batches."""
  _, numbers = load_text()
  starts = np.arange(0, len(numbers) - LENGTH - 1, LENGTH)
  starts = starts[: len(starts) // BATCH_SIZE * BATCH_SIZE]
  return windows(numbers, starts)


# --- The model ----------------------------------------------------------------


class Attention(keras.layers.Layer):
  """Causal self-attention with the norms of one of `VARIANTS`."""

  def __init__(self, variant: str, **kwargs):
    super().__init__(**kwargs)
    head_norm = functools.partial(
      tfgroupnorm.HeadNorm, num_heads=HEADS, epsilon=EPSILON
    )
    qk_norm = {
      'qk': functools.partial(head_norm, rms=True, per_head=False),
      'both': functools.partial(head_norm, rms=True, per_head=False),
      'qk_centred': head_norm,
    }.get(variant, keras.layers.Identity)
    output_norm = {
      'output': head_norm,
      'both': head_norm,
      'output_shared': functools.partial(head_norm, per_head=False),
      'leak': functools.partial(
        tfgroupnorm.GroupNorm, groups=HEADS, epsilon=EPSILON
      ),
      'leak_channels': functools.partial(
        tfgroupnorm.InstanceNorm, epsilon=EPSILON
      ),
    }.get(variant, keras.layers.Identity)
    self.project = [
      keras.layers.Dense(WIDTH, use_bias=False) for _ in ('q', 'k', 'v')
    ]
    self.norm_queries, self.norm_keys = qk_norm(), qk_norm()
    self.norm_output = output_norm()
    self.merge = keras.layers.Dense(WIDTH, use_bias=False)

  def build(self, input_shape):
    for layer in (
      *self.project,
      self.norm_queries,
      self.norm_keys,
      self.norm_output,
      self.merge,
    ):
      layer.build(input_shape)
    super().build(input_shape)

  def call(self, x):
    queries, keys, values = (project(x) for project in self.project)
    queries, keys = self.norm_queries(queries), self.norm_keys(keys)
    batch, steps, _ = ops.shape(x)
    queries, keys, values = (
      ops.reshape(each, (batch, steps, HEADS, WIDTH // HEADS))
      for each in (queries, keys, values)
    )
    scores = ops.einsum('bqhd,bkhd->bhqk', queries, keys)
    scores /= (WIDTH // HEADS) ** 0.5
    past = ops.arange(steps)[:, None] >= ops.arange(steps)
    scores = ops.where(past, scores, float('-inf'))
    mixed = ops.einsum('bhqk,bkhd->bqhd', tf.nn.softmax(scores), values)
    mixed = ops.reshape(mixed, (batch, steps, WIDTH))
    return self.merge(self.norm_output(mixed))


class Positions(keras.layers.Layer):
  """Adds what is learned of each position."""

  def build(self, input_shape):
    self.table = self.add_weight(
      shape=(LENGTH, WIDTH), initializer='random_normal', name='table'
    )

  def call(self, x):
    return x + self.table[: ops.shape(x)[1]]


def build_model(variant: str) -> keras.Model:
  """From characters (batch, time) to logits (batch, time, CHARACTERS).

  Its layers are `embedding`, of characters, and `transformer`, the rest.
  """

  def norm():
    return tfgroupnorm.LayerNorm(epsilon=EPSILON)

  embedded = keras.Input((None, WIDTH))
  x = Positions()(embedded)
  for _ in range(BLOCKS):
    x = keras.layers.Add()([x, Attention(variant)(norm()(x))])
    y = keras.layers.Dense(4 * WIDTH, activation='gelu')(norm()(x))
    x = keras.layers.Add()([x, keras.layers.Dense(WIDTH)(y)])
  logits = keras.layers.Dense(CHARACTERS)(norm()(x))
  transformer = keras.Model(embedded, logits, name='transformer')
  embedding = keras.layers.Embedding(CHARACTERS, WIDTH, name='embedding')
  characters = keras.Input((None,), dtype='int32')
  return keras.Model(characters, transformer(embedding(characters)))


# --- What follows from a model ------------------------------------------------


def influence_of_future(model: keras.Model, inputs: np.ndarray) -> float:
  """The greatest derivative of an output by a later input, in absolute value.

  The output is that for the character that comes at half of each window, the
  inputs are the embedded characters from there on.

  Args:
    model: Of `build_model`.
    inputs: Characters (count, time).
  """
  half = inputs.shape[1] // 2
  embedded = model.get_layer('embedding')(inputs)
  with tf.GradientTape() as tape:
    tape.watch(embedded)
    logits = model.get_layer('transformer')(embedded)[:, half - 1]
    # Windows know nothing of each other: one sum has all their derivatives.
    outputs = tf.gather(logits, inputs[:, half], batch_dims=1)
  return float(abs(tape.gradient(outputs, embedded)[:, half:]).numpy().max())


def withheld_loss(model: keras.Model, chosen: np.ndarray) -> float:
  """The mean loss if each prediction comes from a window that ends there."""
  predict = tf.function(model, reduce_retracing=True)
  total = 0.0
  for end in range(1, chosen.shape[1]):
    logits = predict(tf.constant(chosen[:, :end]))[:, -1]
    total += float(_mean_loss(chosen[:, end], logits))
  return total / (chosen.shape[1] - 1)


def whole_loss(model: keras.Model, chosen: np.ndarray) -> float:
  """The mean loss as in training: all predictions from one whole window."""
  return float(_mean_loss(chosen[:, 1:], model(chosen[:, :-1])))


def _mean_loss(labels, logits):
  return tf.reduce_mean(
    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
  )


# --- One run ------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _compiled_model(variant: str, steps: int) -> keras.Model:
  keras.utils.clear_session()
  model = build_model(variant)
  warmup = int(WARMUP * steps)
  model.compile(
    optimizer=keras.optimizers.Adam(
      keras.optimizers.schedules.CosineDecay(
        0.0,
        steps - warmup,
        warmup_target=LEARNING_RATE,
        warmup_steps=warmup,
      )
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    jit_compile=True,
    steps_per_execution=experiment.steps_per_execution(STEPS_PER_POINT),
  )
  return model


def train_run(settings: experiment.Settings) -> dict[str, Any]:
  """Trains one Transformer.

  Args:
    settings: As `run_settings` makes them.

  Returns:
    Losses in nats a character: `train_losses` and `validation_losses`, a value
    for each `STEPS_PER_POINT` steps, and the last of these as `loss`. Of the
    trained model `influence`, as `influence_of_future` says, and of
    `WITHHELD` windows `whole` and `withheld`, the losses with and without the
    future. The `seconds` of CPU time that all took.
  """
  began = time.process_time()
  seed, steps = settings['seed'], settings['steps']
  model = _compiled_model(settings['variant'], steps)
  keras.utils.set_random_seed(seed)
  experiment.restart(model, build_model(settings['variant']))
  numbers, _ = load_text()
  starts = np.random.default_rng(seed).integers(
    0, len(numbers) - LENGTH, (steps, BATCH_SIZE)
  )
  train, validate = (
    tf.data.Dataset.from_tensor_slices((each[..., :-1], each[..., 1:]))
    for each in (
      windows(numbers, starts),
      validation_windows().reshape(-1, BATCH_SIZE, LENGTH + 1),
    )
  )
  history = model.fit(
    train,
    validation_data=validate,
    epochs=steps // STEPS_PER_POINT,
    steps_per_epoch=STEPS_PER_POINT,
    shuffle=False,  # They are in order already.
    verbose=0,
  ).history
  chosen = validation_windows()[:: len(validation_windows()) // WITHHELD]
  chosen = chosen[:WITHHELD]
  return {
    'loss': round(history['val_loss'][-1], 4),
    'train_losses': [round(loss, 4) for loss in history['loss']],
    'validation_losses': [round(loss, 4) for loss in history['val_loss']],
    'influence': influence_of_future(model, chosen[:, :-1]),
    'whole': round(whole_loss(model, chosen), 4),
    'withheld': round(withheld_loss(model, chosen), 4),
    'seconds': round(time.process_time() - began, 1),
  }


# --- All runs -----------------------------------------------------------------


def run_settings(
  variants: Sequence[str] = tuple(VARIANTS), seeds: int = 5, steps: int = 600
) -> list[experiment.Settings]:
  """The settings of all runs; each `variant` is a key of `VARIANTS`."""
  return [
    # Another Python has another text.
    {
      'variant': variant,
      'seed': seed,
      'steps': steps,
      'characters': len(text()),
      'model': [LENGTH, WIDTH, HEADS, BLOCKS],
      'batch_size': BATCH_SIZE,
      'learning_rate': LEARNING_RATE,
    }
    for variant in variants
    for seed in range(seeds)
  ]


def describe(record: experiment.Record) -> str:
  settings, result = record
  return (
    f'{VARIANTS[settings["variant"]]:25}  seed {settings["seed"]}  '
    f'loss {result["loss"]:.3f}  {result["seconds"]:.0f} s'
  )


def values(
  records: Sequence[experiment.Record], name: str, variant: str
) -> np.ndarray:
  """Result `name` of a variant's runs, in the order of their seeds."""
  return experiment.values(records, name, variant=variant)


def variants_of(records: Sequence[experiment.Record]) -> list[str]:
  """Those that were run, in the order of `VARIANTS`."""
  return experiment.present(records, 'variant', VARIANTS)


def table(records: Sequence[experiment.Record]) -> str:
  """Losses and what the future has to do with them, by variant."""
  rows = []
  for variant in variants_of(records):
    loss, whole, withheld = (
      experiment.summary(values(records, name, variant))
      for name in ('loss', 'whole', 'withheld')
    )
    influence = np.median(values(records, 'influence', variant))
    rows.append(
      [
        VARIANTS[variant],
        f'{loss:.3f}',
        f'{whole.median:.3f}',
        f'{withheld.median:.3f}',
        f'{influence:.1e}' if influence else '0',
      ]
    )
  return experiment.markdown(
    [
      'HeadNorm on',
      'validation loss',
      'some windows, whole',
      'future withheld',
      'derivative by the future',
    ],
    rows,
  )


def conclusions(records: Sequence[experiment.Record]) -> list[str]:
  """What may be said of each variant, and no more than the spread allows."""
  variants = variants_of(records)
  lines = []
  if 'none' in variants:
    for variant in variants:
      if variant in ('none', *LEAKS):
        continue
      differences = values(records, 'loss', variant) - values(
        records, 'loss', 'none'
      )
      verdict = experiment.verdict(
        differences,
        'worse than LN only in all seeds',
        'better than LN only in all seeds',
        'cannot be told from LN only: seeds disagree',
      )
      lines.append(
        f'{VARIANTS[variant]}: {verdict}, '
        f'{experiment.summary(differences):+.3f} nats a character'
      )
  for variant in variants:
    influence = values(records, 'influence', variant)
    gap = experiment.summary(
      values(records, 'withheld', variant) - values(records, 'whole', variant)
    )
    if influence.any():
      lines.append(
        f'{VARIANTS[variant]}: LEAKS the future (derivative '
        f'{influence.max():.1e}). Its loss is {gap:.3f} nats higher where the '
        'future is withheld'
      )
  causal = [v for v in variants if not values(records, 'influence', v).any()]
  if causal:
    lines.append(
      f'The other {len(causal)}: no output depends on a later input '
      '(derivative exactly 0)'
    )
  return lines


def draw(records: Sequence[experiment.Record], path: pathlib.Path) -> None:
  """Validation loss over the steps, at the end, and without the future."""
  # Without pyplot no display is looked for.
  picture = figure.Figure(figsize=(11, 4.4), dpi=110, layout='constrained')
  left, middle, right = picture.subplots(1, 3, width_ratios=(1.2, 1, 1))
  variants = variants_of(records)
  plot_curves(records, variants, left)
  plot_last(records, [v for v in variants if v not in LEAKS], middle)
  plot_leak(records, [v for v in variants if v in ('none', *LEAKS)], right)
  picture.legend(
    handles=left.lines, loc='outside lower center', ncols=4, frameon=False
  )
  picture.savefig(path)


def plot_curves(
  records: Sequence[experiment.Record],
  variants: Sequence[str],
  chart: axes.Axes,
) -> None:
  """Median over the seeds, and the range as a band."""
  for variant in variants:
    losses = values(records, 'validation_losses', variant)
    steps = STEPS_PER_POINT * np.arange(1, losses.shape[1] + 1)
    chart.plot(
      steps,
      np.median(losses, axis=0),
      label=VARIANTS[variant],
      **LINES[variant],
    )
    chart.fill_between(
      steps,
      losses.min(axis=0),
      losses.max(axis=0),
      color=LINES[variant]['color'],
      alpha=0.12,
      linewidth=0,
    )
  chart.set_title('Validation loss, median and range', fontsize=11)
  chart.set(xlabel='step', ylabel='nats a character')
  digits.tidy(chart)


def plot_last(
  records: Sequence[experiment.Record],
  variants: Sequence[str],
  chart: axes.Axes,
) -> None:
  """The final losses of all seeds, beside the range of the baseline."""
  for i, variant in enumerate(variants):
    losses = values(records, 'loss', variant)
    colour = LINES[variant]['color']
    chart.plot(losses, [i] * len(losses), 'o', color=colour, alpha=0.6)
    chart.plot(np.median(losses), i, '|', color=colour, markersize=18)
    if variant == 'none':
      chart.axvspan(losses.min(), losses.max(), color='#000000', alpha=0.08)
  chart.set_title('After the last step, each seed', fontsize=11)
  _name_rows(variants, chart)


def plot_leak(
  records: Sequence[experiment.Record],
  variants: Sequence[str],
  chart: axes.Axes,
) -> None:
  """The loss with the future and without, a line for each seed."""
  for i, variant in enumerate(variants):
    colour = LINES[variant]['color']
    losses = np.stack(
      [values(records, name, variant) for name in ('whole', 'withheld')], 1
    )
    for j, pair in enumerate(losses):
      place = i + 0.12 * (j - (len(losses) - 1) / 2)
      chart.plot(pair, [place] * 2, '-', color=colour, linewidth=1)
      chart.plot(pair[0], place, 'o', color=colour, markerfacecolor='white')
      chart.plot(pair[1], place, 'o', color=colour)
  chart.set_title('Hollow: whole windows\nFilled: future withheld', fontsize=11)
  _name_rows(variants, chart)


def _name_rows(variants: Sequence[str], chart: axes.Axes) -> None:
  chart.set_xlabel('nats a character')
  chart.set_yticks(
    range(len(variants)),
    [VARIANTS[variant].replace(' over', '\nover') for variant in variants],
  )
  chart.set_ylim(len(variants) - 0.5, -0.5)
  digits.tidy(chart)


# --- The command --------------------------------------------------------------


def define_flags() -> None:
  """Defines the flags; whoever imports this file does not get them."""
  defaults = inspect.signature(run_settings).parameters
  experiment.define_flags('out/head_norm', seeds=defaults['seeds'].default)
  flags.DEFINE_integer(
    'steps',
    defaults['steps'].default,
    f'Batches to train on, a multiple of {STEPS_PER_POINT}.',
    lower_bound=STEPS_PER_POINT,
  )
  flags.DEFINE_list(
    'variants', list(VARIANTS), 'Some of ' + ', '.join(VARIANTS)
  )
  flags.register_validator(
    'steps',
    lambda steps: steps % STEPS_PER_POINT == 0,
    f'must be a multiple of {STEPS_PER_POINT}.',
  )
  flags.register_validator(
    'variants',
    lambda variants: variants and set(variants) <= set(VARIANTS),
    f'must be some of {", ".join(VARIANTS)}.',
  )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Flags only. Received: {" ".join(argv[1:])}')
  options = flags.FLAGS
  folder = experiment.output_folder()
  records = experiment.run_grid_of_flags(
    train_run,
    run_settings(
      tuple(dict.fromkeys(options.variants)), options.seeds, options.steps
    ),
    folder / RESULTS,
    describe=describe,
  )
  print()
  print(table(records))
  print(*conclusions(records), sep='\n')
  draw(records, folder / PICTURE)
  print(f'Picture: {folder / PICTURE}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
