"""Distillation of hidden states: what a teacher's layers hold, by a learned projection of the student's.

Hints (Romero et al., FitNets, arXiv 1412.6550) as TinyBERT has them between transformers (Jiao et al., arXiv
1909.10351): for each pair of layers a linear map from the student's width to the teacher's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training.objectives.distil import before_targets
from spatialvlm.training.objectives.objective import Models, Objective, Other
from spatialvlm.types import Batch, UserError


@dataclasses.dataclass(frozen=True)
class DistilHiddenSettings:
  """Which layers, at which tokens.

  Attributes:
    teacher: a name of `config.teachers`; "base", always known, is the model itself as training found it.
    layers: of the student's decoder, after how many blocks; negative numbers count from the last, -1.
    teacher_layers: of the teacher's, as many; empty for the same numbers.
    at: "target", the tokens from which answers are predicted; "image", the image tokens.
    measure: "mse", the mean square of the difference of states whose root mean square is 1; "cosine", one
      less the cosine.
    width: of the teacher's states; 0 for what they have, which is written here when the teacher is known.
  """

  teacher: str = "teacher"
  layers: tuple[int, ...] = (-1,)
  teacher_layers: tuple[int, ...] = ()
  at: Literal["target", "image"] = "target"
  measure: Literal["mse", "cosine"] = "mse"
  width: int = 0


class Projections(nnx.Module):
  """A linear map for each pair of layers; the identity to begin with, where both widths are the same."""

  def __init__(self, count: int, width: int, wanted: int, rngs: nnx.Rngs):
    start = nnx.initializers.lecun_normal()
    if width == wanted:
      start = lambda key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype)
    self.maps = nnx.List([nnx.Linear(width, wanted, kernel_init=start, rngs=rngs) for _ in range(count)])


class DistilHidden(Objective):
  """Mean over tokens and pairs of layers, in float32; the projections are its own parameters (`heads`).

  Metrics: `cosine`, the mean cosine between what is found and what the teacher holds.
  """

  Settings = DistilHiddenSettings

  def __init__(self, settings: DistilHiddenSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    settings = self.settings
    theirs = settings.teacher_layers or settings.layers
    if not settings.layers or len(theirs) != len(settings.layers):
      raise UserError(
        f"{where}.kwargs: layers and teacher_layers go in pairs; name as many of both, one at least"
      )
    image = settings.at == "image"
    self._pairs = tuple(zip(settings.layers, theirs, strict=True))
    self.wants = Wants(image=image, decoder_layers=settings.layers)
    self.asks = {settings.teacher: Wants(decoder_layers=theirs)}

  def meet(self, others: Mapping[str, Other]) -> None:
    other = others[self.settings.teacher]
    if other.cached:
      raise UserError(
        f"{self.where}.kwargs.teacher: a cache holds tokens' probabilities, no states; leave out its cache"
      )
    check_layers(self.where, "teacher_layers", [theirs for _, theirs in self._pairs], other.model)
    if self.settings.at == "image" and not other.same_pictures:
      raise UserError(
        f"{self.where}.kwargs.at: the teacher cuts pictures into other tiles or tokens than the model, so its"
        " image tokens show other things; use 'target'"
      )
    width = other.model.text.block.width
    if self.settings.width not in (0, width):
      raise UserError(f"{self.where}.kwargs.width: the teacher's states are {width} wide; leave it out")
    self.settings = dataclasses.replace(self.settings, width=width)

  def check(self, model: VlmConfig) -> None:
    super().check(model)
    check_layers(self.where, "layers", self.settings.layers, model)

  def head(self, model: VlmConfig, rngs: nnx.Rngs) -> nnx.Module:
    return Projections(len(self._pairs), model.text.block.width, self.settings.width, rngs)

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    view, asked = batch.view(self.settings.teacher), models.asked[self.settings.teacher]
    if self.settings.at == "image" and outputs.image is None:
      return jnp.float32(0), jnp.float32(0), {"cosine": (jnp.float32(0), jnp.float32(0))}
    weight = self._weight(outputs, batch)
    total, cosine = jnp.float32(0), jnp.float32(0)
    for (layer, theirs), project in zip(self._pairs, models.head.maps, strict=True):
      found = project(_scaled(self._at(outputs, outputs.decoder_layers[layer], batch)))
      wanted = _scaled(self._at(outputs, asked.decoder_layers[theirs], view))
      cos = (_scaled(found) * wanted).mean(-1)
      cosine += (cos * weight).sum()
      apart = 1 - cos if self.settings.measure == "cosine" else jnp.square(found - wanted).mean(-1)
      total += (apart * weight).sum()
    weight = weight.sum() * len(self._pairs)
    return total, weight, {"cosine": (cosine, weight)}

  def _at(self, outputs: Outputs, x_BTD: jax.Array, batch: Batch) -> jax.Array:
    """States at the tokens that are compared: (B, K, D), or (B, image tokens, D)."""
    if self.settings.at == "target":
      return before_targets(x_BTD, batch.target_index_BK)
    return at_slots(x_BTD, batch.image_slot_BT, _image_tokens(outputs, batch))[0]

  def _weight(self, outputs: Outputs, batch: Batch) -> jax.Array:
    if self.settings.at == "target":
      return (batch.target_index_BK > 0).astype(jnp.float32)
    there = at_slots(batch.tokens_BT[..., None], batch.image_slot_BT, _image_tokens(outputs, batch))[1]
    return there.astype(jnp.float32)


def check_layers(where: str, setting: str, layers: tuple[int, ...] | list[int], model: VlmConfig) -> None:
  """Raises a UserError where a decoder has not so many blocks."""
  most = model.text.depth
  for layer in layers:
    if not -most - 1 <= layer <= most:
      raise UserError(
        f"{where}.kwargs.{setting}: the decoder has {most} blocks; {layer} is outside {-most - 1} .. {most}"
      )


def at_slots(x_BTD: jax.Array, image_slot_BT: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """States (B, count, D) of a sample's image tokens in their order, and which of them it has (B, count)."""
  B, T = image_slot_BT.shape
  slot_BT = jnp.where(image_slot_BT >= 0, image_slot_BT, count)  # out of bounds is dropped
  place_BS = jnp.full((B, count), -1).at[jnp.arange(B)[:, None], slot_BT].set(jnp.arange(T), mode="drop")
  return jnp.take_along_axis(x_BTD, jnp.maximum(place_BS, 0)[..., None], axis=1), place_BS >= 0


def _image_tokens(outputs: Outputs, batch: Batch) -> int:
  """Image tokens that a sample has room for."""
  N, P, _ = outputs.image.shape
  return N // batch.tokens_BT.shape[0] * P


def _scaled(x: jax.Array) -> jax.Array:
  """Float32, with a root mean square of 1."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
