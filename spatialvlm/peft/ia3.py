"""(IA)^3: learned vectors that rescale what single layers read or give (Liu et al., arXiv 2205.05638).

With the numerics of Hugging Face PEFT: y = l * (x W + b) for a layer of attention (keys, values), and
y = (l * x) W + b for one of the feed-forward network. Vectors begin at one, so that a fresh adapter changes
nothing. Rates 10 to 50 times LoRA's suit them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.peft import foreign, linear, select
from spatialvlm.peft.method import LayerMethod, LayerOptions, Site
from spatialvlm.peft.variables import AdapterParam, axis_names, beside, host

_END = ".ia3_l"
_FEEDFORWARD = r".*\.(down_proj|fc2)"


@dataclasses.dataclass(frozen=True)
class Ia3Options(LayerOptions):
  """(IA)^3's own setting.

  Attributes:
    feedforward: which of the target layers have their input rescaled instead of their output: regex over
      module names, matched in full, or a list of their ends.
  """

  feedforward: str | tuple[str, ...] = _FEEDFORWARD


@dataclasses.dataclass(frozen=True)
class Ia3Spec:
  """How one layer is adapted: `feedforward` rescales its input, otherwise its output, bias included."""

  feedforward: bool


class Ia3Linear(linear.AroundLinear):
  """A linear layer with one learned factor for each input (feed-forward) or each output.

  Attributes:
    factors: float32 (d_in,) or (d_out,).
  """

  def __init__(self, base: nnx.Linear, spec: Ia3Spec, factors: AdapterParam):
    super().__init__(base)
    self.factors, self.spec = factors, spec

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    # float32 factors times bfloat16 values, rounded once, as PEFT does it
    if self.spec.feedforward:
      return super().__call__((inputs * self.factors[...]).astype(inputs.dtype), out_sharding)
    y = super().__call__(inputs, out_sharding)
    return (y * self.factors[...]).astype(y.dtype)


class Ia3(LayerMethod):
  """(IA)^3 on linear layers; PEFT folders of type IA3."""

  name = "ia3"
  peft_type = "IA3"
  Options = Ia3Options
  target = r".*(text_model|language_model).*\.(k_proj|v_proj|down_proj)"
  fields = foreign.Fields(
    reads=("feedforward_modules", "init_ia3_weights"),
    needs=("feedforward_modules",),
    fits={"feedforward_modules": foreign.is_modules},
    regexes=("feedforward_modules",),
  )
  endings = (_END,)

  def spec_of(self, site: Site) -> Ia3Spec | None:
    return site.module.spec if isinstance(site.module, Ia3Linear) else None

  def specs(self, config: PeftConfig, options: Ia3Options, names: list[str]) -> dict[str, Ia3Spec]:
    if options.feedforward in ("", _FEEDFORWARD):  # nobody named a layer, so that none may be there
      found = [name for name in names if re.fullmatch(options.feedforward, name)]
    else:
      found = select.match(options.feedforward, names, "peft.feedforward")
    return {name: Ia3Spec(name in found) for name in names}

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, Ia3Spec]:
    ends = said["feedforward_modules"]
    if isinstance(ends, str):
      return {name: Ia3Spec(re.fullmatch(ends, name) is not None) for name in names}
    # PEFT's own rule: a list holds ends of names, whatever stands before them
    return {name: Ia3Spec(name.endswith(tuple(ends))) for name in names}

  def said_config(self, specs: Mapping[str, Ia3Spec]) -> dict[str, Any]:
    """The feed-forward layers as a regex: a list would also match other layers that end so."""
    inside = sorted(re.escape(name) for name, spec in specs.items() if spec.feedforward)
    return {
      "target_modules": sorted(specs),
      "feedforward_modules": "|".join(inside) if inside else [],
      "fan_in_fan_out": False,
      "init_ia3_weights": True,
    }

  def fresh(self, site: Site, spec: Ia3Spec, seed: int) -> Ia3Linear:
    base = site.module
    size = base.in_features if spec.feedforward else base.out_features
    return Ia3Linear(base, spec, beside(base.kernel, np.ones(size), 0 if spec.feedforward else 1))

  def shapes(self, site: Site, spec: Ia3Spec) -> dict[str, tuple[int, ...]]:
    base = site.module
    return {_END: (1, base.in_features) if spec.feedforward else (base.out_features, 1)}

  def restored(self, site: Site, spec: Ia3Spec, arrays: Mapping[str, np.ndarray]) -> Ia3Linear:
    base, value = site.module, arrays[_END].reshape(-1)
    return Ia3Linear(base, spec, beside(base.kernel, value, 0 if spec.feedforward else 1))

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    factors = host(site.module.factors)
    return {_END: factors[None] if site.module.spec.feedforward else factors[:, None]}

  def plain(self, site: Site) -> nnx.Linear:
    layer = site.module
    kernel, factors, bias = layer.kernel[...], layer.factors[...], layer.bias
    if layer.spec.feedforward:
      return linear.plain(layer, _rounded(kernel, factors[:, None]), bias)
    if bias is not None:
      bias = nnx.Param(_rounded(bias[...], factors), **axis_names(bias))
    return linear.plain(layer, _rounded(kernel, factors), bias)


def _rounded(weight: jax.Array, factors: jax.Array) -> jax.Array:
  return (weight.astype(jnp.float32) * factors).astype(weight.dtype)
