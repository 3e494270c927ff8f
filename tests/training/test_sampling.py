"""Answers sampled in training, and their batches: what is drawn is what the model says of whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.config import MeshConfig
from spatialvlm.core import axes
from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import Vlm
from spatialvlm.training import step as step_lib
from spatialvlm.training.sampling import Draw, Sampler
from spatialvlm.training.state import Split, TrainState
from spatialvlm.types import Batch, Extra
from tests import tiny_model

EXAMPLES, LENGTH, TILES, IMAGE, LIMIT = 4, 24, 2, 60, 5


def examples(bidirectional):
  """Prompts of two tiles, of one, and of none, with answers of the data behind them."""
  rng = np.random.default_rng(0)
  tokens, valid = np.zeros((EXAMPLES, LENGTH), np.int32), np.zeros((EXAMPLES, LENGTH), bool)
  slots, causal = np.full((EXAMPLES, LENGTH), -1, np.int32), np.ones((EXAMPLES, LENGTH), bool)
  targets = np.zeros((EXAMPLES, 2), np.int32)
  pixels = rng.normal(size=(EXAMPLES * TILES, 16, 16, 3)).astype(np.float32)
  for row, count in enumerate((2, 1, 0, 1)):
    shown, words = count * tiny_model.TOKENS_PER_TILE, rng.integers(10, 59, 3 + row)
    start = 2 + shown + len(words)
    tokens[row, : start + 2] = [7, 8, *[IMAGE] * shown, *words, 3, 4]
    slots[row, 2 : 2 + shown] = np.arange(shown)
    valid[row, : start + 2] = True
    causal[row, : start * bidirectional] = False
    targets[row] = start, start + 1
  return Batch(
    tokens_BT=tokens,
    valid_BT=valid,
    pixels_NHWC=pixels,
    image_slot_BT=slots,
    mask_ar_BT=causal if bidirectional else None,
    target_index_BK=targets,
    example_mask_B=np.ones(EXAMPLES, bool),
    extra={
      "number": Extra(np.arange(EXAMPLES, dtype=np.float32), "sample"),
      "of_answers": Extra(np.zeros((EXAMPLES, 2), np.float32), "target"),
    },
  )


def told(batch):
  """The examples as a teacher reads them: three more tokens before the prompt, the same pictures."""
  more = lambda x, value: np.pad(x, [(0, 0), (3, 0)], constant_values=value)
  causal = batch.mask_ar_BT
  return Batch(
    tokens_BT=more(batch.tokens_BT, 9),
    valid_BT=more(batch.valid_BT, True),
    image_slot_BT=more(batch.image_slot_BT, -1),
    mask_ar_BT=None if causal is None else more(causal, False),
    target_index_BK=batch.target_index_BK + 3,
    example_mask_B=batch.example_mask_B,
  )


@pytest.mark.parametrize(("bidirectional", "accumulation"), [(False, 1), (True, 2)])
def test_what_is_drawn_is_what_the_model_says(bidirectional, accumulation):
  vlm = tiny_model.build()
  if bidirectional:
    other = Vlm(dataclasses.replace(vlm.config, prefix_lm=True), rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(vlm))
    vlm = other
  mesh = axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  split = Split(vlm, lambda path, variable: path[0] == "connector", mesh)
  state = TrainState(jnp.int32(0), split.params, (), {})
  given = examples(bidirectional)
  given = dataclasses.replace(given, views={"told": told(given)})
  sent = step_lib.to_devices(given, mesh, accumulation)
  draw = Draw(LIMIT, 1e-5, 1.0, (5, 6), 0, batch_size=3)
  sampler = Sampler(split, mesh, accumulation, EXAMPLES, draw)
  seeds, names = np.arange(8, dtype=np.uint32).reshape(4, 2), [f"row {i}" for i in range(4)]
  greedy = sampler(state, split.frozen, sent, seeds, names)
  rows, numbers = [2, 2, 0, 3, 1, 0], [0, 1, 0, 1, 1, 1]
  samples = [greedy[row][number] for row, number in zip(rows, numbers, strict=True)]
  made = sampler.batch(sent, rows, samples, [True] * 5 + [False])
  flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]) if accumulation > 1 else x, made)
  assert flat.extra["number"].array.tolist() == rows and set(flat.extra) == {"number"}
  view, before = flat.views["told"], told(given)
  for place, (row, sample) in enumerate(zip(rows, samples, strict=True)):
    start, count = int(before.target_index_BK[row, 0]), len(sample.tokens)
    assert view.tokens_BT[place, :start].tolist() == before.tokens_BT[row, :start].tolist()
    assert view.tokens_BT[place, start : start + count].tolist() == sample.tokens.tolist()
    wanted = list(range(start, start + count)) if place < 5 else []
    assert [t for t in view.target_index_BK[place].tolist() if t >= 0] == wanted
  assert (
    view.target_index_BK.shape == flat.target_index_BK.shape and flat.view("told").pixels_NHWC is not None
  )
  logits = jax.jit(lambda batch: vlm.read(batch, Wants(logits=True)).logits)(flat)
  index, said = np.asarray(flat.target_index_BK), np.argmax(logits, -1)
  for place, sample in enumerate(samples[:5]):
    count = len(sample.tokens)
    assert said[place, :count].tolist() == sample.tokens.tolist() and (index[place, count:] == -1).all()
    assert sample.ended == (sample.tokens[-1] in draw.stop_ids) and (sample.ended or count == LIMIT)
  assert (index[5] == -1).all() and samples[0].tokens.tolist() == samples[1].tokens.tolist()
  warm = Sampler(split, mesh, accumulation, EXAMPLES, dataclasses.replace(draw, temperature=1.0))
  drawn = warm(state, split.frozen, sent, seeds, names)
  again = warm(state, split.frozen, sent, seeds[:, ::-1], names)
  for row in range(EXAMPLES):
    assert [s.tokens.tolist() for s in drawn[row]] == [s.tokens.tolist() for s in again[row][::-1]]
  assert len({tuple(s.tokens) for group in drawn for s in group}) > 4
