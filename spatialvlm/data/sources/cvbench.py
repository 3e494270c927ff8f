"""CV-Bench (Tong et al., Cambrian-1, arXiv:2406.16860): its parquet files, read lazily, and written.

The schema is that of `nyu-visionx/CV-Bench` on the Hugging Face hub. Everything but the pixels is read and
checked when a file is opened, so that no error waits in the middle of a run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spatialvlm.processing.images import open_image
from spatialvlm.types import LETTERS, Question, UserError

HUB_ID = "nyu-visionx/CV-Bench"
HUB_REVISION = "bc284db50d036958861cb60cdd7b77612052ce0d"
HUB_FILES = ("test_2d.parquet", "test_3d.parquet")
ROW_ORDER = "02535f1c609db8bba7c6bd64d9a78b9aa3d0fa3a"
"""SHA-1 over the comma-joined `idx` of all rows of that revision, in order: 0, 1, ... to the last."""
QUESTIONS = 2638
SOURCES = {"ADE20K": 633, "COCO": 805, "Omni3D": 1200}

_SPLIT_FILE = re.compile(r"(train|test|validation|val|dev)(?=[-_.])")
_CACHED_BYTES = 512 * 2**20


class CVBench(Sequence[Question]):
  """The questions of parquet files in CV-Bench's schema, in order; their images are decoded when asked for.

  Safe to read from several threads. Row groups that were read stay in memory up to 512 MB.

  Attributes:
    row_order: SHA-1 over the comma-joined `idx`, to be kept with any result.
    ids: the `idx` of all questions, in order.
    note: how these differ from the pinned revision's, where they seem to be CV-Bench's own questions.

  Raises:
    UserError: a file that cannot be read, a missing column or one of another type, an empty cell where the
      schema wants a value, an answer outside the choices, an `idx` that stands twice. When a question is
      read: a corrupt image.
  """

  def __init__(self, files: Sequence[Path], size: int = 0):
    self._files = [_File(Path(path)) for path in files]
    places = [(file, row) for file in self._files for row in range(len(file.rows))]
    self._places = places[: size or None]
    _refuse_duplicates(self._places)
    self.ids = tuple(file.rows[row]["idx"] for file, row in self._places)
    self.row_order = hashlib.sha1(",".join(map(str, self.ids)).encode()).hexdigest()
    self.note = ""
    self._groups: collections.OrderedDict[tuple[Path, int], pa.ChunkedArray] = collections.OrderedDict()
    self._lock = threading.Lock()

  @functools.cached_property
  def content(self) -> str:
    """SHA-256 over the bytes of all files, pictures included, to be kept with any result."""
    digest = hashlib.sha256()
    for file in self._files:
      with open(file.path, "rb") as f:
        digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()

  @property
  def sources(self) -> set[str]:
    """The `source` of all questions."""
    return {file.rows[row]["source"] for file, row in self._places}

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Question:
    file, row = self._places[index]
    image = open_image(self._image(file, row), f"{file.path}, row {row}, column 'image'")
    return Question(image=image, **file.rows[row])

  def _image(self, file: _File, row: int) -> bytes | Path:
    group, within = file.group_of(row)
    with self._lock:
      column = self._groups.pop((file.path, group), None)
      if column is None:
        column = file.read_images(group)
      self._groups[file.path, group] = column
      while sum(c.nbytes for c in self._groups.values()) > _CACHED_BYTES and len(self._groups) > 1:
        self._groups.popitem(last=False)
    cell = column[within].as_py()
    if cell and cell["bytes"] is not None:
      return cell["bytes"]
    if cell and cell["path"]:
      return file.path.parent / cell["path"]
    raise UserError(f"{file.path}, row {row}, column 'image': the cell holds neither bytes nor a path")


def open_cvbench(
  path: str = "",
  *,
  revision: str | None = None,
  split: str = "test",
  size: int = 0,
  partial: bool = False,
) -> CVBench:
  """Opens CV-Bench from the hub, or a local file or folder of its schema.

  Args:
    path: a parquet file, a folder of them, or a hub id; empty for `nyu-visionx/CV-Bench` itself.
    revision: of the hub repository. CV-Bench itself has a pinned one, whose row order is checked.
    split: where the files of a folder carry a split in their names (`test_2d.parquet`), which are read.
    size: only the first so many rows, 0 for all.
    partial: takes a local copy of CV-Bench that lacks questions, has more, or has them in another order.

  Raises:
    UserError: nothing there, no network, such a copy, or what `CVBench` raises.
  """
  path = os.path.expanduser(path)  # a shell leaves the ~ of --config.data.path=~/x as it is
  if path and Path(path).exists():
    found = CVBench(local_files(Path(path), split), size)
    if not size:
      _check_copy(found, path, partial)
    return found
  if path and (path.count("/") != 1 or path.startswith((".", "/", "~")) or path.endswith(".parquet")):
    raise UserError(f"{path}: no such file or folder; give a parquet file or a folder in CV-Bench's schema")
  repository = path or HUB_ID
  if repository != HUB_ID:
    files = _download(repository, revision, None)
    return CVBench([f for f in files if _of_split(f, files, split)], size)
  files = _download(HUB_ID, revision or HUB_REVISION, HUB_FILES)
  if (revision or HUB_REVISION) == HUB_REVISION:
    found = CVBench(files)
    if found.row_order != ROW_ORDER:
      raise UserError(
        f"{HUB_ID} at {HUB_REVISION[:8]}: {unlike_the_pinned(found.ids)} (row order {found.row_order}, not"
        f" {ROW_ORDER}); the download is damaged: delete it from the Hugging Face cache and start again"
      )
  return CVBench(files, size)


def _check_copy(found: CVBench, path: str, partial: bool) -> None:
  """Refuses what can only be a damaged copy of CV-Bench; what may be a sample of it gets a note."""
  different = unlike_the_pinned(found.ids) if found.sources == set(SOURCES) else ""
  if not different:
    return
  found.note = f"not CV-Bench at {HUB_REVISION[:8]}: {different}"
  if len(set(found.ids) & set(range(QUESTIONS))) > QUESTIONS // 2 and not partial:
    raise UserError(
      f"{path}: {found.note}; get the files again, or set data.partial=true to score these all the same"
    )


def unlike_the_pinned(ids: Sequence[int]) -> str:
  """How questions differ from those of the pinned revision; "" where all are there in their order."""
  missing = sorted(set(range(QUESTIONS)) - set(ids))
  if missing:
    return f"{len(missing)} of {QUESTIONS} questions are missing, idx {missing[0]} first"
  if len(ids) > QUESTIONS:
    return f"{len(ids) - QUESTIONS} questions too many, idx {min(set(ids) - set(range(QUESTIONS)))} first"
  row = next((row for row, idx in enumerate(ids) if row != idx), None)
  return "" if row is None else f"all questions, but in another order: row {row} holds idx {ids[row]}"


def local_files(path: Path, split: str) -> list[Path]:
  """The parquet files of a local data set: `path` itself, or those of a folder that belong to `split`."""
  if path.is_file():
    return [path]
  files = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet"))
  if not files:
    raise UserError(f"{path}: the folder holds no parquet file")
  chosen = [f for f in files if _of_split(f, files, split)]
  if not chosen:
    known = sorted({m[1] for f in files if (m := _SPLIT_FILE.match(f.name))})
    raise UserError(f"{path}: no file of split {split!r}; there is {', '.join(known)}: set `split` to it")
  return chosen


def write_cvbench(path: str | Path, questions: Iterable[Question], *, row_group: int = 100) -> None:
  """Writes questions as one parquet file in CV-Bench's schema, images as PNG, whole or not at all.

  Raises:
    UserError: the file cannot be written, e.g. on a full disk.
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
  buffer = io.BytesIO()
  Image.fromarray(question.image).save(buffer, "PNG")
  row = {f.name: getattr(question, f.name) for f in dataclasses.fields(question)}
  row["image"] = {"bytes": buffer.getvalue(), "path": question.filename or None}
  row["answer"] = f"({LETTERS[question.answer]})"
  row["choices"] = list(question.choices)
  row["bbox"] = None if question.bbox is None else [list(box) for box in question.bbox]
  return row


