"""CV-Bench's parquet files: their schema, checked and read lazily, and written."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spatialvlm.types import LETTERS, Question, UserError


def write_cvbench(path: str | Path, questions: Iterable[Question], *, row_group: int = 100) -> None:
  """Writes questions as one parquet file in CV-Bench's schema, images as PNG, whole or not at all.

  Raises:
    UserError: the file cannot be written, e.g. on a full disk; a question has several images.
  """
  path = Path(path)
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  schema = _hugging_face_schema()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(part, schema) as writer:
      rows = iter(questions)
      while block := list(itertools.islice(rows, row_group)):
        writer.write_table(pa.Table.from_pylist([_to_row(q) for q in block], schema=schema))
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
  """One parquet file: `rows` holds the fields of `Question` but the image, checked."""

  def __init__(self, path: Path):
    self.path = path
    try:
      with pq.ParquetFile(path) as file:
        _check_schema(path, file.schema_arrow)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        table = file.read(columns=[name for name in COLUMNS if name != "image"])
    except (OSError, pa.ArrowInvalid) as error:
      raise UserError(f"{path}: cannot be read as parquet ({first_line(error)})") from error
    self._starts = np.cumsum([0, *sizes])
    self.rows = [_question_fields(row, f"{path}, row {i}") for i, row in enumerate(table.to_pylist())]

  def group_of(self, row: int) -> tuple[int, int]:
    group = int(np.searchsorted(self._starts, row, "right")) - 1
    return group, row - int(self._starts[group])

  def read_images(self, group: int) -> pa.ChunkedArray:
    try:
      with pq.ParquetFile(self.path) as file:
        return file.read_row_group(group, columns=["image"]).column("image")
    except (OSError, pa.ArrowInvalid) as error:
      raise UserError(f"{self.path}, row group {group}: cannot be read ({first_line(error)})") from error


def _question_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
  for name, column in COLUMNS.items():
    if name != "image" and not column.nullable and row[name] is None:
      raise UserError(f"{where}, column {name!r}: the cell is empty")
  choices = tuple(row["choices"])
  if any(choice is None for choice in choices) or not 1 < len(choices) <= len(LETTERS):
    raise UserError(f"{where}, column 'choices': expected 2 to 26 texts, got {list(choices)}")
  letters = [f"({letter})" for letter in LETTERS[: len(choices)]]
  if row["answer"] not in letters:
    raise UserError(
      f"{where}, column 'answer': {row['answer']!r} is not one of {letters[0]} to {letters[-1]}"
    )
  boxes = row["bbox"]
  if boxes is not None and any(box is None or None in box for box in boxes):
    raise UserError(f"{where}, column 'bbox': a box or a number in it is missing")
  row |= {"choices": choices, "answer": letters.index(row["answer"])}
  row["bbox"] = None if boxes is None else tuple(tuple(box) for box in boxes)
  return row


@dataclasses.dataclass(frozen=True)
class _Column:
  wanted: str
  fits: Callable[[pa.DataType], bool]
  nullable: bool = False


def _is_text(kind: pa.DataType) -> bool:
  if pa.types.is_dictionary(kind):  # as pandas writes categories
    return _is_text(kind.value_type)
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
  return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and of(kind.value_type)


def _is_image(kind: pa.DataType) -> bool:
  if not pa.types.is_struct(kind):
    return False
  fields = {field.name: field.type for field in kind}
  return set(fields) == {"bytes", "path"} and _is_binary(fields["bytes"])


def _or_null(fits: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
  # A file of Count rows alone holds nothing but nulls here, and its writer may have called the type null.
  return lambda kind: pa.types.is_null(kind) or fits(kind)


def _is_boxes(kind: pa.DataType) -> bool:
  return _is_list(kind, lambda inner: _is_list(inner, pa.types.is_floating))


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
  "filename": _TEXT,
  "source": _TEXT,
  "source_dataset": _TEXT,
  "source_filename": _TEXT,
  "target_class": _Column("string", _or_null(_is_text), nullable=True),
  "target_size": _Column("int32", _or_null(pa.types.is_integer), nullable=True),
  "bbox": _Column("list<list<float>>", _or_null(_is_boxes), nullable=True),
}


def _check_schema(path: Path, schema: pa.Schema) -> None:
  missing = [name for name in COLUMNS if name not in schema.names]
  if missing:
    raise UserError(f"{path}: column {', '.join(map(repr, missing))} of CV-Bench's schema is missing")
  for name, column in COLUMNS.items():
    kind = schema.field(name).type
    if not column.fits(kind):
      raise UserError(f"{path}, column {name!r}: expected {column.wanted}, got {kind}")


def _hugging_face_schema() -> pa.Schema:
  from datasets import Features, Image, List, Value

  text = Value("string")
  kinds = {name: text for name in COLUMNS}
  kinds |= {"idx": Value("int32"), "target_size": Value("int32"), "image": Image(), "choices": List(text)}
  kinds["bbox"] = List(List(Value("float32")))
  return Features(kinds).arrow_schema


def first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0]
