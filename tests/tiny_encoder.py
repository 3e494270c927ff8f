"""Vision encoders small enough to be built in a test, with every parameter random, and their folders."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import hub
from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.models.registry import encoder_config

# Each one's way of normalising pixels is its own.
COLOURS = {
  "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
  "siglip_vision_model": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
  "clip_vision_model": ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]),
}


def write_encoder(
  folder: str | Path, kind: str = "dinov2", patch: int = 4, width: int = 8, seed: int = 0, image: int = 0
) -> Path:
  """A folder as the hub has it: config, weights, image settings; by itself images of 3 x 3 patches."""
  source = {
    "model_type": kind,
    "hidden_size": width,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 2 * width,
    "mlp_ratio": 2,
    "image_size": image or 3 * patch,
    "patch_size": patch,
  }
  config = encoder_config(source, dtype="float32", where="test")
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: VisionEncoder(config.vision, dtype=jnp.float32, rngs=nnx.Rngs(0)))
  )
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.normal(0.5 if leaf.ndim == 1 else 0.0, 0.4, leaf.shape), jnp.float32)
  folder = hub.save_encoder(nnx.merge(graphdef, jax.tree.map(draw, state)), config, folder)
  mean, std = COLOURS[kind]
  pixels = {"image_mean": mean, "image_std": std, "do_normalize": True, "rescale_factor": 1 / 255}
  (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
  return folder
