"""What encoders are put before: the decoder of a vision-language model, or a language model by itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.hub import contents, rules
from spatialvlm.hub.load import read_config
from spatialvlm.hub.resolve import read_entries, resolve, weight_files
from spatialvlm.hub.tensors import DTYPES, Entry, Lazy
from spatialvlm.models import language
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.registry import JOINED, family, family_of
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.processing import smolvlm_files
from spatialvlm.types import UserError

EMBEDDING = "decoder.embed.embedding"
# Of a text model's config.json, what says nothing about the decoder.
_UNUSED = ("architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Base:
  """A decoder, and how its model is prompted.

  Attributes:
    name: as the user gave it.
    root: its folder.
    source: config.json of the vision-language model; of a language model by itself that of a SmolVLM with
      this decoder, whose tower `sized` fills in.
    config: what `source` says.
    tensors: the decoder's alone, by the names of the family's files; empty where no weights are wanted.
    word_size: root mean square of embedded words, as the first block reads them.
    tokenizer: of a language model by itself: its tokenizer, grown.
    text: whether it is one.
  """

  name: str
  root: Path
  source: Mapping[str, Any]
  config: VlmConfig
  tensors: Mapping[str, Lazy]
  word_size: float
  tokenizer: smolvlm_files.GrownTokenizer | None = None

  @property
  def text(self) -> bool:
    return self.tokenizer is not None

  def sized(self, factor: int, tile: int, patch: int) -> Base:
    """With the shuffle, tile and patches that were chosen, which no language model says."""
    vision = {"image_size": tile, "patch_size": patch}
    source = {**self.source, "scale_factor": factor, "vision_config": vision} if self.text else self.source
    return dataclasses.replace(self, source=source) if self.text else self


def is_text(source: Mapping[str, Any]) -> bool:
  """Whether a config.json is that of a language model without images."""
  return source.get("model_type") in language.CLASSES


def check_text(name: str | Path, revision: str | None = None) -> None:
  """Raises a UserError where a model is there, but not a language model by itself."""
  source = contents.model_json(resolve(name, revision))
  if is_text(source):
    return
  kind, known = source.get("model_type"), ", ".join(sorted(language.CLASSES))
  if kind in {spec.hf_type for spec in FAMILIES.values()} | {JOINED}:
    raise UserError(
      f"{name}: a vision-language model ({kind}), where a language model by itself is wanted; to give it"
      " other encoders use configs/encoders.py:base=, or leave model.text_only out"
    )
  raise UserError(f"{name}: {kind!r} is no language model that is read here ({known})")


def find(name: str | Path, revision: str | None, *, weights: bool, seed: int) -> Base:
  """The base in a folder or a hub id; no weights are read but the embedding's, for its size.

  Args:
    weights: false for a model that is to be drawn.
    seed: of the rows that a language model's embedding grows by.

  Raises:
    UserError: no such model, or one that was assembled already.
  """
  root = resolve(name, revision)
  source = contents.model_json(root)
  if source.get("model_type") == JOINED:
    raise UserError(f"{name}: its encoders were changed already; name the model that it was made of")
  if is_text(source):
    return _text(str(name), root, source, weights, seed)
  config = read_config(root)
  entries = entries_of(root, config.family) if weights else {}
  tensors, size = {}, config.text.init_std
  for tensor, entry in entries.items():
    path = rules.to_ours(tensor, config.family)
    if path is None or path.startswith("decoder."):  # what has no place is told before anything is written
      tensors[tensor] = lazy(entry)
    if path == EMBEDDING:
      size = root_mean_square(entry.read())
  return Base(str(name), root, source, config, tensors, size * config.text.embed_scale)


def _text(name: str, root: Path, source: Mapping[str, Any], weights: bool, seed: int) -> Base:
  """A language model by itself, as the decoder of a SmolVLM."""
  tokenizer = smolvlm_files.grow(root)
  kind, where = source["model_type"], str(root / "config.json")
  parsed = language.parse_config(source, dtype="float32", where=where)
  rows = parsed.text.vocab_size
  if rows < tokenizer.known:
    raise UserError(
      f"{root}: the tokenizer has {tokenizer.known} ids, but config.json says vocab_size {rows}"
    )
  entries = _decoder_entries(root, kind) if weights else {}
  ids = {"bos_token_id": tokenizer.ids[tokenizer.opening], "pad_token_id": tokenizer.ids[tokenizer.pad]}
  ids["eos_token_id"] = tokenizer.end_id
  tied = _HEAD not in entries if weights else parsed.tied
  text = {key: value for key, value in source.items() if key not in _UNUSED}
  text |= ids | {"vocab_size": max(rows, tokenizer.size), "tie_word_embeddings": tied}
  made = {
    "model_type": "smolvlm",
    **ids,
    "image_token_id": tokenizer.image_id,
    "scale_factor": 1,
    "text_config": text,
    "tie_word_embeddings": tied,
    "vocab_size": text["vocab_size"],
  }
  config = family(family_of(made, where)).parse_config(made, dtype="float32", where=where)
  tensors, size = {}, config.text.init_std
  for tensor, entry in entries.items():
    grows = tensor in (_EMBED, _HEAD)
    if grows and entry.shape[:1] != (rows,):
      raise UserError(f"{root}: {tensor} has {entry.shape[0]} rows, but config.json says vocab_size {rows}")
    tensors[tensor] = _grown(entry, tokenizer, seed) if grows else lazy(entry)
    if tensor == _EMBED:
      size = root_mean_square(entry.read()[: tokenizer.known])
      made["dtype"] = text["dtype"] = _DTYPES.get(entry.dtype, "float32")
  return Base(name, root, made, config, tensors, size * config.text.embed_scale, tokenizer)


_EMBED, _HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"


def _decoder_entries(root: Path, kind: str) -> dict[str, Entry]:
  """A language model's tensors by the names that they have in a SmolVLM."""
  return {re.sub(r"^model\.", "model.text_model.", name): e for name, e in entries_of(root, kind).items()}


