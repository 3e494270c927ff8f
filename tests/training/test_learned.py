"""What these losses teach and their absence does not: one model, scenes, steps, seeds, with and without."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.data import batch as batches
from spatialvlm.models.outputs import Wants
from spatialvlm.processing.processor import load_processor
from spatialvlm.training.objectives import Answer, Contrast, DenseDepth, Models
from spatialvlm.training.objectives.dense_depth import DenseDepthSettings
from spatialvlm.types import Batch, Extra
from spatialvlm.worlds import world
from spatialvlm.worlds.skills import SceneSkills
from tests.models.support import jit
from tests.peft import support

BASE = Path(__file__).parents[2] / "checkpoints/smolvlm-tiny"


def scenes(seed, count):
  """Pictures of 16 pixels with their depth, as the small model of the tests reads them."""
  frames = world.frames(seed, range(count), 48)
  pixels = np.stack([f.image[1::3, 1::3] for f in frames]).astype(np.float32) / 127.5 - 1
  depth = np.stack([f.depth[1::3, 1::3] for f in frames])
  one = support.batch()
  rows = lambda a: jnp.repeat(a[:1], count, 0)
  return Batch(
    tokens_BT=rows(one.tokens_BT),
    valid_BT=rows(one.valid_BT),
    image_slot_BT=rows(one.image_slot_BT),
    pixels_NHWC=jnp.asarray(pixels),
    extra={"depth": Extra(jnp.asarray(depth), "tile")},
  )


@pytest.mark.slow
def test_depth_is_read_better_where_the_model_learns_of_it():
  """512 scenes of seed 3, 160 steps of Adam with 64 of them each, then 128 scenes of seed 4. The control is
  the head alone on the model as it was: `detach`, which is what a weight of 0 leaves for the model.
  """
  errors = {}
  train, held_out = scenes(3, 512), scenes(4, 128)
  part = lambda i: jax.tree.map(lambda a: a[64 * i : 64 * (i + 1)], train)
  for detach in (True, False):
    vlm = support.build()
    objective = DenseDepth(DenseDepthSettings(width=16, upsample=1, detach=detach))
    head = objective.head(vlm.config, nnx.Rngs(0))
    graphdef, params, rest = nnx.split((vlm, head), nnx.Param, ...)
    tx = optax.adam(3e-3)

    def loss(params, batch, graphdef=graphdef, rest=rest, objective=objective):
      vlm, head = nnx.merge(graphdef, params, rest)
      outputs = vlm.read(batch, objective.wants)
      total, weight, metrics = objective(outputs, Models(vlm, head), batch, None)
      return total / weight, metrics

    @jit
    def step(params, state, batch, loss=loss, tx=tx):
      grads = jax.grad(loss, has_aux=True)(params, batch)[0]
      updates, state = tx.update(grads, state)
      return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in range(160):
      params, state = step(params, state, part(number % 8))
    measured = jit(loss)
    errors[detach] = [float(np.divide(*measured(params, b)[1]["abs_rel"])) for b in (train, held_out)]
  (own, other), (own_alone, other_alone) = errors[False], errors[True]
  assert own < 0.85 * own_alone and other < 0.97 * other_alone, errors


@pytest.mark.large
@pytest.mark.parametrize(
  ("against", "metric", "read", "count", "steps", "row"),
  [
    ("false_answers", "accuracy", 32, 24, 12, dict(length=152, tiles=1, targets=32)),
    ("false_pictures", "picture_accuracy", 32, 16, 7, dict(length=384, tiles=3, targets=48)),
  ],
)
def test_what_is_true_is_ranked_above_what_is_false_more_often_than_by_answers_alone(
  against, metric, read, count, steps, row
):
  """Sentences of seed 3, each with two wrong twins or beside two pictures of the scene rearranged;
  some steps of Adam on them, with the loss on answers in both runs: the control learns what is right, and not
  what is wrong.
  """
  processor = load_processor(BASE)
  source = SceneSkills(3, {"statement": 1.0}, **{against: 2})
  told = [e for e in source.__getitems__(range(read)) if e.task == "statement"]
  if against == "false_pictures":
    told = [e for e in told if e.rearranged]
  encoded = [processor.encode(e) for e in told[:count]]
  batch = batches.collate(encoded, **row, pad_id=processor.pad_id, batch_size=len(encoded))
  graphdef, start, rest = nnx.split(hub.load_model(BASE), nnx.Param, ...)
  answer, contrast, tx = Answer(), Contrast(), optax.adam(3e-4)
  wants = Wants(hidden=True, logits=True)

  def loss(params, share):
    vlm = nnx.merge(graphdef, params, rest)
    outputs = vlm.read(batch, wants)
    right, answers, _ = answer(outputs, Models(vlm), batch, jax.random.key(0))
    apart, weight, metrics = contrast(outputs, Models(vlm), batch, jax.random.key(0))
    return right / answers + share * apart / weight, metrics[metric]

  @jit
  def step(params, state, share):
    (_, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(params, share)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, accuracy

  found = {}
  for share in (0.0, 0.5):
    params, state = start, tx.init(start)
    for _ in range(steps + 1):  # what is found is of before the last
      params, state, accuracy = step(params, state, share)
    found[share] = float(accuracy[0] / accuracy[1])
  assert found[0.5] > found[0.0] + 0.1, found
