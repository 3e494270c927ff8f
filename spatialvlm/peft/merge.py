"""Adapters folded into their base, for export and for speed at inference."""

from __future__ import annotations

import jax
from flax import nnx

from spatialvlm.peft import select, surgery
from spatialvlm.peft.lora import FullParam, LoraLinear


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
  kernel = layer.adapted_kernel()
  if layer.magnitude is not None:
    kernel = kernel * (layer.magnitude[...] / layer.weight_norm())
  base = layer.kernel[...]
  kernel = kernel.astype(base.dtype)
  return kernel if isinstance(kernel, jax.core.Tracer) else jax.device_put(kernel, base.sharding)
