"""Encoders with drawn weights in Hugging Face's format, and worlds of numbers that need no rendering.

`python -m tests.probing.support FOLDER` writes one encoder of each kind, of the tiny model's size.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import hub
from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.models.registry import encoder_config
from spatialvlm.probing.worlds import NAMES, Worlds

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoders"
SIZES = dict(
  hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=96
)
# Channels' means and deviations: transformers' defaults of each processor.
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {
  "image_mean": [0.48145466, 0.4578275, 0.40821073],
  "image_std": [0.26862954, 0.26130258, 0.27577711],
}
KINDS = {
  "siglip": ("siglip_vision_model", {"image_processor_type": "SiglipImageProcessor"} | HALF),
  "clip": ("clip_vision_model", {"image_processor_type": "CLIPImageProcessor"} | CLIP),
  "dinov2": ("dinov2", {"image_processor_type": "BitImageProcessor"} | CLIP),
}


def write_encoder(folder: Path, kind: str, patch_size: int = 12, seed: int = 0, **sizes: int) -> Path:
  """An encoder of one of KINDS, with its preprocessor_config.json."""
  model_type, processor = KINDS[kind]
  source = SIZES | {"model_type": model_type, "patch_size": patch_size, "num_channels": 3} | sizes
  config = encoder_config(source, dtype="float32", where=kind)
  model = VisionEncoder(config.vision, dtype=jnp.float32, rngs=nnx.Rngs(seed))
  hub.save_encoder(model, config, folder)
  edge = source["image_size"]
  settings = processor | {"size": edge} | ({"crop_size": edge} if kind != "siglip" else {})
  (folder / "preprocessor_config.json").write_text(json.dumps(settings))
  return folder


def recorded_encoder(folder: Path) -> Path:
  """The recorded encoder of the folder's name (tests/fixtures/encoders), with a preprocessor_config.json."""
  shutil.copytree(FIXTURES / folder.name, folder)
  settings = KINDS[folder.name][1] | {"size": 12, "crop_size": 12}
  (folder / "preprocessor_config.json").write_text(json.dumps(settings))
  return folder


def numbers(scenes: int = 60, grid: int = 4, seed: int = 0) -> Worlds:
  """Worlds drawn as numbers: two named objects in each scene, each in a cell of its own, and their pair."""
  rng = np.random.default_rng(seed)
  cells = grid * grid
  depth = rng.uniform(2, 9, (scenes, cells)).astype(np.float32)
  depth[:, 0] = np.nan
  names = np.zeros((scenes, cells, len(NAMES)), np.float32)
  named, centres, difference, nearer = [], [], [], []
  for i in range(scenes):
    (a, b), (first, second) = rng.choice(np.arange(1, cells), 2, False), rng.choice(len(NAMES), 2, False)
    names[i, a, first] = names[i, b, second] = 1
    named += [(i, first), (i, second)]
    centres += [((c % grid + 0.5) / grid, (c // grid + 0.5) / grid) for c in (a, b)]
    difference.append(np.eye(cells)[a] - np.eye(cells)[b])
    nearer.append(depth[i, a] < depth[i, b])
  parts = (scenes // 2, scenes // 4, scenes - scenes // 2 - scenes // 4)
  return Worlds(
    images=rng.integers(0, 256, (scenes, 12 * grid, 12 * grid, 3), dtype=np.uint8),
    depth_NC=depth,
    names_NCZ=names,
    named_M2=np.array(named, np.int32),
    centres_M2=np.array(centres, np.float32),
    pair_scene_Q=np.arange(scenes, dtype=np.int32),
    pair_QC=np.array(difference, np.float32),
    first_nearer_Q=np.array(nearer),
    count_N=rng.integers(1, 9, scenes).astype(np.int32),
    part_N=np.repeat(np.arange(3, dtype=np.int8), parts),
  )


if __name__ == "__main__":
  for name in KINDS:
    print(write_encoder(Path(sys.argv[1]) / name, name))
