"""A tokenizer's files as keys of a GGUF file: the inverse of `words`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialvlm.hub.gguf.file import library
from spatialvlm.hub.gguf.words import CUTTINGS
from spatialvlm.hub.gguf.writing import Keys
from spatialvlm.hub.resolve import read_json
from spatialvlm.types import UserError

# llama.cpp's `llama_token_type`.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# Tokens that are control tokens whatever their files say, as the converter has it.
_ALWAYS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
# What a step of cutting texts does, beside its type; the rest of its fields changes no id.
_FIELDS = ("individual_digits", "add_prefix_space", "use_regex", "pattern", "behavior", "invert")
# llama.cpp writes it for SmolLM2's vocabulary (and Granite's, for which it was meant).
_NO_BOS = 49152


def keys(out: Keys, folder: Path, rows: int, template: str | None) -> None:
  """Adds a tokenizer: tokens, types, merges or scores, special tokens, how texts are cut, chat template.

  Args:
    folder: with tokenizer.json and what stands beside it.
    rows: of the table of embeddings; those beyond the tokenizer are padding.
    template: the chat template that is written; None for the folder's own.

  Raises:
    UserError: a tokenizer that llama.cpp does not have, or more tokens than rows.
  """
  file = folder / "tokenizer.json"
  said = json.loads(file.read_text(encoding="utf-8"))
  model = said.get("model") or {}
  if model.get("type") != "BPE":
    raise UserError(
      f"{file}: a tokenizer of type {model.get('type')!r}, which is not written to GGUF (only BPE)"
    )
  pieces = pieces_of(said)
  if max(pieces, default=0) >= rows:
    raise UserError(f"{file}: the token {max(pieces)} has no row in the model's table of {rows}")
  settings = read_json(folder / "tokenizer_config.json")
  if isinstance(settings.get("add_prefix_space"), bool):
    out.add_add_space_prefix(settings["add_prefix_space"])
  if model.get("byte_fallback"):
    _scored(out, said, pieces, rows)
  else:
    _byte_level(out, said, pieces, rows, file)
  special = library().SpecialVocab(folder, load_merges=not model.get("byte_fallback"), n_vocab=rows)
  if template is not None:
    special.chat_template = template
  special.add_to_gguf(out, quiet=True)
  if rows == _NO_BOS:
    out.add_add_bos_token(False)


def pieces_of(said: Mapping[str, Any]) -> dict[int, str]:
  """All tokens of a tokenizer.json by their ids, added ones included."""
  pieces = {index: piece for piece, index in said["model"]["vocab"].items()}
  return pieces | {token["id"]: token["content"] for token in said.get("added_tokens") or ()}


def cutting_of(said: Mapping[str, Any], where: str) -> str:
  """llama.cpp's name (`tokenizer.ggml.pre`) of how a tokenizer.json cuts texts.

  Raises:
    UserError: it has none that is known here.
  """
  steps, normal = _steps(said.get("pre_tokenizer")), (said.get("normalizer") or {}).get("type")
  whole = bool(said["model"].get("ignore_merges"))
  for name, cutting in CUTTINGS.items():
    if (
      steps == [_essence(step) for step in cutting.steps]
      and normal == ("NFC" if cutting.nfc else None)
      and whole == cutting.whole
    ):
      return name
  raise UserError(
    f"{where}: cuts texts in a way that llama.cpp has no name for here (known: {', '.join(CUTTINGS)}), so its"
    " prompts would be other tokens"
  )


def _byte_level(out: Keys, said: Mapping[str, Any], pieces: Mapping[int, str], rows: int, file: Path) -> None:
  added = {token["id"]: token for token in said.get("added_tokens") or ()}
  out.add_tokenizer_model("gpt2")
  out.add_tokenizer_pre(cutting_of(said, str(file)))
  tokens, types = _list(pieces, rows, lambda index, piece: _type(index, piece, added))
  out.add_token_list(tokens)
  out.add_token_types(types)


def _scored(out: Keys, said: Mapping[str, Any], pieces: Mapping[int, str], rows: int) -> None:
  """SentencePiece's kind: a piece's score is the place of the merge that makes it, below zero."""
  added = {token["id"]: token for token in said.get("added_tokens") or ()}
  pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in said["model"]["merges"]]
  rank: dict[str, int] = {}
  for place, pair in enumerate(pairs):
    rank.setdefault("".join(pair), place)

  def kind(index: int, piece: str) -> int:
    if piece == said["model"].get("unk_token"):
      return _UNKNOWN
    return _BYTE if piece.startswith("<0x") and len(piece) == 6 else _type(index, piece, added)

  tokens, types = _list(pieces, rows, kind)
  out.add_tokenizer_model("llama")
  out.add_tokenizer_pre("default")
  out.add_token_list(tokens)
  out.add_token_scores([-float(rank[token]) if token in rank else -1e4 for token in tokens])
  out.add_token_types(types)
  first = ((said.get("normalizer") or {}).get("normalizers") or [{}])[0].get("type")
  out.add_add_space_prefix(first == "Prepend")


def _list(pieces: Mapping[int, str], rows: int, kind) -> tuple[list[str], list[int]]:
  tokens, types = [], []
  for index in range(rows):
    piece = pieces.get(index)
    types.append(_UNUSED if piece is None else kind(index, piece))
    piece = f"[PAD{index}]" if piece is None else piece
    tokens.append(piece.replace("▁", " ") if types[-1] == _USER else piece)
  return tokens, types


def _type(index: int, piece: str, added: Mapping[int, Mapping[str, Any]]) -> int:
  if index not in added:
    return _NORMAL
  looks = piece in _ALWAYS or any(
    piece.startswith(start) and piece.endswith(end)
    for start, end in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
  )
  return _CONTROL if added[index].get("special") or looks else _USER


def _steps(said: Mapping[str, Any] | None) -> list[dict[str, Any]]:
  if not said:
    return []
  return [_essence(step) for step in said.get("pretokenizers", [said])]


def _essence(step: Mapping[str, Any]) -> dict[str, Any]:
  return {"type": step["type"]} | {key: step[key] for key in _FIELDS if step.get(key) is not None}
