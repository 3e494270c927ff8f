"""What mirrored pictures teach and their absence does not: one model, steps and seeds, with and without.

The small model that ships with the project, all of it trained by Adam on the answers.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.config import AugmentConfig
from spatialvlm.data import batch as batches
from spatialvlm.data.augment.change import Augment
from spatialvlm.processing.processor import load_processor
from spatialvlm.training.objectives import Answer, Models
from spatialvlm.worlds.skills import SceneSkills
from tests.models.support import jit

BASE = Path(__file__).parents[2] / "checkpoints/smolvlm-tiny"


@pytest.fixture(scope="module")
def processor():
  return load_processor(BASE)


def where(seed, side, count):
  """Questions where a thing stands that stands on this side of its picture."""
  source = SceneSkills(seed, {"where": 1.0})
  found = [e for e in source.__getitems__(range(6 * count)) if side in e.turns[0].answer]
  assert len(found) >= count
  return found[:count]


@pytest.mark.slow
def test_mirrored_pictures_teach_the_other_side(processor):
  """64 pictures of seed 3 of things on the left alone, 32 steps with 8 of them each; as they are, and every
  other one mirrored with its answer. Then 32 on the right, of seed 4: who never saw one answers "left".
  """
  lefts, rights = where(3, "left", 64), where(4, "right", 32)
  flip = Augment(AugmentConfig(flip=0.5), 0)
  collate = lambda examples: batches.collate(
    [processor.encode(e) for e in examples],
    length=136,
    tiles=1,
    targets=8,
    pad_id=processor.pad_id,
    batch_size=len(examples),
  )
  asked = collate(rights)
  graphdef, start, rest = nnx.split(hub.load_model(BASE), nnx.Param, ...)
  tx, answer = optax.adam(5e-4), Answer()

  def loss(params, batch):
    vlm = nnx.merge(graphdef, params, rest)
    total, count, _ = answer(vlm.read(batch, answer.wants), Models(vlm), batch, jax.random.key(0))
    return total / count

  @jit
  def step(params, state, batch):
    grads = jax.grad(loss)(params, batch)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state

  @jit
  def right(params, batch):
    logits_BKV = nnx.merge(graphdef, params, rest).read(batch, answer.wants).logits
    targets_BK = jnp.take_along_axis(batch.tokens_BT, jnp.maximum(batch.target_index_BK, 0), axis=1)
    said = (logits_BKV.argmax(-1) == targets_BK) | (batch.target_index_BK <= 0)
    return said.all(1).mean()

  found = {"at first": float(right(start, asked))}
  for name in ("as they are", "mirrored"):
    params, state = start, tx.init(start)
    for number in range(32):
      places = [(8 * number + i) % 64 for i in range(8)]
      shown = [lefts[p] for p in places]
      if name == "mirrored":
        shown = [flip(e, 64 * (number // 8) + p) for e, p in zip(shown, places, strict=True)]
      params, state = step(params, state, collate(shown))
    found[name] = float(right(params, asked))
  assert found["mirrored"] > found["as they are"] + 0.3, found
