"""Group relative policy optimisation: sampled answers that were better than their group's become likelier.

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), with DAPO's two clips and mean over tokens (Yu et al. 2025,
arXiv 2503.14476), Dr. GRPO's fixed length (Liu et al. 2025, arXiv 2503.20783) and GSPO's ratio of sequences
(Zheng et al. 2025, arXiv 2507.18071). All are defined as in TRL's `GRPOTrainer`.

The samples, their advantages and what other models say of them are made before the step, by the phase
`rollouts` (`training.phases.rollouts`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training.objectives.answer import token_losses
from spatialvlm.training.objectives.objective import Metrics, Models, Objective
from spatialvlm.types import Batch, UserError

# Arrays of `Batch.extra`: of each sample its advantage and the temperature it was drawn with; of each token
# its log-probability under the model that the run began with, and under the one that drew it.
ADVANTAGE, TEMPERATURE = "advantage", "temperature"
REFERENCE, OLD = "reference_logprob", "old_logprob"
# Further ones, the same for each sample, are figures to be shown: under their names without this.
SHOWN = "rollouts."


@dataclasses.dataclass(frozen=True)
class GrpoSettings:
  """How far one step may go, and how tokens are averaged.

  Attributes:
    clip_low, clip_high: the ratio of new to old probability counts between 1 - clip_low and 1 + clip_high.
      They act where samples are used for several steps (`rollouts.steps`); in one alone the ratio is 1.
    kl: weight of the divergence from the model as the run began (k3 of Schulman's "Approximating KL
      divergence"); 0 leaves its forward pass out.
    average: "token": over all tokens of the step (DAPO); "sequence": over each answer, then over answers
      (GRPO); "fixed": the sum over tokens by answers times the most tokens an answer may have (Dr. GRPO).
    ratio: "token": each token's own; "sequence": its geometric mean over the answer (GSPO).
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  kl: float = 0.0
  average: Literal["token", "sequence", "fixed"] = "token"
  ratio: Literal["token", "sequence"] = "token"


class Grpo(Objective):
  """Minus the clipped gain of sampled answers, and the divergence from where the run began.

  Metrics, means over all that was sampled: `reward`, and each of several as `reward_NAME`; `no_signal`, the
  share of groups with one reward, of which nothing is learned; `length` in tokens, the end included;
  `truncated`, the share that the limit cut off. Means over the tokens of the step: `entropy` in nats, at the
  sampling temperature; `kl` (k3, where it has a weight); `clipped`, the share whose gain a clip holds.
  """

  Settings = GrpoSettings
  wants = Wants(logits=True)
  validates = False

  def __init__(self, settings: GrpoSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    for name in ("clip_low", "clip_high", "kl"):
      value = getattr(self.settings, name)
      if not 0 <= value < float("inf"):
        raise UserError(f"{where}.kwargs.{name}: {value} is out of range; use 0 or more")
    if self.settings.clip_low > 1:
      raise UserError(f"{where}.kwargs.clip_low: {self.settings.clip_low} is more than all; use at most 1")
    self.of_phases = (ADVANTAGE, TEMPERATURE, *([REFERENCE] if self.settings.kl else []))

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del models, key
    if ADVANTAGE not in batch.extra:  # a batch of the data as it is, in validation: nothing was sampled
      return jnp.float32(0), jnp.float32(0), {}
    extra = {name: value.array for name, value in batch.extra.items()}
    logits_BKV = outputs.logits.astype(jnp.float32) / extra[TEMPERATURE][:, None, None]
    nll_BK, log_z_BK, _ = token_losses(logits_BKV, batch)
    mask_BK = (batch.target_index_BK > 0).astype(jnp.float32)
    old_BK = extra[OLD] if OLD in extra else jax.lax.stop_gradient(-nll_BK)
    loss_BK, held_BK = self._gain(-nll_BK, old_BK, mask_BK, extra[ADVANTAGE])
    tokens = mask_BK.sum()
    entropy_BK = log_z_BK - (jax.nn.softmax(logits_BKV) * logits_BKV).sum(-1)
    metrics = {
      "entropy": ((entropy_BK * mask_BK).sum(), tokens),
      "clipped": ((held_BK * mask_BK).sum(), tokens),
    }
    if self.settings.kl:
      kl_BK = k3(-nll_BK, extra[REFERENCE], mask_BK)
      loss_BK += self.settings.kl * kl_BK
      metrics["kl"] = (kl_BK.sum(), tokens)
    return *averaged(loss_BK, mask_BK, self.settings.average), metrics | _shown(extra)

  def _gain(
    self, logprob_BK: jax.Array, old_BK: jax.Array, mask_BK: jax.Array, advantage_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Minus the clipped gain of each token, and where a clip holds it (1 or 0); both (B, K)."""
    settings = self.settings
    change_BK = (logprob_BK - old_BK) * mask_BK
    if settings.ratio == "sequence":
      mean_B1 = change_BK.sum(1, keepdims=True) / jnp.maximum(mask_BK.sum(1, keepdims=True), 1)
      change_BK = jnp.broadcast_to(mean_B1, change_BK.shape)
    ratio_BK, advantage_B1 = jnp.exp(change_BK), advantage_B[:, None]
    free_BK = ratio_BK * advantage_B1
    bound_BK = jnp.clip(ratio_BK, 1 - settings.clip_low, 1 + settings.clip_high) * advantage_B1
    return -jnp.minimum(free_BK, bound_BK), (bound_BK < free_BK).astype(jnp.float32)


def k3(logprob_BK: jax.Array, reference_BK: jax.Array, mask_BK: jax.Array) -> jax.Array:
  """Divergence from a reference, by token: exp(d) - d - 1 with d = reference - logprob; 0 where masked."""
  difference_BK = (reference_BK - logprob_BK) * mask_BK
  return jnp.exp(difference_BK) - difference_BK - 1


def averaged(loss_BK: jax.Array, mask_BK: jax.Array, average: str) -> tuple[jax.Array, jax.Array]:
  """(sum, weight) of the tokens' losses, as `GrpoSettings.average` says; the weight is the batch's alone."""
  B, K = mask_BK.shape
  if average == "sequence":
    mean_B = (loss_BK * mask_BK).sum(1) / jnp.maximum(mask_BK.sum(1), 1)
    return mean_B.sum(), jnp.float32(B)
  total = (loss_BK * mask_BK).sum()
  return total, mask_BK.sum() if average == "token" else jnp.float32(B * K)


def _shown(extra: dict[str, jax.Array]) -> Metrics:
  """Means over the samples that have a value: NaN is none."""
  found = {}
  for name, value_B in extra.items():
    if name.startswith(SHOWN):
      there_B = jnp.isfinite(value_B)
      found[name.removeprefix(SHOWN)] = (
        jnp.where(there_B, value_B, 0).sum(),
        there_B.sum().astype(jnp.float32),
      )
  return found
