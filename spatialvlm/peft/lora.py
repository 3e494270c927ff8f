"""The adapted linear layer, and the two kinds of variables that are trained.

Sources: LoRA (Hu et al., arXiv 2106.09685), rsLoRA (Kalajdzievski, 2312.03732), DoRA (Liu et al.,
2402.09353), with the numerics of Hugging Face PEFT.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class LoraSpec:
  """How one linear layer is adapted. `dropout` acts on the adapter's input, in training only."""

  rank: int
  alpha: float
  rslora: bool = False
  dora: bool = False
  dropout: float = 0.0

  @property
  def scale(self) -> float:
    """Factor of the low-rank product: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class FullParam(nnx.Param):
  """A base parameter that is trained in full: a float32 master copy that the model reads in the base's dtype.

  Layers read `variable[...]` and get `compute_dtype`, so that a bfloat16 network stays one; gradients,
  optimizers and checkpoints see the raw float32 array.
  """

  def get_value(self, **kwargs) -> Any:
    return super().get_value(**kwargs).astype(self.dtype)

  @property
  def dtype(self) -> jnp.dtype:
    """What readers see, so that a layer which asks its weights for a dtype casts to the base's."""
    return jnp.dtype(self.get_metadata()["compute_dtype"])


class DropoutKey(nnx.Variable):
  """A random key that `seed_dropout` lays into a layer for one step; it is never stored or trained."""


class LoraLinear(nnx.Linear):
  """y = x W + b + s (dropout(x) A) B, in the dtype of x W; with DoRA the sum is rescaled per output.

  The base's `kernel` and `bias` variables stay under the same names, so that paths and checkpoints of
  the base do not change.

  Attributes:
    lora_a: (d_in, r) float32.
    lora_b: (r, d_out) float32.
    magnitude: (d_out,) float32, the length of each output's weight vector; None without DoRA.
    spec: rank, scale and dropout.
    layer_id: a number of the layer's own, so that layers under one step key draw different masks.
    dropout_key: set by `seed_dropout`; None, as it is outside a training step, means no dropout.
  """

  def __init__(self, base: nnx.Linear, spec: LoraSpec, lora_a, lora_b, magnitude, layer_id: int):
    self.kernel, self.bias = base.kernel, nnx.data(base.bias)
    self.in_features, self.out_features, self.use_bias = base.in_features, base.out_features, base.use_bias
    self.dtype, self.param_dtype, self.precision = base.dtype, base.param_dtype, base.precision
    self.dot_general, self.promote_dtype = base.dot_general, base.promote_dtype
    self.preferred_element_type = base.preferred_element_type
    self.lora_a, self.lora_b, self.magnitude = lora_a, lora_b, nnx.data(magnitude)
    self.spec, self.layer_id, self.dropout_key = spec, layer_id, nnx.data(None)

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = super().__call__(inputs, out_sharding)
    x = self._dropped(inputs)
    # float32 factors on a bfloat16 base must not promote the network after the first adapter
    h, a, b = self.promote_dtype((x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype or inputs.dtype)
    low = self.spec.scale * jnp.dot(h, a, precision=self.precision)  # scaled while it is narrow
    delta = jnp.dot(low, b, precision=self.precision, preferred_element_type=y.dtype)
    if self.magnitude is None:
      return y + delta
    base = y if x is inputs else super().__call__(x, out_sharding)
    if self.bias is not None:
      base = base - self.bias[...].astype(y.dtype)
    gain = (self.magnitude[...] / self.weight_norm()).astype(y.dtype)
    return y + (gain - 1) * base + gain * delta

  def weight_norm(self) -> jax.Array:
    """(d_out,) float32 length of each column of W + s A B, a constant to the gradient (DoRA, section 4.3)."""
    kernel = adapted_kernel(self.kernel[...], self.lora_a[...], self.lora_b[...], self.spec.scale)
    return jnp.linalg.norm(jax.lax.stop_gradient(kernel), axis=0)

  def _dropped(self, x: jax.Array) -> jax.Array:
    if self.dropout_key is None or not self.spec.dropout:
      return x
    keep = jax.random.bernoulli(self.dropout_key[...], 1.0 - self.spec.dropout, x.shape)
    return jnp.where(keep, x / (1.0 - self.spec.dropout), 0).astype(x.dtype)


def adapted_kernel(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
  """(d_in, d_out) float32 W + s A B, before DoRA's rescaling."""
  return kernel.astype(jnp.float32) + scale * jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def seed_dropout(model: nnx.Module, key: jax.Array) -> nnx.Module:
  """Turns the adapters' dropout on, for the one step whose `key` this is; returns the same `model`.

  Call it on the module that was just merged inside the step, so that the key never enters the frozen tree
  (a stored key would repeat one mask for ever). Without this call a model is deterministic.
  """
  for _, module in nnx.iter_modules(model):
    if isinstance(module, LoraLinear) and module.spec.dropout:
      module.dropout_key = DropoutKey(jax.random.fold_in(key, module.layer_id))
  return model
