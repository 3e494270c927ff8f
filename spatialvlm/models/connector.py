"""From the vision encoder's patches to the decoder's image tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from spatialvlm.core.mlp import ACTIVATIONS, linear
from spatialvlm.core.norm import LayerNorm
from spatialvlm.types import Features

_NORM_EPS = 1e-5  # in no config: PyTorch's default


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
  """How patches become image tokens.

  Attributes:
    factor: each square of factor x factor patches becomes one token (pixel shuffle); 1 for every patch one.
    norm: a layer norm on what they join to.
    activation: two layers with this between them, a key of `core.mlp.ACTIVATIONS`; None for one layer.
    bias: whether the layers have biases.
    init_scale: of freshly drawn weights of the last layer, against 1 / sqrt(inputs).
  """

  factor: int = 1
  norm: bool = False
  activation: str | None = None
  bias: bool = False
  init_scale: float = 1.0


class Connector(nnx.Module):
  """Pixel shuffle, then a projection: one layer (Idefics3, PaliGemma) or norm and two (InternVL)."""

  def __init__(self, config: ConnectorConfig, d_in: int, d_out: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.config = config
    joined = d_in * config.factor**2
    self.norm = LayerNorm(joined, _NORM_EPS, dtype=dtype, rngs=rngs) if config.norm else None
    # The input of a projection is no residual stream, so it carries no logical axis.
    make = lambda width, scale: linear(
      width, d_out, (None, "embed"), bias=config.bias, dtype=dtype, rngs=rngs, scale=scale
    )
    self.hidden = make(joined, 1.0) if config.activation else None
    self.proj = make(d_out if config.activation else joined, config.init_scale)

  def __call__(self, features: Features) -> jax.Array:
    """(N, rows * columns / factor^2, d_out). Both sides of the grid must be multiples of `factor`."""
    factor, (rows, columns) = self.config.factor, features.grid
    x_NPD = features.patches_NPD
    if factor > 1:
      x_NPD = rearrange(
        x_NPD,
        "n (r a c b) d -> n (r c) (a b d)",
        r=rows // factor,
        c=columns // factor,
        a=factor,
        b=factor,
      )
    if self.norm is not None:
      x_NPD = self.norm(x_NPD)
    if self.hidden is not None:
      x_NPD = ACTIVATIONS[self.config.activation](self.hidden(x_NPD))
    return self.proj(x_NPD)