class _File:
  """One parquet file: `rows` holds the fields of `Question` but the image, checked."""

  def __init__(self, path: Path):
    self.path = path
    try:
      with pq.ParquetFile(path) as file:
        _check_schema(path, file.schema_arrow)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        table = file.read(columns=[name for name in COLUMNS if name != "image"])
    except (OSError, pa.ArrowInvalid) as error:
      raise UserError(f"{path}: cannot be read as parquet ({_line(error)})") from error
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
      raise UserError(f"{self.path}, row group {group}: cannot be read ({_line(error)})") from error


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


def _refuse_duplicates(places: Sequence[tuple[_File, int]]) -> None:
  seen: dict[int, str] = {}
  for file, row in places:
    idx = file.rows[row]["idx"]
    if idx in seen:
      raise UserError(f"{file.path}, row {row}, column 'idx': {idx} stands already in {seen[idx]}")
    seen[idx] = f"{file.path}, row {row}"


@dataclasses.dataclass(frozen=True)
class _Column:
  wanted: str
  fits: Callable[[pa.DataType], bool]
  nullable: bool = False


def _is_text(kind: pa.DataType) -> bool:
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


def _of_split(file: Path, files: Sequence[Path], split: str) -> bool:
  """Whether `file` belongs to `split`; where no file names a split, all of them do."""
  if not any(_SPLIT_FILE.match(f.name) for f in files):
    return True
  named = _SPLIT_FILE.match(file.name)
  return named is not None and named[1] == split


def _download(repository: str, revision: str | None, names: Sequence[str] | None) -> list[Path]:
  from huggingface_hub import snapshot_download

  try:
    folder = snapshot_download(
      repository, repo_type="dataset", revision=revision, allow_patterns=list(names or ["*.parquet"])
    )
  except Exception as error:  # the hub's client raises errors of several libraries
    raise UserError(
      f"data set {repository!r} is neither a local path nor readable from the Hugging Face hub "
      f"({type(error).__name__}: {_line(error)}); download it and give its folder as the path"
    ) from error
  files = [Path(folder, name) for name in names] if names else sorted(Path(folder).rglob("*.parquet"))
  absent = [f.name for f in files if not f.exists()] if files else ["*.parquet"]
  if absent:
    raise UserError(f"data set {repository!r} on the hub holds no {', '.join(absent)}")
  return files


def _line(error: Exception) -> str:
  return str(error).strip().split("\n")[0]
