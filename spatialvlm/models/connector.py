"""From the vision encoder's patches to the decoder's image tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from spatialvlm.core.mlp import linear
from spatialvlm.types import Features


class PixelShuffleLinear(nnx.Module):
  """Idefics3's connector: each square of factor x factor patches becomes one token, then one projection."""

  def __init__(self, d_in: int, d_out: int, factor: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    # The input of the projection is no residual stream, so it carries no logical axis.
    self.proj = linear(d_in * factor**2, d_out, (None, "embed"), bias=False, dtype=dtype, rngs=rngs)
    self.factor = factor

  def __call__(self, features: Features) -> jax.Array:
    """(N, rows * columns / factor^2, d_out). Both sides of the grid must be multiples of `factor`."""
    rows, columns = features.grid
    return self.proj(
      rearrange(
        features.patches_NPD,
        "n (r a c b) d -> n (r c) (a b d)",
        r=rows // self.factor,
        c=columns // self.factor,
        a=self.factor,
        b=self.factor,
      )
    )
