"""Bottleneck adapters: a narrow network A(x) = W_up f(W_down x + b) + c beside, or after, parts of a block.

Three readings, on pre-norm blocks; s is the residual stream, o what a sublayer adds to it:

- `houlsby` (Houlsby et al., arXiv 1902.00751): after attention and after the feed-forward network, on the
  output of the last linear layer, before a norm of the branch and before the residual is added: o + A(o).
- `pfeiffer` (Pfeiffer et al., 2005.00247): once a block, on the stream behind the feed-forward network's
  residual: s + A(s). The paper's norms around it are those of post-norm models and have no place here.
- `parallel` (He et al., 2110.04366): beside the feed-forward network, of what that reads, after its norm, and
  scaled: o + 4 A(norm(s)). AdapterHub's reads s before the norm.

W_down is drawn, W_up and both biases begin at zero, so that a fresh adapter changes nothing. None of them can
be merged, since f stands between the two products. PEFT has no such method; the folders are ours, in PEFT's
form, under the `peft_type` of each class (`docs/methods.md`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from spatialvlm.config import PeftConfig, nearest
from spatialvlm.core import products
from spatialvlm.core.block import Block
from spatialvlm.core.mlp import ACTIVATIONS, Mlp
from spatialvlm.hub import rules
from spatialvlm.peft import foreign, linear
from spatialvlm.peft.method import LayerMethod, LayerOptions, Site, sites_at
from spatialvlm.peft.variables import AdapterParam, host, mesh_sharding, placed
from spatialvlm.types import UserError

# Deviation of fresh W_down, as BERT's weights are drawn.
_DEVIATION = 0.02
FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, **ACTIVATIONS}


@dataclasses.dataclass(frozen=True)
class BottleneckSpec:
  """One adapter; the fields are those of `HoulsbyOptions`."""

  reduction_factor: int
  activation: str
  scaling: float

  def width(self, D: int) -> int:
    """M, its units on a residual stream of width D."""
    return max(D // self.reduction_factor, 1)


class Bottleneck(nnx.Module):
  """scaling * (f(x W_down + b) W_up + c), in the dtype of x.

  Attributes:
    down: (D, M) float32; down_bias: (M,).
    up: (M, D) float32; up_bias: (D,).
  """

  def __init__(self, spec: BottleneckSpec, down, down_bias, up, up_bias):
    self.spec = spec
    self.down, self.down_bias, self.up, self.up_bias = down, down_bias, up, up_bias

  def __call__(self, x: jax.Array) -> jax.Array:
    own = lambda variable: variable[...].astype(x.dtype)
    hidden = FUNCTIONS[self.spec.activation](products.matmul(x, own(self.down)) + own(self.down_bias))
    return self.spec.scaling * (products.matmul(hidden, own(self.up)) + own(self.up_bias))


class AdaptedLinear(linear.AroundLinear):
  """A linear layer whose output o becomes o + A(o)."""

  def __init__(self, base: nnx.Linear, adapter: Bottleneck):
    super().__init__(base)
    self.adapter = adapter

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = super().__call__(inputs, out_sharding)
    return y + self.adapter(y)


class AdaptedMlp(Mlp):
  """A feed-forward network whose output gets A of its input added."""

  def __init__(self, base: Mlp, adapter: Bottleneck):
    if base.gated:
      self.gate_proj = base.gate_proj
    self.up_proj, self.down_proj = base.up_proj, base.down_proj
    self.gated, self.activation, self.adapter = base.gated, base.activation, adapter

  def __call__(self, x: jax.Array) -> jax.Array:
    return super().__call__(x) + self.adapter(x)


class AdaptedBlock(Block):
  """A block behind which the residual stream s becomes s + A(s)."""

  def __init__(self, base: Block, adapter: Bottleneck):
    self.attn_norm, self.attn, self.mlp_norm, self.mlp = base.attn_norm, base.attn, base.mlp_norm, base.mlp
    self.attn_scale, self.mlp_scale = base.attn_scale, base.mlp_scale
    self.attn_out_norm, self.mlp_out_norm = base.attn_out_norm, base.mlp_out_norm
    self.adapter = adapter

  def __call__(self, x_BTD, *args, **kwargs):
    x_BTD, read = super().__call__(x_BTD, *args, **kwargs)
    return x_BTD + self.adapter(x_BTD), read


@dataclasses.dataclass(frozen=True)
class HoulsbyOptions(LayerOptions):
  """Settings of a bottleneck adapter.

  Attributes:
    reduction_factor: by how much the bottleneck is narrower than the residual stream.
    activation: of the bottleneck: "relu", "silu", "gelu", "gelu_tanh", "quick_gelu".
    scaling: of the adapter's output.
  """

  reduction_factor: int = 16
  activation: str = "silu"
  scaling: float = 1.0


@dataclasses.dataclass(frozen=True)
class PfeifferOptions(HoulsbyOptions):
  """As Houlsby's, with the paper's activation."""

  activation: str = "relu"


@dataclasses.dataclass(frozen=True)
class ParallelOptions(HoulsbyOptions):
  """As Houlsby's, with the paper's width, activation and scaling."""

  reduction_factor: int = 2
  activation: str = "relu"
  scaling: float = 4.0


class BottleneckMethod(LayerMethod):
  """What the three have in common: a `Bottleneck` named `adapter` in each adapted module.

  Attributes:
    adapted: class of the adapted modules, made of the plain one and its adapter.
  """

  adapted: ClassVar[type]
  mergeable = False
  fields = foreign.Fields(
    reads=("reduction_factor", "activation", "scaling"),
    needs=("reduction_factor", "activation", "scaling"),
    fits={
      "reduction_factor": foreign.is_positive,
      "activation": lambda value: value in FUNCTIONS,
      "scaling": foreign.is_number,
    },
  )
  endings = (".adapter_down.weight", ".adapter_down.bias", ".adapter_up.weight", ".adapter_up.bias")

  def check(self, options: HoulsbyOptions) -> None:
    if options.reduction_factor < 1:
      raise UserError(f"peft.reduction_factor: {options.reduction_factor}; it must be at least 1")
    if options.activation not in FUNCTIONS:
      why = nearest(options.activation, FUNCTIONS)
      raise UserError(f"peft.activation: there is no {options.activation!r}; {why}")

  def spec_of(self, site: Site) -> BottleneckSpec | None:
    return site.module.adapter.spec if isinstance(site.module, self.adapted) else None

  def specs(self, config: PeftConfig, options: HoulsbyOptions, names: list[str]) -> dict[str, BottleneckSpec]:
    spec = BottleneckSpec(options.reduction_factor, options.activation, float(options.scaling))
    return dict.fromkeys(names, spec)

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, BottleneckSpec]:
    spec = BottleneckSpec(said["reduction_factor"], said["activation"], float(said["scaling"]))
    return dict.fromkeys(names, spec)

  def said_config(self, specs: Mapping[str, BottleneckSpec]) -> dict[str, Any]:
    return {"target_modules": sorted(specs), **dataclasses.asdict(next(iter(specs.values())))}

  def fresh(self, site: Site, spec: BottleneckSpec, seed: int) -> nnx.Module:
    """What is drawn depends on `seed` and the module's name alone."""
    rng, D = np.random.default_rng((seed, site.number)), _width(site.module)
    M = spec.width(D)
    values = (_DEVIATION * rng.normal(size=(D, M)), np.zeros(M), np.zeros((M, D)), np.zeros(D))
    return self._around(site.module, spec, values)

  def shapes(self, site: Site, spec: BottleneckSpec) -> dict[str, tuple[int, ...]]:
    D = _width(site.module)
    M = spec.width(D)
    return dict(zip(self.endings, ((M, D), (M,), (D, M), (D,)), strict=True))

  def restored(self, site: Site, spec: BottleneckSpec, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    return self._around(site.module, spec, tuple(arrays[end].T for end in self.endings))

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    made = site.module.adapter
    values = (made.down, made.down_bias, made.up, made.up_bias)
    return {end: host(value).T for end, value in zip(self.endings, values, strict=True)}

  def _around(self, module: nnx.Module, spec: BottleneckSpec, values: tuple[np.ndarray, ...]) -> nnx.Module:
    """They are small: each device has the whole of them."""
    base = next(v for _, v in nnx.iter_graph(module) if isinstance(v, nnx.Param))
    sharding = mesh_sharding(base.get_raw_value())
    variables = [AdapterParam(placed(value, sharding, PartitionSpec())) for value in values]
    return self.adapted(module, Bottleneck(spec, *variables))


class Houlsby(BottleneckMethod):
  """Adapters behind the last linear layer of attention and feed-forward network."""

  name = "houlsby"
  peft_type = "SPATIALVLM_HOULSBY"
  Options = HoulsbyOptions
  target = r".*(text_model|language_model).*\.(o_proj|down_proj)"
  adapted = AdaptedLinear


class Pfeiffer(BottleneckMethod):
  """Adapters behind blocks."""

  name = "pfeiffer"
  peft_type = "SPATIALVLM_PFEIFFER"
  Options = PfeifferOptions
  target = r".*(text_model|language_model).*layers\.\d+"
  layers = ("blocks", "block")
  adapted = AdaptedBlock

  def sites(self, vlm: nnx.Module) -> dict[str, Site]:
    return _around_parts(vlm, Block, "attn_norm.scale")


class Parallel(BottleneckMethod):
  """Adapters beside feed-forward networks."""

  name = "parallel"
  peft_type = "SPATIALVLM_PARALLEL"
  Options = ParallelOptions
  target = r".*(text_model|language_model).*\.mlp"
  layers = ("feed-forward networks", "feed-forward network")
  adapted = AdaptedMlp

  def sites(self, vlm: nnx.Module) -> dict[str, Site]:
    return _around_parts(vlm, Mlp, "down_proj.kernel")


def _around_parts(vlm: nnx.Module, kind: type, part: str) -> dict[str, Site]:
  """Name -> module of every `kind`: transformers' module that holds the one with its parameter `part`."""
  found = {}
  for path, module in nnx.iter_modules(vlm):
    if isinstance(module, kind):
      name = rules.to_module(".".join(map(str, (*path, part))), vlm.config.family)
      if name is not None:
        found[name.rsplit(".", 2)[0]] = path
  return sites_at(vlm, found)


def _width(module: nnx.Module) -> int:
  """Of the residual stream that an adapter of this module reads."""
  if isinstance(module, nnx.Linear):
    return module.out_features
  return (module.mlp if isinstance(module, Block) else module).up_proj.in_features
