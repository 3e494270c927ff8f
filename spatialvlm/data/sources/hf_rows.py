"""Rows of a data set by our names: columns, texts made of several columns, images wherever they lie."""

from __future__ import annotations

import base64
import binascii
import functools
import string
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spatialvlm.config import HFConfig, nearest
from spatialvlm.processing.images import open_image
from spatialvlm.types import UserError

# A column that carries one of these names serves without being mapped.
FOUND = ("image", "images", "question", "choices", "answer", "messages", "id", "task", "source")
OURS = (*FOUND, "prompt", "type", "source_dataset")
_PICTURES = ("image", "images")
_JOINED = ("image", "images", "choices")  # may be spread over several columns
# Longer text is no file's name, but an image in base64.
_LONGEST_NAME = 1024
_BLOCK = 1000


class Rows:
  """Reads rows by our names.

  Args:
    table: an opened `datasets.Dataset`.
    config: `columns`, `templates` and `image_root` say what serves as what.
    root: folder in which images' names are looked up, unless the config names one.

  Raises:
    UserError: a mapping that does not hold.
  """

  def __init__(self, table: Any, config: HFConfig, root: Path | None = None):
    self.where = config.path
    names = table.column_names
    self._templates = _templates(names, config)
    self._columns = _columns(names, config, self._templates)
    self._root = Path(config.image_root).expanduser() if config.image_root else root
    self._table = _with_encoded_images(table.select_columns(self._needed(OURS)))
    self._texts = self._table.select_columns(self._needed([n for n in OURS if n not in _PICTURES]))
    self.names = names

  def __len__(self) -> int:
    return len(self._table)

  def __contains__(self, name: str) -> bool:
    return name in self._columns or name in self._templates

  def place(self, index: int, name: str) -> str:
    """What errors call a cell."""
    found = ", ".join(map(repr, self._columns.get(name, ())))
    return f"{self.where}, row {index}, " + (f"column {found}" if found else f"template of {name!r}")

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows with what serves as each of our names; images are cells, for `pixels`."""
    return list(self._assemble(self._table[list(indices)], indices, OURS))

  def texts(self) -> Iterator[dict[str, Any]]:
    """All rows in order, without their images."""
    names = [name for name in OURS if name not in _PICTURES]
    for first in range(0, len(self), _BLOCK):
      indices = range(first, min(first + _BLOCK, len(self)))
      yield from self._assemble(self._texts[list(indices)], indices, names)

  def pixels(self, row: Mapping[str, Any], index: int) -> tuple[np.ndarray, ...]:
    """The images of a row, uint8 (H, W, 3)."""
    cells = _cells(row)
    name = "images" if row.get("images") is not None else "image"
    place = f"{self.place(index, name)}, image" if cells else ""
    return tuple(self._open(cell, f"{place} {i}") for i, cell in enumerate(cells))

  def image_counts(self) -> np.ndarray:
    """How many images each row has, int (N,), read off without decoding any.

    Raises:
      UserError: an image's file that is not there.
    """
    counts = np.zeros(len(self), int)
    for name in _PICTURES:
      if name in self._templates:
        counts += 1
        for index, row in enumerate(self._assemble(self._table[:], range(len(self)), [name])):
          self._find(row[name], self.place(index, name))
      for column in self._columns.get(name, ()):
        values = self._table.data.column(column)
        counts += _count(values)
        self._check_names(values, column)
    return counts

  def _check_names(self, values: pa.ChunkedArray, column: str) -> None:
    if pa.types.is_primitive(values.type):
      raise UserError(
        f"{self.where}, row 0, column {column!r}: expected an image, its bytes or its path, got {values[0]}"
      )
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
      return
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy()
    for index in np.flatnonzero((lengths > 0) & (lengths <= _LONGEST_NAME)):
      self._find(values[int(index)].as_py(), f"{self.where}, row {index}, column {column!r}")

  def _needed(self, names: Sequence[str]) -> list[str]:
    found = [column for name in names for column in self._columns.get(name, ())]
    found += [column for name in names for column in _fields(self._templates.get(name, ""))]
    return list(dict.fromkeys(found))

  def _assemble(
    self, block: Mapping[str, list], indices: Sequence[int], names: Sequence[str]
  ) -> Iterator[dict[str, Any]]:
    for i, index in enumerate(indices):
      row = {}
      for name in names:
        if name in self._columns:
          cells = [block[column][i] for column in self._columns[name]]
          row[name] = cells[0] if len(cells) == 1 else cells
        elif name in self._templates:
          row[name] = self._filled(name, {c: block[c][i] for c in _fields(self._templates[name])}, index)
      yield row

  def _filled(self, name: str, cells: Mapping[str, Any], index: int) -> str:
    for column, cell in cells.items():
      if cell is None or cell == "":
        raise UserError(f"{self.where}, row {index}, column {column!r}: the cell is empty")
    try:
      return self._templates[name].format_map(cells)
    except (ValueError, TypeError) as error:
      raise UserError(f"{self.where}, row {index}: templates.{name} does not fit ({error})") from error

  def _open(self, cell: Any, where: str) -> np.ndarray:
    if isinstance(cell, Mapping):
      cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, list):
      cell = np.asarray(cell, np.uint8)
    if isinstance(cell, str):
      cell = self._find(cell, where)
      if isinstance(cell, int):
        (other,) = _cells(self.read([cell])[0])
        return self._open(other, f"{where} (that of row {cell})")
    if cell is None or isinstance(cell, (int, float)):
      raise UserError(f"{where}: expected an image, its bytes or its path, got {cell!r}")
    return open_image(cell, where)

  def _find(self, text: str, where: str) -> Path | bytes | int:
    """What a text means as an image: a file, the number of the row that has it, or the image in base64."""
    tails = _tails(text) if len(text) <= _LONGEST_NAME else []
    for tail in tails:
      file = Path(tail).expanduser()
      file = file if file.is_absolute() or self._root is None else self._root / file
      if file.is_file():
        return file
    if text in self._rows_of_ids:
      return self._rows_of_ids[text]
    try:
      found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
      found = b""
    if len(found) > 32:
      return found
    below = f" below {self._root}" if self._root else ""
    raise UserError(
      f"{where}: no such image file{below}: {text!r:.120}; set image_root to the folder of the images"
    )

  @functools.cached_property
  def _rows_of_ids(self) -> dict[str, int]:
    return {str(row["id"]): i for i, row in enumerate(self.texts())} if "id" in self else {}


def file_names(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The file name that each image of a row carries, empty where it carries none."""
  paths = [cell.get("path") if isinstance(cell, Mapping) else cell for cell in _cells(row)]
  return tuple(
    PurePosixPath(path).name if isinstance(path, str) and len(path) <= _LONGEST_NAME else "" for path in paths
  )


