"""VeRA: every weight's change out of one frozen random pair of matrices, by two trained vectors a layer.

Source: VeRA (Kopiczko et al., arXiv 2310.11454), with the numerics of Hugging Face PEFT. The pair is drawn
once for the largest layer, and every layer reads the part that fits it. PEFT draws it by PyTorch's generator,
which nothing else repeats; so the pair itself is in the folder (`save_projection`), and only that is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from spatialvlm.config import PeftConfig
from spatialvlm.core import products
from spatialvlm.peft import foreign, linear, select
from spatialvlm.peft.lora_layers import DropoutKey, dropped
from spatialvlm.peft.method import Export, Folder, Given, LayerMethod, LayerOptions, Site
from spatialvlm.peft.variables import AdapterParam, beside, host, mesh_sharding, placed
from spatialvlm.types import UserError

_D, _B = ".vera_lambda_d", ".vera_lambda_b"
# Of the whole model, under PEFT's names.
_FIRST, _SECOND = "base_model.vera_A", "base_model.vera_B"


@dataclasses.dataclass(frozen=True)
class VeraOptions(LayerOptions):
  """VeRA's own settings.

  Attributes:
    rank: r, of the random pair; of a layer r + d_out numbers are trained.
    d_initial: what d begins with; b begins at zero.
    dropout: of the adapters' input, in training.
  """

  rank: int = 256
  d_initial: float = 0.1
  dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class VeraSpec:
  """How the layers are adapted; `key`: the seed that the pair was drawn with, by whoever drew it."""

  rank: int
  d_initial: float = 0.1
  dropout: float = 0.0
  key: int = 0


class Projection(nnx.Variable):
  """One of the random pair, float32 and frozen: (r, most d_in) or (most d_out, r), shared by all layers."""


Pair = tuple[Projection, Projection]


class VeraLinear(linear.AroundLinear):
  """y = x W + bias + b * ((d * (dropout(x) A)) B), in the dtype of x W.

  Attributes:
    first, second: the shared pair, of which A^T and B^T are the first columns and rows.
    vera_d: d, (r,) float32.
    vera_b: b, (d_out,) float32.
    dropout_key: set by `Vera.reseed`; None, as it is outside a training step, means no dropout.
  """

  def __init__(
    self, base: nnx.Linear, spec: VeraSpec, pair: Pair, d: np.ndarray, b: np.ndarray, layer_id: int
  ):
    super().__init__(base)
    self.spec, self.layer_id = spec, layer_id
    self.first, self.second = pair
    self.vera_d = AdapterParam(placed(d, mesh_sharding(base.kernel.get_raw_value()), PartitionSpec()))
    self.vera_b = beside(base.kernel, b, 1)
    self.dropout_key = nnx.data(None)

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = super().__call__(inputs, out_sharding)
    x = dropped(inputs, self.dropout_key, self.spec.dropout)
    x, a, b, d = self.promote_dtype((x, *self.pair(), self.vera_d[...]), dtype=self.dtype or x.dtype)
    low = d * products.matmul(x, a, self.precision)
    return y + self.vera_b[...].astype(y.dtype) * products.matmul(low, b, self.precision, y.dtype)

  def pair(self) -> tuple[jax.Array, jax.Array]:
    """A (d_in, r) and B (r, d_out), float32."""
    return self.first[...][:, : self.in_features].T, self.second[...][: self.out_features].T

  def plain(self) -> nnx.Linear:
    """The linear layer that computes the same."""
    folded = jax.jit(_fold, out_shardings=mesh_sharding(self.kernel.get_raw_value()))
    kernel = folded(self.kernel[...], *self.pair(), self.vera_d[...], self.vera_b[...])
    return linear.plain(self, kernel, self.bias)


class Vera(LayerMethod):
  """VeRA on linear layers; PEFT folders of type VERA that hold their projections."""

  name = "vera"
  peft_type = "VERA"
  Options = VeraOptions
  target = r".*(text_model|language_model).*\.(q|k|v|o)_proj"
  fields = foreign.Fields(
    reads=(
      *("r", "projection_prng_key", "save_projection", "vera_dropout"),
      *("d_initial", "bias", "init_weights"),
    ),
    needs=("r",),
    fits={
      "r": foreign.is_positive,
      "projection_prng_key": lambda key: isinstance(key, int),
      "vera_dropout": foreign.is_number,
      "d_initial": foreign.is_number,
    },
  )
  endings = (_D, _B)
  bare = (_FIRST, _SECOND)

  def check(self, options: VeraOptions) -> None:
    if options.rank < 1:
      raise UserError(f"peft.rank: {options.rank}; it must be at least 1")
    if not 0.0 <= options.dropout < 1.0:
      raise UserError(f"peft.dropout: {options.dropout} is not in [0, 1)")
    if not options.d_initial:
      raise UserError("peft.d_initial: 0; b begins at zero too, and then neither would ever learn")

  def refused(self, said: Mapping[str, Any]) -> list[str]:
    wrong = [] if said.get("bias") in (None, "none") else [f"bias={said['bias']!r}"]
    if said.get("save_projection") is False:
      wrong.append(
        "save_projection=False (its projections were drawn by PyTorch's generator, and can only be read where"
        " they were saved: load it with peft, set save_projection=True, save it again)"
      )
    return wrong

  def spec_of(self, site: Site) -> VeraSpec | None:
    return site.module.spec if isinstance(site.module, VeraLinear) else None

  def specs(self, config: PeftConfig, options: VeraOptions, names: list[str]) -> dict[str, VeraSpec]:
    return dict.fromkeys(names, VeraSpec(options.rank, options.d_initial, options.dropout, config.seed))

  def said_specs(
    self, said: Mapping[str, Any], names: list[str], options: VeraOptions | None
  ) -> dict[str, VeraSpec]:
    initial = said.get("d_initial")
    spec = VeraSpec(
      rank=said["r"],
      d_initial=0.1 if initial is None else float(initial),
      dropout=float(said.get("vera_dropout") or 0.0) if options is None else options.dropout,
      key=said.get("projection_prng_key") or 0,
    )
    return dict.fromkeys(names, spec)

  def said_config(self, specs: Mapping[str, VeraSpec]) -> dict[str, Any]:
    spec = next(iter(specs.values()))
    return {
      "target_modules": sorted(specs),
      "r": spec.rank,
      "projection_prng_key": spec.key,
      "save_projection": True,
      "vera_dropout": spec.dropout,
      "d_initial": spec.d_initial,
      "bias": "none",
      "fan_in_fan_out": False,
      "init_weights": True,
    }

  def apply(self, vlm: nnx.Module, config: PeftConfig, options: VeraOptions, given: Given) -> None:
    plan, sites = self.plan(vlm, config, options), self.sites(vlm)
    shapes = _shapes([sites[name] for name in plan], options.rank)
    pair = _drawn(shapes, config.seed)
    fresh = lambda site, spec: (np.full(spec.rank, spec.d_initial), np.zeros(site.module.out_features))
    _put(vlm, pair, [(sites[name], spec, *fresh(sites[name], spec)) for name, spec in plan.items()])

  def wanted(self, vlm: nnx.Module, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    sites = self.sites(vlm)
    specs = self.specs_of_folder(said, sites, head, None, select.older(vlm))
    shapes = _shapes([sites[name] for name in specs], said["r"]) if specs else {}
    return super().wanted(vlm, said, head) | shapes

  def shapes(self, site: Site, spec: VeraSpec) -> dict[str, tuple[int, ...]]:
    return {_D: (spec.rank,), _B: (site.module.out_features,)}

  def restore(self, vlm: nnx.Module, folder: Folder, options: VeraOptions | None = None) -> None:
    sites, arrays = self.sites(vlm), folder.arrays
    specs = self.specs_of_folder(folder.said, sites, folder.head, options, select.older(vlm))
    values = lambda name: (arrays[name + _D], arrays[name + _B])
    layers = [(sites[name], spec, *values(name)) for name, spec in specs.items()]
    _put(vlm, (arrays[_FIRST], arrays[_SECOND]), layers)

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    return {_D: host(site.module.vera_d), _B: host(site.module.vera_b)}

  def export(self, vlm: nnx.Module) -> Export:
    own = super().export(vlm)
    site, _ = next(iter(self.adapted_sites(vlm).values()))
    pair = {_FIRST: host(site.module.first), _SECOND: host(site.module.second)}
    return Export(own.config, {**own.arrays, **pair})

  def plain(self, site: Site) -> nnx.Linear:
    return site.module.plain()

  def reseed(self, model: nnx.Module, key: jax.Array) -> None:
    """Turns dropout on for one step, as `Lora.reseed`."""
    for _, module in nnx.iter_modules(model):
      if isinstance(module, VeraLinear) and module.spec.dropout:
        module.dropout_key = DropoutKey(jax.random.fold_in(key, module.layer_id))


def _shapes(sites: Iterable[Site], rank: int) -> dict[str, tuple[int, int]]:
  """Shapes of the pair in the file: it fits the largest input and the largest output of the layers."""
  sizes = [(site.module.in_features, site.module.out_features) for site in sites]
  most_in, most_out = (max(numbers) for numbers in zip(*sizes, strict=True))
  return {_FIRST: (rank, most_in), _SECOND: (most_out, rank)}


def _drawn(shapes: Mapping[str, tuple[int, int]], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Uniform in +-sqrt(6 / columns), as PEFT draws it (Kaiming), of the seed and the shapes alone."""
  rng = np.random.default_rng(seed)
  first, second = (
    rng.uniform(-1, 1, shapes[name]) * math.sqrt(6 / shapes[name][1]) for name in (_FIRST, _SECOND)
  )
  return first, second


def _put(
  vlm: nnx.Module,
  pair: tuple[np.ndarray, np.ndarray],
  layers: list[tuple[Site, VeraSpec, np.ndarray, np.ndarray]],
) -> None:
  """Surgery in place, with one pair for all layers, whole on every device."""
  sharding = mesh_sharding(layers[0][0].module.kernel.get_raw_value())
  first, second = (Projection(placed(value, sharding, PartitionSpec())) for value in pair)
  for site, spec, d, b in layers:
    select.put(vlm, site.path, VeraLinear(site.module, spec, (first, second), d, b, site.number))


def _fold(kernel: jax.Array, a: jax.Array, b: jax.Array, d: jax.Array, out: jax.Array) -> jax.Array:
  """The adapted kernel (d_in, d_out) in the dtype of `kernel`, computed in float32."""
  change = jnp.dot(a * d, b, precision=jax.lax.Precision.HIGHEST) * out
  return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
