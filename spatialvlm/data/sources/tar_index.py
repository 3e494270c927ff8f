"""Where the files of a tar lie, grouped into samples as WebDataset writes them.

A sample is what stands together under one name: `0001.jpg`, `0001.json`, `0001.seg.png` are the files `jpg`,
`json` and `seg.png` of the sample `0001`, its key. Read are the headers alone. Sources: POSIX ustar and pax,
GNU tar's long names, and the WebDataset format (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from spatialvlm.types import UserError

_BLOCK = 512
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
_PLAIN = (b"0", b"\0", b"7")
_PASSED_BY = (b"5", b"g")  # folders, and what pax says of all files alike


class TarIndex(NamedTuple):
  """The samples of a tar.

  Attributes:
    keys: of each sample.
    endings: of each file, in lower case.
    first: of each sample its first file, and the number of files, int (samples + 1,).
    spans: of each file where its bytes begin, and how many there are, int64 (files, 2).
  """

  keys: list[str]
  endings: list[str]
  first: np.ndarray
  spans: np.ndarray

  def files(self, sample: int) -> dict[str, tuple[int, int]]:
    """Start and size of each file of a sample, by its ending."""
    chosen = range(self.first[sample], self.first[sample + 1])
    return {self.endings[i]: (int(self.spans[i, 0]), int(self.spans[i, 1])) for i in chosen}


def read_index(path: Path) -> TarIndex:
  """Reads the headers of a tar.

  Raises:
    UserError: the file is no tar, is cut short, or holds more behind its end; a file without an ending, one
      that is a link, one that a sample has twice; a sample whose files do not stand together.
  """
  keys: list[str] = []
  endings: list[str] = []
  first: list[int] = []
  spans: list[tuple[int, int]] = []
  seen: set[str] = set()
  kinds: dict[str, str] = {}  # one text for each ending, however many files have it
  for name, start, size in _members(path):
    key, ending = _parts(path, name)
    if not keys or key != keys[-1]:
      if key in seen:
        raise UserError(f"{path}: the files of {key!r} do not stand together; write the shard anew")
      seen.add(key)
      keys.append(key)
      first.append(len(spans))
    if ending in endings[first[-1] :]:
      raise UserError(f"{path}: {name!r} stands twice")
    endings.append(kinds.setdefault(ending, ending))
    spans.append((start, size))
  array = np.array(spans, np.int64).reshape(-1, 2)
  return TarIndex(keys, endings, np.array([*first, len(spans)]), array)


def _parts(path: Path, name: str) -> tuple[str, str]:
  """Key and ending of a file; both are cut at the first dot of its name."""
  place = PurePosixPath(name)
  key, dot, ending = place.name.partition(".")
  if not dot or not key or not ending:
    raise UserError(f"{path}: {name!r} has no ending that says what it is; WebDataset's files are KEY.ENDING")
  return str(place.with_name(key)), ending.lower()


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
  """Name, start and size of each plain file; those of macOS (`._x`) and hidden ones are passed by."""
  with open(path, "rb", buffering=0) as stream:
    total, place, said = os.fstat(stream.fileno()).st_size, 0, {}
    while True:
      header = os.pread(stream.fileno(), _BLOCK, place)
      if not place and header.startswith(_PACKED):
        raise UserError(f"{path}: is packed, so that no row can be read by itself; unpack it")
      if header.count(0) == _BLOCK:
        return _check_end(path, stream.fileno(), place, total)
      if len(header) < _BLOCK:
        raise UserError(f"{path}: the tar is cut short at byte {place}, before its end mark; copy it again")
      name, size, kind = _header(path, header, place)
      if kind not in (b"L", b"x"):
        size = int(said.get("size", size))  # a header holds no more than 8 GiB
      start = place + _BLOCK
      place = start + -(-size // _BLOCK) * _BLOCK
      if place > total:
        raise UserError(f"{path}: the tar is cut short within {name!r}, at byte {total}; copy it again")
      if kind in (b"L", b"x"):
        said |= _extended(kind, os.pread(stream.fileno(), size, start))
        continue
      name, said = said.get("path", name), {}
      hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
      if kind in _PLAIN and not hidden:
        yield name, start, size
      elif kind not in (*_PLAIN, *_PASSED_BY):
        raise UserError(f"{path}: {name!r} is a link or device (tar's type {kind!r}); pack the file itself")


def _header(path: Path, header: bytes, place: int) -> tuple[str, int, bytes]:
  """Name, size and type of a file."""
  try:
    stated = int(header[148:156].split(b"\0")[0].strip() or b"-1", 8)
    right = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if stated != right:
      raise ValueError
    size = _number(header[124:136])
    name = header[:100].split(b"\0")[0].decode()
    if header[257:263] == b"ustar\0" and header[345]:
      name = header[345:500].split(b"\0")[0].decode() + "/" + name
    return name, size, header[156:157]
  except ValueError:
    if place:
      raise UserError(f"{path}: the tar is damaged at byte {place}; copy it again") from None
    raise UserError(f"{path}: is no tar, whatever its name says: it begins with {header[:8]!r}") from None


def _number(field: bytes) -> int:
  """Octal digits, or GNU tar's 256-base numbers."""
  if field[0] & 0x80:
    return int.from_bytes(field[1:], "big")
  return int(field.split(b"\0")[0].strip() or b"0", 8)


def _extended(kind: bytes, body: bytes) -> dict[str, str]:
  """What GNU's long names and pax records say of the file that follows."""
  if kind == b"L":
    return {"path": body.split(b"\0")[0].decode()}
  found = {}
  while body:
    length, _, _ = body.partition(b" ")
    record, body = body[: int(length)], body[int(length) :]
    name, _, value = record[len(length) + 1 : -1].partition(b"=")
    if name in (b"path", b"size"):
      found[name.decode()] = value.decode()
  return found


def _check_end(path: Path, stream: int, place: int, total: int) -> None:
  """Refuses what stands behind the end mark: tars that were put one after the other would be read in part."""
  for start in range(place, total, 2**20):
    if os.pread(stream, 2**20, start).strip(b"\0"):
      raise UserError(
        f"{path}: more stands behind the tar's end mark, at byte {place}; write it anew as one tar"
      )
