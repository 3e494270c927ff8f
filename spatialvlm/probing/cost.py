"""What an encoder costs: tokens, parameters, and floating-point operations, counted from its shapes."""

from __future__ import annotations

import math

import jax
from flax import nnx

from spatialvlm.models.encoders import VisionConfig, VisionEncoder


def parameters(model: VisionEncoder) -> int:
  """Numbers that the encoder holds."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def tokens(config: VisionConfig, height: int, width: int) -> int:
  """Tokens that the blocks read of one image: patches, class token, registers."""
  return (height // config.patch_size) * (width // config.patch_size) + config.prefix


def flops(config: VisionConfig, height: int, width: int) -> int:
  """Operations of one image through the whole encoder; a multiplication with its addition counts as 2.

  Counted are the matrix products: patches, projections, attention, feed-forward. Norms, activations, softmax
  and additions are not, as is usual.
  """
  block, p = config.block, config.patch_size
  T = tokens(config, height, width)
  patches = T - config.prefix
  inner = block.attention.heads * block.attention.head_dim
  keys = block.attention.kv_heads * block.attention.head_dim
  projections = block.width * (2 * inner + 2 * keys)
  attention = 2 * T * inner
  feed_forward = (3 if block.gated else 2) * block.width * block.mlp_width
  embedding = patches * p * p * config.channels * block.width
  return 2 * (embedding + config.depth * T * (projections + attention + feed_forward))
