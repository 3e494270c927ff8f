"""Adapters folded into their base, for export and for speed at inference."""

from __future__ import annotations

from flax import nnx

from spatialvlm.core.quantised import QuantisedLinear, decoded
from spatialvlm.peft import linear, methods, select
from spatialvlm.peft.variables import FullParam, axis_names, replace_variable
from spatialvlm.types import UserError


def merge(vlm: nnx.Module) -> nnx.Module:
  """A model without adapters that computes the same; `vlm` itself is left as it is.

  Products are computed in float32 and stored in the base's dtype and sharding; parameters trained in full
  become plain ones in the base's dtype, and so do quantised kernels: what an adapter was trained over is what
  it is merged into. Unchanged arrays are shared, not copied.

  Raises:
    UserError: a method's adapter has no equal among plain layers.
  """
  merged = nnx.clone(vlm, variables=True)
  for method in methods.carried(merged):
    if not method.mergeable:
      raise UserError(
        f"an adapter of method {method.name!r} cannot be merged into the model's weights; export the adapter"
        " itself (launch/export.py --to=adapter)"
      )
    for path, module in method.merged(merged).items():
      select.put(merged, path, module)
  for variable in [v for _, v in nnx.iter_graph(merged) if isinstance(v, FullParam)]:
    replace_variable(merged, variable, nnx.Param(variable[...], **axis_names(variable)))
  for path, layer in [found for found in nnx.iter_modules(merged) if isinstance(found[1], QuantisedLinear)]:
    select.put(merged, path, linear.plain(layer, decoded(layer.kernel), layer.bias))
  return merged
