"""Linear layers with something around them, and the plain ones that come of merging."""

from __future__ import annotations

import jax
from flax import nnx

from spatialvlm.peft.variables import axis_names


class AroundLinear(nnx.Linear):
  """A linear layer that takes over `base`'s kernel, bias and ways of computing.

  The variables stay under the same names, so that paths and checkpoints of the base do not change. Calling
  it computes as the base's class does, so that it may stand around any kind of linear layer.
  """

  def __init__(self, base: nnx.Linear):
    self.kernel, self.bias = base.kernel, nnx.data(base.bias)
    self.in_features, self.out_features, self.use_bias = base.in_features, base.out_features, base.use_bias
    self.dtype, self.param_dtype, self.precision = base.dtype, base.param_dtype, base.precision
    self.dot_general, self.promote_dtype = base.dot_general, base.promote_dtype
    self.preferred_element_type = base.preferred_element_type
    self.base_call = type(base).__call__

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    return self.base_call(self, inputs, out_sharding)


def plain(layer: AroundLinear, kernel: jax.Array, bias: nnx.Variable | None) -> nnx.Linear:
  """An ordinary linear layer that computes as `layer` does, with another kernel and bias."""
  made = nnx.eval_shape(
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
  made.kernel = nnx.Param(kernel, **axis_names(layer.kernel))
  made.bias = bias
  return made
