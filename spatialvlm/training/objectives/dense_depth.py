"""Depth of every part of a picture, by a light convolutional head on a model's tokens.

After the Dense Prediction Transformer (DPT, Ranftl et al., arXiv 2103.13413): tokens of several layers as
maps, fused from the last to the first, and enlarged. The losses are the scale-invariant logarithmic one
(Eigen et al., arXiv 1406.2283; under a root as in BTS, Lee et al., arXiv 1907.10326), gradient matching
(MegaDepth, Li and Snavely, arXiv 1804.00607; over scales as in MiDaS, Ranftl et al., arXiv 1907.01341), and
smooth L1.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training.objectives.depth_probe import mean_depth
from spatialvlm.training.objectives.objective import Models, Objective
from spatialvlm.types import Batch, UserError

# Steps of pixels at which neighbours are compared.
_SCALES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class DenseDepthSettings:
  """What is read, how the head is built, and what counts.

  Attributes:
    target: an array of `Batch.extra` of axis "tile": metres along the optical axis, float (N, H, W); NaN, or
      what is not positive, is no depth.
    image: whether image tokens after the connector are read.
    encoder_layers, decoder_layers: after how many blocks patches of the encoder, or image tokens of the
      decoder, are read too; 0 is before the first, -1 after the last.
    width: channels of the head.
    upsample: how many times finer than the finest tokens its map is, a power of two.
    metric: true: metres. False: depth up to a factor of each picture, for targets that say no more.
    silog, gradient, smooth_l1: weights of the losses.
    variance_focus: of the scale-invariant loss, 0: squares of errors; 1: their variance, whatever the scale.
    detach: no gradient of this loss reaches the model; the head alone learns.
    share: least part of a cell's pixels that must have a depth.
    farthest: metres; cells whose mean depth lies beyond are left out.
    start: metres that a fresh head says everywhere.
  """

  target: str = "depth"
  image: bool = True
  encoder_layers: tuple[int, ...] = ()
  decoder_layers: tuple[int, ...] = ()
  width: int = 64
  upsample: int = 4
  metric: bool = True
  silog: float = 1.0
  gradient: float = 0.5
  smooth_l1: float = 0.0
  variance_focus: float = 0.5
  detach: bool = True
  share: float = 0.5
  farthest: float = 10.0
  start: float = 4.0


class DenseDepth(Objective):
  """Mean over pictures of the weighted losses between predicted and true logarithms of depth.

  Metrics, over cells: `abs_rel`, `rmse` in metres, `delta1` (within a factor of 1.25); where depth is known
  up to a factor, after each picture's best factor.
  """

  Settings = DenseDepthSettings

  def __init__(self, settings: DenseDepthSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    s = self.settings
    if (
      not s.target or not 0 < s.share <= 1 or min(s.farthest, s.start) <= 0 or not 0 <= s.variance_focus <= 1
    ):
      raise UserError(
        f"{where}.kwargs: target must be named, share in (0, 1], variance_focus in [0, 1], farthest and start"
        " above 0"
      )
    if s.width < 1 or s.upsample < 1 or s.upsample & (s.upsample - 1):
      raise UserError(f"{where}.kwargs: width must be at least 1, upsample a power of two")
    weights = s.silog, s.gradient, s.smooth_l1
    if min(weights) < 0 or not any(weights):
      raise UserError(f"{where}.kwargs: silog, gradient and smooth_l1 must not be negative, nor all 0")
    if not (s.image or s.encoder_layers or s.decoder_layers):
      raise UserError(f"{where}.kwargs: nothing is read; set image, encoder_layers or decoder_layers")
    self.extra = (s.target,)
    self.teaches = not s.detach
    image = s.image or bool(s.decoder_layers)
    self.wants = Wants(image=image, encoder_layers=s.encoder_layers, decoder_layers=s.decoder_layers)

  def check(self, model: VlmConfig) -> None:
    super().check(model)
    if model.vision is None:
      raise UserError(f"{self.where}: reads images, but this is a language model by itself ({model.family})")
    encoders = [part.vision for part in getattr(model.vision, "parts", ())] or [model.vision]
    if self.settings.encoder_layers and len(encoders) > 1:
      raise UserError(
        f"{self.where}.kwargs.encoder_layers: this model joins {len(encoders)} encoders; use image"
      )
    for name, most in (("encoder", encoders[0].depth), ("decoder", model.text.depth)):
      for layer in getattr(self.settings, f"{name}_layers"):
        if not -most - 1 <= layer <= most:
          raise UserError(
            f"{self.where}.kwargs.{name}_layers: the {name} has {most} blocks; {layer} is outside"
            f" {-most - 1} .. {most}"
          )

  def head(self, model: VlmConfig, rngs: nnx.Rngs) -> nnx.Module:
    s, text = self.settings, model.text.block.width
    widths = [text] * s.image + [model.vision.width] * len(s.encoder_layers) + [text] * len(s.decoder_layers)
    return DepthHead(widths, s.width, s.upsample.bit_length() - 1, s.start, rngs=rngs)

  def predict(self, outputs: Outputs, head: nnx.Module, batch: Batch) -> jax.Array:
    """Metres, float32 (N, h, w) of each tile of the batch that was read."""
    return jnp.exp(self._log_depth(outputs, head, batch))

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    zero, s = (jnp.float32(0), jnp.float32(0)), self.settings
    if (outputs.image is None and outputs.encoder_layers is None) or s.target not in batch.extra:
      return *zero, dict.fromkeys(("abs_rel", "rmse", "delta1"), zero)
    log_NHW = self._log_depth(outputs, models.head, batch)
    N, h, w = log_NHW.shape
    depth, weight = mean_depth(batch.extra[s.target].array, h * w, s.share, s.farthest)
    depth_NHW, weight_NHW = depth.reshape(N, h, w), weight.reshape(N, h, w)
    apart_NHW = (log_NHW - jnp.log(depth_NHW)) * weight_NHW
    count_N = weight_NHW.sum((1, 2))
    mean_N = apart_NHW.sum((1, 2)) / jnp.maximum(count_N, 1)
    if not s.metric:
      apart_NHW, log_NHW = (x - mean_N[:, None, None] for x in (apart_NHW, log_NHW))
      apart_NHW *= weight_NHW
    loss_N = self._losses(apart_NHW, weight_NHW, count_N)
    there_N = (count_N > 0).astype(jnp.float32)
    found_NHW, total = jnp.exp(log_NHW), weight_NHW.sum()
    mean = lambda values_NHW: ((values_NHW * weight_NHW).sum(), total)
    ratio_NHW = jnp.maximum(found_NHW / depth_NHW, depth_NHW / found_NHW)
    metrics = {
      "abs_rel": mean(jnp.abs(found_NHW - depth_NHW) / depth_NHW),
      "rmse": mean(jnp.square(found_NHW - depth_NHW)),
      "delta1": mean((ratio_NHW < 1.25).astype(jnp.float32)),
    }
    return (loss_N * there_N).sum(), there_N.sum(), metrics

  def _losses(self, apart_NHW: jax.Array, weight_NHW: jax.Array, count_N: jax.Array) -> jax.Array:
    """(N,): the weighted losses of each picture, of differences of logarithms that are 0 where none is."""
    s, count_N = self.settings, jnp.maximum(count_N, 1)
    square_N, mean_N = (jnp.square(apart_NHW).sum((1, 2)) / count_N, apart_NHW.sum((1, 2)) / count_N)
    # The root's slope has no bound at 0.
    total_N = s.silog * jnp.sqrt(jnp.maximum(square_N - s.variance_focus * jnp.square(mean_N), 0) + 1e-6)
    if s.gradient:
      total_N += s.gradient * gradient_matching(apart_NHW, weight_NHW)
    if s.smooth_l1:
      total_N += s.smooth_l1 * optax.losses.huber_loss(apart_NHW).sum((1, 2)) / count_N
    return total_N

  def _log_depth(self, outputs: Outputs, head: nnx.Module, batch: Batch) -> jax.Array:
    s = self.settings
    read = [outputs.image] if s.image else []
    read += [outputs.encoder_layers[layer] for layer in s.encoder_layers]
    if s.decoder_layers:
      shape = outputs.image.shape[:2]
      read += [of_tiles(outputs.decoder_layers[layer], batch, shape) for layer in s.decoder_layers]
    tokens = [x.astype(jnp.float32) for x in read]
    return head([jax.lax.stop_gradient(x) if s.detach else x for x in tokens])


class DepthHead(nnx.Module):
  """Maps of tokens to one finer map of the logarithm of metres.

  Every map is scaled to a root mean square of 1 a token, projected, enlarged to the finest grid, and added to
  what the ones behind it gave, with a residual convolution each; then the sum is enlarged by doublings.
  """

  def __init__(self, widths: list[int], width: int, doublings: int, start: float, *, rngs: nnx.Rngs):
    conv = lambda: nnx.Conv(width, width, (3, 3), padding="SAME", rngs=rngs)
    self.project = nnx.List([nnx.Linear(size, width, rngs=rngs) for size in widths])
    self.fuse = nnx.List([conv() for _ in widths])
    self.enlarge = nnx.List([conv() for _ in range(doublings)])
    bias = nnx.initializers.constant(math.log(start))
    self.out = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, bias_init=bias, rngs=rngs)

  def __call__(self, tokens: list[jax.Array]) -> jax.Array:
    """Tokens (N, P, D) float32 of square grids, one a width, to (N, h, w).

    Raises:
      UserError: a grid that is not square.
    """
    side = max(_side(x_NPD.shape[1]) for x_NPD in tokens)
    fused = 0.0
    for x_NPD, project, conv in reversed(list(zip(tokens, self.project, self.fuse, strict=True))):
      x_NPD *= jax.lax.rsqrt(jnp.square(x_NPD).mean(-1, keepdims=True) + 1e-6)
      fused += _resized(_square(project(x_NPD)), side)
      fused += conv(nnx.gelu(fused))
    for conv in self.enlarge:
      fused = _resized(fused, 2 * fused.shape[1])
      fused += conv(nnx.gelu(fused))
    return self.out(nnx.gelu(fused))[..., 0]


def gradient_matching(apart_NHW: jax.Array, weight_NHW: jax.Array) -> jax.Array:
  """(N,): mean absolute difference of neighbours, across and down, over several scales.

  Args:
    apart_NHW: differences of logarithms.
    weight_NHW: 1 where there is one, else 0; pairs count whose both ends have one.
  """
  total_N = jnp.zeros(apart_NHW.shape[0])
  for step in _SCALES:
    x_NHW, w_NHW = apart_NHW[:, ::step, ::step], weight_NHW[:, ::step, ::step]
    for axis in (1, 2):
      if x_NHW.shape[axis] < 2:
        continue
      ends = lambda a, axis=axis: (a[:, 1:], a[:, :-1]) if axis == 1 else (a[:, :, 1:], a[:, :, :-1])
      (b, a), (v, w) = ends(x_NHW), ends(w_NHW)
      pairs = v * w
      total_N += (jnp.abs(b - a) * pairs).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1)
  return total_N / len(_SCALES)


def of_tiles(x_BTD: jax.Array, batch: Batch, shape: tuple[int, int]) -> jax.Array:
  """(N, P, D): image tokens of the decoder in the order of the tiles, which stand beside their samples.

  Args:
    shape: N and P.

  Raises:
    UserError: tiles that samples share.
  """
  if batch.tile_index_BI is not None:
    raise UserError("dense depth of decoder layers: a batch whose samples share tiles; give each its own")
  B, T, D = x_BTD.shape
  count = shape[0] * shape[1] // B
  slot_BT = jnp.where(batch.image_slot_BT >= 0, batch.image_slot_BT, count)
  where_BS = jnp.zeros((B, count + 1), jnp.int32).at[jnp.arange(B)[:, None], slot_BT].set(jnp.arange(T))
  return jnp.take_along_axis(x_BTD, where_BS[:, :count, None], axis=1).reshape(*shape, D)


def _side(tokens: int) -> int:
  side = math.isqrt(tokens)
  if side * side != tokens:
    raise UserError(f"config.losses: a dense head needs a square grid, not {tokens} tokens")
  return side


def _square(x_NPD: jax.Array) -> jax.Array:
  side = _side(x_NPD.shape[1])
  return x_NPD.reshape(x_NPD.shape[0], side, side, -1)


def _resized(x_NHWD: jax.Array, side: int) -> jax.Array:
  """Bilinear, to a square."""
  if x_NHWD.shape[1] == side:
    return x_NHWD
  return jax.image.resize(x_NHWD, (x_NHWD.shape[0], side, side, x_NHWD.shape[3]), "bilinear")
