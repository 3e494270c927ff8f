"""A decoder with other encoders than its own, or with its first ones, as a checkpoint of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialvlm import caches, shipped
from spatialvlm.config import ModelConfig
from spatialvlm.hub import bases, contents, joining
from spatialvlm.hub.joining import CONNECTORS, Part
from spatialvlm.hub.load import read_config
from spatialvlm.hub.resolve import identity, read_json, resolve
from spatialvlm.hub.save import write_folder
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.joined import nearest
from spatialvlm.models.registry import JOINED, encoder_config
from spatialvlm.types import UserError

OWN = "own"
# Part of every cached folder's name: to be raised when what is written into one changes.
_VERSION = 2
# Settings of what is assembled, which the new folder has no more need of.
_CHOSEN = ("encoder_size", "connector", "connector_factor", "connector_from")
_SETTINGS = (*_CHOSEN, "seed", "from_scratch")
# Image tokens along a side of SmolVLM's tiles.
_SIDE = 8


def assembled(model: ModelConfig) -> ModelConfig:
  """The config with a plain path: where it names encoders, of a folder in the user's cache that has them.

  The folder's name comes from the bytes of all that it is made of, so that equal settings find it again.

  Raises:
    UserError: as `assemble`; settings of what is assembled where nothing is; `text_only`, and the base sees.
  """
  if model.text_only:
    bases.check_text(model.path, model.revision)
  if not model.encoders:
    said = [key for key in _CHOSEN if getattr(model, key) != getattr(ModelConfig, key)]
    if said:
      raise UserError(f"config.model.{said[0]}: nothing reads it without config.model.encoders")
    return model
  names = [model.path, *(name for name in model.encoders if name != OWN)]
  base = resolve(model.path, model.revision)
  made_of = {
    "version": _VERSION,
    "parts": [_bytes(name, model.revision if name == model.path else None) for name in names],
    "encoders": [name == OWN for name in model.encoders],
    **{key: getattr(model, key) for key in _SETTINGS},
    "connector_from": model.connector_from and _connector_bytes(_trained(model.connector_from)),
  }
  digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
  folder = caches.folder() / "spatialvlm" / "joined" / f"{base.resolve().name}-{digest}"
  if not (folder / "config.json").is_file():
    assemble(
      model.path,
      model.encoders,
      folder,
      revision=model.revision,
      size=model.encoder_size,
      connector=model.connector,
      factor=model.connector_factor,
      connector_from=model.connector_from,
      seed=model.seed,
      weights=not model.from_scratch,
    )
  plain = {"path": str(folder), "revision": None, "encoders": (), "text_only": False}
  return dataclasses.replace(model, **plain, **{key: getattr(ModelConfig, key) for key in _CHOSEN})


def assemble(
  base: str | Path,
  encoders: Sequence[str | Path],
  folder: str | Path,
  *,
  revision: str | None = None,
  size: int = 0,
  connector: str = "mlp",
  factor: int = 0,
  connector_from: str | Path | None = None,
  seed: int = 0,
  weights: bool = True,
) -> Path:
  """Writes a folder that `load_model` reads: the base's decoder, the encoders, a fresh connector.

  Tensors are copied from file to file, one at a time, in their own dtypes. The base may be a language model
  by itself: it gets SmolVLM's prompts and special tokens, and rows for them in its embedding, drawn with the
  mean and covariance of the rows that it has. Where such a one has a single SigLIP and the connector
  "smolvlm", the folder is a SmolVLM like those on the hub, which transformers reads; any other is of
  `model_type` spatialvlm (docs/eyes.md).

  Args:
    base: folder or hub id of a vision-language model, or of a language model by itself (also a GGUF file).
    encoders: folders or hub ids of encoders, or of vision-language models, whose towers are then taken;
      "own" is the base's. The first one's grid is that of all.
    revision: of the base.
    size: side of a tile in pixels; 0 for the one nearest to the base's (of a language model: to the first
      encoder's) that the first encoder's patches and the connector's shuffle divide.
    connector: "linear", "mlp" for two layers with a GELU between them, both behind a layer norm; or "smolvlm"
      for SmolVLM's single layer without norm or bias.
    factor: each square of factor x factor patches becomes one image token; 0 for the base's, of a language
      model for the one that makes about 8 x 8 tokens of a tile, as SmolVLM has them.
    connector_from: a safetensors file, or folder or hub id of a model of the same parts, whose connector is
      taken; None for a drawn one.
    seed: of the connector, and of a language model's new rows.
    weights: false writes no tensors, for a model that is drawn.

  Raises:
    UserError: something is missing, unknown or misfits, a size that does not do, or a full disk.
  """
  if connector not in CONNECTORS:
    raise UserError(f"connector {connector!r}: expected one of {', '.join(CONNECTORS)}")
  if not encoders:
    raise UserError("encoders: there are none; name folders, hub ids, or 'own'")
  root = bases.find(base, revision, weights=weights, seed=seed)
  parts = [_find(str(name), root) for name in encoders]
  for part in parts:
    if part.vision.channels != parts[0].vision.channels:
      raise UserError(f"{part.name}: reads {part.vision.channels} channels, {parts[0].name} reads others")
  factor = _factor(parts[0], root, factor)
  tile = _tile(parts[0], root, factor, size)
  colours = (parts[0].mean, parts[0].std) if root.text else _colours(root.root)
  tile |= dict(zip(("mean", "std"), colours, strict=True))
  plan = joining.Plan(
    root.sized(factor, tile["size"], parts[0].vision.patch_size),
    parts,
    tile,
    factor,
    connector,
    None if connector_from is None else _trained(connector_from),
  )
  where = f"{base} with {', '.join(part.name for part in parts)}"
  written, tensors = joining.folder(plan, where, seed if weights else None)
  if root.tokenizer is None:
    return write_folder(written, tensors, folder, root.root, _companions(root, tile))
  files = root.tokenizer.files(tile["size"], tile["tokens"], *colours, root.config.text.max_length)
  return write_folder(written, tensors, folder, None, files)


def _trained(name: str | Path) -> Path:
  """The file or folder whose connector is taken."""
  file = Path(name).expanduser()
  return file if file.is_file() else shipped.file(name) or resolve(name)


def _find(name: str, base: bases.Base) -> Part:
  """What `encoders` names, as far as files say it; no weights are read."""
  if name == OWN:
    if base.text:
      raise UserError(
        f"encoders: {OWN}: {base.name} is a language model by itself, without a tower; name encoders"
      )
    return Part(name, base.root, f"{base.config.family}/vision", base.config.vision, {}, *_colours(base.root))
  folder = resolve(name)
  source = contents.model_json(folder, "an encoder")
  where = str(folder / "config.json")
  if source.get("model_type") == JOINED:
    raise UserError(f"{name}: its encoders were changed already; name the folders that they came from")
  if bases.is_text(source):
    raise UserError(f"{name}: a language model by itself, where an encoder is wanted")
  if source.get("model_type") in {spec.hf_type for spec in FAMILIES.values()}:
    tower = read_config(folder)
    return Part(name, folder, f"{tower.family}/vision", tower.vision, source, *_colours(folder))
  found = encoder_config(source, dtype="float32", where=where)
  return Part(name, folder, found.family, found.vision, found.source, *_colours(folder))


def _colours(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation of each channel, of 1, by which a folder's images are normalised."""
  file = folder / "preprocessor_config.json"
  nested = folder / "processor_config.json"
  said: Any = read_json(file) if file.is_file() else {}
  if not said and nested.is_file():
    file, said = nested, read_json(nested).get("image_processor") or {}
  if not said:
    raise UserError(f"{folder}: no preprocessor_config.json, which says what pixels it wants; copy it there")
  if not said.get("do_normalize", True):
    return (0.0,) * 3, (1.0,) * 3
  found = []
  for key in ("image_mean", "image_std"):
    values = said.get(key)
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) for v in values) or not values:
      raise UserError(f"{file}: {key}: expected a list of numbers, one a channel, got {values!r}")
    found.append(tuple(map(float, values)))
  if not said.get("do_rescale", True) or abs(said.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
    raise UserError(f"{file}: pixels that are not divided by 255 are not supported here")
  return found[0], found[1]


def _factor(first: Part, base: bases.Base, factor: int) -> int:
  """How many patches, along a side, become one image token."""
  if factor < 0:
    raise UserError(f"connector_factor {factor}: expected a number of patches of at least 1, or 0")
  return factor or (max(round(first.vision.grid / _SIDE), 1) if base.text else base.config.connector.factor)


def _tile(first: Part, base: bases.Base, factor: int, size: int) -> dict[str, Any]:
  """Side of a tile, and the image tokens that it makes."""
  patch = first.vision.patch_size
  unit = factor * patch
  wanted = size or (first.vision.image_size if base.text else base.config.vision.image_size)
  size = size or nearest(wanted, unit)
  if size < 1 or size % unit:
    near = nearest(wanted, unit)
    sizes = ", ".join(str(side) for side in (near - unit, near, near + unit) if side > 0)
    raise UserError(
      f"encoder_size {size}: {first.name} makes patches of {patch} pixels, and the connector joins {factor} x"
      f" {factor} of them, so a tile's side must be a multiple of {unit}; near it are {sizes}"
    )
  return {"size": size, "tokens": (size // unit) ** 2}


def _companions(base: bases.Base, tile: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
  """The processor's files with the new tile; None for one that is left out."""
  files: dict[str, dict[str, Any] | None] = {"video_preprocessor_config.json": None}
  for name in ("preprocessor_config.json", "processor_config.json"):
    if (base.root / name).is_file():
      said = read_json(base.root / name)
      images = said if name.startswith("pre") else said.get("image_processor")
      if isinstance(images, dict):
        _resize(images, base.config.vision.image_size, tile["size"])
      for key in ("image_seq_len", "image_seq_length"):
        for holder in (said, images or {}):
          if key in holder:
            holder[key] = tile["tokens"]
      files[name] = said
  return files


def _resize(images: dict[str, Any], old: int, new: int) -> None:
  """Tiles of another size, as many of them as before."""
  if "max_image_size" in images or "longest_edge" in (images.get("size") or {}):
    longest = (images.get("size") or {}).get("longest_edge", 4 * old)
    images["size"] = {"longest_edge": round(longest / old * new)}
    images["max_image_size"] = {"longest_edge": new}
  else:
    images["size"] = {"height": new, "width": new}


def _connector_bytes(source: Path) -> Any:
  """What tells one trained connector from another."""
  return hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else _bytes(str(source), None)


def _bytes(name: str, revision: str | None) -> list[Any]:
  """What tells one folder from another: its weights, and the files that describe it."""
  folder = resolve(name, revision)
  files = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json")
  files += ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
  found = [hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in files if (folder / f).is_file()]
  return [identity(name, revision)["sha256"], *found]
