"""The two kinds of folders that `assemble` writes: parts joined in a way of ours, and SmolVLM's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.core.mlp import ACTIVATIONS
from spatialvlm.hub import bases, rules
from spatialvlm.hub.load import match
from spatialvlm.hub.resolve import read_entries, weight_files
from spatialvlm.hub.save import tensors_of
from spatialvlm.hub.tensors import CODES, Entry, Lazy
from spatialvlm.models.connector import Connector
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.positions import resample
from spatialvlm.models.registry import JOINED, family, family_of
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.types import UserError

# Connectors by name: what a joined folder's config.json says of each.
CONNECTORS: dict[str, dict[str, Any]] = {
  "linear": {"norm": True, "activation": None, "bias": True},
  "mlp": {"norm": True, "activation": "gelu", "bias": True},
  "smolvlm": {"norm": False, "activation": None, "bias": False},
}
# Towers that SmolVLM's own files can hold, and language models that transformers computes within a SmolVLM
# as by themselves (of Gemma 2 it leaves out the bound of the logits).
_TOWERS = ("siglip", "smolvlm/vision", "idefics3/vision")
TEXTS = ("llama", "qwen2", "gemma")
_VISION = "model.vision_model."


@dataclasses.dataclass(frozen=True)
class Part:
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


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is put together.

  Attributes:
    tile: its `size` in pixels, image `tokens`, and the `mean` and `std` that the processor normalises by.
    factor: patches along a side that become one image token.
    connector: key of `CONNECTORS`.
    taken: a safetensors file, or a model's folder, whose connector is taken; None for a drawn one.
  """

  base: bases.Base
  parts: Sequence[Part]
  tile: Mapping[str, Any]
  factor: int
  connector: str
  taken: Path | None = None

  @property
  def is_smolvlm(self) -> bool:
    """Whether these parts are those of a SmolVLM."""
    text = self.base.source.get("text_config") or {}
    return (
      self.base.text
      and self.connector == "smolvlm"
      and [part.family in _TOWERS for part in self.parts] == [True]
      and text.get("model_type") in TEXTS
    )


def folder(plan: Plan, where: str, seed: int | None) -> tuple[dict[str, Any], dict[str, Lazy] | None]:
  """config.json and tensors of the new folder; without a `seed`, of the connector, no tensors.

  Raises:
    UserError: the parts' tensors do not fit their configs, or these do not fit together.
  """
  entries = [bases.entries_of(part.folder, part.family) if seed is not None else {} for part in plan.parts]
  scale = _scale(plan, entries[0])
  make = _smolvlm if plan.is_smolvlm else _joined
  written, named = make(plan, entries, scale)
  config = family(family_of(written, where)).parse_config(written, dtype="float32", where=where)
  if seed is None:
    return written, None
  connector = _fresh(config, scale, seed)
  if plan.taken is not None:
    connector = _taken(plan.taken, connector)
  tensors = {**plan.base.tensors, **named, **connector}
  tied = not any(rules.to_ours(name, config.family) == family(config.family).head for name in tensors)
  _check(dataclasses.replace(config, tied=tied), tensors, where)
  return written, dict(sorted(tensors.items()))


def _joined(
  plan: Plan, entries: Sequence[Mapping[str, Entry]], scale: float
) -> tuple[dict[str, Any], dict[str, Lazy]]:
  """A folder of `model_type` spatialvlm (docs/eyes.md), and the encoders' tensors in it."""
  written = {
    "model_type": JOINED,
    "base": plan.base.source,
    "encoders": [
      {"name": part.title, "family": part.family, "config": part.config, "mean": part.mean, "std": part.std}
      for part in plan.parts
    ],
    "tile": dict(plan.tile),
    "connector": {"factor": plan.factor, **CONNECTORS[plan.connector], "init_scale": scale},
  }
  tensors = {
    f"encoders.{number}.{name}": bases.lazy(entry)
    for number, part in enumerate(entries)
    for name, entry in part.items()
  }
  return written, tensors


