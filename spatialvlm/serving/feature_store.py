"""Image features on disk, so that a further run over the same images need not encode them.

A folder holds one subfolder for each (weights, numbers, tiling) under which images were encoded, named by a
hash of all of it, and in it one safetensors file an image. Nothing is ever read that another model made.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from spatialvlm import workdir
from spatialvlm.hub import tensors
from spatialvlm.types import UserError

# Part of every subfolder's name: to be raised when the vision tower's code or the files change.
FORMAT = 1
# Chunks of the device that may wait to be written.
WAITING = 4
_FEATURES, _DIGEST = "features", "digest"


def open_store(
  folder: str | None, identity: Callable[[], Mapping[str, Any]], setting: str = "features"
) -> FeatureStore | None:
  """The store of one model in `folder`; None where no folder is named.

  Args:
    identity: all that an image's features depend on beside its pixels, as JSON values. Called once, since the
      hash of a model's weights takes a moment.
    setting: what messages call the setting that names the folder.

  Raises:
    UserError: several processes read together; the folder cannot be written.
  """
  if folder is None:
    return None
  if not folder:
    raise UserError(f"{setting}: name a folder for image features, or None to keep none")
  if jax.process_count() > 1:
    raise UserError(f"{setting}: several processes cannot share features on disk; set it to None")
  return FeatureStore(pathlib.Path(folder).expanduser(), {"format": FORMAT, **identity()})


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a row of features belongs: tile `number` of the `count` tiles of the image `key`."""

  key: Hashable
  number: int
  count: int


class FeatureStore:
  """Features by image, for one identity.

  Files appear whole: they are written beside their place and moved there. Each carries a digest of its
  content and key; what does not match is encoded again. Where the disk is full, the store says so once and
  keeps no more; the run goes on. Reading is safe from several threads.

  Attributes:
    folder: the subfolder.
    read, written, damaged: keys of images so far.
  """

  def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any]):
    text = json.dumps(identity, sort_keys=True, indent=2)
    self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    self.read: set[Hashable] = set()
    self.written: set[Hashable] = set()
    self.damaged: set[Hashable] = set()
    self._open = True
    self._partial: dict[Hashable, dict[int, np.ndarray]] = collections.defaultdict(dict)
    self._writer = futures.ThreadPoolExecutor(1)
    self._waiting: collections.deque[futures.Future] = collections.deque()
    with workdir.writing(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
      # For people; the folder's name says it all. And what cannot be written is known now, not in an hour.
      self._replace(self.folder / "identity.json", lambda part: part.write_text(text + "\n"))

  def get(self, key: Hashable, count: int) -> np.ndarray | None:
    """Features (count, P, D) of an image, or None where they are not kept or damaged."""
    file = self._file(key)
    try:
      found = {name: entry.read() for name, entry in tensors.read_header(file).items()}
      features = found[_FEATURES]
      if len(features) != count or not np.array_equal(found[_DIGEST], _digest(key, features)):
        raise UserError(f"{file}: its content does not match its digest")
    except FileNotFoundError:
      return None
    except (OSError, KeyError, UserError) as error:
      if key not in self.damaged:
        self.damaged.add(key)
        print(f"note: {_reason(file, error)}; its image is encoded again", file=sys.stderr, flush=True)
      return None
    self.read.add(key)
    return features

  def add(self, places: Sequence[Place], rows: Any) -> None:
    """Keeps rows (N, P, D) of the device; an image is written, by a thread, once all its tiles have come."""
    if not self._open:
      return
    self._waiting.append(self._writer.submit(self._add, places, rows))
    while len(self._waiting) > WAITING:
      self._waiting.popleft().result()

  def close(self) -> str:
    """Waits for what is still to be written; returns one line on what the store did."""
    while self._waiting:
      self._waiting.popleft().result()
    self._writer.shutdown()
    sizes = [file.stat().st_size for file in self.folder.glob("*.safetensors")]
    damaged = f" ({len(self.damaged)} were damaged)" if self.damaged else ""
    return (
      f"image features: {len(self.read)} images read, {len(self.written)} encoded and kept{damaged};"
      f" {self.folder} holds {len(sizes)} in {sum(sizes):,} bytes"
    )

  def _add(self, places: Sequence[Place], rows: Any) -> None:
    host = np.asarray(rows)
    for place, row in zip(places, host, strict=False):
      tiles = self._partial[place.key]
      tiles[place.number] = row
      if len(tiles) == place.count:
        del self._partial[place.key]
        if self._open:
          self._write(place.key, np.stack([tiles[i] for i in range(place.count)]))

  def _write(self, key: Hashable, features: np.ndarray) -> None:
    file = self._file(key)
    content = {_FEATURES: tensors.lazy(features), _DIGEST: tensors.lazy(_digest(key, features))}
    try:
      with workdir.writing(file):
        self._replace(file, lambda part: tensors.write(part, content))
      self.written.add(key)
    except (UserError, OSError) as error:
      self._open = False
      print(f"note: {error}; no more image features are kept", file=sys.stderr, flush=True)

  def _replace(self, file: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
      write(part)
      os.replace(part, file)
    finally:
      with contextlib.suppress(OSError):
        part.unlink()

  def _file(self, key: Hashable) -> pathlib.Path:
    return self.folder / (re.sub(r"\W+", "-", repr(key)).strip("-") + ".safetensors")


def _digest(key: Hashable, features: np.ndarray) -> np.ndarray:
  digest = hashlib.blake2b(repr((key, features.shape, str(features.dtype))).encode(), digest_size=32)
  digest.update(np.ascontiguousarray(features).view(np.uint8))
  return np.frombuffer(digest.digest(), np.uint8)


def _reason(file: pathlib.Path, error: Exception) -> str:
  if isinstance(error, UserError):
    return str(error).removesuffix("; download it again")
  missing = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
  return f"{file}: damaged ({missing})"
