"""LoRA: the method. Its layers stand in `lora_layers`, what they begin with in `lora_start`.

Sources: LoRA (Hu et al., arXiv 2106.09685), rsLoRA (Kalajdzievski, 2312.03732), DoRA (Liu et al.,
2402.09353), with the numerics of Hugging Face PEFT.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig, nearest
from spatialvlm.peft import biases, eva, foreign, full, lora_start, select, token_rows
from spatialvlm.peft.lora_layers import DropoutKey, LoraEmbed, LoraLinear, LoraSpec, adapted
from spatialvlm.peft.method import Export, Folder, Given, LayerMethod, LayerOptions, Site, sites_at
from spatialvlm.peft.trainable_tokens import distinct
from spatialvlm.peft.variables import host
from spatialvlm.types import UserError

# PEFT's ways to draw the factors that leave the base's weights as they were; others stand in `lora_start`.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal")
_A, _B, _BIAS, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector"
_TABLE = (".lora_embedding_A", ".lora_embedding_B")


@dataclasses.dataclass(frozen=True)
class LoraOptions(LayerOptions):
  """LoRA's own settings.

  Attributes:
    rank: r, of the factors.
    alpha: the product of the factors is scaled by alpha / r.
    rslora: scale by alpha / sqrt(r) instead.
    dora: train each output's magnitude beside its direction.
    dropout: of the adapters' input, in training.
    bias: which biases of the base are trained too: "none", "all" of the model, or "lora_only" of the adapted
      layers (BitFit).
    lora_bias: give each low-rank product a trained bias of its own.
    embedding: adapt the table of token embeddings beside the layers that `target` names.
    token_indices: ids of tokens whose rows of the embeddings are trained beside it, as by `trainable_tokens`.
    init: what the factors begin with: "default" (uniform A, B zero), "gaussian" (normal A of deviation 1/r, B
      zero); a part of the base's weight, "pissa" its largest singular values, "olora" of its QR
      decomposition; or "eva", where A holds the main directions of a layer's inputs in the run's own data, B
      is zero, and layers whose directions explain more get more of the ranks.
    eva_rho: of eva, no layer gets more than `rank` times this; 1 leaves the ranks as they are.
    eva_batches: of eva, so many of the run's first batches are read.
    rank_pattern, alpha_pattern: regex over module names, matched in full -> value in place of
      `rank`, `alpha`.
  """

  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.0
  rslora: bool = False
  dora: bool = False
  bias: str | None = "none"
  lora_bias: bool = False
  embedding: bool = False
  token_indices: tuple[int, ...] = ()
  init: str = "default"
  eva_rho: float = 2.0
  eva_batches: int = 8
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Lora(LayerMethod):
  """LoRA, rsLoRA, DoRA, PiSSA, OLoRA, EVA on linear layers and embeddings; PEFT folders of type LORA."""

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
      "lora_bias",
      "rank_pattern",
      "alpha_pattern",
      "bias",
      "init_lora_weights",
      "ensure_weight_tying",
      token_rows.FIELD,
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
      "bias": lambda v: v in biases.KINDS,
      "rank_pattern": lambda v: isinstance(v, Mapping) and all(map(foreign.is_positive, v.values())),
      "alpha_pattern": lambda v: isinstance(v, Mapping) and all(map(foreign.is_number, v.values())),
      token_rows.FIELD: token_rows.fits,
    },
    regexes=("rank_pattern", "alpha_pattern"),
  )
  endings = (_A, _B, _BIAS, _MAGNITUDE, *_TABLE, token_rows.END)
  ties = True

  def check(self, options: LoraOptions) -> None:
    for where, rank in {"rank": options.rank, **options.rank_pattern}.items():
      if rank < 1:
        raise UserError(f"peft: the rank of {where!r} is {rank}; it must be at least 1")
    if not 0.0 <= options.dropout < 1.0:
      raise UserError(f"peft.dropout: {options.dropout} is not in [0, 1)")
    # a command line reads the word none as None
    for field, value, known in (
      ("bias", options.bias or "none", biases.KINDS),
      ("init", options.init, lora_start.STARTS),
    ):
      if value not in known:
        raise UserError(f"peft.{field}: there is no {value!r}; {nearest(value, known)}")
    if options.dora and options.lora_bias:
      raise UserError("peft.lora_bias: does not go with dora, as in PEFT; choose one of the two")
    special = (*lora_start.OF_BASE, *lora_start.OF_INPUTS)
    if options.embedding and (options.dora or options.lora_bias or options.init in special):
      raise UserError(f"peft.embedding: a table takes no dora, lora_bias, or init of {' or '.join(special)}")
    if not distinct(options.token_indices):
      raise UserError(f"peft.token_indices: {options.token_indices} are not different numbers from 0 on")
    if options.embedding and options.token_indices:
      raise UserError("peft.token_indices: names rows of a table that peft.embedding adapts; leave one out")
    eva.check(options.init == "eva", options.eva_rho, options.eva_batches)

  def refused(self, said: Mapping[str, Any]) -> list[str]:
    wrong, known = [], (*_PLAIN_STARTS, *lora_start.OF_BASE, *lora_start.OF_INPUTS)
    if said.get("init_lora_weights", True) not in known:
      # such starts move a part of the base into the adapter that does not follow from the base alone
      wrong.append(f"init_lora_weights={said['init_lora_weights']!r}")
    if said.get("lora_bias") and said.get("use_dora"):
      wrong.append("lora_bias=True with use_dora=True")
    return wrong

  def spec_of(self, site: Site) -> LoraSpec | None:
    return site.module.spec if isinstance(site.module, (LoraLinear, LoraEmbed)) else None

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
        bias=options.lora_bias,
        init=options.init,
      )
      for name in names
    }

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, LoraSpec]:
    ranks, alphas = said.get("rank_pattern") or {}, said.get("alpha_pattern") or {}
    init = said.get("init_lora_weights")
    return {
      name: LoraSpec(
        rank=int(foreign.pattern_value(ranks, name, said["r"])),
        alpha=float(foreign.pattern_value(alphas, name, said["lora_alpha"])),
        rslora=bool(said.get("use_rslora")),
        dora=bool(said.get("use_dora")),
        dropout=float(said.get("lora_dropout") or 0.0) if options is None else options.dropout,
        bias=bool(said.get("lora_bias")),
        init=init if init in (*lora_start.OF_BASE, *lora_start.OF_INPUTS) else "default",
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
      "lora_bias": one.bias,
      "fan_in_fan_out": False,
      "init_lora_weights": True if one.init in lora_start.DRAWN else one.init,
      "use_rslora": one.rslora,
      "use_dora": one.dora,
      "target_modules": sorted(specs),
      "rank_pattern": {re.escape(n): s.rank for n, s in specs.items() if s.rank != rank},
      "alpha_pattern": {re.escape(n): number(s.alpha) for n, s in specs.items() if s.alpha != alpha},
    }

  def sites(self, vlm: nnx.Module) -> dict[str, Site]:
    """Linear layers, and the table of token embeddings."""
    paths = select.linear_paths(vlm) | {
      full.embedding_name(vlm).removesuffix(".weight"): ("decoder", "embed")
    }
    return sites_at(vlm, paths)

  def chosen(self, vlm, target, sites: Mapping[str, Site], options: LoraOptions) -> list[str]:
    """The patterns are of linear layers; the table of embeddings is adapted where `embedding` says so."""
    tables = [name for name, site in sites.items() if isinstance(site.module, nnx.Embed)]
    linears = {name: site for name, site in sites.items() if name not in tables}
    return super().chosen(vlm, target, linears, options) + (tables if options.embedding else [])

  def plan(self, vlm: nnx.Module, config: PeftConfig, options: LoraOptions) -> dict[str, LoraSpec]:
    specs = super().plan(vlm, config, options)
    if options.init in lora_start.OF_BASE:
      sites = self.sites(vlm)
      for name, spec in specs.items():
        lora_start.check_rank(sites[name].module, spec, name)
    if options.init in lora_start.OF_INPUTS:
      eva.check_layers({name: self.sites(vlm)[name] for name in specs}, specs, options.eva_rho)
    if options.lora_bias:
      self._check_biases(vlm, specs, "peft.lora_bias")
    token_rows.check(vlm, options.token_indices)
    return specs

  def _check_biases(self, vlm: nnx.Module, specs: Mapping[str, LoraSpec], where: str) -> None:
    """What is trained is merged at the end."""
    sites = self.sites(vlm)
    if bare := [name for name in specs if getattr(sites[name].module, "bias", None) is None]:
      raise UserError(
        f"{where}: {bare[0]} has no bias for its adapter's to be merged into; narrow peft.target"
      )

  def of_batches(self, options: LoraOptions) -> bool:
    return options.init in lora_start.OF_INPUTS

  def apply(self, vlm: nnx.Module, config: PeftConfig, options: LoraOptions, given: Given) -> None:
    sites, specs, first = self.sites(vlm), self.plan(vlm, config, options), {}
    if options.init in lora_start.OF_INPUTS:
      specs, first = lora_start.OF_INPUTS[options.init](
        vlm, {name: sites[name] for name in specs}, specs, options.eva_rho, options.eva_batches, given
      )
    kind = options.bias or "none"
    found = biases.paths(vlm, kind, specs)
    for name, spec in specs.items():
      select.put(vlm, sites[name].path, self.fresh(sites[name], spec, config.seed, first.get(name)))
    if kind != "none":
      biases.train(vlm, found.values())
    token_rows.train(vlm, options.token_indices)

  def fresh(self, site: Site, spec: LoraSpec, seed: int, a: np.ndarray | None = None) -> nnx.Module:
    """What a layer draws depends on `seed` and its name alone, not on the mesh or on the other layers.

    `a`: the first factor (d_in, r), where it was made of the layer's inputs.
    """
    base, rng = site.module, np.random.default_rng((seed, site.number))
    if isinstance(base, nnx.Embed):  # drawn as PEFT does
      draw = rng.normal(size=(spec.rank, base.features))
      return LoraEmbed(base, spec, np.zeros((base.num_embeddings, spec.rank)), draw)
    start = lora_start.of_base(base, spec, site.name)
    if start is not None:
      return adapted(base, spec, *start, None, site.number, start=start)
    a = lora_start.DRAWN[spec.init](rng, base.in_features, spec.rank) if a is None else a
    return adapted(base, spec, a, np.zeros((spec.rank, base.out_features)), None, site.number)

  def wanted(self, vlm: nnx.Module, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    own, tokens = super().wanted(vlm, said, head), token_rows.said(vlm, said)
    if tokens and any(name.endswith(_TABLE) for name in own):
      raise UserError(
        f"adapter_config.json: {token_rows.FIELD}: of a table that target_modules adapts, not supported"
      )
    beside = biases.shapes(vlm, self._said_biases(vlm, said, head))
    return own | beside | token_rows.shapes(vlm, tokens)

  def restore(self, vlm: nnx.Module, folder: Folder, options: LoraOptions | None = None) -> None:
    found = self._said_biases(vlm, folder.said, folder.head)
    if options is not None and folder.said.get("lora_bias"):
      specs = self.specs_of_folder(folder.said, self.sites(vlm), folder.head, options, select.older(vlm))
      self._check_biases(vlm, specs, folder.path)
    super().restore(vlm, folder, options)
    if found:
      biases.restore(vlm, found, folder.arrays)
    token_rows.train(vlm, token_rows.said(vlm, folder.said), folder.arrays.get(token_rows.name_of(vlm)))

  def export(self, vlm: nnx.Module) -> Export:
    own = super().export(vlm)
    kind, arrays = biases.export(vlm, own.config["target_modules"])
    tokens, rows = token_rows.export(vlm)
    config = {**own.config, "bias": kind, token_rows.FIELD: tokens}
    return Export(config, {**own.arrays, **arrays, **rows})

  def claims(self, vlm: nnx.Module) -> set[select.Path]:
    return super().claims(vlm) | biases.claims(vlm) | token_rows.claims(vlm)

  def merged(self, vlm: nnx.Module) -> dict[select.Path, nnx.Module]:
    """A head that is tied to an adapted table reads the table alone, so that it becomes one of its own."""
    if vlm.config.tied and isinstance(vlm.decoder.embed, LoraEmbed):
      full.untie(vlm)
    return super().merged(vlm) | token_rows.merged(vlm)

  def _said_biases(self, vlm: nnx.Module, said: Mapping[str, Any], head: str) -> dict[str, select.Path]:
    kind = said.get("bias") or "none"
    return biases.paths(vlm, kind, self.specs_of_folder(said, self.sites(vlm), head, None, select.older(vlm)))

  def shapes(self, site: Site, spec: LoraSpec) -> dict[str, tuple[int, ...]]:
    base = site.module
    if isinstance(base, nnx.Embed):
      return {_TABLE[0]: (spec.rank, base.num_embeddings), _TABLE[1]: (base.features, spec.rank)}
    found = {_A: (spec.rank, base.in_features), _B: (base.out_features, spec.rank)}
    found |= {_BIAS: (base.out_features,)} if spec.bias else {}
    return found | ({_MAGNITUDE: (base.out_features,)} if spec.dora else {})

  def restored(self, site: Site, spec: LoraSpec, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    base = site.module
    if isinstance(base, nnx.Embed):
      return LoraEmbed(base, spec, *(arrays[end].T for end in _TABLE))
    start = lora_start.of_base(base, spec, site.name)
    values = (arrays[_A].T, arrays[_B].T, arrays.get(_MAGNITUDE))
    return adapted(base, spec, *values, site.number, arrays.get(_BIAS), start)

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    layer = site.module
    factors = (host(layer.lora_a).T, host(layer.lora_b).T)
    if isinstance(layer, nnx.Embed):
      return dict(zip(_TABLE, factors, strict=True))
    found = {_A: factors[0], _B: factors[1], _BIAS: layer.lora_bias, _MAGNITUDE: layer.magnitude}
    return {e: v if isinstance(v, np.ndarray) else host(v) for e, v in found.items() if v is not None}

  def plain(self, site: Site) -> nnx.Module:
    return site.module.plain()

  def reseed(self, model: nnx.Module, key: jax.Array) -> None:
    """Turns dropout on for one step.

    Call it on the module that was just merged inside the step, so that the key never enters the frozen tree
    (a stored key would repeat one mask for ever). Without this call a model is deterministic.
    """
    for _, module in nnx.iter_modules(model):
      if isinstance(module, LoraLinear) and module.spec.dropout:
        module.dropout_key = DropoutKey(jax.random.fold_in(key, module.layer_id))
