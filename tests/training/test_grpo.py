"""The objective `grpo` against TRL's formulas, written out in NumPy; advantages; what cannot be."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialvlm.config import DataConfig, LossConfig, PhaseConfig
from spatialvlm.models.outputs import Outputs
from spatialvlm.training import objectives, one_run, phases
from spatialvlm.training.objectives import Grpo, Models
from spatialvlm.training.objectives.grpo import GrpoSettings
from spatialvlm.training.phases import rollouts
from spatialvlm.types import Batch, Extra, UserError
from tests.training.helpers import make_config

B, K, V, T = 6, 5, 11, 9
TEMPERATURE = 0.7


def trl(logits, tokens, mask, advantage, old, reference, settings, loss_type):
  """`GRPOTrainer._compute_loss` of TRL 1.16, after its text; `loss_type` as it names them."""
  logp = logits / TEMPERATURE
  logp = logp - np.log(np.exp(logp).sum(-1, keepdims=True))
  per_token_logps = np.take_along_axis(logp, tokens[..., None], -1)[..., 0]
  log_ratio = per_token_logps - old
  if settings.ratio == "sequence":
    log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clip(min=1.0))[:, None]
  coef_1 = np.exp(log_ratio)
  coef_2 = coef_1.clip(1 - settings.clip_low, 1 + settings.clip_high)
  per_token_loss = -np.minimum(coef_1 * advantage[:, None], coef_2 * advantage[:, None])
  if settings.kl:
    per_token_kl = np.exp(reference - per_token_logps) - (reference - per_token_logps) - 1
    per_token_loss = per_token_loss + settings.kl * per_token_kl
  if loss_type == "grpo":
    return ((per_token_loss * mask).sum(-1) / mask.sum(-1).clip(min=1.0)).mean()
  if loss_type == "dr_grpo":
    return (per_token_loss * mask).sum() / (B * K)
  return (per_token_loss * mask).sum() / mask.sum().clip(min=1.0)  # dapo: over the whole step


@pytest.fixture
def sampled():
  """A batch of samples of different lengths, one of them wholly masked, and the model's logits."""
  rng = np.random.default_rng(0)
  index = np.full((B, K), -1, np.int32)
  for row, length in enumerate((5, 3, 1, 0, 4, 2)):
    index[row, :length] = 3 + np.arange(length)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  logits = rng.normal(size=(B, K, V)).astype(np.float32) * 2
  advantage = rng.normal(size=B).astype(np.float32)
  old, reference = (rng.normal(size=(B, K)).astype(np.float32) * 0.5 - 2.4 for _ in range(2))
  advantage[0], old[0] = 1.5, old[0] - 2  # much likelier than before, and good: held by the upper clip
  extra = {
    "advantage": Extra(advantage, "sample"),
    "temperature": Extra(np.full(B, TEMPERATURE, np.float32), "sample"),
    "old_logprob": Extra(old, "target"),
    "reference_logprob": Extra(reference, "target"),
    "rollouts.reward": Extra(np.array([1, 0, np.nan, 1, 0, 0], np.float32), "sample"),
  }
  batch = Batch(tokens_BT=tokens, valid_BT=np.ones((B, T), bool), target_index_BK=index, extra=extra)
  said = np.take_along_axis(tokens, np.maximum(index, 0), 1)
  return batch, logits, (said, (index > 0).astype(np.float64), advantage, old, reference)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize(
  ("average", "loss_type"), [("token", "dapo"), ("sequence", "grpo"), ("fixed", "dr_grpo")]
)
def test_it_is_what_trl_computes(sampled, average, loss_type, kl, ratio):
  batch, logits, rest = sampled
  settings = GrpoSettings(clip_low=0.2, clip_high=0.28, kl=kl, average=average, ratio=ratio)
  total, weight, metrics = Grpo(settings)(Outputs(logits=logits), Models(None), batch, None)
  expected = trl(logits.astype(np.float64), *rest, settings, loss_type)
  assert float(total) / float(weight) == pytest.approx(expected, rel=1e-5)
  reward, count = metrics["reward"]
  assert (float(reward), float(count)) == (2.0, 5.0)
  assert 0 < float(metrics["clipped"][0]) < float(metrics["clipped"][1]) == 15
  assert ("kl" in metrics) == bool(kl)


def test_without_old_probabilities_the_ratio_is_one_and_its_gradient_the_policy_gradient(sampled):
  batch, logits, (said, mask, advantage, _, _) = sampled
  extra = {k: v for k, v in batch.extra.items() if k in ("advantage", "temperature")}
  on_policy = Batch(batch.tokens_BT, batch.valid_BT, target_index_BK=batch.target_index_BK, extra=extra)
  loss = lambda x: Grpo()(Outputs(logits=x), Models(None), on_policy, None)[0]
  value, gradient = jax.value_and_grad(loss)(logits)
  assert float(value) == pytest.approx(-(advantage[:, None] * mask).sum(), rel=1e-5)
  p = np.exp(logits.astype(np.float64) / TEMPERATURE)
  p /= p.sum(-1, keepdims=True)
  expected = -(np.eye(V)[said] - p) / TEMPERATURE * (advantage[:, None] * mask)[..., None]
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_advantages_are_those_of_trl():
  reward = np.array([[1, 0, 0, 1], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]])
  centred = reward - reward.mean(1, keepdims=True)
  group = centred / (reward.std(1, ddof=1, keepdims=True) + 1e-4)
  np.testing.assert_allclose(rollouts.advantages(reward, "group"), group, rtol=1e-5)
  np.testing.assert_allclose(
    rollouts.advantages(reward, "batch"), centred / (reward.std(ddof=1) + 1e-4), rtol=1e-5
  )
  np.testing.assert_allclose(rollouts.advantages(reward, "none"), centred, rtol=1e-6)
  assert not rollouts.advantages(reward, "group")[1].any()


