"""Language models by themselves, small enough to be built in a test, with every parameter random."""

import functools
import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from spatialvlm.hub import tensors
from spatialvlm.worlds.vocabulary import corpus
from tests.tiny_processor import TEXT

LAYERS = 2


@functools.lru_cache
def text_tokenizer(kind: str = "llama", scenes: bool = False) -> Tokenizer:
  """Byte-level BPE; SmolLM2's special tokens, or such as Gemma has, whose tokenizer itself writes `<bos>`.

  `scenes`: one that has the words of the rendered scenes.
  """
  chat = kind in ("llama", "qwen2")
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if chat else ["<pad>", "<eos>", "<bos>", "<unk>"]
  result = Tokenizer(models.BPE())
  result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  result.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=700 if scenes else 300,
    show_progress=False,
    initial_alphabet=alphabet,
    special_tokens=special,
  )
  result.train_from_iterator(corpus() if scenes else TEXT.splitlines(keepends=True), trainer)
  result.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
  if not chat:
    result.post_processor = processors.TemplateProcessing(
      single="<bos> $A", special_tokens=[("<bos>", result.token_to_id("<bos>"))]
    )
  return result


def write_text(
  folder: str | Path,
  kind: str = "llama",
  *,
  tied: bool = True,
  spare: int = 0,
  scenes: bool = False,
  seed: int = 0,
) -> Path:
  """A folder as the hub has it. `spare`: rows of the embedding beyond the tokenizer's ids."""
  folder = Path(folder)
  folder.mkdir(parents=True)
  words = text_tokenizer(kind, scenes)
  words.save(str(folder / "tokenizer.json"))
  rows, width, heads, kv_heads, dim, hidden = words.get_vocab_size() + spare, 24, 4, 2, 8, 32
  config = {
    "architectures": ["ForCausalLM"],
    "model_type": kind,
    "vocab_size": rows,
    "hidden_size": width,
    "intermediate_size": hidden,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": dim,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": tied,
    "torch_dtype": "float32",
  }
  if kind == "gemma2":
    config |= {"query_pre_attn_scalar": 8, "sliding_window": 16}
  (folder / "config.json").write_text(json.dumps(config))
  chat = kind in ("llama", "qwen2")
  names = {"eos_token": "<|im_end|>" if chat else "<eos>", "pad_token": "<|im_end|>" if chat else "<pad>"}
  names["bos_token"] = "<|im_start|>" if chat else "<bos>"
  (folder / "tokenizer_config.json").write_text(json.dumps(names))
  shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
  for layer in range(LAYERS):
    at = f"model.layers.{layer}."
    for name, (out, into) in {
      "self_attn.q_proj": (heads * dim, width),
      "self_attn.k_proj": (kv_heads * dim, width),
      "self_attn.v_proj": (kv_heads * dim, width),
      "self_attn.o_proj": (width, heads * dim),
      "mlp.gate_proj": (hidden, width),
      "mlp.up_proj": (hidden, width),
      "mlp.down_proj": (width, hidden),
    }.items():
      shapes[f"{at}{name}.weight"] = (out, into)
      if kind == "qwen2" and name[-6] in "qkv":
        shapes[f"{at}{name}.bias"] = (out,)
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if kind == "gemma2" else []
    shapes |= {f"{at}{name}.weight": (width,) for name in norms}
  if not tied:
    shapes["lm_head.weight"] = (rows, width)
  rng = np.random.default_rng(seed)
  draw = lambda shape: rng.normal(0.3 if len(shape) == 1 else 0.0, 0.4, shape).astype(np.float32)
  tensors.write(folder / "model.safetensors", {n: tensors.lazy(draw(s)) for n, s in sorted(shapes.items())})
  return folder
