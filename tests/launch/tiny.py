"""A model folder without weights, a few images with questions, and a recipe for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests import tiny_processor

RECIPE = """
from ml_collections import ConfigDict

def get_config(arg="lora"):
  config = ConfigDict()
  config.name = "tiny"
  config.model = dict(path="{folder}/model", from_scratch=True)
  source = dict(kind="llava", path="{folder}/data.jsonl")
  sources = dict(sources=dict(own=source), validation=dict(own=source), validation_size=4)
  config.data = dict(**sources, lengths=(96,), tiles=(1,), workers=1)
  config.peft = dict(method="lora", rank=2) if arg == "lora" else dict(method="none", full=".*")
  config.train = dict(steps=6, batch_size=4, log_every=2, validate_every=4, checkpoint_every=2)
  config.optim = dict(learning_rate=1e-3, warmup_steps=2)
  return config
"""


def write_model(
  folder: Path, *, width: int = 16, depth: int = 2, heads: int = 2, size: int = 16, patch: int = 4
) -> Path:
  """A SmolVLM's config and processor; its weights are drawn with `from_scratch`."""
  tiny_processor.write_processor(
    folder, tile=size, longest_edge=size, split=False, tokens_per_tile=(size // patch // 2) ** 2
  )
  words = tiny_processor.tokenizer()
  shape = {"num_hidden_layers": depth, "hidden_size": width, "num_attention_heads": heads}
  config = {
    "model_type": "smolvlm",
    "architectures": ["SmolVLMForConditionalGeneration"],
    "image_token_id": words.token_to_id("<image>"),
    "scale_factor": 2,
    "tie_word_embeddings": True,
    "text_config": {
      "model_type": "llama",
      **shape,
      "intermediate_size": 3 * width,
      "num_key_value_heads": heads,
      "vocab_size": words.get_vocab_size(),
      "max_position_embeddings": 512,
      "pad_token_id": words.token_to_id("<|im_end|>"),
    },
    "vision_config": {
      "model_type": "smolvlm_vision",
      **shape,
      "intermediate_size": 3 * width,
      "image_size": size,
      "patch_size": patch,
    },
  }
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def write_data(folder: Path, count: int = 12, size: int = 16) -> Path:
  """Images of one colour, and which of two letters it is."""
  rng = np.random.default_rng(0)
  lines = []
  for i in range(count):
    red = bool(rng.integers(2))
    pixels = np.full((size, size, 3), (200, 30, 30) if red else (30, 30, 200), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    question = "Which box is it? (A) the red box (B) the blue box"
    answer = "A" if red else "B" + " sphere" * (i % 3)
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    lines.append(json.dumps({"id": str(i), "image": f"{i}.png", "conversations": turns}))
  (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
  return folder / "data.jsonl"


def write_all(folder: Path) -> Path:
  """Model, data and recipe below `folder`; returns the recipe's path."""
  write_model(folder / "model")
  write_data(folder)
  recipe = folder / "recipe.py"
  recipe.write_text(RECIPE.replace("{folder}", str(folder)))
  return recipe
