"""Right answers against wrong ones: a candidate in its branch is read as in a conversation of its own."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.config import (
  AugmentConfig,
  DataConfig,
  LossConfig,
  MeshConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  ScenesConfig,
  SkillsConfig,
)
from spatialvlm.core import axes
from spatialvlm.data import batch as batches
from spatialvlm.data import packing, pipeline
from spatialvlm.data.pipeline import open_questions, open_source
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import objectives, one_run
from spatialvlm.training.objectives.contrast import Contrast, ContrastSettings
from spatialvlm.training.step import to_devices
from spatialvlm.types import PICTURES, Batch, Branches, Example, Turn, UserError
from spatialvlm.worlds.skills import SceneSkills
from tests.models.support import jit

BASE = Path(__file__).parents[2] / "checkpoints/smolvlm-tiny"
LENGTH, TARGETS = 192, 32
TASKS = {"statement": 1.0, "name": 1.0, "where": 1.0, "choose": 1.0}


@pytest.fixture(scope="module")
def processor():
  return load_processor(BASE)


@pytest.fixture(scope="module")
def examples():
  """Conversations of which some turns have wrong answers, and one that has none at all."""
  found = SceneSkills(3, TASKS, turns=3, false_answers=2).__getitems__(range(5))
  plain = tuple(dataclasses.replace(turn, false=()) for turn in found[4].turns)
  return [*found[:4], dataclasses.replace(found[4], turns=plain)]


def collated(processor, examples):
  encoded = [processor.encode(example) for example in examples]
  return batches.collate(
    encoded, length=LENGTH, tiles=1, targets=TARGETS, pad_id=processor.pad_id, batch_size=len(examples)
  )


def alone(example, number, answer):
  """The conversation up to a turn, with this answer there."""
  turns = [dataclasses.replace(turn, false=()) for turn in example.turns[: number + 1]]
  turns[-1] = dataclasses.replace(turns[-1], answer=answer)
  return dataclasses.replace(example, turns=tuple(turns))


def test_candidates_score_what_they_score_alone_and_the_row_does_not_see_them(processor, examples):
  vlm = hub.load_model(BASE)
  graphdef, params = nnx.split(vlm)
  read = jit(lambda params, batch: nnx.merge(graphdef, params).read(batch, Wants(hidden=True, logits=True)))
  log_of = jit(lambda params, hidden: jax.nn.log_softmax(nnx.merge(graphdef, params).unembed(hidden)))
  batch = collated(processor, examples)
  outputs = read(params, batch)
  plain = [
    dataclasses.replace(e, turns=tuple(dataclasses.replace(t, false=()) for t in e.turns)) for e in examples
  ]
  for_row = read(params, collated(processor, plain))
  np.testing.assert_allclose(outputs.logits, for_row.logits, rtol=1e-5, atol=1e-5)

  candidates = [
    (row, turn, number, answer)
    for row, example in enumerate(examples)
    for number, turn in enumerate(example.turns)
    if turn.false
    for answer in (turn.answer, *turn.false)
  ]
  told = {}  # the last turn's log-probability, of conversations that end with a candidate
  for start in range(0, len(candidates), len(examples)):
    part = candidates[start : start + len(examples)]
    part += part[:1] * (len(examples) - len(part))
    own = collated(processor, [alone(examples[row], number, answer) for row, _, number, answer in part])
    log_BTV = np.asarray(log_of(params, read(params, own).hidden))
    for b, (row, _, number, answer) in enumerate(part):
      stretch = [t for t in own.target_index_BK[b] if t > 0]
      last = [t for i, t in enumerate(stretch) if all(s == t + n for n, s in enumerate(stretch[i:]))]
      told[row, number, answer] = sum(log_BTV[b, t - 1, own.tokens_BT[b, t]] for t in last)

  objective = Contrast(ContrastSettings(chunk=5))
  scores_BJ = objective._scores(outputs.hidden, objectives.Models(vlm), batch)
  found = {}
  for row, example in enumerate(examples):
    order = [(n, a) for n, turn in enumerate(example.turns) if turn.false for a in (turn.answer, *turn.false)]
    found |= {(row, *key): float(scores_BJ[row, j]) for j, key in enumerate(order)}
  assert found.keys() == told.keys() and len(found) > 15
  np.testing.assert_allclose([found[key] for key in told], list(told.values()), rtol=1e-4, atol=1e-5)

  total, weight, metrics = objective(outputs, objectives.Models(vlm), batch, jax.random.key(0))
  nll, right = [], []
  for row, example in enumerate(examples):
    for number, turn in enumerate(example.turns):
      if turn.false:
        scores = np.array([told[row, number, a] for a in (turn.answer, *turn.false)])
        nll.append(np.logaddexp.reduce(scores) - scores[0])
        right.append(scores[0] >= scores.max())
  assert weight == len(nll) > 5
  np.testing.assert_allclose(total, sum(nll), rtol=1e-4)
  assert metrics["accuracy"] == (sum(right), len(nll))


def test_pictures_score_what_they_score_alone_on_any_mesh(processor):
  """Of rows with wrong answers, rearranged pictures, both, and neither; 8 devices say what one says."""
  found = SceneSkills(3, TASKS | {"statement": 9.0}, turns=2, false_answers=1, false_pictures=2)
  examples = [e for e in found.__getitems__(range(12)) if e.rearranged][:6]
  quiet = lambda e: dataclasses.replace(e, turns=tuple(dataclasses.replace(t, false=()) for t in e.turns))
  mute = lambda e: dataclasses.replace(e, rearranged=())
  rows = [*examples[:4], quiet(examples[4]), mute(examples[5]), mute(quiet(examples[0])), examples[1]]
  encoded = [processor.encode(row) for row in rows]
  sizes = {"pad_id": processor.pad_id, "targets": TARGETS, "batch_size": 8}
  batch = batches.collate(encoded, length=448, tiles=3, **sizes)
  assert batch.pixels_NHWC.shape[0] == 24 and len(encoded[0].tiles) == len(encoded[0].images) == 3
  vlm = hub.load_model(BASE)
  graphdef, params = nnx.split(vlm)
  objective = Contrast(ContrastSettings(chunk=7))

  @jit
  def read(params, batch):
    vlm = nnx.merge(graphdef, params)
    outputs = vlm.read(batch, objective.wants)
    models = objectives.Models(vlm)
    return objective._scores(outputs.hidden, models, batch), objective(outputs, models, batch, None)

  score_BJ, one = read(params, batch)
  pictures = [
    (b, n, picture)
    for b, row in enumerate(rows)
    for n, picture in enumerate((row.images[0], *row.rearranged))
  ]
  said = {}
  hidden = jit(lambda params, batch: nnx.merge(graphdef, params).read(batch, Wants(logits=True)).logits)
  shown = [(b, n, p) for b, n, p in pictures if rows[b].rearranged]
  for start in range(0, len(shown), 8):
    part = [shown[(start + i) % len(shown)] for i in range(8)]
    own = [
      processor.encode(mute(quiet(dataclasses.replace(rows[b], images=(p,), turns=rows[b].turns[:1]))))
      for b, _, p in part
    ]
    alone_ = batches.collate(own, length=136, tiles=1, **sizes)
    log = jax.nn.log_softmax(hidden(params, alone_))
    index = alone_.target_index_BK
    tokens = np.take_along_axis(alone_.tokens_BT, np.maximum(index, 0), 1)
    of_token = np.take_along_axis(np.asarray(log), tokens[..., None], -1)[..., 0]
    said |= {part[i][:2]: of_token[i][index[i] > 0].sum() for i in range(8)}
  group_BJ = batch.branches.group_BJ
  nll = []
  for b, row in enumerate(rows):
    scores = np.asarray(score_BJ[b])[group_BJ[b] >= PICTURES]
    assert len(scores) == (1 + len(row.rearranged) if row.rearranged else 0)
    if row.rearranged:
      expected = np.array([said[b, n] for n in range(len(scores))])
      np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
      nll.append(np.logaddexp.reduce(expected) - expected[0])
  total, weight, metrics = one
  assert metrics["picture_accuracy"][1] == len(nll) == 6 and metrics["accuracy"][1] == weight - 6 > 4
  texts = total - sum(nll)  # what the wrong answers add, held by the test above
  assert texts > 0
  mesh = axes.make_mesh(MeshConfig(data=8))
  _, many = read(jax.device_put(params, jax.NamedSharding(mesh, jax.P())), to_devices(batch, mesh))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)


class Head(nnx.Module):
  def unembed(self, x):
    return x


def test_the_loss_of_scores_that_are_known():
  """Two questions of a row: of the first the right answer is likelier, of the second one wrong is."""
  likely = np.log(np.array([0.6, 0.3, 0.1], np.float32))
  hidden_BTD = jnp.tile(likely, (1, 8, 1))
  tokens_BT = jnp.array([[0, 0, 1, 0, 2, 1, 0, 0]])
  target_BJK = jnp.array([[[1, -1], [2, -1], [4, -1], [3, 5], [-1, -1]]])
  branches = Branches(jnp.zeros((1, 8), jnp.int32), target_BJK, jnp.array([[0, 0, 1, 1, -1]]))
  batch = Batch(tokens_BT=tokens_BT, valid_BT=tokens_BT >= 0, branches=branches)
  found = lambda **settings: Contrast(ContrastSettings(**settings))(
    Outputs(hidden=hidden_BTD), objectives.Models(Head()), batch, jax.random.key(0)
  )
  nll = -np.log(0.6 / 0.9) - np.log(0.1 / (0.1 + 0.6 * 0.3))
  total, weight, metrics = found()
  np.testing.assert_allclose(total, nll, rtol=1e-5)
  assert weight == 2 and metrics["accuracy"] == (1, 2) and metrics["guess"] == (1, 2)
  nll = -np.log(0.6**0.5 / (0.6**0.5 + 0.3**0.5)) - np.log(0.1**0.5 / (0.1**0.5 + 0.18**0.25))
  np.testing.assert_allclose(found(score="mean", temperature=2.0)[0], nll, rtol=1e-5)


def test_scenes_give_letters_of_other_options(processor):
  example = open_source(ScenesConfig(seed=4, false_answers=2))[0]
  (turn,) = example.turns
  assert turn.false and turn.answer not in turn.false
  assert all(f"\n({letter}) " in turn.prompt for letter in turn.false)
  assert len(processor.encode(example).branches) == 1 + len(turn.false)
  with pytest.raises(UserError, match="false_answers: -1"):
    open_source(ScenesConfig(false_answers=-1))
  with pytest.raises(UserError, match="is for training, and no part of a score"):
    open_questions(ScenesConfig(false_answers=2))


def test_what_cannot_be_read_is_refused(processor):
  row = Example((), (Turn("Is it?", "yes", ("yes",)),))
  with pytest.raises(UserError, match="turn 1: the wrong answers name the right one, 'yes'"):
    processor.encode(row)
  good = processor.encode(Example((), (Turn("Is it?", "yes", ("no",)),)))
  with pytest.raises(UserError, match="not packed"):
    packing.joined([good, good])
  with pytest.raises(UserError, match="conversation with 0 pictures; one is wanted"):
    processor.encode(Example((), (Turn("Is it?", "yes"),), rearranged=(np.zeros((8, 8, 3), np.uint8),)))
  with pytest.raises(UserError, match="temperature must be above 0"):
    objectives.make_objective("contrast", LossConfig("contrast", kwargs={"temperature": 0.0}))


def test_changed_pictures_would_be_told_apart(processor):
  source = SkillsConfig(tasks={"statement": 1.0}, false_pictures=1)
  config = DataConfig(sources={"said": source}, augment=AugmentConfig(brightness=0.2), lengths=(512,))
  with pytest.raises(UserError, match=r"said\.false_pictures: not beside config\.data\.augment"):
    pipeline.training_stream(config, processor, 2)


def test_sampled_answers_have_no_wrong_ones_beside_them():
  losses = {"contrast": LossConfig("contrast"), "teach": LossConfig("distil", kwargs={"teacher": "base"})}
  config = RunConfig(losses=losses, phases={"own": PhaseConfig("on_policy")})
  with pytest.raises(UserError, match="puts sampled answers in the place"):
    one_run.make_phases(config, objectives.make_objectives(losses))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(data=dict(false_answers=0)), "no data source gives wrong answers"),
    (dict(losses={"answer": LossConfig()}), "no loss reads them"),
    (
      dict(data=dict(false_answers=0, false_pictures=1), losses={"answer": LossConfig()}),
      "skills.false_pictures: no loss reads",
    ),
    (
      dict(data=dict(false_answers=0), losses={"answer": LossConfig()}, held_out=True),
      "validation.held.false_answers: no loss reads",
    ),
    (dict(peft=PeftConfig("prompt", target=None)), "without soft prompts"),
    (dict(packing=True), "not packed"),
  ],
)
def test_settings_that_do_not_go_together(change, says):
  source = SkillsConfig(**{"false_answers": 2, **change.pop("data", {})})
  held_out = {"held": SkillsConfig(false_answers=1)} if change.pop("held_out", False) else {}
  config = RunConfig(
    losses=change.pop("losses", {"contrast": LossConfig("contrast")}),
    data=DataConfig(sources={"skills": source}, validation=held_out, packing=change.pop("packing", False)),
    **change,
  )
  with pytest.raises(UserError, match=says):
    one_run.check_data(config, objectives.make_objectives(config.losses))
