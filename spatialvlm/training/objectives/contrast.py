"""The right set against the wrong, answers and pictures: InfoNCE over how likely a model finds each of them.

van den Oord et al. (arXiv 1807.03748) tell the true one of several candidates by a score; here the score of
a candidate is the probability that the model itself gives it behind the picture and the question, so that
nothing has to be added to the model (VQAScore, Lin et al., arXiv 2404.01291, ranks captions by likelihood).
Wrong candidates are made from the picture and differ in a word, like NegCLIP's hard negatives (Yuksekgonul et
al., arXiv 2210.01936). They stand in one direction, one picture and several texts, and, where the data gives
rearranged pictures, in the other: one text, likeliest behind the picture that it is true of (the pairs of
Winoground, Thrush et al., arXiv 2204.03162, are judged both ways).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training.objectives.distil import chunked
from spatialvlm.training.objectives.objective import Models, Objective
from spatialvlm.types import PICTURES, Batch, Branches, UserError


@dataclasses.dataclass(frozen=True)
class ContrastSettings:
  """How candidates are scored.

  Attributes:
    score: "mean": log-probability a token, so that long candidates are no unlikelier; "sum": of all of them,
      that of the text.
    temperature: scores are divided by it.
    chunk: tokens of a row's candidates whose logits lie in memory at once, those of the backward pass
      included; 0 for all.
  """

  score: Literal["mean", "sum"] = "sum"
  temperature: float = 1.0
  chunk: int = 16


class Contrast(Objective):
  """Mean of -log softmax of the right one's score, in float32, over questions with wrong answers and over
  answers with rearranged pictures.

  Metrics: `accuracy`, how often the right answer's score is the highest; `guess`, what drawing one of the
  candidates would give; `picture_accuracy` and `picture_guess`, of pictures.
  """

  Settings = ContrastSettings
  wants = Wants(hidden=True)
  false_answers = True

  def __init__(self, settings: ContrastSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    if self.settings.temperature <= 0 or self.settings.chunk < 0:
      raise UserError(f"{where}.kwargs: temperature must be above 0, chunk at least 0")

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    zero = jnp.float32(0), jnp.float32(0)
    if batch.branches is None:  # none of these examples has wrong answers
      return *zero, dict.fromkeys(("accuracy", "guess", "picture_accuracy", "picture_guess"), zero)
    branches = batch.branches
    score_BJ = self._scores(outputs.hidden, models, batch) / self.settings.temperature
    first_BJ, rivals_BJJ = _groups(branches)
    rivals = jnp.where(rivals_BJJ, score_BJ[:, None, :], -jnp.inf)
    # Of rows of the matrix without any candidate nothing is read, and minus infinity would make it NaN.
    rivals = jnp.where(first_BJ[..., None], rivals, 0.0)
    nll_BJ = jax.nn.logsumexp(rivals, axis=-1) - score_BJ
    weight_BJ = first_BJ.astype(jnp.float32)
    weight = weight_BJ.sum()
    count_BJ = jnp.maximum(rivals_BJJ.sum(-1), 1)
    hit_BJ, metrics = score_BJ >= rivals.max(-1), {}
    for name, of_BJ in {"": branches.group_BJ < PICTURES, "picture_": branches.group_BJ >= PICTURES}.items():
      own_BJ = weight_BJ * of_BJ
      metrics[f"{name}accuracy"] = (hit_BJ * own_BJ).sum(), own_BJ.sum()
      metrics[f"{name}guess"] = (own_BJ / count_BJ).sum(), own_BJ.sum()
    return (jnp.where(first_BJ, nll_BJ, 0.0)).sum(), weight, metrics

  def _scores(self, hidden_BTD: jax.Array, models: Models, batch: Batch) -> jax.Array:
    """(B, J): log-probability of each candidate, 0 where there is none."""
    target_BJK = batch.branches.target_BJK
    B, J, K = target_BJK.shape
    index_BN = target_BJK.reshape(B, J * K)
    before_BN = jnp.maximum(index_BN - 1, 0)
    told = {
      "hidden": jnp.take_along_axis(hidden_BTD, before_BN[..., None], axis=1),
      "target": jnp.take_along_axis(batch.tokens_BT, jnp.maximum(index_BN, 0), axis=1),
      "branch": jnp.broadcast_to(jnp.repeat(jnp.arange(J), K), (B, J * K)),
      "weight": (index_BN > 0).astype(jnp.float32),
    }

    def part(told: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
      log_BNV = jax.nn.log_softmax(models.vlm.unembed(told["hidden"]).astype(jnp.float32))
      found_BN = jnp.take_along_axis(log_BNV, told["target"][..., None], axis=-1)[..., 0] * told["weight"]
      of_BNJ = jax.nn.one_hot(told["branch"], J)
      return {"score": jnp.einsum("bn,bnj->bj", found_BN, of_BNJ, precision=jax.lax.Precision.HIGHEST)}

    score_BJ = chunked(part, told, self.settings.chunk)["score"]
    if self.settings.score == "sum":
      return score_BJ
    return score_BJ / jnp.maximum((target_BJK > 0).sum(-1), 1)


def _groups(branches: Branches) -> tuple[jax.Array, jax.Array]:
  """Bool (B, J), which candidates are right answers; and (B, J, J), which ones answer the same question."""
  group_BJ = branches.group_BJ
  there_BJ = group_BJ >= 0
  same_BJJ = (group_BJ[:, :, None] == group_BJ[:, None, :]) & there_BJ[:, :, None] & there_BJ[:, None, :]
  before_BJ = jnp.pad(group_BJ, [(0, 0), (1, 0)], constant_values=-1)[:, :-1]
  return there_BJ & (group_BJ != before_BJ), same_BJJ
