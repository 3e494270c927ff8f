"""Rows of a data set by our names: columns, texts made of several columns, images wherever they lie."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import HFConfig, nearest
from spatialvlm.data.sources import marks, named_boxes, pictures, unread
from spatialvlm.data.sources.cells import is_empty, tag_of, text_of
from spatialvlm.data.sources.conversation import TALKS, picture_cells, refuse_two
from spatialvlm.data.sources.hf_tables import Table
from spatialvlm.types import Deferred, UserError

# A column that carries one of these names serves without being mapped.
FOUND = ("image", "images", "question", "choices", "answer", "messages", "id", "task", "source", "facts")
FOUND += (named_boxes.NAME,)
OURS = (*FOUND, "prompt", "type", "source_dataset")
_PICTURES = ("image", "images")
_JOINED = ("image", "images", "choices")  # may be spread over several columns
_BLOCK = 1000


class Rows:
  """Reads rows by our names.

  Args:
    table: `hf_tables.Table`.
    config: `columns`, `templates` and `image_root` say what serves as what.
    root: folder in which images' names are looked up, unless the config names one.

  Raises:
    UserError: a mapping that does not hold.
  """

  def __init__(self, table: Table, config: HFConfig, root: Path | None = None):
    self.where = config.path
    self.names = table.names
    self._templates = _templates(self.names, config)
    self._columns = _columns(self.names, config, self._templates)
    self._root = Path(config.image_root).expanduser() if config.image_root else root
    self._table = table
    self._config = config
    self._named: dict[int, Deferred] = {}  # images that other rows name
    self._marked = marks.columns(self.names, config.marks, config.ignore)

  def __len__(self) -> int:
    return len(self._table)

  def __contains__(self, name: str) -> bool:
    return name in self._columns or name in self._templates

  def row(self, index: int) -> str:
    """What errors call a row."""
    return f"{self.where}, row {index}"

  def place(self, index: int, name: str) -> str:
    """What errors call a cell."""
    found = ", ".join(map(repr, self._columns.get(name, ())))
    return f"{self.row(index)}, " + (f"column {found}" if found else f"template of {name!r}")

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows with what serves as each of our names; images are cells, for `pixels`."""
    return list(map(sound, self._assemble(indices, OURS)))

  def texts(self, size: int = 0) -> Iterator[dict[str, Any] | UserError]:
    """All rows in order, or the first so many, without their images; or why one cannot be read."""
    names = [name for name in OURS if name not in _PICTURES]
    count = min(size or len(self), len(self))
    for first in range(0, count, _BLOCK):
      yield from self._assemble(range(first, min(first + _BLOCK, count)), names)

  def pictures(self, row: Mapping[str, Any], index: int) -> tuple[str, list[Any]]:
    """What errors call the pictures of a row, and their cells."""
    name, cells = picture_cells(row, self.row(index))
    return (self.place(index, name) if cells else ""), cells

  def pixels(self, row: Mapping[str, Any], index: int) -> tuple[np.ndarray, ...]:
    """The images of a row, uint8 (H, W, 3)."""
    place, cells = self.pictures(row, index)
    return tuple(self._load(cell, f"{place}, image {i}") for i, cell in enumerate(cells))

  def marks(self, index: int, count: int) -> list[marks.Mark]:
    """What is drawn into the `count` pictures of a row.

    Raises:
      UserError: marks that are not understood, or that nothing draws; named by row.
    """
    if not self._marked:
      return []
    cells = {name: found[0] for name, found in self._table.read([index], self._marked).items()}
    try:
      return marks.marks_of(cells, self._config.marks, count)
    except UserError as error:
      raise UserError(f"{self.row(index)}: {error}") from error

  def drawn(self, images: tuple[np.ndarray, ...], index: int) -> tuple[np.ndarray, ...]:
    """The images of a row with its marks."""
    for mark in self.marks(index, len(images)):
      one = images[mark.picture].copy()
      try:
        marks.draw(one, mark)
      except UserError as error:
        raise UserError(f"{self.row(index)}: {error}") from error
      images = (*images[: mark.picture], one, *images[mark.picture + 1 :])
    return images

  def unopened(self, index: int) -> tuple[tuple[Deferred, ...], tuple[str, ...]]:
    """The images of a row before they are decoded, and the names of their files.

    Raises:
      UserError: what `pixels` of the row would raise, in a fraction of its time.
    """
    (row,) = map(sound, self._assemble([index], (*_PICTURES, "messages")))
    place, cells = self.pictures(row, index)
    found = tuple(self._unopened(cell, index, i, place) for i, cell in enumerate(cells))
    return found, pictures.file_names(cells)

  def _unopened(self, cell: Any, index: int, place: int, where: str) -> Deferred:
    other = self._row_of(cell)
    if other is None:
      whole = pictures.check_whole(cell, self._root, f"{where}, image {place}")
      return Deferred(*whole, lambda: self.pixels(self.read([index])[0], index)[place])
    if other not in self._named:
      (self._named[other],), _ = self.unopened(other)
    return self._named[other]

  def picture_counts(self, *, size: int = 0, broken: dict[int, UserError] | None = None) -> np.ndarray:
    """How many images each row has, int (N,), read off without decoding any; their files must be there.

    Args:
      size: only the first so many rows, 0 for all.
      broken: takes why a row's images cannot be used; its count is -1.

    Raises:
      UserError: an image's file that is not there, or a cell that is no image; unless `broken` takes it.
    """
    names = (*_PICTURES, "messages")
    needed = self._needed(names)
    sketches = [self._table.sketches(column) for column in needed]
    count = min(size or len(self), len(self))
    counts = np.zeros(count, int)
    rows = zip(*sketches, strict=True) if sketches else ()
    for index, cells in zip(range(count), rows, strict=False):
      try:
        row = self._row(dict(zip(needed, cells, strict=True)), index, names)
        place, found = self.pictures(row, index)
        for i, cell in enumerate(found):
          self._check(cell, f"{place}, image {i}" if len(found) > 1 else place)
      except UserError as error:
        if broken is None:
          raise
        broken[index] = error
      counts[index] = -1 if broken and index in broken else len(found)
    return counts

  def _needed(self, names: Sequence[str]) -> list[str]:
    found = [column for name in names for column in self._columns.get(name, ())]
    found += [column for name in names for column in _fields(self._templates.get(name, ""))]
    return list(dict.fromkeys(found))

  def _assemble(self, indices: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any] | UserError]:
    for index, cells in zip(indices, self._cells(indices, self._needed(names)), strict=True):
      try:
        row = self._row(sound(cells), index, names)
      except UserError as error:
        row = error
      yield row

  def _cells(self, indices: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any] | UserError]:
    try:
      block = self._table.read(indices, columns) if columns else {}
    except UserError as error:  # of one of them at least
      if len(indices) == 1:
        yield error
      else:
        yield from (row for index in indices for row in self._cells([index], columns))
      return
    yield from ({column: block[column][i] for column in columns} for i in range(len(indices)))

  def _row(self, cells: Mapping[str, Any], index: int, names: Sequence[str]) -> dict[str, Any]:
    row = {}
    for name in names:
      if name in self._columns:
        found = [cells[column] for column in self._columns[name]]
        row[name] = found[0] if len(found) == 1 else found
      elif name in self._templates:
        row[name] = self._filled(name, {c: cells[c] for c in _fields(self._templates[name])}, index)
    return row

  def _filled(self, name: str, cells: Mapping[str, Any], index: int) -> str:
    for column, cell in cells.items():
      if is_empty(cell):
        raise UserError(f"{self.row(index)}, column {column!r}: the cell is empty")
    try:
      return _Filler(f"{self.row(index)}, templates.{name}").vformat(self._templates[name], (), cells)
    except (ValueError, TypeError) as error:
      raise UserError(f"{self.row(index)}: templates.{name} does not fit ({error})") from error

  def _load(self, cell: Any, where: str) -> np.ndarray:
    other = self._row_of(cell)
    if other is None:
      return pictures.load(cell, self._root, where)
    _, (found,) = self.pictures(self.read([other])[0], other)
    return pictures.load(found, self._root, f"{where} (that of row {other})")

  def _check(self, cell: Any, where: str) -> None:
    if self._row_of(cell) is None:
      pictures.check(cell, self._root, where)

  def _row_of(self, cell: Any) -> int | None:
    """The number of the row whose image a cell names by that row's id, as 3DSRBench does."""
    if not isinstance(cell, str) or len(cell) > 255 or "id" not in self:
      return None
    row = self._rows_of_ids.get(cell)
    return None if row is None or pictures.is_there(cell, self._root) else row

  @functools.cached_property
  def _rows_of_ids(self) -> dict[str, int]:
    rows = enumerate(self.texts() if "id" in self else ())
    return {tag_of(row["id"]): i for i, row in rows if not isinstance(row, UserError)}

  def check_row(self, index: int, count: int) -> None:
    """What `second_conversations` and `refuse_unread` find of all rows, of one.

    Args:
      count: its pictures.

    Raises:
      UserError: two conversations that differ; UnreadError: a column that nothing reads.
    """
    for columns, check in ((self._talks(), self._refuse_two), (self._unserved(bool(count)), self._refuse)):
      if columns:
        (cells,) = self._cells([index], columns)
        check(sound(cells), index, count)

  def second_conversations(self, counts: np.ndarray) -> dict[int, UserError]:
    """Rows with a conversation in `messages` and another one in a column that nobody chose between.

    Args:
      counts: `picture_counts` of the rows that are looked at.
    """
    columns = self._talks()
    found = {}
    for first in range(0, len(counts) if columns else 0, _BLOCK):
      indices = range(first, min(first + _BLOCK, len(counts)))
      for index, cells in zip(indices, self._cells(indices, columns), strict=True):
        try:
          self._refuse_two(sound(cells), index, int(counts[index]))
        except UserError as error:
          found[index] = error
    return found

  def _talks(self) -> list[str]:
    """Columns that may hold a conversation each, where nobody chose between them; what serves comes first."""
    config, served = self._config, self._columns.get("messages", ())
    others = [c for c in TALKS if c in self.names and c not in (*served, *config.ignore)]
    return [*served, *others] if served and others and "messages" not in config.columns else []

  def _refuse_two(self, row: Mapping[str, Any], index: int, count: int) -> None:
    try:
      refuse_two(row, [*row], count, f"set columns.messages to one of {', '.join(row)}")
    except UserError as error:
      raise UserError(f"{self.row(index)}: {error}") from error

  def refuse_unread(self, counts: np.ndarray) -> None:
    """Refuses columns that hold what a model should see, which nothing reads.

    Args:
      counts: `picture_counts` of the rows that are looked at.

    Raises:
      UnreadError: the first such cell of a row.
    """
    columns = self._unserved(bool(counts.all()))
    cells = zip(*map(self._table.sketches, columns), strict=True) if columns else ()
    for index, (found, count) in enumerate(zip(cells, counts, strict=False)):
      self._refuse(dict(zip(columns, found, strict=True)), index, int(count))

  def _unserved(self, all_seen: bool) -> list[str]:
    """Columns that nothing reads; of rows that all have pictures, those alone that nothing excuses."""
    used = {*self._needed(OURS), *self._config.ignore}
    columns = [c for c in self.names if c not in used]
    return [c for c in columns if unread.always(c)] if all_seen or self._declined else columns

  @property
  def _declined(self) -> bool:
    """Whether the config wants no pictures."""
    return any(self._config.columns.get(name) == "" for name in _PICTURES)

  def _refuse(self, row: Mapping[str, Any], index: int, count: int) -> None:
    seen = bool(count) or self._declined
    if key := unread.unread(row, pictures=seen, media=self._table.media, root=self._root):
      raise unread.UnreadError(f"{self.row(index)}: column {unread.refusal(key, row[key])}")


