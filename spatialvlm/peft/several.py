"""Several adapters on one base: by name, one at a time, or as a weighted sum.

Each adapter is a model of its own that shares the base's arrays, so that switching costs nothing and the base
gives its own bits whenever none is on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from flax import nnx

from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import biases, folder, full, linear, methods, select, token_rows
from spatialvlm.peft.lora import Lora
from spatialvlm.peft.lora_layers import LoraEmbed, LoraLinear, LoraSpec, adapted
from spatialvlm.peft.method import Site
from spatialvlm.peft.variables import host
from spatialvlm.types import UserError


class Adapters:
  """Named adapters of one base model.

  Attributes:
    base: the model without any of them; it is never changed.
  """

  def __init__(self, base: Vlm):
    """Takes a plain model.

    Raises:
      UserError: it carries an adapter.
    """
    for method in methods.carried(base):
      raise UserError(
        f"the model already carries an adapter ({method.name}); load its base, and adapters by load_adapter"
      )
    self.base = base
    self._models: dict[str, Vlm] = {}

  @property
  def names(self) -> tuple[str, ...]:
    """In the order in which they came."""
    return tuple(self._models)

  def __getitem__(self, name: str) -> Vlm:
    """The model with an adapter on.

    Raises:
      UserError: there is none of that name.
    """
    if name not in self._models:
      raise UserError(
        f"no adapter is called {name!r}; there are {', '.join(map(repr, self.names)) or 'none'}"
      )
    return self._models[name]

  def load(self, path: str | Path, name: str) -> Vlm:
    """Reads the adapter of a PEFT folder, and gives the model with it on.

    Raises:
      UserError: the name is taken, or as `peft.load_adapter`.
    """
    self._check_new(name)
    self._models[name] = folder.load_adapter(copy_of(self.base), path)
    return self._models[name]

  def add(self, weights: Mapping[str, float], name: str) -> Vlm:
    """Makes an adapter that is a weighted sum of others, and gives the model with it on.

    Raises:
      UserError: the name is taken, or as `weighted_sum`.
    """
    self._check_new(name)
    self._models[name] = weighted_sum(self.base, {key: (self[key], by) for key, by in weights.items()})
    return self._models[name]

  def delete(self, name: str) -> None:
    """Forgets an adapter.

    Raises:
      UserError: there is none of that name.
    """
    self[name]
    del self._models[name]

  def _check_new(self, name: str) -> None:
    if name in self._models:
      raise UserError(f"an adapter is called {name!r} already; give another name, or delete that one")


class WithAdapters:
  """What holds a `model` and may have adapters put on it.

  Attributes:
    model: the base, or the base with the adapter that is on.
  """

  model: Vlm

  @functools.cached_property
  def _adapters(self) -> Adapters:
    return Adapters(self.model)

  @property
  def adapters(self) -> tuple[str, ...]:
    """Names of the adapters that were loaded or made here; one of them, or none, is on."""
    return self._adapters.names

  def load_adapter(self, peft_folder: str | os.PathLike, name: str = "default") -> Self:
    """Loads the adapter of a PEFT folder (or hub id), beside those that are there, and switches it on.

    Raises:
      UserError: no such adapter, it does not fit, or its name is taken.
    """
    return self._switched(self._adapters.load(peft_folder, name))

  def set_adapter(self, name: str) -> Self:
    """Switches an adapter on, in place of another.

    Raises:
      UserError: none is called so.
    """
    return self._switched(self._adapters[name])

  def disable_adapters(self) -> Self:
    """Switches to the base alone, whose weights no adapter has changed; `set_adapter` switches back.

    Raises:
      UserError: the model was loaded with an adapter in it.
    """
    return self._switched(self._adapters.base)

  def add_weighted_adapter(self, weights: Mapping[str, float], name: str) -> Self:
    """Makes an adapter that is a weighted sum of LoRA adapters, exactly, and switches it on.

    Args:
      weights: by name of an adapter; below 0 subtracts it.

    Raises:
      UserError: an adapter that is not there or cannot be added, or a name that is taken.
    """
    return self._switched(self._adapters.add(weights, name))

  def delete_adapter(self, name: str) -> Self:
    """Forgets an adapter; if it was on, the base is.

    Raises:
      UserError: none is called so.
    """
    was = self._adapters[name]
    self._adapters.delete(name)
    return self.disable_adapters() if self.model is was else self

  def _switched(self, model: Vlm) -> Self:
    self.model = model
    self.__dict__.pop("processor", None)  # a soft prompt leaves it less of the context
    return self


def copy_of(vlm: Vlm) -> Vlm:
  """A model with variables of its own that hold the same arrays."""
  return nnx.clone(vlm, variables=True)


def weighted_sum(base: Vlm, parts: Mapping[str, tuple[Vlm, float]]) -> Vlm:
  """`base` with an adapter whose change of every weight is the weighted sum of LoRA adapters' changes.

  Their factors stand beside each other (PEFT's combination_type "cat"), so that it is exact: the ranks add
  up, and layers that only some of them adapt are adapted. A weight below zero subtracts. PiSSA and OLoRA
  count as what they changed. It is ordinary LoRA, and is saved and trained as that.

  Args:
    parts: by name, a model with the adapter on `base`, and its weight.

  Raises:
    UserError: no parts, or an adapter that is no sum of products: of another method, with DoRA, or beside
      parameters that are trained in full.
  """
  if not parts:
    raise UserError("a weighted sum of no adapters")
  found: dict[str, list[tuple[nnx.Module, float]]] = {}
  for name, (vlm, weight) in parts.items():
    for layer, (site, _) in _products(vlm, name).items():
      found.setdefault(layer, []).append((site.module, float(weight)))
  made = copy_of(base)
  if base.config.tied and not all(vlm.config.tied for vlm, _ in parts.values()):
    full.untie(made)  # an adapter of the head alone
  sites = Lora().sites(made)
  for layer, terms in found.items():
    select.put(made, sites[layer].path, _beside(sites[layer], terms))
  return made


def as_plain_lora(vlm: Vlm) -> Vlm:
  """The same model with factors that began with a part of the base (PiSSA, OLoRA) as ordinary LoRA's.

  Rank and alpha double, as in PEFT's conversion; what else is trained stays.

  Raises:
    UserError: DoRA, whose magnitude is of the base without that part.
  """
  made = copy_of(vlm)
  for name, site in Lora().sites(made).items():
    layer = site.module
    if isinstance(layer, LoraLinear) and layer.start_a is not None:
      if layer.magnitude is not None:
        raise UserError(f"{name}: DoRA over {layer.spec.init} is no ordinary LoRA; --to=adapter writes it")
      base = linear.plain(layer, layer.kernel[...], layer.bias)
      rank = 2 * layer.spec.rank
      spec = dataclasses.replace(
        layer.spec, rank=rank, alpha=layer.spec.scale * rank, rslora=False, init="default"
      )
      bias = None if layer.lora_bias is None else host(layer.lora_bias)
      select.put(made, site.path, adapted(base, spec, *_factors(layer), None, site.number, bias))
  return made


def _products(vlm: Vlm, name: str) -> dict[str, tuple[Site, LoraSpec]]:
  """The layers of a LoRA adapter, if that is all there is."""
  others = [method.name for method in methods.carried(vlm) if not isinstance(method, Lora)]
  if others:
    raise UserError(f"adapter {name!r}: only LoRA adapters can be added, and this is one of {others[0]!r}")
  if full.claims(vlm) or biases.claims(vlm) or token_rows.claims(vlm):
    raise UserError(
      f"adapter {name!r}: holds weights of the base that were trained in full, which do not add"
    )
  layers = Lora().adapted_sites(vlm)
  if any(spec.dora or spec.bias for _, spec in layers.values()):
    raise UserError(f"adapter {name!r}: what has DoRA or lora_bias cannot be added, as in PEFT")
  return layers


def _beside(site: Site, terms: list[tuple[nnx.Module, float]]) -> nnx.Module:
  """One adapted layer around the plain layer of `site` for several, each with its weight."""
  pairs = [_factors(layer) for layer, _ in terms]
  scaled = [weight * layer.spec.scale * a for (layer, weight), (a, _) in zip(terms, pairs, strict=True)]
  a, b = np.concatenate(scaled, axis=1), np.concatenate([b for _, b in pairs], axis=0)
  spec = LoraSpec(rank=a.shape[1], alpha=float(a.shape[1]))
  if isinstance(site.module, nnx.Embed):
    return LoraEmbed(site.module, spec, a, b)
  return adapted(site.module, spec, a, b, None, site.number)


def _factors(layer: nnx.Module) -> tuple[np.ndarray, np.ndarray]:
  """As `LoraLinear.factors`, whole on the host, of either kind of layer."""
  a, b = host(layer.lora_a), host(layer.lora_b)
  if getattr(layer, "start_a", None) is None:
    return a, b
  return np.concatenate([a, host(layer.start_a)], 1), np.concatenate([b, -host(layer.start_b)], 0)
