"""Folders of language models by themselves, small enough to be written anew in each test."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tokenizers import AddedToken, Tokenizer

from spatialvlm import hub
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.vlm import Vlm
from tests import tiny_families, tiny_processor

# In the manner of SmolLM2 and Qwen2.5: ChatML with a system message of its own; Gemma's turns.
CHATML = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a box.<|im_end|>\n' }}{% endif %}"
  "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (
  "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else"
  " message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
SIZES = {
  "hidden_size": 24,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "max_position_embeddings": 512,
  "rms_norm_eps": 1e-5,
  "rope_theta": 1e4,
}


# What makes a Gemma 2 one, beside its family.
GEMMA2 = {"sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 16}


def tokenizer(kind: str) -> Tokenizer:
  """llama: SmolLM2's manner; qwen2; gemma, which writes `<bos>` before a text; base: as llama."""
  if kind == "qwen2":
    return tiny_families.qwen_tokenizer()
  if not kind.startswith("gemma"):
    return tiny_processor.tokenizer()
  words = Tokenizer.from_str(tiny_families.gemma_tokenizer(places=False).to_str())
  words.add_special_tokens([AddedToken(t, normalized=False) for t in ("<start_of_turn>", "<end_of_turn>")])
  return words


def write_words(folder: str | Path, kind: str) -> Tokenizer:
  """Writes tokenizer and, but for "base", chat template; returns the tokenizer."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  words = tokenizer(kind)
  words.save(str(folder / "tokenizer.json"))
  if kind != "base":
    (folder / "chat_template.jinja").write_text(TURNS if kind.startswith("gemma") else CHATML)
  named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
  if kind.startswith("gemma"):
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
  said = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
  (folder / "tokenizer_config.json").write_text(json.dumps(said))
  return words


def config_json(kind: str, vocab_size: int) -> dict:
  return {"model_type": "llama" if kind == "base" else kind, **SIZES, "vocab_size": vocab_size}


def write_checkpoint(folder: str | Path, kind: str = "llama", seed: int = 0, **more) -> Path:
  """A whole folder with every parameter random; `more` goes into its config.json."""
  words = write_words(folder, kind)
  source = config_json(kind, words.get_vocab_size()) | more
  config = FAMILIES[source["model_type"]].parse_config(source, dtype="float32", where="test")
  graphdef, state = nnx.split(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(seed)

  def draw(leaf):
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    return jax.numpy.asarray(2 * noise / leaf.shape[0] ** 0.5 if leaf.ndim > 1 else 0.5 + 0.3 * noise)

  return hub.save_model(nnx.merge(graphdef, jax.tree.map(draw, state)), folder)
