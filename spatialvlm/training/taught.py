"""What a teacher finds likeliest at every supervised position, kept on disk for runs to come.

A folder holds `about.json`, which says of whom the logits are, and shards of examples: safetensors files,
each with a digest of what it holds. An example goes by a hash of what is read of it (its tokens, its tiles,
and the facts that a teacher is told), so it is found again whatever source, order or seed it comes from, and
never taken for another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.data.samples import Sample
from spatialvlm.data.views import DEPTH
from spatialvlm.hub import tensors
from spatialvlm.processing.processor import Encoded
from spatialvlm.training.objectives.distil import taught_names
from spatialvlm.types import Extra, UserError

# Part of what a folder is: to be raised when what is kept, or its keys, change.
FORMAT = 1
ABOUT = "about.json"
_ARRAYS = ("keys", "counts", "ids", "logits")


@dataclasses.dataclass(frozen=True, eq=False)
class Taught:
  """The likeliest tokens of one example, at its k supervised positions.

  Attributes:
    ids: int32 (k, top), likeliest first.
    logits: float32 (k, top), logarithms of their probabilities among the whole vocabulary.
  """

  ids: np.ndarray
  logits: np.ndarray


def key_of(sample: Sample, encoded: Encoded, told: bool, depth: bool = False) -> bytes:
  """The 16 bytes that an example goes by; `told`: whether its facts are read, `depth`: whether its depth."""
  digest = hashlib.blake2b(digest_size=16)
  for array in (encoded.tokens, encoded.loss_mask, encoded.tiles):
    digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
  if told and sample.example.facts is not None:
    digest.update(sample.example.facts().encode())
  if depth and DEPTH in sample.example.dense:
    digest.update(np.ascontiguousarray(sample.example.dense[DEPTH]).tobytes())
  return digest.digest()


class Store:
  """The logits of one teacher in a folder, all in memory.

  Attributes:
    damaged: files that cannot be read, with the reason.
  """

  def __init__(
    self, folder: str, identity: Mapping[str, Any], *, told: bool, depth: bool = False, where: str
  ):
    """Reads what is there.

    Args:
      identity: all that the logits depend on beside the example, as JSON values.
      told: whether facts are read; depth: whether depth is.
      where: the setting that names the folder.

    Raises:
      UserError: the folder holds logits of another teacher, which is said.
    """
    self.folder, self.where = pathlib.Path(folder).expanduser(), where
    self._told, self._depth = told, depth
    self._identity = json.loads(json.dumps({"format": FORMAT, **identity}))
    self._found: dict[bytes, Taught] = {}
    self.damaged: dict[pathlib.Path, str] = {}
    self._check()
    for file in sorted(self.folder.glob("logits-*.safetensors")):
      try:
        self._found |= _read(file)
      except (UserError, OSError, KeyError, ValueError) as error:
        self.damaged[file] = str(error)

  def __len__(self) -> int:
    return len(self._found)

  def key(self, sample: Sample, encoded: Encoded) -> bytes:
    """What an example goes by here."""
    return key_of(sample, encoded, self._told, self._depth)

  def __contains__(self, key: bytes) -> bool:
    return key in self._found

  def get(self, sample: Sample, encoded: Encoded) -> Taught:
    """What the teacher finds of an example.

    Raises:
      UserError: it is not there.
    """
    found = self._found.get(self.key(sample, encoded))
    if found is None or len(found.ids) != np.count_nonzero(encoded.loss_mask):
      raise UserError(
        f"{self.where}: {self.folder} holds nothing of {sample.id}; run launch/teach.py with this config,"
        " which adds what is missing"
      )
    return found

  def add(self, made: Mapping[bytes, Taught]) -> None:
    """Writes one shard of examples.

    Raises:
      UserError: the disk is full or not writable.
    """
    if not made:
      return
    file = self._free()
    with workdir.writing(file):
      self.folder.mkdir(parents=True, exist_ok=True)
      if not (self.folder / ABOUT).exists():
        workdir.write_json(self.folder / ABOUT, self._identity)
      part = file.with_suffix(f".{os.getpid()}.part")
      arrays = _arrays(made)
      tensors.write(part, {name: tensors.lazy(array) for name, array in arrays.items()})
      part.replace(file)
    self._found |= made

  def drop_damaged(self) -> list[str]:
    """Deletes the files that cannot be read; returns what is to be said of each."""
    said = []
    for file, reason in sorted(self.damaged.items()):
      file.unlink()
      said.append(f"{file}: damaged ({reason}); its examples are made anew")
    self.damaged = {}
    return said

  def _free(self) -> pathlib.Path:
    numbers = [int(file.stem.rpartition("-")[2]) for file in self.folder.glob("logits-*.safetensors")]
    return self.folder / f"logits-{max(numbers, default=-1) + 1:05d}.safetensors"

  def _check(self) -> None:
    file = self.folder / ABOUT
    if not file.exists():
      return
    try:
      about = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
      raise UserError(f"{file}: is no JSON ({error}); name another folder, or delete this one") from None
    if about != self._identity:
      keys = (
        sorted(key for key in {*about, *self._identity} if about.get(key) != self._identity.get(key))
        if isinstance(about, dict)
        else ["format"]
      )
      raise UserError(
        f"{self.where}: {self.folder} holds logits of another teacher or other settings ({', '.join(keys)}"
        " differ); name another folder"
      )


def extras(stores: Mapping[str, Store], sample: Sample, encoded: Encoded) -> dict[str, Extra]:
  """What teachers with a cache say of an example, as arrays for its batch."""
  found = {}
  for teacher, store in stores.items():
    taught = store.get(sample, encoded)
    ids, logits = taught_names(teacher)
    found |= {ids: Extra(taught.ids, "target"), logits: Extra(taught.logits, "target")}
  return found


def _arrays(made: Mapping[bytes, Taught]) -> dict[str, np.ndarray]:
  values: Sequence[Taught] = list(made.values())
  arrays = {
    "keys": np.frombuffer(b"".join(made), np.uint8).reshape(-1, 16),
    "counts": np.array([len(taught.ids) for taught in values], np.int32),
    "ids": np.concatenate([taught.ids for taught in values]).astype(np.int32),
    "logits": np.concatenate([taught.logits for taught in values]).astype(np.float32),
  }
  return arrays | {"digest": _digest(arrays)}


def _read(file: pathlib.Path) -> dict[bytes, Taught]:
  entries = tensors.read_header(file)
  arrays = {name: np.asarray(entries[name].read()) for name in _ARRAYS}
  if not np.array_equal(entries["digest"].read(), _digest(arrays)):
    raise ValueError("its contents are not what was written")
  ends = np.cumsum(arrays["counts"])[:-1]
  parts = (np.split(arrays[name], ends) for name in ("ids", "logits"))
  return {bytes(key): Taught(*part) for key, *part in zip(arrays["keys"], *parts, strict=True)}


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  digest = hashlib.blake2b(digest_size=32)
  for name in _ARRAYS:
    array = np.ascontiguousarray(arrays[name])
    digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
  return np.frombuffer(digest.digest(), np.uint8)
