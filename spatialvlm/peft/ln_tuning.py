"""Layer-norm tuning: scales and biases of norms are trained (Zhao et al., arXiv 2312.11420).

Nothing is added to the model. PEFT's folder holds the trained norms whole, not differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.core.norm import LayerNorm, RMSNorm
from spatialvlm.hub import rules
from spatialvlm.peft import select
from spatialvlm.peft.method import LayerMethod, Site, sites_at
from spatialvlm.peft.variables import FullParam, host, set_value, trained_in_full

_END = ".ln_tuning_layers"


class NormParam(FullParam):
  """A norm's scale or bias that this method trains."""


@dataclasses.dataclass(frozen=True)
class Tuned:
  """A norm that is trained; there is nothing to choose."""


class LnTuning(LayerMethod):
  """Training of layer norms and root-mean-square norms; PEFT folders of type LN_TUNING."""

  name = "ln_tuning"
  peft_type = "LN_TUNING"
  target = r".*(text_model|language_model).*norm"
  endings = (f"{_END}.weight", f"{_END}.bias")
  layers = ("norms", "norm")

  def sites(self, vlm: nnx.Module) -> dict[str, Site]:
    norms = {path for path, module in nnx.iter_modules(vlm) if isinstance(module, (LayerNorm, RMSNorm))}
    named = ((name, path[:-1]) for name, path in select.parameter_paths(vlm).items() if path[-1] == "scale")
    return sites_at(vlm, {name.removesuffix(".weight"): path for name, path in named if path in norms})

  def spec_of(self, site: Site) -> Tuned | None:
    return Tuned() if isinstance(site.module.scale, NormParam) else None

  def specs(self, config: PeftConfig, options: Any, names: list[str]) -> dict[str, Tuned]:
    return dict.fromkeys(names, Tuned())

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, Tuned]:
    return dict.fromkeys(names, Tuned())

  def said_config(self, specs: Mapping[str, Tuned]) -> dict[str, Any]:
    return {"target_modules": sorted(specs)}

  def fresh(self, site: Site, spec: Tuned, seed: int) -> nnx.Module:
    for attribute in _parts(site.module).values():
      setattr(site.module, attribute, trained_in_full(getattr(site.module, attribute), NormParam))
    return site.module

  def shapes(self, site: Site, spec: Tuned) -> dict[str, tuple[int, ...]]:
    shape = lambda a: rules.file_shape(getattr(site.module, a).shape, _dotted(site, a), site.family)
    return {f"{_END}.{theirs}": shape(ours) for theirs, ours in _parts(site.module).items()}

  def restored(self, site: Site, spec: Tuned, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    norm = self.fresh(site, spec, 0)
    for theirs, ours in _parts(norm).items():
      value = rules.from_file(arrays[f"{_END}.{theirs}"], _dotted(site, ours), site.family)
      set_value(getattr(norm, ours), value)
    return norm

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    value = lambda a: rules.to_file(host(getattr(site.module, a)), _dotted(site, a), site.family)
    return {f"{_END}.{theirs}": value(ours) for theirs, ours in _parts(site.module).items()}

  def owns(self, variable: Any) -> bool:
    return isinstance(variable, NormParam)

  def plain(self, site: Site) -> nnx.Module:
    return site.module  # as all that is trained in full, its variables become plain ones by themselves


def _parts(norm: nnx.Module) -> dict[str, str]:
  """The file's name of a parameter -> ours."""
  return {"weight": "scale"} | ({"bias": "bias"} if isinstance(norm, LayerNorm) else {})


def _dotted(site: Site, attribute: str) -> str:
  return ".".join(map(str, (*site.path, attribute)))
