"""Parquet shards as one table: the rows of a few row groups are held, those of no more."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spatialvlm.data.sources.hf_features import reader
from spatialvlm.data.sources.hf_tables import is_media
from spatialvlm.data.sources.shard_files import Stamps
from spatialvlm.once import OnceCache
from spatialvlm.types import UserError

_TOGETHER = 8  # files whose ends are read at the same time


class ParquetShards:
  """An `hf_tables.Table` of many files. Safe to read from several threads.

  Of each file its end is read when it is opened: how many rows each of its row groups has, and its columns.

  Args:
    files: of the same columns.
    ignore: columns that are never read.

  Attributes:
    sizes: rows of each file, int (N,).
    keep: row groups that are held; `spread` sets it.

  Raises:
    UserError: a file that is damaged or no parquet file, or has other columns than the first.
  """

  broken: Mapping[int, UserError] = types.MappingProxyType({})

  def __init__(self, files: Sequence[Path], ignore: Sequence[str] = ()):
    import datasets

    self._files = list(files)
    self._stamps = Stamps(self._files)
    with futures.ThreadPoolExecutor(_TOGETHER) as pool:
      ends = list(pool.map(_end, self._files))
    schema = ends[0][0]
    for file, (other, _) in zip(self._files, ends, strict=True):
      if not other.equals(schema):
        raise UserError(f"{file}: {_difference(other, schema)} {self._files[0].name}; shards are of one kind")
    features = datasets.Features.from_arrow_schema(schema)
    self.names = tuple(name for name in schema.names if name not in ignore)
    self.media = frozenset(name for name in self.names if is_media(features[name]))
    self._readers = {name: reader(features[name]) for name in self.names}
    groups = [group for _, group in ends]
    self.sizes = np.array([int(group.sum()) for group in groups])
    self._ends = np.cumsum(np.concatenate(groups)) if groups else np.zeros(0, int)
    self._first = np.cumsum([0, *map(len, groups)])  # of each file, the number of its first group
    self._held: OnceCache[pa.Table] = OnceCache()
    self.keep = 1

  def spread(self, buffer: int, at_once: int) -> None:
    """Says how rows will be asked for (`mixture.Shards`), so that no group is read over and over."""
    groups = np.diff(self._ends, prepend=0)
    usual = max(int(np.median(groups)), 1) if len(groups) else 1
    self.keep = at_once * (-(-buffer // (usual * at_once)) + 2)

  def __len__(self) -> int:
    return int(self.sizes.sum())

  def where(self, index: int) -> str:
    """What errors call a row."""
    file = self._file(self._group(index))
    return f"{self._files[file]}, row {index - int(self.sizes[:file].sum())}"

  def read(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, list]:
    found: dict[str, list] = {name: [] for name in names}
    for index in indices:
      group = self._group(index)
      rows = self._held.get(group, lambda group=group: self._load(group), self.keep)
      row = index - (int(self._ends[group - 1]) if group else 0)
      for name in names:
        found[name].append(self._cell(rows, row, index, name))
    return found

  def sketches(self, name: str) -> Iterator[Any]:
    raise NotImplementedError("the rows of a stream are never all looked at")

  def _group(self, index: int) -> int:
    return int(np.searchsorted(self._ends, index, side="right"))

  def _file(self, group: int) -> int:
    return int(np.searchsorted(self._first, group, side="right")) - 1

  def _load(self, group: int) -> pa.Table:
    number = self._file(group)
    file = self._files[number]

    def read() -> pa.Table:
      with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group - int(self._first[number]), columns=list(self.names))

    self._stamps.check(file)
    return _whole(file, read)

  def _cell(self, rows: pa.Table, row: int, index: int, name: str) -> Any:
    read = self._readers[name]
    try:
      cell = rows.column(name)[row].as_py()
      return cell if read is None else read(cell)
    except ValueError as error:  # of a class that there is not, or text that is no UTF-8
      raise UserError(f"{self.where(index)}, column {name!r}: {error}") from error


def _end(file: Path) -> tuple[pa.Schema, np.ndarray]:
  """The columns of a file, and the rows of each of its row groups."""

  def read():
    with pq.ParquetFile(file) as opened:
      meta = opened.metadata
      rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
      return opened.schema_arrow, np.array(rows, int)

  return _whole(file, read)


def _whole(file: Path, read: Callable[[], Any]) -> Any:
  try:
    return read()
  except (OSError, pa.ArrowException, EOFError) as error:
    said = str(error).strip().split("\n")[0]
    raise UserError(f"{file}: damaged, or no parquet file ({said:.160}); copy it again") from error


def _difference(other: pa.Schema, first: pa.Schema) -> str:
  """What is said of columns that are not those of the first file."""
  more = [name for name in other.names if name not in first.names]
  less = [name for name in first.names if name not in other.names]
  if more or less:
    parts = [f"has {', '.join(more)} beside"] * bool(more) + [f"lacks {', '.join(less)} of"] * bool(less)
    return " and ".join(parts) + " the columns of"
  changed = [n for n in first.names if not other.field(n).equals(first.field(n))]
  name = changed[0] if changed else first.names[0]
  return f"column {name!r} is {other.field(name).type}, not {first.field(name).type} as in"
