"""What a radiance field knows of a place, told to the image tokens that show it.

A field that was fitted to many views of a scene holds a descriptor of every point
(`fields.grid.descriptors`), the same from wherever it is seen. A token's target is that of the surface that
it shows; a linear map of the token shall say it, so that tokens of one place in different views come to hold
the same. FiT3D (Yue et al., arXiv 2407.20229) lifts features of pictures into a 3D representation and tunes
the tower on what that renders; here the field's own are taken.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training.objectives.cells import token_cells
from spatialvlm.training.objectives.objective import Models, Objective
from spatialvlm.types import Batch, UserError


@dataclasses.dataclass(frozen=True)
class FieldFeaturesSettings:
  """What is read, and what counts.

  Attributes:
    target: an array of `Batch.extra` of axis "tile": descriptors, float (N, H, W, C), each of a mean of 0 and
      a deviation of 1; NaN where nothing is known.
    channels: C.
    detach: no gradient of this loss reaches the model; the head alone learns.
    share: least part of a token's cells that must be known.
  """

  target: str = "field"
  channels: int = 16
  detach: bool = False
  share: float = 0.5


class FieldFeatures(Objective):
  """Smooth L1 (beta 1), the mean over channels and tokens, between descriptors and what is said of them.

  The head is one linear map of an image token after the connector, scaled to a root mean square of 1.
  Metrics, over tokens: `mse`, the mean squared error of a channel; `mse_of_mean`, that of saying 0
  everywhere; `cosine`, of what is said to the descriptor.
  """

  Settings = FieldFeaturesSettings
  wants = Wants(image=True)

  def __init__(self, settings: FieldFeaturesSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    s = self.settings
    if not s.target or s.channels < 1 or not 0 < s.share <= 1:
      raise UserError(f"{where}.kwargs: target must be named, channels at least 1, share in (0, 1]")
    self.extra = (s.target,)
    self.teaches = not s.detach

  def head(self, model: VlmConfig, rngs: nnx.Rngs) -> nnx.Module:
    zeros = nnx.initializers.zeros
    return nnx.Linear(model.text.block.width, self.settings.channels, kernel_init=zeros, rngs=rngs)

  def predict(self, outputs: Outputs, head: nnx.Module) -> jax.Array:
    """Descriptors, float32 (N, P, C), of a tile's tokens."""
    x_NPD = outputs.image.astype(jnp.float32)
    if self.settings.detach:
      x_NPD = jax.lax.stop_gradient(x_NPD)
    return head(x_NPD * jax.lax.rsqrt(jnp.square(x_NPD).mean(-1, keepdims=True) + 1e-6))

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    zero = jnp.float32(0), jnp.float32(0)
    if outputs.image is None or self.settings.target not in batch.extra:
      return *zero, dict.fromkeys(("mse", "mse_of_mean", "cosine"), zero)
    found_NPC = self.predict(outputs, models.head)
    truth_NPC, weight_NP = self._truth(batch.extra[self.settings.target].array, found_NPC.shape)
    total = weight_NP.sum()
    mean = lambda values_NP: ((values_NP * weight_NP).sum(), total)
    said_NPC = jax.lax.stop_gradient(found_NPC)
    norms_NP = jnp.linalg.norm(said_NPC, axis=-1) * jnp.linalg.norm(truth_NPC, axis=-1)
    metrics = {
      "mse": mean(jnp.square(said_NPC - truth_NPC).mean(-1)),
      "mse_of_mean": mean(jnp.square(truth_NPC).mean(-1)),
      "cosine": mean((said_NPC * truth_NPC).sum(-1) / jnp.maximum(norms_NP, 1e-6)),
    }
    return *mean(optax.losses.huber_loss(found_NPC, truth_NPC).mean(-1)), metrics

  def _truth(self, map_NHWC: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean descriptors of the tokens' cells (0 where too few are known), and weights (0 or 1) of tokens."""
    N, P, C = shape
    if map_NHWC.ndim != 4 or map_NHWC.shape[-1] != C:
      raise UserError(
        f"{self.where}.kwargs.channels: {C}, but {self.settings.target!r} has the shape"
        f" {'x'.join(map(str, map_NHWC.shape[1:]))}; the last number is that of its channels"
      )
    cells = token_cells(map_NHWC, P)
    known = ~jnp.isnan(cells).any(-1, keepdims=True)
    count = known.sum((2, 4)).reshape(N, P, 1)
    total = jnp.where(known, cells, 0).sum((2, 4), dtype=jnp.float32).reshape(N, P, C)
    good = count >= max(1, self.settings.share * np.prod(cells.shape[2:5:2]))
    return jnp.where(good, total / jnp.maximum(count, 1), 0.0), good[..., 0].astype(jnp.float32)
