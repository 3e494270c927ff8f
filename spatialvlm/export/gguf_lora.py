"""A decoder's LoRA as a GGUF adapter (`adapter.gguf`); what was trained elsewhere goes into `mmproj.gguf`.

llama.cpp scales every low-rank product by alpha / rank, with one alpha for all: of rsLoRA, whose products are
scaled by alpha / sqrt(rank), alpha * sqrt(rank) is written. Layers that differ from the first have the
difference within their second factor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from spatialvlm import peft, priors
from spatialvlm.export import gguf, whole
from spatialvlm.export.exporter import Exportable, no_merging
from spatialvlm.hub import contents, rules
from spatialvlm.hub.gguf import language, models, vision, writing
from spatialvlm.hub.gguf.writing import Out
from spatialvlm.hub.tensors import lazy
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import LoraLinear, Trained

ADAPTER = "adapter.gguf"


def why_not(vlm: Vlm) -> str | None:
  """Why a model has no such adapter; None where it has."""
  if not peft.carries(vlm):
    return "the model carries no adapter; --to=gguf writes the whole model"
  names = [name for name in peft.carries(vlm) if name != "lora"]
  if names:
    can = (
      "--to=gguf merges it" if no_merging(vlm) is None else "and it cannot be merged; --to=adapter writes it"
    )
    return f"an adapter of method {names[0]!r} is none that llama.cpp reads (LoRA alone); {can}"
  if priors.configs_of(vlm):
    return gguf.why_not(vlm)
  if why := language.why_not(vlm.config):
    return why
  layers = _layers(vlm)
  if not layers:
    return "the adapter has nothing in the decoder, where alone llama.cpp reads one; --to=gguf merges it"
  for name, layer in layers.items():
    for what, there in (("a magnitude (DoRA)", layer.magnitude), ("a bias", layer.lora_bias)):
      if there is not None:
        return f"the adapter of {name} has {what}, which llama.cpp does not read; --to=gguf merges it"
  own = {id(v) for layer in layers.values() for v in (layer.lora_a, layer.lora_b)}
  for path, variable in nnx.iter_graph(vlm.decoder):
    if isinstance(variable, Trained) and id(variable) not in own:
      at = ".".join(map(str, path))
      return f"decoder.{at} is trained too, which no adapter of llama.cpp holds; --to=gguf merges it"
  if _elsewhere(vlm):
    return vision.why_not(vlm.config)
  return None


def write(model: Exportable, folder: Path) -> Path:
  """Writes the adapter, and the eyes where something in them was trained; all of it or nothing.

  Raises:
    UserError: as `gguf.write`.
  """
  files: dict[str, Callable[[Path], None]] = {ADAPTER: lambda file: _write(model, file)}
  if _elsewhere(model.vlm):
    merged, processor = peft.merge(model.vlm), whole.read_processor(model)
    gguf.check_prompts(processor, model)
    files[gguf.EYES] = lambda file: gguf.write_eyes(merged, model, processor, file)
    contents.note(
      f"{folder}: llama.cpp reads adapters of the language model alone; what was trained in the eyes is"
      f" merged into {gguf.EYES}, which goes with this adapter"
    )
  return whole.write_files(files, folder)


def _write(model: Exportable, file: Path) -> None:
  config = model.vlm.config
  layers = _layers(model.vlm)
  kind = language.kind_of(config)
  first = next(iter(layers.values()))
  alpha = float(np.float32(first.spec.scale * first.factors()[0].shape[1]))
  out = writing.new_keys(kind, "adapter")
  tensors = [out for name, layer in layers.items() for out in _pair(name, layer, model.vlm, alpha)]
  writing.describe(out, model.folder, Path(model.base).name, tensors)
  out.add_string("adapter.type", "lora")
  out.add_float32("adapter.lora.alpha", alpha)
  out.add_quantization_version(2)
  writing.write(file, out, tensors)


def _pair(name: str, layer: LoraLinear, vlm: Vlm, alpha: float) -> list[Out]:
  """Both factors of a layer, as (rank, in) and (out, rank), rows of q and k in the file's order."""
  kind, attention = language.kind_of(vlm.config), vlm.config.text.block.attention
  a, b = (np.asarray(factor, np.float32).T for factor in layer.factors())
  rest = layer.spec.scale * a.shape[0] / alpha
  b = b if abs(rest - 1) < 1e-7 else b * np.float32(rest)
  change = None
  if models.ARCHITECTURES[kind].permuted and name.endswith(("q_proj", "k_proj")):
    heads = attention.heads if name.endswith("q_proj") else attention.kv_heads
    change = functools.partial(models.paired, heads=heads)
  ggml = models.to_gguf(f"{name}.weight", kind)
  return [
    Out(f"{ggml}.lora_a", lazy(np.ascontiguousarray(a)), "F32", "language"),
    Out(f"{ggml}.lora_b", lazy(np.ascontiguousarray(b)), "F32", "language", change),
  ]


def _layers(vlm: Vlm) -> Mapping[str, LoraLinear]:
  """The decoder's adapted layers by their names in transformers' causal language model."""
  kind, found = language.kind_of(vlm.config), {}
  for path, module in nnx.iter_modules(vlm.decoder):
    if isinstance(module, LoraLinear):
      name = rules.to_hf(".".join(["decoder", *map(str, path), "kernel"]), kind)
      found[name.removesuffix(".weight")] = module
  return dict(sorted(found.items()))


def _elsewhere(vlm: Vlm) -> bool:
  """Whether anything outside of the decoder was trained."""
  return any(isinstance(v, Trained) and path[0] != "decoder" for path, v in nnx.iter_graph(vlm))
