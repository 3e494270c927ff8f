"""WebDataset's tars as one table: where samples lie is held of a few shards, of no sample its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm import caches
from spatialvlm.data.sources import unread
from spatialvlm.data.sources.json_files import parse_record
from spatialvlm.data.sources.shard_files import Stamps
from spatialvlm.data.sources.tar_index import TarIndex, read_index
from spatialvlm.once import OnceCache
from spatialvlm.types import UserError

KEY = "__key__"
PICTURES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"])
_TEXTS = frozenset(["txt", "text", "caption", "cls"])
_FIRST = 100  # samples of the first shard that say what there is
_TOGETHER = 8  # shards whose headers are read at the same time


class TarShards:
  """An `hf_tables.Table` of many tars. Safe to read from several threads.

  A sample has a column for each of its files, by ending, one for each key of its `json`, and `__key__`. Which
  there are the first samples say. How many samples each tar has is kept in the user's cache folder, by its
  size and time.

  Args:
    files: the tars.
    ignore: columns that are never read.

  Attributes:
    sizes: samples of each file, int (N,).
    keep: shards of which it is held where samples lie; `spread` sets it.

  Raises:
    UserError: as `tar_index.read_index`; a key of `json` that is the ending of another file.
  """

  broken: Mapping[int, UserError] = types.MappingProxyType({})

  def __init__(self, files: Sequence[Path], ignore: Sequence[str] = ()):
    self._files, self._ignore = list(files), frozenset(ignore)
    self._indices: OnceCache[TarIndex] = OnceCache()
    self.keep = 1
    self._stamps = Stamps(self._files)
    self.sizes = _counts(self._files, self._stamps)
    self._ends = np.cumsum(self.sizes)
    self._endings: tuple[str, ...] = ()
    self.names: tuple[str, ...] = ()
    if not len(self):
      raise UserError(f"{self._files[0].parent}: its {len(self._files)} tars hold no sample")
    first = int(self.sizes[self._place(0)[0]])
    found = [self._sample(index, None) for index in range(min(_FIRST, first))]
    self._endings = tuple(dict.fromkeys(name for files, _ in found for name in files))
    keys = tuple(dict.fromkeys(name for _, spread in found for name in spread))
    if both := [name for name in keys if name in self._endings]:
      raise UserError(
        f"{self._files[0]}: {both[0]!r} is the ending of a file and a key of its json; ignore one"
      )
    columns = (*(n for n in self._endings if n != "json" or not keys), *keys, KEY)
    self.names = tuple(name for name in columns if name not in self._ignore)
    self.pictures = tuple(name for name in self.names if name.rpartition(".")[2] in PICTURES)
    self.media = frozenset(self.pictures)

  def spread(self, buffer: int, at_once: int) -> None:
    """Says how rows will be asked for (`mixture.Shards`), so that no tar is looked through over and over."""
    self.keep = 2 * at_once + buffer // max(int(np.median(self.sizes)), 1)

  def __len__(self) -> int:
    return int(self.sizes.sum())

  def where(self, index: int) -> str:
    """What errors call a row."""
    file, row = self._place(index)
    return f"{self._files[file]}, {self._index(file).keys[row]!r}"

  def read(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, list]:
    found: dict[str, list] = {name: [] for name in names}
    for index in indices:
      files, spread = self._sample(index, names)
      for name in names:
        found[name].append(files.get(name, spread.get(name)))
    return found

  def sketches(self, name: str) -> Iterator[Any]:
    raise NotImplementedError("the rows of a stream are never all looked at")

  def _place(self, index: int) -> tuple[int, int]:
    file = int(np.searchsorted(self._ends, index, side="right"))
    return file, index - (int(self._ends[file - 1]) if file else 0)

  def _index(self, file: int) -> TarIndex:
    return self._indices.get(file, lambda: read_index(self._files[file]), self.keep)

  def _sample(self, index: int, names: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cells of a sample by the endings of its files, and by the keys of its json.

    Args:
      names: columns whose files are read; None for what says which columns there are.
    """
    file, row = self._place(index)
    self._stamps.check(self._files[file])
    found = self._index(file)
    files = found.files(row)
    read = files.keys() - self._ignore
    wanted = [name for name in files if name in (read if names is None else names)]
    if "json" in read and "json" not in wanted and not {*names} <= {*self._endings, KEY}:
      wanted.append("json")
    if names is not None and (other := sorted(read - {*self._endings})):
      raise UserError(
        f"{self.where(index)}: has a file {other[0]!r}, as none of the first samples; ignore it"
      )
    for name in files:
      if unread.is_heard(name) and name not in self._ignore:
        raise unread.UnreadError(f"{self.where(index)}: file {unread.refusal(name, f'x.{name}')}")
    cells = {name: self._cell(file, index, name, files[name], names is None) for name in wanted}
    spread = cells["json"] if isinstance(cells.get("json"), Mapping) else {}
    return cells, {**spread, KEY: found.keys[row]}

  def _cell(self, file: int, index: int, name: str, span: tuple[int, int], sketch: bool) -> Any:
    kind = name.rpartition(".")[2]
    if sketch and kind != "json":
      return True
    with open(self._files[file], "rb", buffering=0) as stream:
      data = os.pread(stream.fileno(), span[1], span[0])
    if kind != "json" and kind not in _TEXTS:
      return data
    try:
      text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      raise UserError(f"{self.where(index)}, file {name!r}: cannot be read as text ({error})") from error
    return parse_record(text, f"{self.where(index)}, file {name!r}") if kind == "json" else text


def _counts(files: Sequence[Path], now: Stamps) -> np.ndarray:
  """Samples of each tar: as they were counted before, where a file has the size and time of then."""
  folder = caches.folder() / "spatialvlm" / "shards"
  place = (
    folder
    / f"{hashlib.sha1(str(files[0].resolve().parent).encode(), usedforsecurity=False).hexdigest()}.json"
  )
  known: dict[str, list[int]] = {}
  with contextlib.suppress(OSError, ValueError):
    known = json.loads(place.read_text())
  stamps = {str(file.resolve()): now[file] for file in files}
  fresh = [name for name, stamp in stamps.items() if known.get(name, ())[:2] != stamp]
  with futures.ThreadPoolExecutor(_TOGETHER) as pool:
    counts = list(pool.map(lambda name: len(read_index(Path(name)).keys), fresh))
  known |= {name: [*stamps[name], count] for name, count in zip(fresh, counts, strict=True)}
  if fresh:
    with contextlib.suppress(OSError):  # they can be counted again
      folder.mkdir(parents=True, exist_ok=True)
      written = place.with_suffix(f".{os.getpid()}")
      written.write_text(json.dumps(known))
      os.replace(written, place)
  return np.array([known[name][2] for name in stamps])
