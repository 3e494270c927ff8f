"""On-policy distillation: teachers are asked about the student's own answers (GKD, arXiv 2306.13649).

In a share of the steps the model as it stands answers the questions of the batch, drawn by the batched
engine, and its answers take the place of the data's, also in what teachers read. Losses that ask teachers
then match them where the student goes by itself. As in TRL's `GKDTrainer`, no gradient goes through what was
drawn, and a coin that is thrown for each batch decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Answer, Terms
from spatialvlm.training.objectives.distil import CUT_OFF, SAMPLED
from spatialvlm.training.phases.phase import Phase, PhaseParts, Prepare
from spatialvlm.training.sampling import Draw, Sample, Sampler, check_draw, check_processes, only_turn
from spatialvlm.types import Batch, Extra, UserError


@dataclasses.dataclass(frozen=True)
class OnPolicySettings:
  """When answers are sampled, and how.

  Attributes:
    share: of the batches whose answers are the student's own (lambda of GKD); the others keep the data's.
    new_tokens: most tokens of an answer, its end included.
    temperature, top_p: how they are drawn.
    together: answers that are drawn in one batch.
  """

  share: float = 0.5
  new_tokens: int = 16
  temperature: float = 1.0
  top_p: float = 1.0
  together: int = 32


class OnPolicy(Phase):
  """Gives batches whose answers the student drew, or the batch as it is.

  Which of both, and the samples, follow from the step's parameters, questions and key. One process samples.
  """

  Settings = OnPolicySettings
  answers = True

  def __init__(self, settings: OnPolicySettings, where: str = "config.phases"):
    super().__init__(settings, where)
    if not 0 < settings.share <= 1:
      raise UserError(
        f"{where}.kwargs.share: {settings.share} is no share of the batches; use a number in (0, 1], or leave"
        " the phase out"
      )
    check_draw(settings, where)

  def check(self, terms: Terms) -> None:
    check_processes(self.where)
    for name, (_, objective) in terms.items():
      if isinstance(objective, Answer):
        raise UserError(
          f"config.losses.{name}: would teach the answers that {self.where} samples, right or wrong; leave it"
          f" out (--config.losses.{name}.weight=0), or teach answers in a stage of its own before"
        )
    if not any(objective.asks for _, objective in terms.values()):
      raise UserError(
        f"{self.where}: answers are sampled, but no loss asks a teacher about them; add a 'distil'"
      )

  def start(self, parts: PhaseParts) -> Prepare:
    settings = self.settings
    sampler = Sampler(
      parts.split, parts.mesh, parts.accumulation, parts.gives, Draw.of(settings, parts.processor)
    )

    def prepare(state, frozen, batch: Batch, info, key) -> Batch:
      coin, drawn = jax.random.split(key)
      for name, turns in zip(info.ids, info.turns, strict=True):
        only_turn(name, turns, self.where)
      if float(jax.random.uniform(coin)) >= settings.share:
        return _marked(parts, batch, None)
      seeds_B1 = np.asarray(jax.random.bits(drawn, (parts.gives, 1), jnp.uint32))
      samples = [sample for (sample,) in sampler(state, frozen, batch, seeds_B1, info.ids)]
      return _marked(parts, sampler.batch(batch, range(len(samples)), samples), samples)

    return prepare


def _marked(parts: PhaseParts, batch: Batch, samples: Sequence[Sample] | None) -> Batch:
  """The batch with what `distil` shows of it; None: its answers are the data's."""
  drawn = np.full(parts.gives, samples is not None, np.float32)
  cut = np.array([not sample.ended for sample in samples], np.float32) if samples else np.zeros_like(drawn)
  extra = {SAMPLED: Extra(drawn, "sample"), CUT_OFF: Extra(cut, "sample")}
  extra = step_lib.to_devices(extra, parts.mesh, parts.accumulation)
  return dataclasses.replace(batch, extra=dict(batch.extra) | extra)
