"""A vision-language model with other encoders: base and encoders put together as a checkpoint of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import caches
from spatialvlm.config import ModelConfig
from spatialvlm.core.mlp import ACTIVATIONS
from spatialvlm.hub import contents, rules
from spatialvlm.hub.load import read_config
from spatialvlm.hub.resolve import identity, read_entries, read_json, resolve, weight_files
from spatialvlm.hub.save import tensors_of, write_folder
from spatialvlm.hub.tensors import DTYPES, Entry, Lazy
from spatialvlm.models.connector import Connector
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.joined import nearest
from spatialvlm.models.registry import JOINED, encoder_config, family, family_of
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

OWN = "own"
# Part of every cached folder's name: to be raised when what is written into one changes.
_VERSION = 1
_EMBEDDING = "decoder.embed.embedding"


@dataclasses.dataclass(frozen=True)
class _Part:
  """One encoder that was found. `config`: what it is rebuilt from; of the base's own tower empty."""

  name: str
  folder: Path
  family: str
  vision: VisionConfig
  config: Mapping[str, Any]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @property
  def title(self) -> str:
    """What the new folder calls it: a local folder's place is nobody's business."""
    return self.folder.resolve().name if Path(self.name).expanduser().is_dir() else self.name


def assembled(model: ModelConfig) -> ModelConfig:
  """The config with a plain path: where it names encoders, of a folder in the user's cache that has them.

  The folder's name comes from the bytes of all that it is made of, so that equal settings find it again.

  Raises:
    UserError: as `assemble`.
  """
  if not model.encoders:
    return model
  names = [model.path, *(name for name in model.encoders if name != OWN)]
  base = resolve(model.path, model.revision)
  made_of = {
    "version": _VERSION,
    "parts": [_bytes(name, model.revision if name == model.path else None) for name in names],
    "encoders": [name == OWN for name in model.encoders],
    **{key: getattr(model, key) for key in ("encoder_size", "connector", "seed", "from_scratch")},
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
      seed=model.seed,
      weights=not model.from_scratch,
    )
  plain = {"path": str(folder), "revision": None, "encoders": (), "encoder_size": 0}
  return dataclasses.replace(model, **plain, connector=ModelConfig.connector)


def assemble(
  base: str | Path,
  encoders: Sequence[str | Path],
  folder: str | Path,
  *,
  revision: str | None = None,
  size: int = 0,
  connector: str = "mlp",
  seed: int = 0,
  weights: bool = True,
) -> Path:
  """Writes a folder that `load_model` reads: the base's decoder, the encoders, a fresh connector.

  Tensors are copied from file to file, one at a time, in their own dtypes.

  Args:
    base: folder or hub id of a vision-language model.
    encoders: folders or hub ids of encoders, or of vision-language models, whose towers are then taken;
      "own" is the base's. The first one's grid is that of all.
    revision: of the base.
    size: side of a tile in pixels; 0 for the one nearest to the base's that the first encoder's patches and
      the connector's shuffle divide.
    connector: "linear", or "mlp" for two layers with a GELU between them.
    seed: of the connector.
    weights: false writes no tensors, for a model that is drawn.

  Raises:
    UserError: something is missing, unknown or misfits, a size that does not do, or a full disk.
  """
  root = resolve(base, revision)
  source = contents.model_json(root)
  if source.get("model_type") == JOINED:
    raise UserError(f"{base}: its encoders were changed already; name the model that it was made of")
  if connector not in ("linear", "mlp"):
    raise UserError(f"connector {connector!r}: expected linear or mlp")
  if not encoders:
    raise UserError("encoders: there are none; name folders, hub ids, or 'own'")
  config = read_config(root)
  parts = [_find(str(name), root, config) for name in encoders]
  for part in parts:
    if part.vision.channels != parts[0].vision.channels:
      raise UserError(f"{part.name}: reads {part.vision.channels} channels, {parts[0].name} reads others")
  tile = _tile(parts[0], config, size)
  entries = _entries(root, config.family) if weights else {}
  written = {
    "model_type": JOINED,
    "base": source,
    "encoders": [
      {"name": part.title, "family": part.family, "config": part.config, "mean": part.mean, "std": part.std}
      for part in parts
    ],
    "tile": tile | dict(zip(("mean", "std"), _colours(root), strict=True)),
    "connector": {
      "factor": config.connector.factor,
      "norm": True,
      "activation": "gelu" if connector == "mlp" else None,
      "bias": True,
      "init_scale": _scale(config, entries, connector == "mlp"),
    },
  }
  whole = family(family_of(written, str(base))).parse_config(
    written, dtype="float32", where=f"{base} with {', '.join(part.name for part in parts)}"
  )
  tensors = _tensors(whole, parts, entries, config.family, seed) if weights else None
  return write_folder(written, tensors, folder, root, _companions(root, config, tile))


