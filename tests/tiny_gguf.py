"""GGUF files of small language models, written by the `gguf` library as llama.cpp's converter writes them."""

import json
from pathlib import Path

import gguf
import numpy as np

from spatialvlm.hub.resolve import read_entries, weight_files

ARCHS = {
  "llama": gguf.MODEL_ARCH.LLAMA,
  "qwen2": gguf.MODEL_ARCH.QWEN2,
  "gemma": gguf.MODEL_ARCH.GEMMA,
  "gemma2": gguf.MODEL_ARCH.GEMMA2,
}
PRE = {"llama": "smollm", "qwen2": "qwen2"}


def write(source: Path, file: Path, quant: str = "F32", **keys) -> Path:
  """The model and tokenizer of a Hugging Face folder as a GGUF file.

  Args:
    quant: of the matrices whose rows it divides; the rest is F32.
    keys: further keys or others in their place, by their names with `__` for dots; None leaves one out.
  """
  said = json.loads((source / "config.json").read_text())
  kind = said["model_type"]
  writer = gguf.GGUFWriter(file, kind)
  values = {f"{kind}.{key}": value for key, value in _sizes(said).items()} | _words(source, kind)
  values |= {key.replace("__", "."): value for key, value in keys.items()}
  for key, value in values.items():
    if value is not None:
      _add(writer, key, value)
  names = gguf.get_tensor_name_map(ARCHS[kind], said["num_hidden_layers"])
  for name, entry in read_entries(weight_files(source))[0].items():
    stem, _, part = name.rpartition(".")
    tensor = entry.read().astype(np.float32)
    if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
      heads = said["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
      shape = (heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
      tensor = tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
    if kind.startswith("gemma") and stem.endswith("norm"):
      tensor = tensor + 1
    put(writer, f"{names.get_name(stem)}.{part}", tensor, quant)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def put(writer, name: str, tensor: np.ndarray, quant: str) -> None:
  kind = gguf.GGMLQuantizationType[quant]
  if tensor.ndim == 1 or quant == "F32" or tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
    writer.add_tensor(name, tensor)
  elif quant == "F16":
    writer.add_tensor(name, tensor.astype(np.float16))
  else:
    writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def _sizes(said: dict) -> dict:
  found = {
    "block_count": said["num_hidden_layers"],
    "context_length": said["max_position_embeddings"],
    "embedding_length": said["hidden_size"],
    "feed_forward_length": said["intermediate_size"],
    "attention.head_count": said["num_attention_heads"],
    "attention.head_count_kv": said["num_key_value_heads"],
    "attention.key_length": said["head_dim"],
    "attention.value_length": said["head_dim"],
    "rope.freq_base": float(said["rope_theta"]),
    "attention.layer_norm_rms_epsilon": said["rms_norm_eps"],
    "vocab_size": said["vocab_size"],
  }
  if said["model_type"] == "gemma2":
    found |= {"attention.sliding_window": said.get("sliding_window", 4096)}
    found |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
  return found


def _words(source: Path, kind: str) -> dict:
  """The tokenizer's keys; pieces beyond it are padding, as a converter writes them."""
  words = json.loads((source / "tokenizer.json").read_text())
  settings = json.loads((source / "tokenizer_config.json").read_text())
  rows = json.loads((source / "config.json").read_text())["vocab_size"]
  vocabulary, added = words["model"]["vocab"], {t["content"]: t["id"] for t in words["added_tokens"]}
  pieces = {index: piece for piece, index in (vocabulary | added).items()}
  tokens = [pieces.get(i, f"[PAD{i}]") for i in range(rows)]
  types = [3 if i in added.values() else 1 if i in pieces else 5 for i in range(rows)]
  merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in words["model"]["merges"]]
  template = source / "chat_template.jinja"
  found = {
    "tokenizer.ggml.model": "gpt2" if kind in PRE else "llama",
    "tokenizer.ggml.pre": PRE.get(kind, "default"),
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.bos_token_id": pieces_id(pieces, settings["bos_token"]),
    "tokenizer.ggml.eos_token_id": pieces_id(pieces, settings["eos_token"]),
    "tokenizer.ggml.padding_token_id": pieces_id(pieces, settings["pad_token"]),
    "tokenizer.chat_template": template.read_text() if template.is_file() else None,
  }
  if kind in PRE:
    merges = [" ".join(pair) for pair in merges]
    return found | {"tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges}
  rank = {"".join(pair): -float(i) for i, pair in reversed(list(enumerate(merges)))}
  types = [2 if t == "<unk>" else 6 if t.startswith("<0x") else k for t, k in zip(tokens, types, strict=True)]
  return found | {
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.scores": [rank.get(token, -1e4) for token in tokens],
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.add_bos_token": True,
  }


def pieces_id(pieces: dict[int, str], token: str) -> int:
  return next(index for index, piece in pieces.items() if piece == token)


def _add(writer, key: str, value) -> None:
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  else:
    writer.add_array(key, value)
