"""Columns of opened data sets, as cells: those of Hugging Face `datasets`, and those of records of json.

`hf_rows` reads either by the same names:

- `names`: the columns;
- `read(indices, names) -> {name: cells}`: cells as `cells` and `pictures` take them;
- `sketches(name)`: the cells of a column in order, without their pictures' bytes, for checks of all rows;
- `media`: columns that hold pictures, sound or video, or bytes, by their type;
- `broken`: why rows cannot be read, by their numbers; all of their cells are None.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from spatialvlm.data.sources.hf_features import reader
from spatialvlm.data.sources.json_files import Records
from spatialvlm.data.sources.pictures import LONGEST_NAME
from spatialvlm.types import UserError

_BLOCK = 1000


class Table(Protocol):
  names: tuple[str, ...]
  media: frozenset[str]
  broken: Mapping[int, UserError]

  def __len__(self) -> int: ...

  def read(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, list]: ...

  def sketches(self, name: str) -> Iterator[Any]: ...


class ArrowTable:
  """A `datasets.Dataset`: its images stay bytes, its cells are read as their types say (`hf_features`).

  Args:
    where: what errors call it.
  """

  broken: Mapping[int, UserError] = types.MappingProxyType({})  # `datasets` reads whole files or none

  def __init__(self, dataset: Any, where: str = "the data set"):
    self._where = where
    self.names = tuple(dataset.column_names)
    self._dataset = _with_encoded_images(dataset)
    self._views: dict[tuple[str, ...], Any] = {}
    self._readers = {name: reader(feature) for name, feature in dataset.features.items()}
    self.media = frozenset(name for name, feature in dataset.features.items() if is_media(feature))

  def __len__(self) -> int:
    return len(self._dataset)

  def read(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, list]:
    try:
      block = self._view(tuple(names))[list(indices)]
    except UnicodeDecodeError as error:
      rows = f"row {indices[0]}" if len(indices) == 1 else f"rows {indices[0]} to {indices[-1]}"
      raise UserError(f"{self._where}, {rows}: a text that is no UTF-8 ({error})") from error
    return {name: self._cells(name, block[name], indices) for name in names}

  def sketches(self, name: str) -> Iterator[Any]:
    dataset = self._view((name,)).with_format("arrow")
    for first in range(0, len(self), _BLOCK):
      chunks = dataset[first : first + _BLOCK].column(name).chunks
      try:
        cells = [cell for chunk in chunks for cell in _sketch(chunk).to_pylist()]
      except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        said = f"{self._where}, rows from {first}, column {name!r}: cannot be read ({error})"
        raise UserError(said) from error
      yield from self._cells(name, cells, range(first, first + len(cells)))

  def _cells(self, name: str, cells: list, indices: Sequence[int]) -> list:
    read = self._readers[name]
    if read is None:
      return cells
    places = zip(indices, cells, strict=True)
    return [_understood(read, cell, f"{self._where}, row {index}", name) for index, cell in places]

  def _view(self, names: tuple[str, ...]) -> Any:
    """The data set with these columns alone, so that no other is decoded."""
    if names not in self._views:
      self._views[names] = self._dataset.select_columns(list(names))
    return self._views[names]


class RecordTable:
  """Records of json files; their columns are the keys of all that can be read."""

  media: frozenset[str] = frozenset()

  def __init__(self, files: Sequence[Records], features: Mapping[str, Any] | None = None):
    self._places = [(file, row) for file in files for row in range(len(file))]
    self._readers = {name: reader(feature) for name, feature in (features or {}).items()}
    names: dict[str, None] = {}
    self.broken: dict[int, UserError] = {}
    like = None  # what all records are: the first that can be read
    for index, (file, row) in enumerate(self._places):
      try:
        record = file[row]
        _check_like(record, like, file.where(row))
      except UserError as error:
        self.broken[index] = error
        continue
      like = record if like is None else like
      names |= dict.fromkeys(self._named(record))
    self.names = tuple(names)
    self._last: tuple[int, Mapping[str, Any]] = (-1, {})  # a row is parsed once for all of its columns

  def cut(self, first: int, end: int | None) -> RecordTable:
    """The rows from `first` to before `end`."""
    part = copy.copy(self)
    part._places, part._last = self._places[first:end], (-1, {})
    part.broken = {i - first: e for i, e in self.broken.items() if 0 <= i - first < len(part._places)}
    return part

  def __len__(self) -> int:
    return len(self._places)

  def read(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, list]:
    found: dict[str, list] = {name: [] for name in names}
    for index in indices:
      record = {} if index in self.broken else self._record(index)
      for name in names:
        found[name].append(self._cell(record, index, name))
    return found

  def sketches(self, name: str) -> Iterator[Any]:
    for index in range(len(self)):
      last = self._last
      if last[0] != index:
        last = self._last = (index, {} if index in self.broken else self._record(index))
      yield self._cell(last[1], index, name)

  def _cell(self, record: Mapping[str, Any], index: int, name: str) -> Any:
    read, cell = self._readers.get(name), record.get(name)
    if read is None:
      return cell
    file, row = self._places[index]
    return _understood(read, cell, file.where(row), name)

  def _record(self, index: int) -> Mapping[str, Any]:
    file, row = self._places[index]
    return self._named(file[row])

  def _named(self, record: Any) -> Mapping[str, Any]:
    """Lists get the names column0, column1, ..."""
    return record if isinstance(record, dict) else {f"column{i}": cell for i, cell in enumerate(record)}


class PlacedTable(RecordTable):
  """Records that name their images' files as `datasets` has it for folders of images: `file_name`.

  The column `file_name` becomes `image`, `x_file_name` becomes `x`, and `file_names` becomes `images`.
  """

  def _named(self, record: Any) -> Mapping[str, Any]:
    return {_served(key): cell for key, cell in super()._named(record).items()}

  def _record(self, index: int) -> Mapping[str, Any]:
    file, row = self._places[index]
    placed = lambda cell: str(file.path.parent / cell) if isinstance(cell, str) and cell else cell
    found = {}
    for key, cell in super()._named(file[row]).items():
      if _served(key) != key:
        cell = [placed(one) for one in cell] if isinstance(cell, list) else placed(cell)
      found[_served(key)] = cell
    return found


def _check_like(record: Any, first: Any, where: str) -> None:
  """Refuses a record that is neither an object nor, beside another list, a list of as many cells."""
  if isinstance(record, dict) and not isinstance(first, list):
    return
  if not isinstance(record, list) or isinstance(first, dict):
    raise UserError(f"{where}: expected an object, got {type(record).__name__}")
  if first is not None and len(record) != len(first):
    raise UserError(f"{where}: expected a list of {len(first)} cells like the first row, got {record!r:.80}")


def _served(key: str) -> str:
  for usual, ours in (("file_name", "image"), ("file_names", "images")):
    if key == usual:
      return ours
    if key.endswith(f"_{usual}"):
      return key.removesuffix(f"_{usual}")
  return key


def _with_encoded_images(dataset: Any) -> Any:
  """The rows with their images left as bytes, so that `open_image` alone decides how they are decoded."""
  import datasets

  for name, feature in dataset.features.items():
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.Image):
      dataset = dataset.cast_column(name, datasets.Image(decode=False))
    elif isinstance(inner, datasets.Image):
      dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
  return dataset


def is_media(feature: Any) -> bool:
  """Whether a column holds pictures, sound or video, or bytes, by its type."""
  import datasets

  if isinstance(inner := getattr(feature, "feature", None), (dict, datasets.Value)) or isinstance(
    feature, list
  ):
    return is_media(feature[0] if isinstance(feature, list) else inner)
  if isinstance(feature, dict):  # an image's cell whose type was lost
    return {"bytes", "path"} <= {*feature}
  kinds = tuple(getattr(datasets, name) for name in ("Image", "Audio", "Video") if hasattr(datasets, name))
  kinds_of_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
  return kinds_of_bytes or isinstance(feature, kinds) or isinstance(inner, kinds)


def _understood(read: Callable[[Any], Any], cell: Any, where: str, name: str) -> Any:
  try:
    return read(cell)
  except ValueError as error:
    raise UserError(f"{where}, column {name!r}: {error}") from error


def _sketch(values: pa.Array) -> pa.Array:
  """The cells with `True` for bytes (null for none), and long texts cut short after `LONGEST_NAME`."""
  kind = values.type
  if isinstance(values, pa.ExtensionArray):
    return _sketch(values.storage)
  if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
    return pc.if_else(pc.fill_null(pc.greater(pc.binary_length(values), 0), False), True, None)
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return pc.utf8_slice_codeunits(values, 0, LONGEST_NAME + 1)
  if pa.types.is_struct(kind):
    parts = [_sketch(pc.struct_field(values, [i])) for i in range(kind.num_fields)]
    names = [kind.field(i).name for i in range(kind.num_fields)]
    return pa.StructArray.from_arrays(parts, names, mask=pc.is_null(values))
  if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_primitive(kind.value_type):
    inner = _sketch(values.flatten())
    lengths = pc.fill_null(pc.list_value_length(values), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths).cast(pa.int64())])
    return pa.LargeListArray.from_arrays(offsets, inner, mask=pc.is_null(values))
  return values
