"""Kind "stream": rows in shards, of which a run holds a few at a time, however many there are.

The rows are those of kind "hf", and read by its rules. What differs: a row is checked when it is its turn,
not when the source is opened, and the order is that of `mixture.Shards`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import HFConfig, StreamConfig
from spatialvlm.data.sources import tar_shards
from spatialvlm.data.sources.hf import Conversations
from spatialvlm.data.sources.hf_rows import Rows
from spatialvlm.data.sources.parquet_shards import ParquetShards
from spatialvlm.data.sources.registry import Source
from spatialvlm.data.sources.shard_files import find_shards
from spatialvlm.data.sources.tar_shards import TarShards
from spatialvlm.data.sources.unread import UnreadError
from spatialvlm.mixture import Shards
from spatialvlm.types import Example, UserError

_TABLES = {".parquet": ParquetShards, ".tar": TarShards}
_FIRST = 100  # rows that are looked at when a stream is opened


def examples(config: StreamConfig, *, defer: bool = False) -> Source:
  return Stream(config, defer=defer)


class Stream(Sequence[Example]):
  """The rows of all shards as conversations, in the order of the shards' names.

  Of a parquet file its end is read when the stream is opened, of a tar its headers; of the rows the first
  hundred are checked, and the first one's pictures are decoded.

  Args:
    defer: whether one of those that cannot be used is passed over, to be refused when it is read.

  Attributes:
    shards: how a `Mixture` shuffles them.

  Raises:
    UserError: shards that are missing, damaged or of other columns than the first; a mapping that does not
      hold; one of the first rows that cannot be used, by its file. When a row is read: that one, or a shard
      that was damaged or changed since.
  """

  def __init__(self, config: StreamConfig, *, defer: bool = False):
    for name in ("buffer", "at_once"):
      if getattr(config, name) < 1:
        raise UserError(f"{name}: {getattr(config, name)} is less than 1")
    files, ending = find_shards(config.path, config.files, missing=config.missing)
    self._table = _TABLES[ending](files, config.ignore)
    self._table.spread(config.buffer, config.at_once)
    if not len(self._table):
      raise UserError(f"{config.path}: its {len(files)} shards hold no row")
    read = _as_rows(config, self._table)
    root = Path(config.path).expanduser()
    self._rows = _ShardRows(self._table, read, root if root.is_dir() else root.parent)
    self._read = Conversations(self._rows, read)
    if self._read.lettered and not config.answers:
      raise UserError(
        f"{config.path}: how answers name options only all rows could tell, which nobody reads beforehand;"
        " set answers to index, ordinal (counts from 1), letter or text"
      )
    sizes = self._table.sizes
    if config.size:
      sizes = np.diff(np.minimum(np.cumsum(sizes), config.size), prepend=0)
    self.shards = Shards(sizes, config.buffer, config.at_once)
    self._size = int(sizes.sum())
    self._first = self._check_first(defer)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    row, _ = self._checked(index)
    return self._read.example(row, index)

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]

  def picture_counts(self, size: int) -> np.ndarray:
    """How many images each of the first `size` rows has, a hundred at most; broken ones are left out."""
    return np.array(self._first[:size], int)

  def _check_first(self, defer: bool) -> list[int]:
    """The number of pictures of each of the first rows."""
    counts = []
    for index in range(min(_FIRST, len(self))):
      try:
        row, count = self._checked(index)
        self._read.turns(row, index, count)
        if not index:
          self._read.example(row, index)
        counts.append(count)
      except UserError as error:
        if not defer or isinstance(error, UnreadError):
          raise
    return counts

  def _checked(self, index: int) -> tuple[dict[str, Any], int]:
    """A row and its number of pictures; what it holds beside what is read of it is looked at."""
    (row,) = self._rows.read([index])
    count = len(self._rows.pictures(row, index)[1])
    self._rows.check_row(index, count)
    return row, count


class _ShardRows(Rows):
  """Rows that errors call by their file; one whose picture is another row's is not looked for."""

  _rows_of_ids: Mapping[str, int] = types.MappingProxyType({})

  def row(self, index: int) -> str:
    return self._table.where(index)


def _as_rows(config: StreamConfig, table: ParquetShards | TarShards) -> HFConfig:
  """The settings by which rows are read; the one picture that a tar's samples have serves as theirs."""
  columns = dict(config.columns)
  if isinstance(table, TarShards):
    if "id" not in table.names:
      columns.setdefault("id", tar_shards.KEY)
    if table.pictures and not {"image", "images"} & {*columns, *config.templates}:
      others = [name for name in ("image", "images") if name in table.names]
      if others or len(table.pictures) > 1:
        both = ", ".join((*table.pictures, *others))
        raise UserError(
          f"{config.path}: several columns may hold a sample's pictures: {both}; set"
          f" columns.image={table.pictures[0]}, or columns.images to several, separated by commas"
        )
      columns["image"] = table.pictures[0]
  shared = ("path", "templates", "choices", "answers", "image_root", "marks", "ignore")
  return HFConfig(columns=columns, **{name: getattr(config, name) for name in shared})
