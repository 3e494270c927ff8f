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
  DataConfig,
  LossConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  ScenesConfig,
  SkillsConfig,
)
from spatialvlm.data import batch as batches
from spatialvlm.data import packing
from spatialvlm.data.pipeline import open_questions, open_source
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import objectives, one_run
from spatialvlm.training.objectives.contrast import Contrast, ContrastSettings
from spatialvlm.types import Batch, Branches, Example, Turn, UserError
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
  with pytest.raises(UserError, match="temperature must be above 0"):
    objectives.make_objective("contrast", LossConfig("contrast", kwargs={"temperature": 0.0}))


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
    (dict(peft=PeftConfig("prompt", target=None)), "without soft prompts"),
    (dict(packing=True), "not packed"),
  ],
)
def test_settings_that_do_not_go_together(change, says):
  source = SkillsConfig(**{"false_answers": 2, **change.pop("data", {})})
  config = RunConfig(
    losses=change.pop("losses", {"contrast": LossConfig("contrast")}),
    data=DataConfig(sources={"skills": source}, packing=change.pop("packing", False)),
    **change,
  )
  with pytest.raises(UserError, match=says):
    one_run.check_data(config, objectives.make_objectives(config.losses))