def test_groups_with_a_signal_come_first():
  silent = np.array([True, False, True, False])
  assert rollouts.chosen(silent, 3).tolist() == [0, 1, 3] and rollouts.chosen(silent, 2).tolist() == [1, 3]


ROLLOUTS = {"r": PhaseConfig("rollouts", {"group": 4})}
SEES = {"depth": LossConfig("depth_probe")}
LEARNS = {"g": LossConfig("grpo", kwargs={"kl": 0.1})}


@pytest.mark.parametrize(
  ("losses", "kwargs", "train", "message"),
  [
    (
      LEARNS,
      None,
      {},
      r"config\.losses\.g: learns of .*; add one: --config\.phases\.rollouts\.kind=rollouts",
    ),
    (SEES, {}, {}, r"config\.phases\.r: answers are sampled, but no loss is of kind 'grpo'"),
    (
      LEARNS | {"a": LossConfig()},
      {},
      {},
      r"config\.losses\.a: would teach the answers that config\.phases\.r",
    ),
    (LEARNS, {"group": 1}, {}, r"phases\.r\.kwargs\.group: 1 is less than 2; an answer is held against"),
    (LEARNS, {"group": 3}, {}, r"phases\.r\.kwargs\.group: 16 samples of a step are not divided into groups"),
    (LEARNS, {"temperature": 0.0}, {}, r"kwargs\.temperature: 0\.0 draws no two answers"),
    (LEARNS, {"top_p": 1.5}, {}, r"kwargs\.top_p: 1\.5 is out of range"),
    (LEARNS, {"scale": "std"}, {}, r"kwargs\.scale: 'std' is not one of 'group', 'batch', 'none'"),
    (LEARNS, {"rewards": {"exakt": {}}}, {}, r"rewards\.exakt\.kind: unknown 'exakt'; did you mean 'exact'"),
    (LEARNS, {"rewards": {"exact": {"weight": 0}}}, {}, r"kwargs\.rewards: no reward with a weight"),
    (LEARNS, {"rewards": {"exact": {"kwargs": {"rule": "x"}}}}, {}, r"exact\.kwargs\.rule: no rule 'x'"),
    (LEARNS, {"rewards": {"format": {"kwargs": {"pattern": "("}}}}, {}, r"pattern: '\(' is no regex"),
    (LEARNS, {"steps": 3}, {}, r"config\.train\.steps: 8 is not divided by the 3 steps"),
    (LEARNS, {"steps": 2}, {"checkpoint_every": 3}, r"train\.checkpoint_every: 3 is not divided by the 2"),
    ({"g": LossConfig("grpo", kwargs={"kl": -1.0})}, {}, {}, r"losses\.g\.kwargs\.kl: -1\.0 is out of range"),
  ],
)
def test_what_cannot_be_is_named_before_anything_is_read(losses, kwargs, train, message):
  made = None if kwargs is None else {"r": PhaseConfig("rollouts", {"group": 4} | kwargs)}
  config = make_config(losses=losses, phases=made, **train)
  config = dataclasses.replace(config, data=DataConfig(sources={"a": None}))
  with pytest.raises(UserError, match=message):
    one_run.check(config)


def test_held_out_data_says_nothing_of_it():
  data = DataConfig(sources={"a": None}, validation={"a": None})
  config = make_config(losses=LEARNS, phases=ROLLOUTS, validate_every=2)
  config = dataclasses.replace(config, data=data)
  with pytest.raises(UserError, match=r"validate_every: of held-out data the losses \(g\) say nothing"):
    one_run.check(config)
  assert objectives.of_phases(objectives.make_objectives(LEARNS)) >= {"advantage", "reference_logprob"}


def test_a_reward_that_never_varies_ends_the_run_and_most_groups_without_signal_are_told():
  (phase,) = phases.make_phases({"r": PhaseConfig("rollouts", {"patience": 3, "group": 2})})
  watch = rollouts._Watch(phase)
  silent, zero = np.array([True, True]), np.zeros((2, 2))
  for step in range(2):
    watch.see(step, silent, zero)
  watch.see(2, np.array([True, False]), zero)
  for step in range(2):
    watch.see(3 + step, silent, zero)
  with pytest.raises(UserError, match=r"step 6: config\.phases\.r: for 3 steps all answers .* reward is 0;"):
    watch.see(5, silent, zero)
  watch = rollouts._Watch(phase)
  mostly = np.array([True] * 9 + [False])
  for step in range(19):
    watch.see(step, mostly, zero)
  with pytest.warns(UserWarning, match="90% of the groups of 20 steps had one reward and teach nothing"):
    watch.see(19, mostly, zero)