def _find(name: str, root: Path, base: VlmConfig) -> _Part:
  """What `encoders` names, as far as files say it; no weights are read."""
  if name == OWN:
    return _Part(name, root, f"{base.family}/vision", base.vision, {}, *_colours(root))
  folder = resolve(name)
  source = contents.model_json(folder, "an encoder")
  where = str(folder / "config.json")
  if source.get("model_type") == JOINED:
    raise UserError(f"{name}: its encoders were changed already; name the folders that they came from")
  if source.get("model_type") in {spec.hf_type for spec in FAMILIES.values()}:
    tower = read_config(folder)
    return _Part(name, folder, f"{tower.family}/vision", tower.vision, source, *_colours(folder))
  found = encoder_config(source, dtype="float32", where=where)
  return _Part(name, folder, found.family, found.vision, found.source, *_colours(folder))


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


def _tile(first: _Part, base: VlmConfig, size: int) -> dict[str, int]:
  """Side of a tile, and the image tokens that it makes."""
  factor, patch = base.connector.factor, first.vision.patch_size
  unit, wanted = factor * patch, size or base.vision.image_size
  size = size or nearest(wanted, unit)
  if size < 1 or size % unit:
    near = nearest(wanted, unit)
    sizes = ", ".join(str(side) for side in (near - unit, near, near + unit) if side > 0)
    raise UserError(
      f"encoder_size {size}: {first.name} makes patches of {patch} pixels, and the connector joins {factor} x"
      f" {factor} of them, so a tile's side must be a multiple of {unit}; near it are {sizes}"
    )
  return {"size": size, "tokens": (size // unit) ** 2}


def _scale(config: VlmConfig, entries: Mapping[str, Entry], two_layers: bool) -> float:
  """The scale of the last layer's weights, so that fresh image tokens are as large as embedded words.

  The layer norm gives a single layer inputs of unit size; after a first layer they are those of a normal
  variable behind the activation.
  """
  size = config.text.init_std
  for name, entry in entries.items():
    if rules.to_ours(name, config.family) == _EMBEDDING:
      size = float(np.sqrt(np.mean(np.square(entry.read().astype(np.float64)))))
  size *= config.text.embed_scale
  if two_layers:
    x, share = np.polynomial.hermite_e.hermegauss(64)
    behind = np.asarray(ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32)), np.float64)
    size /= float(np.sqrt(np.sum(share * behind**2) / np.sum(share)))
  return size


def _entries(folder: Path, family_name: str) -> dict[str, Entry]:
  """A folder's tensors by their published names; a tower's of a whole model as well."""
  entries, doubled = read_entries(weight_files(folder))
  found: dict[str, Entry] = {}
  for name, entry in entries.items():
    if rules.ignored(name, family_name) or 0 in entry.shape:
      continue
    canonical = rules.canonical(name, family_name)
    if canonical in found:
      doubled.append(name)
    found[canonical] = entry
  if doubled:
    raise UserError(f"{folder}: tensors that stand there twice: {', '.join(sorted(doubled))}")
  return found


def _tensors(
  config: VlmConfig, parts: Sequence[_Part], base: Mapping[str, Entry], base_family: str, seed: int
) -> dict[str, Lazy]:
  """All tensors of the new folder; none is read before it is written."""
  copied = {}
  for name, entry in base.items():
    path = rules.to_ours(name, base_family)
    if path is None or path.startswith("decoder."):  # what has no place is told when the folder is read
      copied[name] = entry
  for number, part in enumerate(parts):
    for name, entry in _entries(part.folder, part.family).items():
      copied[f"encoders.{number}.{name}"] = entry
  tensors = {name: Lazy(DTYPES[entry.dtype], entry.shape, entry.read) for name, entry in copied.items()}
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    fresh = Connector(
      config.connector,
      config.vision.width,
      config.text.block.width,
      dtype=jnp.dtype("float32"),
      rngs=nnx.Rngs(seed),
    )
  return dict(sorted((tensors | tensors_of(fresh, config.family, "connector.")).items()))


def _companions(root: Path, base: VlmConfig, tile: Mapping[str, int]) -> dict[str, dict[str, Any] | None]:
  """The processor's files with the new tile; None for one that is left out."""
  files: dict[str, dict[str, Any] | None] = {"video_preprocessor_config.json": None}
  for name in ("preprocessor_config.json", "processor_config.json"):
    if (root / name).is_file():
      said = read_json(root / name)
      images = said if name.startswith("pre") else said.get("image_processor")
      if isinstance(images, dict):
        _resize(images, base.vision.image_size, tile["size"])
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


def _bytes(name: str, revision: str | None) -> list[Any]:
  """What tells one folder from another: its weights, and the files that describe it."""
  folder = resolve(name, revision)
  files = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json")
  found = [hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in files if (folder / f).is_file()]
  return [identity(name, revision)["sha256"], *found]
