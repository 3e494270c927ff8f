"""LoRA: the adapted linear layer, and the method.

Sources: LoRA (Hu et al., arXiv 2106.09685), rsLoRA (Kalajdzievski, 2312.03732), DoRA (Liu et al.,
2402.09353), with the numerics of Hugging Face PEFT.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm.config import PeftConfig
from spatialvlm.core import axes, products
from spatialvlm.peft import foreign, linear, select
from spatialvlm.peft.method import LayerMethod, Site
from spatialvlm.peft.variables import AdapterParam, host, mesh_sharding, placed
from spatialvlm.types import UserError

# Ways to draw the factors that leave the base's weights as they were.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


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


class DropoutKey(nnx.Variable):
  """A random key that `Lora.reseed` lays into a layer for one step; it is never stored or trained."""


class LoraLinear(linear.AroundLinear):
  """y = x W + b + s (dropout(x) A) B, in the dtype of x W; with DoRA the sum is rescaled per output.

  Attributes:
    lora_a: (d_in, r) float32.
    lora_b: (r, d_out) float32.
    magnitude: (d_out,) float32, the length of each output's weight vector; None without DoRA.
    spec: rank, scale and dropout.
    layer_id: a number of the layer's own, so that layers under one step key draw different masks.
    dropout_key: set by `Lora.reseed`; None, as it is outside a training step, means no dropout.
  """

  def __init__(self, base: nnx.Linear, spec: LoraSpec, lora_a, lora_b, magnitude, layer_id: int):
    super().__init__(base)
    self.lora_a, self.lora_b, self.magnitude = lora_a, lora_b, nnx.data(magnitude)
    self.spec, self.layer_id, self.dropout_key = spec, layer_id, nnx.data(None)

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = super().__call__(inputs, out_sharding)
    x = self._dropped(inputs)
    # float32 factors on a bfloat16 base must not promote the network after the first adapter
    h, a, b = self.promote_dtype((x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype or inputs.dtype)
    low = self.spec.scale * products.matmul(h, a, self.precision)  # scaled while it is narrow
    delta = products.matmul(low, b, self.precision, y.dtype)
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


@dataclasses.dataclass(frozen=True)
class LoraOptions:
  """LoRA's own settings.

  Attributes:
    rank: r, of the factors.
    alpha: the product of the factors is scaled by alpha / r.
    rslora: scale by alpha / sqrt(r) instead.
    dora: train each output's magnitude beside its direction.
    dropout: of the adapters' input, in training.
    rank_pattern, alpha_pattern: regex over module names, matched in full -> value in place of
      `rank`, `alpha`.
  """

  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.0
  rslora: bool = False
  dora: bool = False
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Lora(LayerMethod):
  """LoRA, rsLoRA and DoRA on linear layers; PEFT folders of type LORA."""

  name = "lora"
  peft_type = "LORA"
  Options = LoraOptions
  target = r".*(text_model|language_model).*\.(q|k|v|o)_proj"
  fields = foreign.Fields(
    reads=(
      "r",
      "lora_alpha",
      "lora_dropout",
      "use_rslora",
      "use_dora",
      "rank_pattern",
      "alpha_pattern",
      "bias",
      "init_lora_weights",
      "ensure_weight_tying",
      # of variants that are refused by their own switches
      "megatron_core",
      "eva_config",
      "qalora_group_size",
    ),
    needs=("r", "lora_alpha"),
    fits={
      "r": foreign.is_positive,
      "lora_alpha": foreign.is_number,
      "lora_dropout": foreign.is_number,
      "rank_pattern": lambda v: isinstance(v, Mapping) and all(map(foreign.is_positive, v.values())),
      "alpha_pattern": lambda v: isinstance(v, Mapping) and all(map(foreign.is_number, v.values())),
    },
    regexes=("rank_pattern", "alpha_pattern"),
  )
  endings = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
  ties = True

  def check(self, options: LoraOptions) -> None:
    for where, rank in {"rank": options.rank, **options.rank_pattern}.items():
      if rank < 1:
        raise UserError(f"peft: the rank of {where!r} is {rank}; it must be at least 1")
    if not 0.0 <= options.dropout < 1.0:
      raise UserError(f"peft.dropout: {options.dropout} is not in [0, 1)")

  def refused(self, said: Mapping[str, Any]) -> list[str]:
    wrong = [f"bias={said['bias']!r}"] if said.get("bias", "none") != "none" else []
    if said.get("init_lora_weights", True) not in _PLAIN_STARTS:
      # such starts move a part of the base into the adapter: it fits a changed base only
      wrong.append(f"init_lora_weights={said['init_lora_weights']!r}")
    return wrong

  def spec_of(self, site: Site) -> LoraSpec | None:
    return site.module.spec if isinstance(site.module, LoraLinear) else None

  def specs(self, config: PeftConfig, options: LoraOptions, names: list[str]) -> dict[str, LoraSpec]:
    for field in ("rank_pattern", "alpha_pattern"):
      for pattern in getattr(options, field):
        select.match(pattern, names, f"peft.{field}")
    return {
      name: LoraSpec(
        rank=select.lookup(options.rank_pattern, name, options.rank),
        alpha=float(select.lookup(options.alpha_pattern, name, options.alpha)),
        rslora=options.rslora,
        dora=options.dora,
        dropout=options.dropout,
      )
      for name in names
    }

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, LoraSpec]:
    ranks, alphas = said.get("rank_pattern") or {}, said.get("alpha_pattern") or {}
    return {
      name: LoraSpec(
        rank=int(foreign.pattern_value(ranks, name, said["r"])),
        alpha=float(foreign.pattern_value(alphas, name, said["lora_alpha"])),
        rslora=bool(said.get("use_rslora")),
        dora=bool(said.get("use_dora")),
        dropout=float(said.get("lora_dropout") or 0.0) if options is None else options.dropout,
      )
      for name in names
    }

  def said_config(self, specs: Mapping[str, LoraSpec]) -> dict[str, Any]:
    """Layers that differ from the commonest rank or alpha are named one by one."""
    common = lambda field: collections.Counter(getattr(s, field) for s in specs.values()).most_common(1)[0][0]
    rank, alpha, one = common("rank"), common("alpha"), next(iter(specs.values()))
    number = lambda value: int(value) if float(value).is_integer() else value
    return {
      "r": rank,
      "lora_alpha": number(alpha),
      "lora_dropout": one.dropout,
      "bias": "none",
      "fan_in_fan_out": False,
      "init_lora_weights": True,
      "use_rslora": one.rslora,
      "use_dora": one.dora,
      "target_modules": sorted(specs),
      "rank_pattern": {re.escape(n): s.rank for n, s in specs.items() if s.rank != rank},
      "alpha_pattern": {re.escape(n): number(s.alpha) for n, s in specs.items() if s.alpha != alpha},
    }

  def fresh(self, site: Site, spec: LoraSpec, seed: int) -> LoraLinear:
    """A uniform in +-1/sqrt(d_in), B zero, as PEFT draws them.

    What a layer draws depends on `seed` and its name alone, not on the mesh or on the other layers.
    """
    base = site.module
    bound = 1.0 / math.sqrt(base.in_features)
    a = np.random.default_rng((seed, site.number)).uniform(-bound, bound, (base.in_features, spec.rank))
    return adapted(base, spec, a, np.zeros((spec.rank, base.out_features)), None, site.number)

  def shapes(self, site: Site, spec: LoraSpec) -> dict[str, tuple[int, ...]]:
    base = site.module
    found = {
      ".lora_A.weight": (spec.rank, base.in_features),
      ".lora_B.weight": (base.out_features, spec.rank),
    }
    return found | ({".lora_magnitude_vector": (base.out_features,)} if spec.dora else {})

  def restored(self, site: Site, spec: LoraSpec, arrays: Mapping[str, np.ndarray]) -> LoraLinear:
    a, b = arrays[".lora_A.weight"].T, arrays[".lora_B.weight"].T
    return adapted(site.module, spec, a, b, arrays.get(".lora_magnitude_vector"), site.number)

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    layer = site.module
    found = {".lora_A.weight": host(layer.lora_a).T, ".lora_B.weight": host(layer.lora_b).T}
    return found | ({} if layer.magnitude is None else {".lora_magnitude_vector": host(layer.magnitude)})

  def plain(self, site: Site) -> nnx.Linear:
    layer = site.module
    factors = (layer.lora_a[...], layer.lora_b[...])
    magnitude = None if layer.magnitude is None else layer.magnitude[...]
    sharding = mesh_sharding(layer.kernel.get_raw_value())
    folded = jax.jit(fold, static_argnums=4, out_shardings=sharding)
    return linear.plain(layer, folded(layer.kernel[...], *factors, magnitude, layer.spec.scale), layer.bias)

  def reseed(self, model: nnx.Module, key: jax.Array) -> None:
    """Turns dropout on for one step.

    Call it on the module that was just merged inside the step, so that the key never enters the frozen tree
    (a stored key would repeat one mask for ever). Without this call a model is deterministic.
    """
    for _, module in nnx.iter_modules(model):
      if isinstance(module, LoraLinear) and module.spec.dropout:
        module.dropout_key = DropoutKey(jax.random.fold_in(key, module.layer_id))


def adapted(
  base: nnx.Linear, spec: LoraSpec, a: np.ndarray, b: np.ndarray, magnitude, number: int
) -> LoraLinear:
  """A LoraLinear around `base`, its factors float32 on the base's mesh, each axis split as the base's is.

  With DoRA and `magnitude` None, the magnitude is the base's own, so that a zero B changes nothing.
  """
  in_name, out_name = base.kernel.get_metadata().get("out_sharding") or (None, None)
  sharding = mesh_sharding(base.kernel.get_raw_value())
  in_mesh, out_mesh = (*sharding.spec, None, None)[:2] if sharding else (None, None)

  def factor(value, names, places):
    metadata = axes.logical(*names) if in_name or out_name else {}
    return AdapterParam(placed(value, sharding, PartitionSpec(*places)), **metadata)

  layer = LoraLinear(
    base,
    spec,
    factor(a, (in_name, None), (in_mesh, None)),
    factor(b, (None, out_name), (None, out_mesh)),
    None,
    number,
  )
  if spec.dora:
    if magnitude is None:
      out = sharding and NamedSharding(sharding.mesh, PartitionSpec(out_mesh))
      magnitude = jax.jit(_column_norms, out_shardings=out)(base.kernel[...])
    layer.magnitude = factor(magnitude, (out_name,), (out_mesh,))
  return layer


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
