"""Other encoders for a vision-language model: one encoder instead of its own, or several joined by channels.

Joining by channels on one grid is what studies of encoders do (Tong et al., 2024, "Cambrian-1"; Shi et al.,
2024, "Eagle").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.models.encoders import EncoderOutput, VisionConfig, VisionEncoder
from spatialvlm.types import Features, UserError

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class JoinedPart:
  """One encoder of several.

  Attributes:
    family: key of `models.families.CHECKPOINTS`.
    scale, shift: of each channel, from the pixels as the model's processor normalises them to those that this
      encoder was trained on: pixels * scale + shift.
  """

  family: str
  vision: VisionConfig
  scale: tuple[float, ...]
  shift: tuple[float, ...]

  @property
  def keeps_pixels(self) -> bool:
    """Whether it was trained on pixels normalised as the processor does it."""
    return set(self.scale) == {1.0} and set(self.shift) == {0.0}


@dataclasses.dataclass(frozen=True)
class JoinedConfig:
  """What `VisionConfig` is to one encoder, for several.

  Attributes:
    parts: the first one's grid is that of all.
    image_size: side of a tile in pixels.
  """

  parts: tuple[JoinedPart, ...]
  image_size: int

  @property
  def patch_size(self) -> int:
    return self.parts[0].vision.patch_size

  @property
  def channels(self) -> int:
    return self.parts[0].vision.channels

  @property
  def grid(self) -> int:
    return self.image_size // self.patch_size

  @property
  def width(self) -> int:
    return sum(part.vision.width for part in self.parts)


class JoinedEncoder(nnx.Module):
  """Encoders side by side over the same pixels."""

  def __init__(self, config: JoinedConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.config = config
    self.encoders = nnx.List([VisionEncoder(part.vision, dtype=dtype, rngs=rngs) for part in config.parts])

  def __call__(self, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None = None) -> Features:
    """Patches on the first encoder's grid, the encoders' features joined by channels.

    Each further encoder sees the pixels resized to the nearest multiple of its patches (bicubic, as Pillow),
    and its features are resampled to the first one's grid (bilinear, antialiased). Where there are several,
    each one's features are divided by their root mean square, patch by patch: they differ by orders of
    magnitude, and the norm of a connector would leave the large ones alone.

    Args:
      pixels_NHWC: normalised as the model's processor does it.
      pixel_mask_NHW: true at real pixels; encoders without "navit" positions do not look at it.
    """
    return self.read(pixels_NHWC, pixel_mask_NHW).features

  def read(
    self,
    pixels_NHWC: jax.Array,
    pixel_mask_NHW: jax.Array | None = None,
    *,
    layers: Collection[int] = (),
    attention: Collection[int] = (),
    attention_mean: Collection[int] = (),
    traces: Mapping[int, jax.Array] | None = None,
  ) -> EncoderOutput:
    """What `VisionEncoder.read` gives: of one encoder all of that, of several joined the patches alone.

    Raises:
      UserError: layers or attention of several encoders, which have no numbers in common.
    """
    if len(self.encoders) == 1:
      pixels_NHWC, pixel_mask_NHW = self._pixels(0, pixels_NHWC, pixel_mask_NHW)
      asked = dict(layers=layers, attention=attention, attention_mean=attention_mean, traces=traces)
      return self.encoders[0].read(pixels_NHWC, pixel_mask_NHW, **asked)
    if layers or attention or attention_mean or traces:
      raise UserError(
        f"encoder_layers, encoder_attention: this model joins {len(self.encoders)} encoders, whose layers"
        " have no number in common; ask one of them, as `load_encoder` gives it"
      )
    first, *others = (
      encoder(*self._pixels(number, pixels_NHWC, pixel_mask_NHW))
      for number, encoder in enumerate(self.encoders)
    )
    parts = [first.patches_NPD, *(_on_grid(features, first.grid) for features in others)]
    joined_NPD = jnp.concatenate([_unit(x_NPD) for x_NPD in parts], axis=-1)
    return EncoderOutput(Features(joined_NPD, first.grid), None, {}, {}, {}, prefix=0)

  def _pixels(
    self, number: int, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Pixels and mask as one encoder wants them."""
    part = self.config.parts[number]
    N, H, W, C = pixels_NHWC.shape
    x_NHWC = pixels_NHWC.astype(jnp.float32)
    height, width = (side if number == 0 else nearest(side, part.vision.patch_size) for side in (H, W))
    if (height, width) != (H, W):
      x_NHWC = jax.image.resize(x_NHWC, (N, height, width, C), "cubic")
      if pixel_mask_NHW is not None:
        pixel_mask_NHW = jax.image.resize(pixel_mask_NHW, (N, height, width), "nearest")
    if not part.keeps_pixels:
      x_NHWC = x_NHWC * jnp.asarray(part.scale, jnp.float32) + jnp.asarray(part.shift, jnp.float32)
    return x_NHWC, pixel_mask_NHW


def nearest(side: int, unit: int) -> int:
  """The multiple of `unit` that is nearest to `side`, and not 0; of two the larger."""
  return max((2 * side + unit) // (2 * unit), 1) * unit


def _on_grid(features: Features, grid: tuple[int, int]) -> jax.Array:
  """(N, P, D), resampled to another grid."""
  N, _, D = features.patches_NPD.shape
  x_NRCD = features.patches_NPD.reshape(N, *features.grid, D).astype(jnp.float32)
  if features.grid != grid:
    x_NRCD = jax.image.resize(x_NRCD, (N, *grid, D), "linear")
  return x_NRCD.reshape(N, grid[0] * grid[1], D).astype(features.patches_NPD.dtype)


def _unit(x_NPD: jax.Array) -> jax.Array:
  x32 = x_NPD.astype(jnp.float32)
  return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + EPS)).astype(x_NPD.dtype)
