"""Tokenizers out of GGUF files, as Hugging Face's tokenizer.json and what stands beside it.

Two kinds of vocabulary are read: "gpt2", byte-level pieces with merges, whose way of cutting texts
(`tokenizer.ggml.pre`) must be one that is known; and "llama", SentencePiece's pieces with scores, out of
which merges follow as in transformers' own conversion: of all pairs that make a piece, those of higher
scores first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from spatialvlm.hub.gguf.file import Header
from spatialvlm.types import UserError

_AT = "tokenizer.ggml."
# Types of pieces (llama.cpp's `llama_token_type`); 1 are ordinary ones.
_UNKNOWN, _CONTROL, _USER, _UNUSED = 2, 3, 4, 5
# Rows of the embedding that no piece belongs to have such names.
_PADDING = re.compile(r"\[PAD\d+\]")
_QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r"|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
# Settings that would change ids and are not computed here: (key -> values that change nothing).
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  "remove_extra_whitespaces": (False,),
  "add_eos_token": (False,),
  "add_sep_token": (False,),
}
_READ = {"model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_space_prefix"}
_READ |= {"token_type_count"}


@dataclasses.dataclass(frozen=True)
class Cutting:
  """How byte-level vocabularies cut a text before any merge.

  Attributes:
    steps: tokenizer.json's pre-tokenizers, in order.
    nfc: texts are brought to Unicode's NFC first.
    whole: a word that is a piece is taken as it is, whatever the merges say.
    begins: texts begin with the bos token where the file does not say otherwise.
  """

  steps: tuple[Mapping[str, Any], ...]
  nfc: bool = False
  whole: bool = False
  begins: bool = False


def _bytes(regex: bool) -> dict[str, Any]:
  return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def _split(regex: str) -> dict[str, Any]:
  return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


CUTTINGS: dict[str, Cutting] = {
  "smollm": Cutting(({"type": "Digits", "individual_digits": True}, _bytes(True))),
  "qwen2": Cutting((_split(_QWEN2), _bytes(False)), nfc=True),
  "llama-bpe": Cutting((_split(_LLAMA3), _bytes(False)), whole=True, begins=True),
  "gpt-2": Cutting((_bytes(True),)),
}


def files(header: Header, context: int) -> dict[str, dict[str, Any]]:
  """tokenizer.json, tokenizer_config.json and generation_config.json by their names.

  Args:
    context: longest sequence of the model.

  Raises:
    UserError: the file holds no tokenizer, a damaged one, or one that is not read, by its name.
  """
  kind = header.key(f"{_AT}model", str)
  if kind is None or not header.keys.get(f"{_AT}tokens"):
    raise UserError(f"{header.file}: holds no tokenizer ({_AT}model and tokens); take a file that has one")
  if kind not in ("gpt2", "llama"):
    raise UserError(f"{header.file}: a tokenizer of kind {kind!r}, which is not read (known: gpt2, llama)")
  _check_settings(header)
  tokens, types = _pieces(header)
  make = _byte_level if kind == "gpt2" else _sentence_piece
  tokenizer, begins = make(header, tokens, types)
  ids = _special(header, tokens)
  if header.key(f"{_AT}add_bos_token", bool, begins):
    if "bos" not in ids:
      raise UserError(
        f"{header.file}: texts are to begin with a bos token, but {_AT}bos_token_id is not there"
      )
    tokenizer["post_processor"] = _beginning(tokens[ids["bos"]], ids["bos"])
  config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
  config |= {f"{name}_token": tokens[index] for name, index in ids.items() if name != "eot"}
  config["clean_up_tokenization_spaces"] = False
  if template := header.key("tokenizer.chat_template", str):
    config["chat_template"] = template
  ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot") if name in ids))
  generation = {"eos_token_id": ends or None, "bos_token_id": ids.get("bos"), "pad_token_id": ids.get("pad")}
  return {
    "tokenizer.json": tokenizer,
    "tokenizer_config.json": config,
    "generation_config.json": {key: value for key, value in generation.items() if value is not None},
  }


def _check_settings(header: Header) -> None:
  for key, value in header.keys.items():
    name = key.removeprefix(_AT)
    if name == key or name in _READ or name.endswith(("_token_id", "_token_ids")):
      continue
    if value not in _NEUTRAL.get(name, ()):
      raise UserError(f"{header.file}: {key} is a setting of its tokenizer that is not known here")


def _pieces(header: Header) -> tuple[list[str], list[int]]:
  """Pieces by their ids, and their types."""
  tokens = header.key(f"{_AT}tokens", list)
  types = header.key(f"{_AT}token_type", list, [1] * len(tokens))
  if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
    raise UserError(f"{header.file}: {_AT}tokens and token_type do not fit each other; the file is damaged")
  if len(set(tokens)) != len(tokens):
    raise UserError(f"{header.file}: {_AT}tokens holds a piece twice; the file is damaged")
  return tokens, types


def _special(header: Header, tokens: list[str]) -> dict[str, int]:
  """Ids of special tokens: bos, eos, unk, pad, and eot, which ends a turn."""
  found = {}
  for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot"}.items():
    index = header.key(f"{_AT}{key}_token_id", int)
    if index is not None:
      if not 0 <= index < len(tokens):
        raise UserError(f"{header.file}: {_AT}{key}_token_id {index} is no piece; the file is damaged")
      found[name] = index
  return found


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
  padding = lambda index: types[index] == _UNUSED and _PADDING.fullmatch(tokens[index])
  return {token: index for index, token in enumerate(tokens) if not padding(index)}


def _tokenizer(model: Mapping[str, Any], tokens: list[str], types: list[int], **parts: Any) -> dict[str, Any]:
  """A tokenizer.json; control tokens are special, those of users are only cut out first."""
  added = [
    {
      "id": index,
      "content": token,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
      # A piece with marks for spaces is found only where the text has them already.
      "normalized": kind == _USER and "▁" in token,
      "special": kind != _USER,
    }
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind in (_UNKNOWN, _CONTROL, _USER)
  ]
  whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
  rest = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
  fixed = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
  return whole | rest | parts | {"model": {**fixed, **model}}


def _byte_level(header: Header, tokens: list[str], types: list[int]) -> tuple[dict[str, Any], bool]:
  """The tokenizer, and whether its texts begin with bos by default."""
  name = header.key(f"{_AT}pre", str)
  if name not in CUTTINGS:
    raise UserError(
      f"{header.file}: {_AT}pre is {name!r}, a way to cut texts that is not known here (known:"
      f" {', '.join(CUTTINGS)}); take the model's folder in Hugging Face's format"
    )
  cutting, vocabulary = CUTTINGS[name], _vocabulary(tokens, types)
  merges = [tuple(pair.split(" ")) for pair in header.key(f"{_AT}merges", list, [])]
  if not merges or any(len(m) != 2 or not {*m, "".join(m)} <= vocabulary.keys() for m in merges):
    raise UserError(f"{header.file}: {_AT}merges does not fit its pieces; the file is damaged")
  model = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": cutting.whole}
  tokenizer = _tokenizer(
    {**model, "vocab": vocabulary, "merges": merges},
    tokens,
    types,
    normalizer={"type": "NFC"} if cutting.nfc else None,
    pre_tokenizer={"type": "Sequence", "pretokenizers": list(cutting.steps)},
    decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
  )
  return tokenizer, cutting.begins


def _sentence_piece(header: Header, tokens: list[str], types: list[int]) -> tuple[dict[str, Any], bool]:
  """As `_byte_level`. `add_space_prefix`: Llama 2's texts begin with a space; Gemma's do not."""
  scores, vocabulary = header.key(f"{_AT}scores", list, []), _vocabulary(tokens, types)
  if len(scores) != len(tokens):
    raise UserError(f"{header.file}: {_AT}scores does not fit its pieces; the file is damaged")
  if not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
    raise UserError(
      f"{header.file}: its vocabulary lacks pieces of single bytes, without which it is not read"
    )
  unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
  prefix = header.key(f"{_AT}add_space_prefix", bool, True)
  spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
  decoders = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
  steps = [{"type": "Prepend", "prepend": "▁"}, spaces] if prefix else [spaces]
  tokenizer = _tokenizer(
    {
      "unk_token": unknown,
      "fuse_unk": True,
      "byte_fallback": True,
      "ignore_merges": False,
      "vocab": vocabulary,
      "merges": _merges(vocabulary, tokens, scores, types),
    },
    tokens,
    types,
    normalizer={"type": "Sequence", "normalizers": steps},
    decoder={"type": "Sequence", "decoders": decoders + strip},
  )
  return tokenizer, True


def _merges(
  vocabulary: Mapping[str, int], tokens: list[str], scores: list[float], types: list[int]
) -> list[tuple[str, str]]:
  """All pairs of pieces that make a third, those of the highest score first."""
  mergeable = {
    token for token, kind in zip(tokens, types, strict=True) if kind in (1, _UNUSED)
  } & vocabulary.keys()
  found = []
  for token in mergeable:
    pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    pairs = sorted(p for p in pairs if p[0] in mergeable and p[1] in mergeable)
    index = vocabulary[token]
    found += [(-scores[index], index, vocabulary[p[0]], p) for p in pairs]
  return [pair for *_, pair in sorted(found)]


def _beginning(token: str, index: int) -> dict[str, Any]:
  """A post-processor that puts a token before a text."""
  special = {"SpecialToken": {"id": token, "type_id": 0}}
  sequence = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
  return {
    "type": "TemplateProcessing",
    "single": [special, sequence("A", 0)],
    "pair": [special, sequence("A", 0), {"SpecialToken": {"id": token, "type_id": 1}}, sequence("B", 1)],
    "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
  }
