"""A model as StableHLO programs (`jax.export`), which run by JAX alone, on CPU, GPU and TPU, at any size.

A folder of: `prefill.exported`, `step.exported` and, of a model with eyes, `vision.exported`, one program
each for all platforms; `language.safetensors` and `vision.safetensors`, which are their first argument;
`programs.json`, which says what goes in and out, in which order; and the tokenizer's and processor's files.
What the programs compute says `programs`; docs/edge.md has a reader of thirty lines.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from spatialvlm import priors
from spatialvlm.export.exporter import Exportable, no_merging
from spatialvlm.export.programs import Part, Programs
from spatialvlm.export.whole import read_processor, write_files
from spatialvlm.hub import tensors
from spatialvlm.hub.save import COMPANIONS, hf_config
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.processing.processor import Processor

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "programs.json"
_WEIGHTS = {"language": "language.safetensors", "vision": "vision.safetensors"}


def why_not(vlm: Vlm) -> str | None:
  """Why a model has no such programs; None where it has."""
  if told := ", ".join(priors.configs_of(vlm)):
    return f"exported programs read no priors ({told}), which are added to this model's image tokens"
  return no_merging(vlm)


def write(model: Exportable, folder: Path) -> Path:
  """Writes the folder, all of it or nothing.

  Raises:
    UserError: a processor that cannot be read, an adapter that cannot be merged, or a full disk.
  """
  programs, processor = Programs.of(model.vlm), read_processor(model)
  made = exported(programs)
  files: dict[str, Callable[[Path], Any]] = {}
  for name, (program, _) in made.items():
    files[f"{name}.exported"] = lambda file, program=program: file.write_bytes(program.serialize())
  for name, part in _parts(programs).items():
    files[_WEIGHTS[name]] = lambda file, part=part: tensors.write(file, part.tensors)
  said = {
    "format": "jax.export",
    "calling_convention_version": next(iter(made.values()))[0].calling_convention_version,
    "platforms": list(PLATFORMS),
    "model": about(programs.config, processor, model.base),
    "weights": {name: _WEIGHTS[name] for name in _parts(programs)},
    "cache": _shape("cache", programs.cache("b", "s")["keys"][0]) | {"layers": programs.config.text.depth},
    "programs": {
      name: {
        "file": f"{name}.exported",
        "weights": "vision" if name == "vision" else "language",
        "inputs": [_shape(*leaf) for leaf in zip(inputs, _leaves(program.in_avals, inputs), strict=True)],
        "outputs": [_shape(*leaf) for leaf in zip(_outputs(name, programs), program.out_avals, strict=True)],
      }
      for name, (program, inputs) in made.items()
    },
  }
  files[MANIFEST] = lambda file: file.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
  return write_files(files | companions(model), folder)


def exported(programs: Programs) -> dict[str, tuple[jax_export.Exported, list[str]]]:
  """The programs by name, each with the names of its inputs behind the weights, in their flat order."""
  scope = jax_export.SymbolicScope(["s >= t"])
  b, t, n, s = jax_export.symbolic_shape("b, t, n, s", scope=scope)
  text, cache = programs.config.text, programs.cache(b, s)
  ids, valid = jax.ShapeDtypeStruct((b, t), jnp.int32), jax.ShapeDtypeStruct((b, t), jnp.bool_)
  arguments: dict[str, Any] = {"tokens": ids, "valid": valid, "cache": cache}
  if programs.eyes is not None:
    shape = (n, programs.image_tokens, text.block.width)
    arguments["images"] = jax.ShapeDtypeStruct(shape, jnp.dtype(programs.config.dtype))
  made = {"prefill": _export(programs.prefill, programs.language, arguments)}
  # A scope of its own: nothing here says that a cache is as long as some prompt.
  b, s = jax_export.symbolic_shape("b, s")
  arguments = {"tokens": jax.ShapeDtypeStruct((b,), jnp.int32), "cache": programs.cache(b, s)}
  made["step"] = _export(programs.step, programs.language, arguments)
  if programs.eyes is not None:
    (n,) = jax_export.symbolic_shape("n")
    side, channels = programs.config.vision.image_size, programs.config.vision.channels
    pixels = jax.ShapeDtypeStruct((n, channels, side, side), jnp.float32)
    made["vision"] = _export(programs.see, programs.eyes, {"pixels": pixels})
  return made


def about(config: VlmConfig, processor: Processor, base: str) -> dict[str, Any]:
  """What a runtime needs to know of a model beside its programs."""
  said: dict[str, Any] = {
    "name": base,
    "family": config.family,
    "dtype": config.dtype,
    "vocabulary": config.text.vocab_size,
    "context": config.text.max_length,
    "stop_ids": list(processor.stop_ids),
    "pad_id": processor.pad_id,
  }
  if config.vision is not None:
    tiler = processor.tiler
    said["image_token_id"] = config.image_token_id
    said["pixels"] = {
      "order": "tiles, RGB, rows, columns",
      "rescale": tiler.rescale,
      "mean": tiler.mean,
      "std": tiler.std,
    }
  return said


def companions(model: Exportable) -> dict[str, Callable[[Path], Any]]:
  """The model's config.json and the files of its tokenizer and processor, as far as there are any."""
  config = json.dumps(hf_config(model.vlm), indent=2, sort_keys=True) + "\n"
  files: dict[str, Callable[[Path], Any]] = {
    "config.json": lambda file: file.write_text(config, encoding="utf-8")
  }
  for name in COMPANIONS:
    if (model.folder / name).is_file():
      files[name] = lambda file, name=name: shutil.copyfile(model.folder / name, file)
  return files


def leaf_names(arguments: Mapping[str, Any]) -> list[str]:
  """Names of the arrays of named arguments, in the order in which JAX flattens them: `cache.keys.0`."""
  said = []
  for name, value in arguments.items():
    for path, _ in jax.tree_util.tree_flatten_with_path(value)[0]:
      said.append(".".join([name, *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)]))
  return said


def _parts(programs: Programs) -> dict[str, Part]:
  parts = {"language": programs.language, "vision": programs.eyes}
  return {name: part for name, part in parts.items() if part is not None}


def _export(function, part: Part, arguments: Mapping[str, Any]) -> tuple[jax_export.Exported, list[str]]:
  made = jax_export.export(jax.jit(function), platforms=PLATFORMS)(part.shapes, *arguments.values())
  return made, leaf_names(arguments)


def _leaves(avals, inputs: list[str]):
  """Those behind the weights."""
  return avals[len(avals) - len(inputs) :]


def _outputs(name: str, programs: Programs) -> list[str]:
  if name == "vision":
    return ["images"]
  return leaf_names({"logits": 0, "cache": programs.cache(1, 1)})


def _shape(name: str, aval) -> dict[str, Any]:
  shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
  return {"name": name, "shape": shape, "dtype": jnp.dtype(aval.dtype).name}
