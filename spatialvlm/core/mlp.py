"""Feed-forward networks: plain, and gated (SwiGLU, Shazeer, 2020)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.axes import logical
from spatialvlm.core.init import truncated_normal
from spatialvlm.core.products import dot_general

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def linear(
  d_in: int,
  d_out: int,
  axes: tuple[str | None, str | None],
  *,
  bias: bool,
  dtype: jnp.dtype,
  rngs: nnx.Rngs,
  scale: float = 1.0,
  out_dtype: jnp.dtype | None = None,
) -> nnx.Linear:
  """A linear layer with named axes. Weights are truncated normal of deviation scale / sqrt(d_in)."""
  return nnx.Linear(
    d_in,
    d_out,
    use_bias=bias,
    param_dtype=dtype,
    preferred_element_type=out_dtype,
    dot_general=dot_general,
    kernel_init=truncated_normal(scale * d_in**-0.5, *axes),
    kernel_metadata=logical(*axes),
    bias_metadata=logical(axes[1]),
    rngs=rngs,
  )


class Mlp(nnx.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) where `gated`.

  Args:
    out_scale: of the initial weights of `down`, the layer that writes into the residual stream.
  """

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    activation: str,
    gated: bool,
    bias: bool,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    out_scale: float = 1.0,
  ):
    if gated:
      self.gate_proj = linear(width, hidden, ("embed", "mlp"), bias=bias, dtype=dtype, rngs=rngs)
    self.up_proj = linear(width, hidden, ("embed", "mlp"), bias=bias, dtype=dtype, rngs=rngs)
    self.down_proj = linear(
      hidden, width, ("mlp", "embed"), bias=bias, dtype=dtype, rngs=rngs, scale=out_scale
    )
    self.gated = gated
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    act = ACTIVATIONS[self.activation]
    hidden = act(self.gate_proj(x)) * self.up_proj(x) if self.gated else act(self.up_proj(x))
    return self.down_proj(hidden)