def sound(row: dict[str, Any] | UserError) -> dict[str, Any]:
  """The row; raises what is wrong with it."""
  if isinstance(row, UserError):
    raise row
  return row


class _Filler(string.Formatter):
  """Fills templates with the text that cells read as, unless the template says how they are written."""

  def __init__(self, where: str):
    self._where = where

  def format_field(self, value: Any, format_spec: str) -> str:
    return format(value, format_spec) if format_spec else text_of(value, self._where)


def _fields(template: str) -> list[str]:
  return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _templates(names: Sequence[str], config: HFConfig) -> dict[str, str]:
  for ours, template in config.templates.items():
    where = f"{config.path}: templates.{ours}"
    if ours not in OURS:
      raise UserError(f"{where}: not a name of ours; {nearest(ours, OURS)}")
    try:
      fields = _fields(template)
    except ValueError as error:
      raise UserError(f"{where}: {template!r} is no template ({error})") from error
    for field in fields:
      if field not in names:
        raise UserError(f"{where}: {template!r}: no column {field!r}; {nearest(field, names)}")
  return dict(config.templates)


def _columns(
  names: Sequence[str], config: HFConfig, templates: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
  found = {name: (name,) for name in FOUND if name in names and name not in templates}
  for ours, theirs in config.columns.items():
    where = f"{config.path}: columns.{ours}"
    if ours not in OURS:
      raise UserError(f"{where}: not a name of ours; {nearest(ours, OURS)}")
    if ours in templates:
      raise UserError(f"{where}: there is a template of {ours!r} as well; leave out one of the two")
    found.pop(ours, None)
    parts = (theirs,) if theirs in names or ours not in _JOINED else tuple(theirs.split(","))
    for part in parts if theirs else ():
      if part not in names:
        raise UserError(f"{where}={theirs!r}: no such column; {nearest(part, names)}")
      found[ours] = parts
  for ours in _PICTURES:  # what is named by hand is not counted a second time by its own name
    other = _PICTURES[1 - _PICTURES.index(ours)]
    if (ours in config.columns or ours in templates) and other not in config.columns:
      found.pop(other, None)
  asked = {name for name, theirs in config.columns.items() if theirs} | {*templates}
  if asked & {"question", "answer", "choices", "prompt"} and "messages" not in asked:
    found.pop("messages", None)  # what is mapped by hand counts, not a column that happens to be there
    return found
  for usual in ("conversations", "texts"):
    if "messages" not in found and not {"question"} & {*found, *templates} and usual in names:
      found["messages"] = (usual,)
  return found
