"""Groups of sampled answers with rewards, for policy gradients (`training.objectives.grpo`).

Of each question the model as it stands gives a group of answers, drawn by the batched engine. Rewards tell
how good they are, and an answer's advantage is how much better it is than its group. The answers take the
place of the data's own.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.models.outputs import Wants
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Answer, Terms, of_phases
from spatialvlm.training.objectives.answer import token_losses
from spatialvlm.training.objectives.grpo import ADVANTAGE, OLD, REFERENCE, SHOWN, TEMPERATURE
from spatialvlm.training.phases.phase import Phase, PhaseParts, Prepare
from spatialvlm.training.rewards import RewardSettings, Said, make_rewards
from spatialvlm.training.sampling import Draw, Sample, Sampler, check_draw, check_processes, only_turn
from spatialvlm.types import Batch, Extra, Note, UserError

# Steps over which the share of groups without signal is looked at before a warning.
LOOKED_AT = 20


@dataclasses.dataclass(frozen=True)
class RolloutsSettings:
  """What is sampled, and how it is judged.

  Attributes:
    group: answers to each question; `train.batch_size / group` questions are read for a step.
    new_tokens: most tokens of an answer, its end included.
    temperature, top_p: how they are drawn. Log-probabilities are taken at this temperature, of the whole
      vocabulary.
    rewards: by name; empty for `exact` alone. Their weighted sum is an answer's reward.
    scale: what an advantage, reward less the group's mean, is divided by: the deviation within the "group"
      (GRPO), over the "batch", or "none" (Dr. GRPO).
    overlong: "keep", or "mask": answers that the limit cuts off count for their group's mean but are not
      trained on (DAPO's overlong filtering).
    oversample: so many times more questions are read, and those whose answers differ in reward are trained on
      first: one round of DAPO's dynamic sampling.
    steps: optimizer steps that are taken with the same samples.
    together: answers that are drawn in one batch.
    warn: share of groups without signal, over 20 steps, from which on a note says so.
    patience: so many steps in succession without any signal end the run; 0 for never.
  """

  group: int = 8
  new_tokens: int = 16
  temperature: float = 1.0
  top_p: float = 1.0
  rewards: Mapping[str, RewardSettings] = dataclasses.field(default_factory=dict)
  scale: Literal["group", "batch", "none"] = "group"
  overlong: Literal["keep", "mask"] = "keep"
  oversample: int = 1
  steps: int = 1
  together: int = 32
  warn: float = 0.8
  patience: int = 50


class Rollouts(Phase):
  """Gives batches of sampled answers, the answers to one question side by side, with what `grpo` reads.

  The samples of a step follow from its parameters, its questions and its key. One process samples.
  """

  Settings = RolloutsSettings
  gives = (ADVANTAGE, TEMPERATURE, REFERENCE, OLD)
  answers = True

  def __init__(self, settings: RolloutsSettings, where: str = "config.phases"):
    super().__init__(settings, where)
    check_draw(settings, where)
    for name, least in (("group", 2), ("oversample", 1), ("steps", 1)):
      if getattr(settings, name) < least:
        why = "; an answer is held against others of its group" if name == "group" else ""
        raise UserError(f"{where}.kwargs.{name}: {getattr(settings, name)} is less than {least}{why}")
    rewards = settings.rewards or {"exact": RewardSettings()}
    self.rewards = make_rewards(rewards, f"{where}.kwargs.rewards")
    self.repeats = settings.steps

  def check(self, terms: Terms) -> None:
    check_processes(self.where)
    for name, (_, objective) in terms.items():
      if isinstance(objective, Answer):
        raise UserError(
          f"config.losses.{name}: would teach the answers that {self.where} samples, right or wrong; leave it"
          f" out (--config.losses.{name}.weight=0), or teach answers in a stage of its own before"
        )
    if ADVANTAGE not in of_phases(terms):
      raise UserError(
        f"{self.where}: answers are sampled, but no loss is of kind 'grpo', which learns of them"
      )

  def reads(self, size: int) -> int:
    if size % self.settings.group:
      raise UserError(
        f"{self.where}.kwargs.group: {size} samples of a step are not divided into groups of"
        f" {self.settings.group}; use a train.batch_size that is"
      )
    return size // self.settings.group * self.settings.oversample

  def start(self, parts: PhaseParts) -> Prepare:
    return _Sampled(self, parts)


class _Sampled:
  """The `prepare` of a run."""

  def __init__(self, phase: Rollouts, parts: PhaseParts):
    settings = phase.settings
    self._phase, self._settings, self._parts = phase, settings, parts
    draw = Draw.of(settings, parts.processor)
    self._sampler = Sampler(parts.split, parts.mesh, parts.accumulation, phase.reads(parts.gives), draw)
    self._logprob = step_lib.Programs(
      lambda params, frozen, batch: logprobs(parts, params, frozen, batch, settings.temperature),
      parts.mesh,
      donate=False,
      out_shardings=step_lib.batch_sharding(parts.mesh, parts.accumulation),
    )
    self._watch = _Watch(phase)

  def __call__(self, state, frozen, batch: Batch, info, key) -> Batch:
    where = self._phase.where
    asked = [only_turn(name, turns, where) for name, turns in zip(info.ids, info.turns, strict=True)]
    shape = len(asked), self._settings.group
    seeds_QG = np.asarray(jax.random.bits(key, shape, jnp.uint32))
    samples = self._sampler(state, frozen, batch, seeds_QG, info.ids)
    rewards = {name: np.empty(shape, np.float32) for name in self._phase.rewards}
    for row, (turn, group) in enumerate(zip(asked, samples, strict=True)):
      for number, sample in enumerate(group):
        for name, value in self._judged(turn, sample).items():
          rewards[name][row, number] = value
    weights = {name: weight for name, (weight, _) in self._phase.rewards.items()}
    total_QG = sum(weight * np.nan_to_num(rewards[name]) for name, weight in weights.items())
    silent_Q = np.ptp(total_QG, axis=1) == 0
    self._watch.see(int(state.step), silent_Q, total_QG)
    taken = chosen(silent_Q, self._parts.gives // self._settings.group)
    rows = np.repeat(taken, self._settings.group)
    flat = [sample for row in taken for sample in samples[row]]
    values = {
      ADVANTAGE: advantages(total_QG[taken], self._settings.scale).reshape(-1),
      TEMPERATURE: np.full(len(rows), self._settings.temperature, np.float32),
    }
    for name, mean in figures(samples, rewards, total_QG).items():
      values[SHOWN + name] = np.full(len(rows), mean, np.float32)
    return self._batch(state, frozen, batch, rows, flat, values)

  def _batch(self, state, frozen, batch: Batch, rows, flat: Sequence[Sample], values) -> Batch:
    """The step's batch, with these values of each sample."""
    parts = self._parts
    taught = [sample.ended for sample in flat] if self._settings.overlong == "mask" else None
    made = self._sampler.batch(batch, rows, flat, taught)
    extra = {name: Extra(value, "sample") for name, value in values.items()}
    extra = step_lib.to_devices(extra, parts.mesh, parts.accumulation)
    run = lambda params: self._logprob.get(params, frozen, made)[0].run(params, frozen, made)
    if REFERENCE in parts.wanted:
      extra[REFERENCE] = Extra(run(parts.begins), "target")
    if self._settings.steps > 1:
      extra[OLD] = Extra(run(state.params), "target")
    return dataclasses.replace(made, extra=dict(made.extra) | extra)

  def _judged(self, turn: Any, sample: Sample) -> dict[str, float]:
    """Each reward of an answer, NaN where one does not apply."""
    said = Said(
      turn.prompt,
      turn.answer,
      self._parts.processor.decode(sample.said),
      sample.ended,
      len(sample.tokens),
      self._settings.new_tokens,
    )
    found = {name: reward(said) for name, (_, reward) in self._phase.rewards.items()}
    return {name: np.nan if value is None else value for name, value in found.items()}


class _Watch:
  """Says when most groups teach nothing, and ends a run in which none does; of this process's steps."""

  def __init__(self, phase: Rollouts):
    self._phase, self._silent, self._shares, self._warned = phase, 0, [], False

  def see(self, step: int, silent_Q: np.ndarray, total_QG: np.ndarray) -> None:
    """Raises a UserError after `patience` steps without any signal."""
    settings, where = self._phase.settings, self._phase.where
    self._silent = self._silent + 1 if silent_Q.all() else 0
    said = f"the mean reward is {total_QG.mean():.3g}"
    advice = "teach answers in a stage before, raise temperature or group, or grade the reward"
    if settings.patience and self._silent >= settings.patience:
      raise UserError(
        f"step {step + 1}: {where}: for {self._silent} steps all answers of each group had one reward, so"
        f" that nothing is learned; {said}; {advice}"
      )
    self._shares = [*self._shares[1 - LOOKED_AT :], float(silent_Q.mean())]
    share = sum(self._shares) / len(self._shares)
    if not self._warned and len(self._shares) == LOOKED_AT and share >= settings.warn:
      self._warned = True
      text = f"{where}: {share:.0%} of the groups of {LOOKED_AT} steps had one reward and teach nothing"
      warnings.warn(Note(f"{text}; {said}; {advice}"), stacklevel=2)


def advantages(reward_QG: np.ndarray, scale: str) -> np.ndarray:
  """How much better each answer is than its group, float32 (Q, G), as TRL has it.

  Args:
    scale: "group" or "batch": divided by the deviation (n - 1) + 1e-4 within the group, or over all; "none".
  """
  reward_QG = np.asarray(reward_QG, np.float32)
  centred_QG = reward_QG - reward_QG.mean(axis=1, keepdims=True)
  if scale == "group":
    centred_QG = centred_QG / (reward_QG.std(axis=1, ddof=1, keepdims=True) + 1e-4)
  elif scale == "batch":
    centred_QG = centred_QG / (reward_QG.std(ddof=1) + 1e-4)
  return centred_QG.astype(np.float32)


def figures(
  samples: Sequence[Sequence[Sample]], rewards: Mapping[str, np.ndarray], total_QG: np.ndarray
) -> dict[str, float]:
  """Means over all that was sampled, whether it is trained on or not; NaN for a reward that never applied."""
  flat = [sample for group in samples for sample in group]
  found = {
    "reward": total_QG.mean(),
    "no_signal": (np.ptp(total_QG, axis=1) == 0).mean(),
    "length": np.mean([len(sample.tokens) for sample in flat]),
    "truncated": np.mean([not sample.ended for sample in flat]),
  }
  if len(rewards) > 1:
    for name, value_QG in rewards.items():
      there = value_QG[np.isfinite(value_QG)]
      found[f"reward_{name}"] = there.mean() if there.size else np.nan
  return {name: float(value) for name, value in found.items()}


def chosen(silent_Q: np.ndarray, count: int) -> np.ndarray:
  """The places of `count` groups, those with a signal before others, in their order."""
  return np.sort(np.argsort(silent_Q, kind="stable")[:count])


def logprobs(parts: PhaseParts, params, frozen, batch: Batch, temperature: float) -> jax.Array:
  """Log-probabilities of a batch's targets, float32, of its shape of them; without dropout, traced."""
  vlm = parts.split.model(params, frozen)

  def read(part: Batch) -> jax.Array:
    logits_BKV = vlm.read(part, Wants(logits=True)).logits.astype(jnp.float32) / temperature
    return -token_losses(logits_BKV, part)[0]

  return jax.lax.map(read, batch) if parts.accumulation > 1 else read(batch)