def _smolvlm(
  plan: Plan, entries: Sequence[Mapping[str, Entry]], scale: float
) -> tuple[dict[str, Any], dict[str, Lazy]]:
  """A SmolVLM's config.json, and its tower's tensors; a SigLIP's positions resampled to the tile's grid."""
  part, size = plan.parts[0], plan.tile["size"]
  if part.family != "siglip":
    vision = part.config["vision_config"]
    tensors = {name: bases.lazy(entry) for name, entry in entries[0].items()}
  else:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")
    block = part.vision.block
    numbers = (block.width, block.mlp_width, part.vision.depth, block.attention.heads, part.vision.channels)
    vision = dict(zip(keys, numbers, strict=True)) | {
      "attention_dropout": 0.0,
      "hidden_act": part.config.get("hidden_act") or "gelu_pytorch_tanh",
      "image_size": size,
      "layer_norm_eps": block.eps,
      "model_type": "smolvlm_vision",
      "patch_size": part.vision.patch_size,
    }
    grid = size // part.vision.patch_size
    tensors = {
      _VISION + name: _positions(entry, grid) if name == _POSITIONS else bases.lazy(entry)
      for name, entry in entries[0].items()
    }
  written = {
    **plan.base.source,
    "architectures": ["SmolVLMForConditionalGeneration"],
    "vision_config": vision,
  }
  return written, tensors


_POSITIONS = "embeddings.position_embedding.weight"


def _positions(entry: Entry, grid: int) -> Lazy:
  """A table of positions on another grid, as the encoder itself resamples it for such an image."""
  make = lambda: np.asarray(resample(jnp.asarray(entry.read()), grid, grid, False))
  plain = bases.lazy(entry)
  return plain if entry.shape[0] == grid**2 else Lazy(plain.dtype, (grid**2, entry.shape[1]), make)


def _scale(plan: Plan, first: Mapping[str, Entry]) -> float:
  """The scale of the last layer's weights, so that fresh image tokens are as large as embedded words.

  A layer norm gives a single layer inputs of unit size; after a first layer they are those of a normal
  variable behind the activation. Without a norm they are as large as the encoder's own last norm makes them,
  or of unit size where several encoders are joined; where a single one has no such norm, unit size is taken.
  """
  size, said = plan.base.word_size, CONNECTORS[plan.connector]
  if said["activation"]:
    x, share = np.polynomial.hermite_e.hermegauss(64)
    behind = np.asarray(ACTIVATIONS[said["activation"]](jnp.asarray(x, jnp.float32)), np.float64)
    return size / float(np.sqrt(np.sum(share * behind**2) / np.sum(share)))
  if not said["norm"] and len(plan.parts) == 1:
    family_name = plan.parts[0].family
    norm = {rules.to_ours(name, family_name): entry for name, entry in first.items()}
    squares = [
      np.square(norm[key].read().astype(np.float64)) for key in ("norm.scale", "norm.bias") if key in norm
    ]
    if squares and plan.parts[0].vision.final_norm == "tokens":
      return size / float(np.sqrt(np.mean(sum(squares))))
  return size


def _fresh(config: VlmConfig, scale: float, seed: int) -> dict[str, Lazy]:
  """The connector's tensors, drawn."""
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    fresh = Connector(
      dataclasses.replace(config.connector, init_scale=scale),
      config.vision.width,
      config.text.block.width,
      dtype=jnp.dtype("float32"),
      rngs=nnx.Rngs(seed),
    )
  return tensors_of(fresh, config.family, "connector.")


def _taken(source: Path, fresh: Mapping[str, Lazy]) -> dict[str, Lazy]:
  """The tensors of a trained connector under the names, and with the shapes, of the drawn ones.

  Raises:
    UserError: it has others.
  """
  entries, _ = read_entries([source] if source.is_file() else weight_files(source))
  missing = sorted(set(fresh) - set(entries))
  if missing:
    raise UserError(f"{source}: no such connector in it; {', '.join(missing)} are missing")
  for name, drawn in fresh.items():
    if entries[name].shape != drawn.shape:
      raise UserError(
        f"{source}: {name} has shape {entries[name].shape}, these parts want {drawn.shape}; take the"
        " connector of a model of the same parts, or a drawn one"
      )
  return {name: bases.lazy(entries[name]) for name in fresh}


def _check(config: VlmConfig, tensors: Mapping[str, Lazy], where: str) -> None:
  """Raises a UserError that lists every tensor that does not fit, before any is written."""
  variables = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0)))))
  shapes = {".".join(map(str, path)): tuple(variable.shape) for path, variable in variables}
  found = {name: SimpleNamespace(shape=t.shape, dtype=CODES[t.dtype]) for name, t in tensors.items()}
  match(found, [], shapes, config.family, Path(where))
