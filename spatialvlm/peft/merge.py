"""Adapters folded into their base, for export and for speed at inference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.peft import select, surgery
from spatialvlm.peft.lora import FullParam, LoraLinear, adapted_kernel


def merge(vlm: nnx.Module) -> nnx.Module:
  """A model without adapters that computes the same; `vlm` itself is left as it is.

  W + s A B (rescaled with DoRA) is computed in float32 and stored in the base's dtype and sharding;
  parameters trained in full become plain ones in the base's dtype. Unchanged arrays are shared, not copied.
  """
  merged = nnx.clone(vlm, variables=True)
  for path, module in list(nnx.iter_modules(merged)):
    if isinstance(module, LoraLinear):
      select.put(merged, path, _plain(module))
  for variable in [v for _, v in nnx.iter_graph(merged) if isinstance(v, FullParam)]:
    surgery.replace_variable(merged, variable, nnx.Param(variable[...], **surgery.axis_names(variable)))
  return merged


def _plain(layer: LoraLinear) -> nnx.Linear:
  """An ordinary linear layer with the adapted weights."""
  plain = nnx.eval_shape(
    lambda: nnx.Linear(
      layer.in_features,
      layer.out_features,
      use_bias=layer.use_bias,
      dtype=layer.dtype,
      param_dtype=layer.param_dtype,
      precision=layer.precision,
      dot_general=layer.dot_general,
      promote_dtype=layer.promote_dtype,
      preferred_element_type=layer.preferred_element_type,
      rngs=nnx.Rngs(0),
    )
  )
  plain.kernel = nnx.Param(_folded(layer), **surgery.axis_names(layer.kernel))
  plain.bias = layer.bias
  return plain


def _folded(layer: LoraLinear) -> jax.Array:
  sharding = surgery.mesh_sharding(layer.kernel.get_raw_value())
  factors = (layer.lora_a[...], layer.lora_b[...], None if layer.magnitude is None else layer.magnitude[...])
  return jax.jit(fold, static_argnums=4, out_shardings=sharding)(
    layer.kernel[...], *factors, layer.spec.scale
  )


def fold(
  kernel: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array | None, scale: float
) -> jax.Array:
  """The adapted kernel (d_in, d_out) in the dtype of `kernel`, computed in float32."""
  adapted = adapted_kernel(kernel, a, b, scale)
  if magnitude is not None:
    adapted = adapted * (magnitude / jnp.linalg.norm(adapted, axis=0))
  return adapted.astype(kernel.dtype)
