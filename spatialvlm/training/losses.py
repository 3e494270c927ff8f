"""Objectives. `Loss = (model, batch, key) -> (sum, weight, metrics)`.

`sum` is differentiated and divided by `weight`, added up over all microbatches and shards of a step: a mean
of microbatch means is not the mean over tokens where answers differ in length. `weight` must depend on the
batch alone. `metrics` are further pairs (sum, weight) by name, averaged in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spatialvlm.config import LossConfig, nearest
from spatialvlm.training.words import words_loss
from spatialvlm.types import Batch, UserError

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array, Metrics]]


def answer_loss(label_smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
  """Cross-entropy of the supervised tokens, in float32.

  The hidden states are gathered at `target_index_BK` before the vocabulary product: with a few answer tokens
  in a thousand, the logits of the others would be most of a step's memory.

  Args:
    label_smoothing: share of the target's probability that is spread over the whole vocabulary.
    z_loss: weight of log(Z)^2, which keeps the logits' scale in check (PaLM, arXiv 2204.02311, section 5).
  """

  def loss(model, batch: Batch, key: jax.Array):
    del key
    index_BK = batch.target_index_BK
    # Position 0 has nothing before it to be predicted from.
    weight_BK = (index_BK > 0).astype(jnp.float32)
    before_BK = jnp.maximum(index_BK - 1, 0)
    hidden_BKD = jnp.take_along_axis(model.hidden(batch), before_BK[..., None], axis=1)
    logits_BKV = model.unembed(hidden_BKD).astype(jnp.float32)
    targets_BK = jnp.take_along_axis(batch.tokens_BT, jnp.maximum(index_BK, 0), axis=1)
    log_z_BK = jax.nn.logsumexp(logits_BKV, axis=-1)
    picked_BK = jnp.take_along_axis(logits_BKV, targets_BK[..., None], axis=-1)[..., 0]
    nll_BK = log_z_BK - picked_BK
    total_BK = nll_BK
    if label_smoothing:
      uniform_BK = log_z_BK - logits_BKV.mean(-1)
      total_BK = (1 - label_smoothing) * nll_BK + label_smoothing * uniform_BK
    if z_loss:
      total_BK = total_BK + z_loss * jnp.square(log_z_BK)
    right_BK = (picked_BK >= logits_BKV.max(-1)).astype(jnp.float32)
    weight = weight_BK.sum()
    metrics = {"accuracy": ((right_BK * weight_BK).sum(), weight)}
    if label_smoothing or z_loss:
      metrics["nll"] = ((nll_BK * weight_BK).sum(), weight)
    return (total_BK * weight_BK).sum(), weight, metrics

  return loss


LOSSES: dict[str, Callable[..., Loss]] = {"answer": answer_loss, "words": words_loss}


def encoded_once(model: Any, batch: Batch) -> Batch:
  """The batch with its image tokens, so that several terms share one pass of the vision tower."""
  if batch.pixels_NHWC is None:
    return batch
  features_NPD = model.encode_images(batch.pixels_NHWC, batch.pixel_mask_NHW)
  return dataclasses.replace(batch, features_NPD=features_NPD, pixels_NHWC=None, pixel_mask_NHW=None)


def make_losses(configs: Mapping[str, LossConfig]) -> dict[str, tuple[float, Loss]]:
  """The weighted terms of an objective, by name.

  Raises:
    UserError: no term, an unknown kind, or an argument that the kind does not take.
  """
  terms = {}
  for name, config in configs.items():
    if config.kind not in LOSSES:
      raise UserError(f"config.losses.{name}.kind: unknown {config.kind!r}; {nearest(config.kind, LOSSES)}")
    try:
      target = {"target": config.target} if config.target else {}
      terms[name] = (config.weight, LOSSES[config.kind](**target, **config.kwargs))
    except TypeError as e:
      raise UserError(f"config.losses.{name}.kwargs: {e}") from None
  if not any(weight for weight, _ in terms.values()):
    raise UserError("config.losses: no term with a weight; add one, e.g. answer")
  return {name: term for name, term in terms.items() if term[0]}
