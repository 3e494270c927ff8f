"""Cross-entropy of the supervised tokens: what a model is fine-tuned on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training.objectives.objective import Models, Objective
from spatialvlm.types import Batch


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
  """How the tokens' cross-entropy is softened.

  Attributes:
    label_smoothing: share of the target's probability that is spread over the whole vocabulary.
    z_loss: weight of log(Z)^2, which keeps the logits' scale in check (PaLM, arXiv 2204.02311, section 5).
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0


class Answer(Objective):
  """Mean over the supervised tokens, in float32.

  The logits are those at the targets alone: with a few answer tokens in a thousand, the others would be most
  of a step's memory. Metrics: `accuracy` of the likeliest token, and `nll` where the loss is not that.
  """

  Settings = AnswerSettings
  wants = Wants(logits=True)

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del models, key
    settings, logits_BKV = self.settings, outputs.logits.astype(jnp.float32)
    nll_BK, log_z_BK, picked_BK = token_losses(logits_BKV, batch)
    # Position 0 has nothing before it to be predicted from.
    weight_BK = (batch.target_index_BK > 0).astype(jnp.float32)
    total_BK = nll_BK
    if settings.label_smoothing:
      uniform_BK = log_z_BK - logits_BKV.mean(-1)
      total_BK = (1 - settings.label_smoothing) * nll_BK + settings.label_smoothing * uniform_BK
    if settings.z_loss:
      total_BK = total_BK + settings.z_loss * jnp.square(log_z_BK)
    right_BK = (picked_BK >= logits_BKV.max(-1)).astype(jnp.float32)
    weight = weight_BK.sum()
    metrics = {"accuracy": ((right_BK * weight_BK).sum(), weight)}
    if settings.label_smoothing or settings.z_loss:
      metrics["nll"] = ((nll_BK * weight_BK).sum(), weight)
    return (total_BK * weight_BK).sum(), weight, metrics


def token_losses(logits_BKV: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Negative log-likelihood, log Z and target's logit, (B, K) each, of `Outputs.logits` in float32.

  Where `batch.target_index_BK` is not positive they say nothing.
  """
  targets_BK = jnp.take_along_axis(batch.tokens_BT, jnp.maximum(batch.target_index_BK, 0), axis=1)
  log_z_BK = jax.nn.logsumexp(logits_BKV, axis=-1)
  picked_BK = jnp.take_along_axis(logits_BKV, targets_BK[..., None], axis=-1)[..., 0]
  return log_z_BK - picked_BK, log_z_BK, picked_BK
