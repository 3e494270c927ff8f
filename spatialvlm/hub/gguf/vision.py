"""A model's eyes as a GGUF file of their own (mmproj): vision tower and projector for llama.cpp's mtmd.

Keys, names and types are those of llama.cpp's own converter, but for one thing: its graph of InternVL appends
the class token behind the patches, while the table of positions has its place first, so that each patch would
read its neighbour's; the table is written rolled by one row, which gives every token its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spatialvlm.hub import rules
from spatialvlm.hub.gguf import numbers
from spatialvlm.hub.gguf.numbers import Numbers
from spatialvlm.hub.gguf.writing import Keys, Out
from spatialvlm.hub.save import tensors_of
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.types import UserError

# Our paths -> ggml's names; `{i}` is a layer's number. What has no bias in a model has none here.
_BLOCK = {
  "attn_norm": "ln1",
  "mlp_norm": "ln2",
  "attn.q_proj": "attn_q",
  "attn.k_proj": "attn_k",
  "attn.v_proj": "attn_v",
  "attn.o_proj": "attn_out",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}
TOWER = {
  "vision.patch_embed": "v.patch_embd",
  "vision.norm": "v.post_ln",
  **{f"vision.stack.layers.{{i}}.{ours}": f"v.blk.{{i}}.{theirs}" for ours, theirs in _BLOCK.items()},
}
# Variables that are no part of a linear layer or norm.
ALONE = {
  "vision.positions": "v.position_embd.weight",
  "vision.class_token": "v.class_embd",
  "vision.stack.layers.{i}.attn_scale": "v.blk.{i}.ls1.weight",
  "vision.stack.layers.{i}.mlp_scale": "v.blk.{i}.ls2.weight",
}
# What mtmd takes where a file does not say it.
USUAL_TILES = (1, 12)
_PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Projector:
  """One of mtmd's projectors.

  Attributes:
    name: `clip.projector_type`.
    connector: our paths to ggml's names, as of the tower.
    floats: ggml's names of matrices that are F32 whatever the numbers; `half`: those that are F16 with F16
      alone, F32 otherwise.
    why_not: one line for a tower that mtmd would compute otherwise.
    keys: adds the projector's own keys.
    changes, undo: what is done to tensors by ggml's names, and what takes it back.
  """

  name: str
  connector: Mapping[str, str]
  floats: tuple[str, ...]
  half: tuple[str, ...]
  why_not: Callable[[VlmConfig], str | None]
  keys: Callable[[Keys, VlmConfig, Picture], None]
  changes: Mapping[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=dict)
  undo: Mapping[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Picture:
  """How pictures reach the tower.

  Attributes:
    mean, std: of each channel, of 1.
    edge: pixels of the longest edge before tiles are cut (Idefics3); 0 where there is none.
    tiles: fewest and most tiles beside the whole (InternVL).
  """

  mean: Sequence[float]
  std: Sequence[float]
  edge: int = 0
  tiles: tuple[int, int] = (1, 1)


def _idefics3_why_not(config: VlmConfig) -> str | None:
  block = config.vision.block
  if block.activation not in ("gelu_tanh", "gelu"):
    return f"mtmd's Idefics3 tower computes gelu, not {block.activation}"
  if config.connector.factor < 2:
    return "mtmd's Idefics3 joins squares of patches, 2 x 2 at least, and stops at a scale_factor of 1"
  return None


def _idefics3_keys(keys: Keys, config: VlmConfig, picture: Picture) -> None:
  keys.add_vision_use_gelu(True)
  keys.add_vision_preproc_image_size(picture.edge)


def _internvl_why_not(config: VlmConfig) -> str | None:
  vision = config.vision
  if vision.block.attention.qk_norm or vision.block.norm != "layer":
    return "mtmd knows norms of queries and keys, and root-mean-square norms, of InternViT-6B alone"
  if vision.feature_layer is not None:
    return f"the projector reads layer {vision.feature_layer}, mtmd the last (vision_feature_layer)"
  if vision.block.activation not in ("gelu", "gelu_tanh", "silu"):
    return f"mtmd's InternViT does not compute {vision.block.activation}"
  if vision.positions == "none":
    return "mtmd's InternViT has positions, and this one has none"
  if vision.final_norm != "none":
    return "the tower ends in a norm (use_mean_pooling=false), which mtmd's InternViT does not have"
  return None


def _internvl_keys(keys: Keys, config: VlmConfig, picture: Picture) -> None:
  silu = config.vision.block.activation == "silu"
  keys.add_vision_use_silu(True) if silu else keys.add_vision_use_gelu(True)
  if picture.tiles != USUAL_TILES:
    keys.add_vision_preproc_min_tiles(picture.tiles[0])
    keys.add_vision_preproc_max_tiles(picture.tiles[1])


PROJECTORS: dict[str, Projector] = {
  "idefics3": Projector(
    "idefics3",
    {"connector.proj": "mm.model.fc"},
    floats=("v.patch_embd.weight", "v.position_embd.weight"),
    half=(),
    why_not=_idefics3_why_not,
    keys=_idefics3_keys,
  ),
  "internvl": Projector(
    "internvl",
    {
      "connector.norm": "mm.model.mlp.0",
      "connector.hidden": "mm.model.mlp.1",
      "connector.proj": "mm.model.mlp.3",
    },
    floats=("v.position_embd.weight", "v.class_embd"),
    half=("v.patch_embd.weight",),
    why_not=_internvl_why_not,
    keys=_internvl_keys,
    changes={"v.position_embd.weight": lambda table: np.roll(table, -1, axis=-2)},
    undo={"v.position_embd.weight": lambda table: np.roll(table, 1, axis=-2)},
  ),
}
_OF_FAMILY = {
  "idefics3": "idefics3",
  "smolvlm": "idefics3",
  "smolvlm-gemma2": "idefics3",
  "internvl": "internvl",
}


def why_not(config: VlmConfig) -> str | None:
  """One line for eyes that llama.cpp cannot run or would compute otherwise; None where it does the same."""
  family = config.family
  if family not in _OF_FAMILY:
    what = "with other encoders" if "+" in family else f"of the family {family!r}"
    known = ", ".join(sorted(_OF_FAMILY))
    return f"llama.cpp runs no model {what}, so there is no GGUF of it (with eyes: {known})"
  block = config.vision.block
  if block.mlp_width == block.attention.width:
    return (
      f"the tower's layers are as wide within ({block.mlp_width}) as without; llama.cpp, which tells ffn_up"
      " from ffn_down by their shapes, would take one for the other"
    )
  return PROJECTORS[_OF_FAMILY[family]].why_not(config)


def keys(out: Keys, config: VlmConfig, picture: Picture, said: Numbers) -> None:
  """Adds the keys of a tower's sizes and of how pictures are shown to it."""
  vision, block = config.vision, config.vision.block
  projector = PROJECTORS[_OF_FAMILY[config.family]]
  out.add_file_type(numbers.FILE_TYPES[said.mmproj])
  out.add_clip_has_vision_encoder(True)
  out.add_vision_projection_dim(config.text.block.attention.width)
  out.add_vision_image_size(vision.image_size)
  out.add_vision_patch_size(vision.patch_size)
  out.add_vision_embedding_length(block.attention.width)
  out.add_vision_feed_forward_length(block.mlp_width)
  out.add_vision_block_count(vision.depth)
  out.add_vision_head_count(block.attention.heads)
  out.add_vision_image_mean(list(picture.mean))
  out.add_vision_image_std(list(picture.std))
  out.add_clip_projector_type(projector.name)
  out.add_vision_attention_layernorm_eps(block.eps)
  out.add_vision_projector_scale_factor(config.connector.factor)
  projector.keys(out, config, picture)
  out.add_quantization_version(2)