def _cells(row: Mapping[str, Any]) -> list[Any]:
  cells = row.get("images")
  cells = [row.get("image")] if cells is None else cells
  cells = cells if isinstance(cells, list) else [cells]
  return [cell for cell in cells if not _is_empty(cell)]


def _is_empty(cell: Any) -> bool:
  if isinstance(cell, Mapping):
    return cell.get("bytes") is None and not cell.get("path")
  return cell is None or (isinstance(cell, (str, bytes)) and not cell)


def _count(values: pa.ChunkedArray) -> np.ndarray:
  """Images in each cell of a column."""
  kind = values.type
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    # A list of numbers is one image's pixels.
    nested = pa.types.is_integer(kind.value_type) or pa.types.is_list(kind.value_type)
    return (lengths > 0).astype(int) if nested else lengths
  if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
    parts = [pc.is_valid(pc.struct_field(values, [name])) for name in ("bytes", "path")]
    return pc.and_(pc.is_valid(values), pc.or_(*parts)).to_numpy().astype(int)
  if pa.types.is_string(kind) or _is_bytes(kind):
    return (pc.fill_null(pc.binary_length(values), 0).to_numpy() > 0).astype(int)
  return pc.is_valid(values).to_numpy().astype(int)


def _is_bytes(kind: pa.DataType) -> bool:
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _tails(path: str) -> list[str]:
  """A path, or that of a URL, and then without its first folder, its first two, ..."""
  url = urllib.parse.urlparse(path)
  if url.scheme in ("http", "https"):
    path = urllib.parse.unquote(url.path).lstrip("/")
  parts = PurePosixPath(path).parts
  rest = parts[1:] if path.startswith("/") else parts
  return [path, *("/".join(rest[i:]) for i in range(0 if path.startswith("/") else 1, len(rest)))]


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
  for usual in ("conversations", "texts"):
    if "messages" not in found and not {"question"} & {*found, *templates} and usual in names:
      found["messages"] = (usual,)
  return found


def _with_encoded_images(table: Any) -> Any:
  """The same rows, their images left as bytes, so that `open_image` alone decides how they are decoded."""
  import datasets

  for name, feature in table.features.items():
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.Image):
      table = table.cast_column(name, datasets.Image(decode=False))
    elif isinstance(inner, datasets.Image):
      table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
  return table
