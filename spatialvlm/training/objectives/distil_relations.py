"""Distillation of relations: which tokens belong to which, whatever the widths of the two models.

MiniLM (Wang et al., arXiv 2002.10957) teaches a student the attention of one layer of its teacher, MiniLMv2
(arXiv 2012.15828) relations between vectors cut into a number of heads that is free to choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training.objectives.distil_hidden import check_layers
from spatialvlm.training.objectives.objective import Models, Objective, Other
from spatialvlm.types import Batch, UserError

_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class DistilRelationsSettings:
  """Which relations, of which layers.

  Attributes:
    teacher: a name of `config.teachers`; "base", always known, is the model itself as training found it. It
      must read the same tokens.
    of: "attention", the probabilities of the block that makes a layer, the mean over heads where the two
      models have other numbers of them; "states", softmax of the scaled products of the layer's states at a
      conversation's tokens, in `heads` parts.
    layer, teacher_layer: of the two decoders, after how many blocks; negative numbers count from the last.
    heads: of "states": parts of the states, which must divide both widths.
  """

  teacher: str = "teacher"
  of: Literal["attention", "states"] = "attention"
  layer: int = -1
  teacher_layer: int = -1
  heads: int = 8


class DistilRelations(Objective):
  """KL(teacher, student) between each token's relations to others: mean over tokens and heads, in float32.

  Memory is B x heads x T x T for each of the two models. Metrics: `agreement`, how often the strongest
  relation is the same.
  """

  Settings = DistilRelationsSettings

  def __init__(self, settings: DistilRelationsSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    settings = self.settings
    if settings.heads < 1:
      raise UserError(f"{where}.kwargs.heads: {settings.heads}; one at least")
    wants = lambda layer: {"attention" if settings.of == "attention" else "decoder_layers": (layer,)}
    self.wants = Wants(**wants(settings.layer))
    self.asks = {settings.teacher: Wants(**wants(settings.teacher_layer))}

  def meet(self, others: Mapping[str, Other]) -> None:
    other = others[self.settings.teacher]
    if other.cached:
      raise UserError(
        f"{self.where}.kwargs.teacher: a cache holds tokens' probabilities, no relations; leave out its cache"
      )
    if not other.same_tokens:
      raise UserError(
        f"{self.where}.kwargs.teacher: relations are between the same tokens, and this teacher reads others;"
        " leave out its prompt and image settings, or use a loss of kind 'distil'"
      )
    self._check("teacher_layer", other.model)

  def check(self, model: VlmConfig) -> None:
    super().check(model)
    self._check("layer", model)

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    settings, asked = self.settings, models.asked[self.settings.teacher]
    if settings.of == "attention":
      student, teacher = outputs.attention[settings.layer], asked.attention[settings.teacher_layer]
      if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdims=True), teacher.mean(1, keepdims=True)
      log = lambda probabilities: jnp.log(jnp.maximum(probabilities, 1e-12))
      log_s, log_t = log(student), log(teacher)
    else:
      related = lambda layers, layer: relations(layers[layer], batch, settings.heads)
      log_s = related(outputs.decoder_layers, settings.layer)
      log_t = related(asked.decoder_layers, settings.teacher_layer)
    weight_BT = batch.valid_BT.astype(jnp.float32)
    if batch.example_mask_B is not None:
      weight_BT *= batch.example_mask_B[:, None]
    weight_B1T = weight_BT[:, None]
    apart_BNT = (jnp.exp(log_t) * (log_t - log_s)).sum(-1)
    same_BNT = log_s.argmax(-1) == log_t.argmax(-1)
    weight = weight_BT.sum() * apart_BNT.shape[1]
    return (apart_BNT * weight_B1T).sum(), weight, {"agreement": ((same_BNT * weight_B1T).sum(), weight)}

  def _check(self, setting: str, model: VlmConfig) -> None:
    layer, width = getattr(self.settings, setting), model.text.block.width
    check_layers(self.where, setting, (layer,), model)
    if self.settings.of == "attention" and layer in (0, -model.text.depth - 1):
      raise UserError(
        f"{self.where}.kwargs.{setting}: no block makes layer {layer}, the embeddings; the first is 1"
      )
    if self.settings.of == "states" and width % self.settings.heads:
      raise UserError(
        f"{self.where}.kwargs.heads: {self.settings.heads} do not divide states {width} wide; use a divisor"
        " of both models' widths"
      )


def relations(x_BTD: jax.Array, batch: Batch, heads: int) -> jax.Array:
  """Log softmax (B, heads, T, T) of scaled products of states, cut into heads, within each conversation."""
  B, T, D = x_BTD.shape
  x_BTNH = x_BTD.astype(jnp.float32).reshape(B, T, heads, D // heads)
  scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", x_BTNH, x_BTNH) * (D // heads) ** -0.5
  seen_BTS = jnp.broadcast_to(batch.valid_BT[:, None, :], (B, T, T))
  if batch.segment_BT is not None:
    seen_BTS &= batch.segment_BT[:, :, None] == batch.segment_BT[:, None, :]
  return jax.nn.log_softmax(jnp.where(seen_BTS[:, None], scores_BNTS, _LOWEST))