def _grown(entry: Entry, tokenizer: smolvlm_files.GrownTokenizer, seed: int) -> Lazy:
  """An embedding or a head with rows for the new tokens.

  They are drawn from the normal distribution that has the mean and the covariance of the rows that there are:
  each is the mean plus a random mixture of all rows' differences from it. Embedding and head are mixed alike,
  so what they have in common they keep. Rows that the file has beyond the tokenizer's ids are used first.
  """
  known, new = tokenizer.known, tokenizer.size - tokenizer.known
  shape = (max(entry.shape[0], tokenizer.size), *entry.shape[1:])

  def make() -> np.ndarray:
    table = entry.read()
    mean = sum(block.sum(0, dtype=np.float64) for block in _blocks(table[:known])) / known
    rng = np.random.default_rng(seed)
    drawn = np.tile(mean, (new, 1))
    for block in _blocks(table[:known]):
      mixture = rng.standard_normal((new, len(block)), np.float32) / np.float32(known**0.5)
      drawn += mixture @ (block - mean.astype(np.float32))
    grown = np.zeros(shape, table.dtype)
    grown[: len(table)] = table
    grown[known : known + new] = drawn.astype(table.dtype)
    return grown

  return Lazy(DTYPES[entry.dtype], shape, make)


def entries_of(folder: Path, family_name: str) -> dict[str, Entry]:
  """A folder's tensors by their published names; a tower's of a whole model as well."""
  entries, doubled = read_entries(weight_files(folder))
  found: dict[str, Entry] = {}
  for name, entry in entries.items():
    if rules.ignored(name, family_name) or 0 in entry.shape:
      continue
    canonical = rules.canonical(name, family_name)
    if canonical in found:
      doubled.append(name)
    found[canonical] = entry
  if doubled:
    raise UserError(f"{folder}: tensors that stand there twice: {', '.join(sorted(doubled))}")
  return found


def lazy(entry: Entry) -> Lazy:
  """A tensor that is read when it is written."""
  return Lazy(DTYPES[entry.dtype], entry.shape, entry.read)


def root_mean_square(table: np.ndarray) -> float:
  squares = sum(np.square(block).sum(dtype=np.float64) for block in _blocks(table))
  return float(np.sqrt(squares / table.size))


def _blocks(table: np.ndarray, rows: int = 16384) -> Iterator[np.ndarray]:
  """A table of many rows in float32, some at a time: the largest embeddings are gigabytes."""
  for start in range(0, len(table), rows):
    yield table[start : start + rows].astype(np.float32)
