"""Metric depth read from image tokens by a linear head.

A linear probe (Alain and Bengio, arXiv 1610.01644) asks how much of the depth of a picture lies in its tokens
where a linear map finds it; El Banani et al. (arXiv 2404.08636) ask vision encoders so. With `detach` (the
default) the head looks on and the model learns nothing of it; without, depth is an auxiliary loss.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import VlmConfig, gather_image_tokens
from spatialvlm.training.objectives.cells import token_cells
from spatialvlm.training.objectives.objective import Models, Objective
from spatialvlm.types import Batch, UserError


@dataclasses.dataclass(frozen=True)
class DepthProbeSettings:
  """What is read, and what counts.

  Attributes:
    target: an array of `Batch.extra` of axis "tile": metres along the optical axis, float (N, H, W); NaN, or
      what is not positive, is no depth.
    read: "image": image tokens after the connector; "encoder": patches after a block of the vision encoder;
      "decoder": image tokens after a block of the decoder.
    layer: of "encoder" and "decoder", after how many blocks, 0 for before the first; negative numbers count
      from the last, which is -1.
    detach: no gradient of this loss reaches the model; the head alone learns.
    share: least part of a token's pixels that must have a depth.
    start: metres that a fresh head says everywhere: something usual in the data, since a small learning rate
      brings it to another scale but slowly.
    farthest: metres; tokens whose mean depth lies beyond are left out, as `launch/encoders.py` does.
  """

  target: str = "depth"
  read: Literal["image", "encoder", "decoder"] = "image"
  layer: int = -1
  detach: bool = True
  share: float = 0.5
  farthest: float = 10.0
  start: float = 4.0


class DepthProbe(Objective):
  """Smooth L1 (beta 1) between the logarithms of a token's mean depth and of the prediction.

  The head is one linear map of the token, scaled to a root mean square of 1, to log metres. Metrics, over
  tokens: `abs_rel`, the mean of |prediction - depth| / depth; `rmse` in metres; `delta1`, the share within a
  factor of 1.25 (Eigen et al., arXiv 1406.2283).
  """

  Settings = DepthProbeSettings

  def __init__(self, settings: DepthProbeSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    settings = self.settings
    if not settings.target or not 0 < settings.share <= 1 or min(settings.farthest, settings.start) <= 0:
      raise UserError(f"{where}.kwargs: target must be named, share in (0, 1], farthest and start above 0")
    if settings.read == "image" and settings.layer != -1:
      raise UserError(
        f"{where}.kwargs.layer: image tokens have no layers; set read to 'encoder' or 'decoder'"
      )
    self.extra = (settings.target,)
    self.teaches = not settings.detach
    layer = (settings.layer,)
    self.wants = {
      "image": Wants(image=True),
      "encoder": Wants(encoder_layers=layer),
      "decoder": Wants(image=True, decoder_layers=layer),
    }[settings.read]

  def check(self, model: VlmConfig) -> None:
    super().check(model)
    read, layer = self.settings.read, self.settings.layer
    if read == "image":
      return
    encoders = [part.vision for part in getattr(model.vision, "parts", ())] or [model.vision]
    if read == "encoder" and len(encoders) > 1:
      raise UserError(f"{self.where}.kwargs.read: this model joins {len(encoders)} encoders; use 'image'")
    most = encoders[0].depth if read == "encoder" else model.text.depth
    if not -most - 1 <= layer <= most:
      raise UserError(
        f"{self.where}.kwargs.layer: the {read} has {most} blocks; {layer} is outside {-most - 1} .. {most}"
      )

  def head(self, model: VlmConfig, rngs: nnx.Rngs) -> nnx.Module:
    width = model.vision.width if self.settings.read == "encoder" else model.text.block.width
    start = nnx.initializers.constant(math.log(self.settings.start))
    return nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, bias_init=start, rngs=rngs)

  def predict(self, outputs: Outputs, head: nnx.Module) -> jax.Array:
    """Metres, float32: (N, P) of a tile's tokens; with `read` of "decoder" (B, T), of image tokens alone."""
    return jnp.exp(self._log_depth(outputs, head))

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    zero = jnp.float32(0), jnp.float32(0)
    if self._tokens(outputs) is None or self.settings.target not in batch.extra:
      return *zero, dict.fromkeys(("abs_rel", "rmse", "delta1"), zero)
    log_depth = self._log_depth(outputs, models.head)
    depth, weight = self._truth(batch, outputs, log_depth.shape)
    found, error = jnp.exp(log_depth), optax.losses.huber_loss(log_depth, jnp.log(depth))
    total = weight.sum()
    mean = lambda values: ((values * weight).sum(), total)
    metrics = {
      "abs_rel": mean(jnp.abs(found - depth) / depth),
      "rmse": mean(jnp.square(found - depth)),
      "delta1": mean((jnp.maximum(found / depth, depth / found) < 1.25).astype(jnp.float32)),
    }
    return *mean(error), metrics

  def _tokens(self, outputs: Outputs) -> jax.Array | None:
    """What is read; None of a batch without images."""
    read, layer = self.settings.read, self.settings.layer
    if read == "encoder":
      return None if outputs.encoder_layers is None else outputs.encoder_layers[layer]
    return outputs.decoder_layers[layer] if read == "decoder" and outputs.image is not None else outputs.image

  def _log_depth(self, outputs: Outputs, head: nnx.Module) -> jax.Array:
    x = self._tokens(outputs).astype(jnp.float32)
    if self.settings.detach:
      x = jax.lax.stop_gradient(x)
    x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return head(x)[..., 0]

  def _truth(self, batch: Batch, outputs: Outputs, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Metres (1 where there is no depth) and weight (0 or 1) of each token."""
    map_NHW, settings = batch.extra[self.settings.target].array, self.settings
    of_decoder = settings.read == "decoder"
    tokens = outputs.image.shape[1] if of_decoder else shape[1]
    depth_NP, weight_NP = mean_depth(map_NHW, tokens, settings.share, settings.farthest)
    if not of_decoder:
      return depth_NP, weight_NP
    both_NP2 = jnp.stack([depth_NP, weight_NP], -1)
    both_BT2 = gather_image_tokens(both_NP2, batch.image_slot_BT, batch.tile_index_BI)
    image_BT = batch.image_slot_BT >= 0
    return jnp.where(image_BT, both_BT2[..., 0], 1.0), jnp.where(image_BT, both_BT2[..., 1], 0.0)


def mean_depth(map_NHW: jax.Array, tokens: int, share: float, farthest: float) -> tuple[jax.Array, jax.Array]:
  """Mean depth in metres and weight (0 or 1) of each token of a square grid, both (N, tokens) float32.

  A token has a depth where `share` of its pixels have one and their mean is at most `farthest`; else its
  weight is 0, and its depth 1.

  Raises:
    UserError: the map does not divide into the grid.
  """
  N, cells = map_NHW.shape[0], token_cells(map_NHW, tokens)
  seen = cells > 0  # false for NaN
  total = jnp.where(seen, cells, 0).sum((2, 4), dtype=jnp.float32).reshape(N, tokens)
  count = seen.sum((2, 4)).reshape(N, tokens)
  mean = total / jnp.maximum(count, 1)
  good = (count >= share * np.prod(cells.shape[2::2])) & (count > 0) & (mean <= farthest)
  return jnp.where(good, mean, 1.0), good.astype(jnp.float32)
