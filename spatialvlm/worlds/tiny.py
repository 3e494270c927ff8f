"""The folder of the tiny SmolVLM without its weights: sizes, tokenizer, chat template, image settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spatialvlm.worlds import vocabulary

IMAGE_SIZE, PATCH_SIZE, SCALE_FACTOR, MAX_LENGTH = 96, 12, 1, 512
TOKENS_PER_TILE = (IMAGE_SIZE // PATCH_SIZE // SCALE_FACTOR) ** 2
VISION = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 4}
TEXT = {
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "num_hidden_layers": 4,
}
# SmolVLM's own.
CHAT_TEMPLATE = (
  "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
  "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
  "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
  "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
  "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write(folder: str | Path) -> Path:
  """Writes everything but weights into `folder`, which is made; its weights, if any, stay as they are."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = vocabulary.build()
  tokenizer.save(str(folder / "tokenizer.json"))
  ids = {t: tokenizer.token_to_id(t) for t in ("<image>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>")}
  special = {
    "bos_token_id": ids["<|im_start|>"],
    "eos_token_id": ids["<end_of_utterance>"],
    "pad_token_id": ids["<|im_end|>"],
  }
  size = tokenizer.get_vocab_size()
  _json(folder, "config.json", _config(size, ids["<image>"], special))
  _json(folder, "generation_config.json", special)
  image = {
    "do_convert_rgb": True,
    "do_image_splitting": False,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SmolVLMImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": IMAGE_SIZE},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": IMAGE_SIZE},
  }
  _json(folder, "preprocessor_config.json", image)
  _json(
    folder, "processor_config.json", {"image_seq_len": TOKENS_PER_TILE, "processor_class": "SmolVLMProcessor"}
  )
  _json(folder, "chat_template.json", {"chat_template": CHAT_TEMPLATE})
  tokens = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": MAX_LENGTH,
    "padding_side": "left",
    "processor_class": "SmolVLMProcessor",
  }
  _json(folder, "tokenizer_config.json", tokens)
  return folder


def _config(vocabulary_size: int, image_token_id: int, special: dict[str, int]) -> dict[str, Any]:
  return {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "model_type": "smolvlm",
    "image_token_id": image_token_id,
    "scale_factor": SCALE_FACTOR,
    "tie_word_embeddings": True,
    **special,
    "text_config": {
      "model_type": "llama",
      **TEXT,
      **special,
      "hidden_act": "silu",
      "initializer_range": 0.05,
      "max_position_embeddings": MAX_LENGTH,
      "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0,
      "tie_word_embeddings": True,
      "vocab_size": vocabulary_size,
    },
    "vision_config": {
      "model_type": "smolvlm_vision",
      **VISION,
      "hidden_act": "gelu_pytorch_tanh",
      "image_size": IMAGE_SIZE,
      "layer_norm_eps": 1e-6,
      "patch_size": PATCH_SIZE,
    },
  }


def _json(folder: Path, name: str, value: dict[str, Any]) -> None:
  (folder / name).write_text(json.dumps(value, indent=2) + "\n")
