"""Folders of small models whose rows are whole blocks of every type, with every parameter random."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.vlm import Vlm
from tests import tiny_families, tiny_language, tiny_processor

TILE = 32
TEXT = {
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "max_position_embeddings": 512,
  "rms_norm_eps": 1e-5,
  "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
VISION = {
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "image_size": TILE,
  "patch_size": 8,
}


def write(kind: str, folder: Path, seed: int = 0, **text) -> Path:
  """A whole folder of "smolvlm", "internvl", or a language model by itself: "llama", "qwen2".

  Args:
    text: settings of the language model over those of `TEXT`.
  """
  source = _SOURCES[kind](folder, text)
  (folder / "config.json").write_text(json.dumps(source))
  config = FAMILIES[kind].parse_config(source, dtype="float32", where="test")
  graphdef, state = nnx.split(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(seed)

  def draw(leaf):
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    scale = np.float32(1 / leaf.shape[0] ** 0.5 if leaf.ndim > 1 else 0.1)
    return jax.numpy.asarray(noise * scale + np.float32(0.8 if leaf.ndim == 1 else 0))

  return hub.save_model(nnx.merge(graphdef, jax.tree.map(draw, state)), folder)


LORA = {
  "method": "lora",
  "target": r".*text_model.*\.(q|k|v|down)_proj",
  "options": {"rank": 4, "alpha": 6.0},
}


def adapted(vlm: Vlm, seed: int = 1, **settings) -> Vlm:
  """A copy with an adapter (`PeftConfig(**settings)`) whose every number is random."""
  other = nnx.clone(vlm)
  peft.apply(other, PeftConfig(**settings), peft.Given(words=lambda text: [5, 6, 7]))
  rng = np.random.default_rng(seed)
  for _, variable in nnx.iter_graph(other):
    if isinstance(variable, peft.AdapterParam):
      variable[...] = np.asarray(0.1 * rng.normal(size=variable.shape), np.float32)
  return other


def _smolvlm(folder: Path, text: dict) -> dict:
  tiny_processor.write_processor(folder, tile=TILE, longest_edge=2 * TILE)
  words = tiny_processor.tokenizer()
  return {
    "model_type": "smolvlm",
    "architectures": ["SmolVLMForConditionalGeneration"],
    "image_token_id": words.token_to_id("<image>"),
    "scale_factor": 2,
    "tie_word_embeddings": False,
    # two rows more than tokens, as published tables have
    "text_config": TEXT
    | {
      "model_type": "llama",
      "vocab_size": words.get_vocab_size() + 2,
      "architectures": ["VLlama3ForCausalLM"],
    }
    | text,
    "vision_config": {**VISION, "model_type": "smolvlm_vision"},
  }


def _internvl(folder: Path, text: dict) -> dict:
  tiny_families.write_internvl(folder, tile=TILE, patch=8, max_patches=4)
  words = tiny_families.qwen_tokenizer()
  said = json.loads((folder / "config.json").read_text())
  return said | {
    "architectures": ["InternVLForConditionalGeneration"],
    "tie_word_embeddings": True,
    "text_config": TEXT
    | {"model_type": "qwen2", "vocab_size": words.get_vocab_size(), "architectures": ["Qwen2ForCausalLM"]}
    | text,
    # the converter finds the projector's layers among those of a tower of four layers or more
    "vision_config": {
      **VISION,
      "model_type": "internvl_vision",
      "architectures": ["InternVisionModel"],
      "num_hidden_layers": 4,
      "image_size": [TILE, TILE],
      "patch_size": [8, 8],
      "attention_bias": True,
      "hidden_act": "gelu",
      "layer_norm_eps": 1e-6,
    },
  }


def _language(kind: str):
  def source(folder: Path, text: dict) -> dict:
    words = tiny_language.write_words(folder, kind)
    said = {"model_type": kind, **TEXT, "vocab_size": words.get_vocab_size(), **text}
    return said | {"architectures": [FAMILIES[kind].hf_class]}

  return source


_SOURCES = {
  "smolvlm": _smolvlm,
  "internvl": _internvl,
  "llama": _language("llama"),
  "qwen2": _language("qwen2"),
}
