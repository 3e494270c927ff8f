"""Processor folders in InternVL's and PaliGemma's shapes, small enough to be written anew in each test."""

import functools
import json
from pathlib import Path

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from tests.tiny_processor import TEXT, write

# The usual ChatML of InternVL's `-hf` checkpoints.
INTERNVL_TEMPLATE = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}"
  "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
  "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
  "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
  "{{'<|im_end|>\\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)
_QWEN_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r"|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
_GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
PLACES = tuple(f"<loc{i:0>4}>" for i in range(1024)) + tuple(f"<seg{i:0>3}>" for i in range(128))


@functools.lru_cache
def qwen_tokenizer(size: int = 420) -> Tokenizer:
  """Byte-level BPE with Qwen2's normaliser and words, and InternVL's special tokens."""
  result = Tokenizer(models.BPE())
  result.normalizer = normalizers.NFC()
  result.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated", invert=False),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  result.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
  result.train_from_iterator(TEXT.splitlines(keepends=True) + ["\n\n"] * 9, trainer)
  result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _QWEN_SPECIAL])
  return result


@functools.lru_cache
def gemma_tokenizer(places: bool = True, size: int = 200) -> Tokenizer:
  """BPE with byte fallback in Gemma's manner, which by itself writes `<bos>` before a text.

  `places`: whether the tokens for places are there already, or left for the processor to add.
  """
  spaces = normalizers.Replace(" ", "▁")
  draft = Tokenizer(models.BPE())
  draft.normalizer = spaces
  draft.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
  draft.train_from_iterator(
    TEXT.splitlines(keepends=True) + ["\n\n"] * 9,
    trainers.BpeTrainer(vocab_size=size, show_progress=False),
  )
  learned = json.loads(draft.to_str())["model"]
  tokens = [*_GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
  tokens += sorted(learned["vocab"], key=learned["vocab"].get)
  result = Tokenizer(
    models.BPE(
      vocab={token: index for index, token in enumerate(tokens)},
      merges=[tuple(pair) for pair in learned["merges"]],
      fuse_unk=True,
      unk_token="<unk>",
      byte_fallback=True,
    )
  )
  result.normalizer = spaces
  result.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
  result.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
  result.post_processor = processors.TemplateProcessing(
    single="<bos>:0 $A:0", pair="<bos>:0 $A:0 <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
  )
  special = [*_GEMMA_SPECIAL, "<image>"]
  result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
  if places:
    result.add_tokens([AddedToken(t, normalized=False, special=False) for t in PLACES])
  return result


def write_internvl(
  folder: str | Path,
  *,
  tile: int = 16,
  patch: int = 4,
  max_patches: int = 12,
  min_patches: int = 1,
  nested: bool = False,
  padding_side: str | None = None,
) -> Path:
  """Writes what a checkpoint on the hub has, weights aside; config.json says no more than a processor reads.

  `nested`: one processor_config.json, as transformers 5 saves, instead of preprocessor_config.json beside it.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  words = qwen_tokenizer()
  words.save(str(folder / "tokenizer.json"))
  tokens = (tile // patch // 2) ** 2
  image = _image_settings("GotOcr2ImageProcessorFast", tile) | {
    "crop_to_patches": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": max_patches,
    "min_patches": min_patches,
  }
  outer = {"image_seq_length": tokens, "processor_class": "InternVLProcessor"}
  write(folder, "processor_config.json", outer | ({"image_processor": image} if nested else {}))
  if not nested:
    write(folder, "preprocessor_config.json", image)
  (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE)
  extra = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
  settings = {
    "tokenizer_class": "Qwen2Tokenizer",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "extra_special_tokens": extra | {"video_token": "<video>"},
    "model_max_length": 8192,
  }
  write(folder, "tokenizer_config.json", settings | ({"padding_side": padding_side} if padding_side else {}))
  config = {
    "model_type": "internvl",
    "downsample_ratio": 0.5,
    "image_seq_length": tokens,
    "image_token_id": words.token_to_id("<IMG_CONTEXT>"),
    "vision_config": {"image_size": [tile, tile], "patch_size": [patch, patch]},
    "text_config": {"max_position_embeddings": 4096},
  }
  write(folder, "config.json", config)
  return folder


def write_paligemma(
  folder: str | Path, *, tile: int = 16, patch: int = 8, places: bool = True, padding_side: str | None = None
) -> Path:
  """The same for PaliGemma, which has no chat template."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  words = gemma_tokenizer(places)
  words.save(str(folder / "tokenizer.json"))
  tokens = (tile // patch) ** 2
  image = _image_settings("SiglipImageProcessor", tile) | {"image_seq_length": tokens}
  write(folder, "preprocessor_config.json", image | {"processor_class": "PaliGemmaProcessor"})
  settings = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": True,
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "model_max_length": 1000000000000000019884624838656,
  }
  write(folder, "tokenizer_config.json", settings | ({"padding_side": padding_side} if padding_side else {}))
  config = {
    "model_type": "paligemma",
    "image_token_index": words.token_to_id("<image>"),
    "vision_config": {"image_size": tile, "patch_size": patch, "num_image_tokens": tokens},
    "text_config": {"num_image_tokens": tokens},
  }
  write(folder, "config.json", config)
  return folder


def _image_settings(kind: str, tile: int) -> dict:
  return {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": kind,
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": tile, "width": tile},
  }
