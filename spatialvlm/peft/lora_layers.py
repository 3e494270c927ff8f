"""Layers with LoRA around them: linear ones and embeddings.

Sources: LoRA (Hu et al., arXiv 2106.09685), rsLoRA (Kalajdzievski, 2312.03732), DoRA (Liu et al.,
2402.09353), with the numerics of Hugging Face PEFT.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm.core import axes, products
from spatialvlm.models.decoder import Embed
from spatialvlm.peft import linear
from spatialvlm.peft.variables import AdapterParam, axis_names, beside, mesh_sharding, placed
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class LoraSpec:
  """How one layer is adapted.

  Attributes:
    dropout: of the adapter's input, in training only.
    bias: whether the low-rank product has a bias of its own (PEFT's lora_bias).
    init: what the factors begin with (`lora_start`).
  """

  rank: int
  alpha: float
  rslora: bool = False
  dora: bool = False
  dropout: float = 0.0
  bias: bool = False
  init: str = "default"

  @property
  def scale(self) -> float:
    """Factor of the low-rank product: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class DropoutKey(nnx.Variable):
  """A random key that `Lora.reseed` lays into a layer for one step; it is never stored or trained."""


class Start(nnx.Variable):
  """A factor that an adapter began with and that stays as it was; never trained or exported."""


class LoraLinear(linear.AroundLinear):
  """y = x W + b + s ((dropout(x) A) B + c), in the dtype of x W; with DoRA the sum is rescaled per output.

  Where the factors began with a part of W (PiSSA, OLoRA), W is read without it: W - s A0 B0. The base itself
  stays as it is, at the price of a second product of that rank.

  Attributes:
    lora_a: (d_in, r) float32.
    lora_b: (r, d_out) float32.
    lora_bias: c, (d_out,) float32, or None.
    magnitude: (d_out,) float32, the length of each output's weight vector; None without DoRA.
    start_a, start_b: A0 and B0, frozen; None where the factors began with a product of zero.
    spec: rank, scale and dropout.
    layer_id: a number of the layer's own, so that layers under one step key draw different masks.
    dropout_key: set by `Lora.reseed`; None, as it is outside a training step, means no dropout.
  """

  def __init__(self, base: nnx.Linear, spec: LoraSpec, lora_a, lora_b, layer_id: int):
    super().__init__(base)
    self.lora_a, self.lora_b, self.spec, self.layer_id = lora_a, lora_b, spec, layer_id
    self.lora_bias, self.magnitude, self.dropout_key = nnx.data(None), nnx.data(None), nnx.data(None)
    self.start_a, self.start_b = nnx.data(None), nnx.data(None)

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = self._base(inputs, out_sharding)
    x = dropped(inputs, self.dropout_key, self.spec.dropout)
    delta = self._low_rank(x, self.lora_a, self.lora_b, y.dtype)
    if self.lora_bias is not None:
      delta = delta + (self.spec.scale * self.lora_bias[...]).astype(y.dtype)
    if self.magnitude is None:
      return y + delta
    base = y if x is inputs else self._base(x, out_sharding)
    if self.bias is not None:
      base = base - self.bias[...].astype(y.dtype)
    gain = (self.magnitude[...] / self.weight_norm()).astype(y.dtype)
    return y + (gain - 1) * base + gain * delta

  def weight_norm(self) -> jax.Array:
    """(d_out,) float32 length of each column of W + s A B, a constant to the gradient (DoRA, section 4.3)."""
    kernel = adapted_kernel(self.kernel[...], *self.factors(), self.spec.scale)
    return jnp.linalg.norm(jax.lax.stop_gradient(kernel), axis=0)

  def factors(self) -> tuple[jax.Array, jax.Array]:
    """Float32 (d_in, r), (r, d_out) whose product stands beside the base's kernel: A0 and B0 count in it."""
    a, b = self.lora_a[...], self.lora_b[...]
    if self.start_a is None:
      return a, b
    return jnp.concatenate([a, self.start_a[...]], 1), jnp.concatenate([b, -self.start_b[...]], 0)

  def _base(self, x: jax.Array, out_sharding) -> jax.Array:
    y = super().__call__(x, out_sharding)
    return y if self.start_a is None else y - self._low_rank(x, self.start_a, self.start_b, y.dtype)

  def _low_rank(self, x: jax.Array, a: nnx.Variable, b: nnx.Variable, out_dtype) -> jax.Array:
    # float32 factors on a bfloat16 base must not promote the network after the first adapter
    h, a, b = self.promote_dtype((x, a[...], b[...]), dtype=self.dtype or x.dtype)
    low = self.spec.scale * products.matmul(h, a, self.precision)  # scaled while it is narrow
    return products.matmul(low, b, self.precision, out_dtype)

  def plain(self) -> nnx.Linear:
    """The linear layer that computes the same; the bias of the product goes into the layer's own.

    Raises:
      UserError: the layer has no bias to hold that of the product.
    """
    magnitude = None if self.magnitude is None else self.magnitude[...]
    sharding = mesh_sharding(self.kernel.get_raw_value())
    folded = jax.jit(fold, static_argnums=4, out_shardings=sharding)
    kernel = folded(self.kernel[...], *self.factors(), magnitude, self.spec.scale)
    if self.lora_bias is None:
      return linear.plain(self, kernel, self.bias)
    if self.bias is None:
      raise UserError(
        "an adapter with lora_bias stands on a linear layer without a bias, so it cannot be merged into the"
        " model's weights; export the adapter itself (launch/export.py --to=adapter)"
      )
    bias = self.bias[...].astype(jnp.float32) + self.spec.scale * self.lora_bias[...]
    return linear.plain(self, kernel, nnx.Param(bias.astype(self.bias.dtype), **axis_names(self.bias)))


class LoraEmbed(Embed):
  """A table of embeddings E read as E[ids] + s A[ids] B. A head that is tied to E reads E alone, as in PEFT.

  Attributes:
    lora_a: (V, r) float32, at first zero.
    lora_b: (r, D) float32.
  """

  def __init__(self, base: Embed, spec: LoraSpec, a: np.ndarray, b: np.ndarray):
    self.take_over(base)
    self.spec = spec
    self.lora_a, self.lora_b = _factors(base.embedding, a, b, AdapterParam)

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = super().__call__(inputs, out_sharding)
    low = self.spec.scale * jnp.take(self.lora_a[...], inputs, axis=0)
    return y + products.matmul(low.astype(y.dtype), self.lora_b[...].astype(y.dtype))

  def plain(self) -> Embed:
    """A table that reads the same."""
    table = self.embedding
    sharding = mesh_sharding(table.get_raw_value())
    folded = jax.jit(fold, static_argnums=4, out_shardings=sharding)
    made = nnx.eval_shape(
      lambda: Embed(self.num_embeddings, self.features, param_dtype=self.param_dtype, rngs=nnx.Rngs(0))
    )
    value = folded(table[...], self.lora_a[...], self.lora_b[...], None, self.spec.scale)
    made.embedding = nnx.Param(value, **axis_names(table))
    return made


def dropped(x: jax.Array, key: DropoutKey | None, share: float) -> jax.Array:
  """Dropout of an adapter's input; `x` itself where there is no key."""
  if key is None or not share:
    return x
  keep = jax.random.bernoulli(key[...], 1.0 - share, x.shape)
  return jnp.where(keep, x / (1.0 - share), 0).astype(x.dtype)


def adapted_kernel(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
  """(d_in, d_out) float32 W + s A B, before DoRA's rescaling."""
  return kernel.astype(jnp.float32) + scale * jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def adapted(
  base: nnx.Linear,
  spec: LoraSpec,
  a: np.ndarray,
  b: np.ndarray,
  magnitude: np.ndarray | None,
  number: int,
  bias: np.ndarray | None = None,
  start: tuple[np.ndarray, np.ndarray] | None = None,
) -> LoraLinear:
  """A LoraLinear around `base`, its factors float32 on the base's mesh (`_factors`).

  Args:
    magnitude: with DoRA, where None, the base's own, so that a zero B changes nothing.
    bias: of the product; zero where it is None and `spec` wants one.
    start: A0 and B0.
  """
  layer = LoraLinear(base, spec, *_factors(base.kernel, a, b, AdapterParam), number)
  if start is not None:
    layer.start_a, layer.start_b = _factors(base.kernel, *start, Start)
  if spec.bias:
    layer.lora_bias = beside(base.kernel, np.zeros(base.out_features) if bias is None else bias, 1)
  if spec.dora:
    if magnitude is None:
      sharding = mesh_sharding(base.kernel.get_raw_value())
      names = axes.unsplit((base.kernel.get_metadata().get("out_sharding") or (None, None))[1])
      place = sharding and NamedSharding(sharding.mesh, axes.spec(names, (base.out_features,), sharding.mesh))
      magnitude = jax.jit(_column_norms, out_shardings=place)(base.kernel[...])
    layer.magnitude = beside(base.kernel, magnitude, 1)
  return layer


def _factors(weight: nnx.Variable, a: np.ndarray, b: np.ndarray, kind: type) -> tuple[Any, Any]:
  """Float32 (m, r), (r, n) beside a weight (m, n), on its mesh, m and n split as the weight's axes are where
  that pays (`core.axes.unsplit`)."""
  first, second = axes.unsplit(*(weight.get_metadata().get("out_sharding") or (None, None)))
  sharding = mesh_sharding(weight.get_raw_value())

  def factor(value, *names):
    place = axes.spec(names, value.shape, sharding.mesh) if sharding else PartitionSpec()
    return kind(placed(value, sharding, place), **(axes.logical(*names) if any(names) else {}))

  return factor(a, first, None), factor(b, None, second)


def fold(
  kernel: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array | None, scale: float
) -> jax.Array:
  """The adapted kernel (d_in, d_out) in the dtype of `kernel`, computed in float32."""
  whole = adapted_kernel(kernel, a, b, scale)
  if magnitude is not None:
    whole = whole * (magnitude / jnp.linalg.norm(whole, axis=0))
  return whole.astype(kernel.dtype)


def _column_norms(kernel: jax.Array) -> jax.Array:
  return jnp.linalg.norm(kernel.astype(jnp.float32), axis=0)
