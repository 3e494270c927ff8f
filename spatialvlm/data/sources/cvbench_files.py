"""CV-Bench's parquet files: their schema, checked and read lazily, and written."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spatialvlm.config import refuse_pointer
from spatialvlm.data.sources import pictures
from spatialvlm.types import IMAGE_MARK, LETTERS, Note, Question, UserError

# What pyarrow raises on a damaged file.
_DAMAGED = (OSError, ValueError, LookupError, pa.ArrowException)


def write_cvbench(
  path: str | Path,
  questions: Iterable[Question],
  *,
  row_group: int = 100,
  columns: Mapping[str, Any] | None = None,
  beside: Callable[[Question], Mapping[str, Any]] = lambda question: {},
) -> None:
  """Writes questions as one parquet file in CV-Bench's schema, images as PNG, whole or not at all.

  Args:
    row_group: questions to a group of rows.
    columns: further columns, name -> feature of `datasets`; beside: what a question has in them.

  Raises:
    UserError: the file cannot be written, e.g. on a full disk; a question has several images.
  """
  path = Path(path)
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  schema = _hugging_face_schema(columns or {})
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(part, schema) as writer:
      rows = iter(questions)
      while block := list(itertools.islice(rows, row_group)):
        writer.write_table(pa.Table.from_pylist([_to_row(q) | beside(q) for q in block], schema=schema))
    os.replace(part, path)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror or error}); is the disk full?") from error
  finally:
    with contextlib.suppress(OSError):
      part.unlink()


def _to_row(question: Question) -> dict[str, Any]:
  if len(question.images) != 1:
    count = len(question.images)
    raise UserError(f"question {question.idx}: {count} images, where CV-Bench's schema has one")
  buffer = io.BytesIO()
  Image.fromarray(question.images[0]).save(buffer, "PNG")
  row = {f.name: getattr(question, f.name) for f in dataclasses.fields(question) if f.name != "images"}
  row["image"] = {"bytes": buffer.getvalue(), "path": question.filename or None}
  row["answer"] = f"({LETTERS[question.answer]})"
  row["choices"] = list(question.choices)
  row["bbox"] = None if question.bbox is None else [list(box) for box in question.bbox]
  return row


class File:
  """One parquet file.

  Attributes:
    rows: the fields of `Question` but the image, checked; or why a row cannot be used.
    ids: the `idx` of each row, None for an empty cell.

  Raises:
    UserError: a file that cannot be read, or whose columns are not those of the schema.
  """

  def __init__(self, path: Path):
    self.path = path
    try:
      with pq.ParquetFile(path) as file:
        _check_schema(path, file.schema_arrow)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        read = [name for name in COLUMNS if name != "image" and name in file.schema_arrow.names]
        rows = _rows(file.read(columns=read))
        _note_lost(path, file.schema_arrow, rows)
    except _DAMAGED as error:
      refuse_pointer(path)
      raise UserError(f"{path}: cannot be read as parquet ({first_line(error)})") from error
    self._starts = np.cumsum([0, *sizes])
    self.ids = [row["idx"] for row in rows]
    self.rows: list[dict[str, Any] | UserError] = []
    for i, row in enumerate(rows):
      try:
        self.rows.append(_question_fields(row, f"{path}, row {i}"))
      except UserError as error:
        self.rows.append(error)
    self._check_pictures()

  def _check_pictures(self) -> None:
    """Marks rows without a picture: what a row names must be there, where it holds no bytes itself."""
    for number, holds in enumerate(self._told_of_bytes()):
      if holds is not None and holds.has_null_count and holds.null_count == 0:
        continue  # told by the file's end, without reading a picture
      for row, cell in enumerate(self.read_images(number), start=int(self._starts[number])):
        try:
          self._check_picture(cell, f"{self.path}, row {row}, column 'image'")
        except UserError as error:
          self.rows[row] = error

  def _told_of_bytes(self) -> list[pq.Statistics | None]:
    """What the file's end says of the pictures' bytes, for each row group."""
    try:
      with pq.ParquetFile(self.path) as file:
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        columns = [[group.column(c) for c in range(group.num_columns)] for group in groups]
        names = [[column.path_in_schema for column in of] for of in columns]
        return [of[found.index("image.bytes")].statistics for of, found in zip(columns, names, strict=True)]
    except _DAMAGED as error:
      raise UserError(f"{self.path}: cannot be read as parquet ({first_line(error)})") from error

  def _check_picture(self, cell: pa.StructScalar, where: str) -> None:
    if cell.is_valid and cell["bytes"].is_valid:
      return
    name = cell["path"].as_py() if cell.is_valid else None
    if not name:
      raise UserError(f"{where}: the cell holds neither bytes nor a path")
    pictures.check(name, self.path.parent, where)

  def group_of(self, row: int) -> tuple[int, int]:
    group = int(np.searchsorted(self._starts, row, "right")) - 1
    return group, row - int(self._starts[group])

  def read_images(self, group: int) -> pa.ChunkedArray:
    try:
      with pq.ParquetFile(self.path) as file:
        column = file.read_row_group(group, columns=["image"]).column("image")
    except _DAMAGED as error:
      raise UserError(f"{self.path}, row group {group}: cannot be read ({first_line(error)})") from error
    if len(column) != self._starts[group + 1] - self._starts[group]:
      raise UserError(f"{self.path}, row group {group}: holds {len(column)} pictures, fewer than its rows")
    return column


def _rows(table: pa.Table) -> list[dict[str, Any]]:
  """Rows with every column of the schema; what can be done without is None where it cannot be read.

  Whole numbers that pandas wrote as floats, beside empty cells, are whole again.
  """
  for name in set(COLUMNS) & set(table.column_names):
    column, kind = COLUMNS[name], table.schema.field(name).type
    place = table.column_names.index(name)
    if column.lost and not column.fits(kind):
      cells = _whole(table.column(name)) if column.wanted == "int32" else None
      table = table.set_column(place, name, pa.nulls(len(table)) if cells is None else cells)
  missing = dict.fromkeys(name for name in COLUMNS if name != "image" and name not in table.column_names)
  return [missing | row for row in table.to_pylist()]


def _whole(values: pa.ChunkedArray) -> pa.Array | None:
  if not pa.types.is_floating(values.type):
    return None
  cells = [None if v is None or v != v else v for v in values.to_pylist()]
  if any(v is not None and not v.is_integer() for v in cells):
    return None
  return pa.array([None if v is None else int(v) for v in cells], pa.int64())


def _question_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
  for name, column in COLUMNS.items():
    if name != "image" and not column.lost and row[name] is None:
      raise UserError(f"{where}, column {name!r}: the cell is empty")
  choices = tuple(row["choices"])
  if any(choice is None for choice in choices) or not 1 < len(choices) <= len(LETTERS):
    raise UserError(f"{where}, column 'choices': expected 2 to 26 texts, got {list(choices)}")
  letters = [f"({letter})" for letter in LETTERS[: len(choices)]]
  if row["answer"] not in letters:
    raise UserError(
      f"{where}, column 'answer': {row['answer']!r} is not one of {letters[0]} to {letters[-1]}"
    )
  if (marks := row["prompt"].count(IMAGE_MARK)) > 1:
    raise UserError(f"{where}, column 'prompt': {marks} {IMAGE_MARK} marks for one image")
  boxes = row["bbox"] if _are_boxes(row["bbox"]) else None
  return row | {
    "choices": choices,
    "answer": letters.index(row["answer"]),
    "bbox": None if boxes is None else tuple(tuple(map(float, box)) for box in boxes),
    "filename": row["filename"] or "",
    "source_filename": row["source_filename"] or "",
  }


def _are_boxes(cell: Sequence[Sequence[float | None] | None] | None) -> bool:
  """Whether each box has four numbers."""
  finite = lambda box: all(value is not None and math.isfinite(value) for value in box)
  return cell is not None and all(box is not None and len(box) == 4 and finite(box) for box in cell)


def _note_lost(path: Path, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> None:
  """Says what single rows lack that no score needs; of whole columns `_check_schema` says so."""
  for name, what, lacks in (
    ("bbox", "holds no boxes of four numbers", lambda cell: cell is not None and not _are_boxes(cell)),
    ("source_filename", "is empty", lambda cell: cell is None),
  ):
    whole = name in schema.names and COLUMNS[name].fits(schema.field(name).type)
    lacking = [i for i, row in enumerate(rows) if whole and lacks(row[name])]
    if lacking:
      said = f"column {name!r} {what} in {len(lacking)} of its rows, row {lacking[0]} first"
      warnings.warn(Note(f"{path}: {said}; {COLUMNS[name].lost}"), stacklevel=2)


@dataclasses.dataclass(frozen=True)
class _Column:
  """A column of the schema.

  Attributes:
    wanted, fits: its type, in words and as a test.
    lost: of what no score needs, so that nothing of it stops a run: what there is not without it.
  """

  wanted: str
  fits: Callable[[pa.DataType], bool]
  lost: str = ""


def _is_text(kind: pa.DataType) -> bool:
  if pa.types.is_dictionary(kind):  # as pandas writes categories
    return _is_text(kind.value_type)
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
  is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
  return is_list and of(kind.value_type)


def _is_image(kind: pa.DataType) -> bool:
  if not pa.types.is_struct(kind):
    return False
  fields = {field.name: field.type for field in kind}
  return set(fields) == {"bytes", "path"} and _is_binary(fields["bytes"])


def _or_null(fits: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
  # A file of Count rows alone holds nothing but nulls here, and its writer may have called the type null.
  return lambda kind: pa.types.is_null(kind) or fits(kind)


def _is_boxes(kind: pa.DataType) -> bool:
  is_number = lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind)
  return _is_list(kind, lambda inner: _is_list(inner, is_number))


_TEXT = _Column("string", _is_text)
COLUMNS: dict[str, _Column] = {
  "idx": _Column("int32", pa.types.is_integer),
  "type": _TEXT,
  "task": _TEXT,
  "image": _Column("struct<bytes: binary, path: string>", _is_image),
  "question": _TEXT,
  "choices": _Column("list<string>", lambda kind: _is_list(kind, _is_text)),
  "answer": _TEXT,
  "prompt": _TEXT,
  "filename": _Column("string", _or_null(_is_text), "no score needs it, so it is left out"),
  "source": _TEXT,
  "source_dataset": _TEXT,
  "source_filename": _Column(
    "string",
    _is_text,
    "photos are told apart by their pixels, so that one with other boxes drawn in it counts as another",
  ),
  "target_class": _Column("string", _or_null(_is_text), "no score needs it, so it is left out"),
  "target_size": _Column("int32", _or_null(pa.types.is_integer), "no score needs it, so it is left out"),
  "bbox": _Column(
    "list<list<float>>", _or_null(_is_boxes), "the rules of two dimensions that read boxes are left out"
  ),
}


def _check_schema(path: Path, schema: pa.Schema) -> None:
  missing = [name for name, column in COLUMNS.items() if name not in schema.names and not column.lost]
  if missing:
    raise UserError(f"{path}: column {', '.join(map(repr, missing))} of CV-Bench's schema is missing")
  for name, column in COLUMNS.items():
    kind = schema.field(name).type if name in schema.names else None
    if kind is not None and column.fits(kind):
      continue
    if not column.lost:
      raise UserError(f"{path}, column {name!r}: expected {column.wanted}, got {kind}")
    if kind is None or not (column.wanted == "int32" and pa.types.is_floating(kind)):
      said = "is missing" if kind is None else f"is {kind}, not {column.wanted}"
      warnings.warn(Note(f"{path}: column {name!r} {said}; {column.lost}"), stacklevel=2)


def _hugging_face_schema(columns: Mapping[str, Any]) -> pa.Schema:
  from datasets import Features, Image, List, Value

  text = Value("string")
  kinds = {name: text for name in COLUMNS}
  kinds |= {"idx": Value("int32"), "target_size": Value("int32"), "image": Image(), "choices": List(text)}
  kinds["bbox"] = List(List(Value("float32")))
  return Features({**kinds, **columns}).arrow_schema


def first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0] or type(error).__name__
