"""Biases of the base that are trained beside an adapter, as `bias` of PEFT's configs has them (BitFit).

BitFit: Ben Zaken et al., arXiv 2106.10199.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from flax import nnx

from spatialvlm.hub import rules
from spatialvlm.peft import select
from spatialvlm.peft.variables import FullParam, host, replace_variable, set_value, trained_in_full
from spatialvlm.types import UserError

KINDS = ("none", "all", "lora_only")


class BiasParam(FullParam):
  """A bias that is trained because of `bias`."""


def paths(vlm: nnx.Module, kind: str, adapted: Iterable[str]) -> dict[str, select.Path]:
  """Name in a PEFT folder -> path of the biases that `kind` means; those trained in full are not among them.

  Args:
    kind: one of `KINDS`.
    adapted: names of layers with an adapter, beside which PEFT's names have `base_layer`.
  """
  adapted, found = set(adapted), {}
  for name, path in select.parameter_paths(vlm).items() if kind != "none" else ():
    layer, _, end = name.rpartition(".")
    if end == "bias" and type(select.get(vlm, path)) is not FullParam and (kind == "all" or layer in adapted):
      found[f"{layer}.base_layer.bias" if layer in adapted else name] = path
  return found


def train(vlm: nnx.Module, found: Iterable[select.Path]) -> None:
  """Turns biases into float32 `BiasParam`, in place.

  Raises:
    UserError: there is none, or one that checkpoints of the family do not hold by itself.
  """
  found = list(found)
  if not found:
    raise UserError("peft.bias: no layer that it means has a bias")
  for path in found:
    if rules.to_module(dotted := ".".join(map(str, path)), vlm.config.family) is None:
      raise UserError(f"peft.bias: a PEFT folder of {vlm.config.family} has no place for {dotted}")
    replace_variable(vlm, old := select.get(vlm, path), trained_in_full(old, BiasParam))


def claims(vlm: nnx.Module) -> set[select.Path]:
  """Paths of what `train` trains."""
  return {path for path, variable in nnx.iter_graph(vlm) if isinstance(variable, BiasParam)}


def shapes(vlm: nnx.Module, found: Mapping[str, select.Path]) -> dict[str, tuple[int, ...]]:
  """Name -> shape in the file."""
  return {name: tuple(select.get(vlm, path).shape) for name, path in found.items()}


def restore(vlm: nnx.Module, found: Mapping[str, select.Path], arrays: Mapping[str, np.ndarray]) -> None:
  """Trains biases from here on, beginning with a file's values."""
  train(vlm, found.values())
  for name, path in found.items():
    set_value(select.get(vlm, path), arrays[name])


def export(vlm: nnx.Module, adapted: Iterable[str]) -> tuple[str, dict[str, np.ndarray]]:
  """PEFT's `bias`, and the trained biases by their names in its folder."""
  trained = claims(vlm)
  found = {name: path for name, path in paths(vlm, "all", adapted).items() if path in trained}
  kind = "none" if not found else "lora_only" if all(".base_layer." in name for name in found) else "all"
  return kind, {name: host(select.get(vlm, path)) for name, path in found.items()}