def tensors(vlm: Vlm, said: Numbers) -> list[Out]:
  """The tensors of tower and projector by ggml's names.

  Raises:
    UserError: blocks do not divide a tensor's rows.
  """
  family = vlm.config.family
  projector = PROJECTORS[_OF_FAMILY[family]]
  table = TOWER | dict(projector.connector)
  parts = tensors_of(vlm.connector, family, "connector.") | tensors_of(vlm.vision, family, "vision.")
  found = []
  for name, tensor in parts.items():
    path = rules.to_ours(name, family)
    if path == "vision.mask_token":  # nothing reads it
      continue
    ggml = to_ggml(path, table)
    if ggml in projector.floats or len(tensor.shape) < 2:
      kind = "F32"
    elif ggml in projector.half:
      kind = "F16" if said.mmproj == "F16" else "F32"
    else:
      kind = said.mmproj
    numbers.check_rows(ggml, tensor.shape, kind, "mmproj")
    found.append(Out(ggml, tensor, kind, "mmproj", projector.changes.get(ggml)))
  return found


def to_ggml(path: str, table: Mapping[str, str]) -> str:
  """ggml's name of the variable at our path.

  Raises:
    UserError: it has none.
  """
  number = re.search(r"\.layers\.(\d+)\.", path)
  general = path if number is None else path.replace(number[0], ".layers.{i}.", 1)
  stem, _, part = general.rpartition(".")
  found = ALONE.get(general)
  if found is None and stem in table and part in _PARTS:
    found = f"{table[stem]}.{_PARTS[part]}"
  if found is None:
    raise UserError(f"{path}: llama.cpp's mtmd has no such tensor")
  return found if number is None else found.replace("{i}", number[1])
