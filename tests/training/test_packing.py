"""Packed rows train as the conversations alone do: losses, gradients, meshes, microbatches, and resumed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.config import LossConfig
from spatialvlm.data import batch as batches
from spatialvlm.processing.processor import Encoded
from spatialvlm.training import objectives
from spatialvlm.types import Extra
from tests.models.support import jit, tokens_per_tile

FIXTURES = Path(__file__).parents[1] / "fixtures"
LENGTHS = (32, 48, 64)
# Tokens of text and tiles of each conversation: of several pictures, of one, of none.
CONVERSATIONS = ((9, 2), (14, 1), (4, 0), (21, 0), (6, 1), (5, 1), (30, 0), (7, 3), (3, 0))
LOSSES = {
  "answer": LossConfig(),
  "words": LossConfig("words", "label", 0.5, {"first": 3, "classes": 4, "none": 9}),
  "image": LossConfig("depth_probe", weight=0.3, kwargs={"detach": False}),
  "decoder": LossConfig("depth_probe", weight=0.2, kwargs={"read": "decoder", "layer": 1, "detach": False}),
}


def conversations(config) -> list[Encoded]:
  """Conversations whose answers are their last third; their tiles have labels and depths, but for one."""
  rng, side, per_tile = np.random.default_rng(0), config.vision.image_size, tokens_per_tile(config)
  found = []
  for number, (text, tiles) in enumerate(CONVERSATIONS):
    tiles = min(tiles, 1) if config.prefix_lm else tiles
    images = [config.image_token_id] * per_tile
    tokens = np.array([1, *images * tiles, *rng.integers(3, 50, text)], np.int32)
    image = tokens == config.image_token_id
    dense = {
      "label": Extra(rng.integers(-1, 4, (tiles, side, side)).astype(np.int32), "tile"),
      "depth": Extra(rng.uniform(1, 5, (tiles, side, side)).astype(np.float32), "tile"),
    }
    answer = np.arange(len(tokens)) >= len(tokens) - max(1, text // 3)
    found.append(
      Encoded(
        tokens=tokens,
        loss_mask=answer,
        image_slot=np.where(image, np.cumsum(image) - 1, -1).astype(np.int32),
        tiles=rng.normal(size=(tiles, side, side, 3)).astype(np.float32),
        extra=dense if number != 4 else {},
        prefix=int(np.argmax(answer)) if config.prefix_lm else 0,
      )
    )
  return found


def both(config, multiple: int = 1):
  """The same conversations, each in a row of its own, and packed."""
  encoded = conversations(config)
  sizes = {"lengths": LENGTHS, "tiles": (1, 3), "targets": 4}
  bucket = batches.bucket_of(encoded, **sizes)
  shape = {"pad_id": 2, "batch_size": len(encoded)}
  alone = batches.collate(encoded, **bucket._asdict(), **shape)
  rows, bucket, _ = batches.packed_of(
    encoded, **sizes, tokens_per_tile=tokens_per_tile(config), multiple=multiple
  )
  return alone, batches.collate(rows, **bucket._asdict(), **shape)


@pytest.mark.parametrize("family", ["smolvlm", "internvl", "paligemma", "paligemma2"])
def test_losses_and_gradients_are_those_of_rows_of_their_own(family):
  """Causal, with bidirectional prefixes (PaliGemma), and with sliding windows beside them (Gemma 2)."""
  vlm = hub.load_model(FIXTURES / family)
  alone, packed = both(vlm.config)
  assert len(packed.tokens_BT) < len(alone.tokens_BT) / 1.5
  terms = objectives.make_objectives(LOSSES)
  heads = objectives.make_heads(terms, vlm.config, 0)
  graphdef, params = nnx.split((vlm, heads))

  @jit
  def found(params, batch):
    def loss(params):
      vlm, heads = nnx.merge(graphdef, params)
      outputs = vlm.read(batch, objectives.wants_of(terms))
      sums = {
        name: objective(outputs, objectives.Models(vlm, heads.get(name)), batch, jax.random.key(0))
        for name, (_, objective) in terms.items()
      }
      return sum(terms[n][0] * total / weight for n, (total, weight, _) in sums.items()), sums

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, sums), grads = found(params, alone)
  (other, packed_sums), packed_grads = found(params, packed)
  assert float(other) == pytest.approx(float(value), rel=1e-6)
  for name, (_, weight, _) in sums.items():
    assert float(weight) == float(packed_sums[name][1]) > 0, name
  for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(packed_sums), strict=True):
    np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-6)
  norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(packed_grads), strict=True):
    np.testing.assert_allclose(b, a, atol=2e-6 * norm)
