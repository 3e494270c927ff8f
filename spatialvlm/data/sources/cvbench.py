"""CV-Bench (Tong et al., Cambrian-1, arXiv:2406.16860): its parquet files, read lazily, and written.

The schema is that of `nyu-visionx/CV-Bench` on the Hugging Face hub. Everything but the pixels is read and
checked when a file is opened, so that no error waits in the middle of a run.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from spatialvlm.config import CVBenchConfig
from spatialvlm.data.sources.cvbench_files import File, first_line, write_cvbench
from spatialvlm.data.sources.lettered import QuestionExamples
from spatialvlm.data.sources.pictures import named
from spatialvlm.data.sources.registry import Source
from spatialvlm.processing.images import check_image, open_image
from spatialvlm.types import Deferred, Question, UserError

__all__ = ["CVBench", "examples", "open_cvbench", "questions", "unlike_the_pinned", "write_cvbench"]

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

  Args:
    defer: whether a row that cannot be used is refused when it is read, not when the files are opened.

  Attributes:
    row_order: SHA-1 over the comma-joined `idx`, to be kept with any result.
    ids: the `idx` of all questions, in order; cells that are empty (with `defer` alone) left out.
    note: how these differ from the pinned revision's, where they seem to be CV-Bench's own questions.

  Raises:
    UserError: a file that cannot be read, a missing column or one of another type, an empty cell where the
      schema wants a value, an answer outside the choices, an `idx` that stands twice. When a question is
      read: a corrupt image.
  """

  def __init__(self, files: Sequence[Path], size: int = 0, *, defer: bool = False):
    self._files = [File(Path(path)) for path in files]
    places = [(file, row) for file in self._files for row in range(len(file.rows))]
    self._places = places[: size or None]
    _mark_duplicates(self._places)
    broken = [file.rows[row] for file, row in places if isinstance(file.rows[row], UserError)]
    if broken and not defer:
      raise broken[0]
    self.ids = tuple(file.ids[row] for file, row in self._places if file.ids[row] is not None)
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
    rows = (file.rows[row] for file, row in self._places)
    return {row["source"] for row in rows if not isinstance(row, UserError)}

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Question:
    file, row = self._places[index]
    if isinstance(file.rows[row], UserError):
      raise file.rows[row]
    found = self._image(file, row)
    image = open_image(found, named(found, _cell(file, row)))
    return Question(images=(image,), **file.rows[row])

  def place(self, index: int) -> str:
    file, row = self._places[index]
    return f"{file.path}, row {row}, column 'prompt'"

  def unopened(self, index: int) -> Question:
    file, row = self._places[index]
    found = self._image(file, row)
    whole = check_image(found, named(found, _cell(file, row)))
    return Question(images=(Deferred(*whole, lambda: self[index].images[0]),), **file.rows[row])

  def _image(self, file: File, row: int) -> bytes | Path:
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
    raise UserError(f"{_cell(file, row)}: the cell holds neither bytes nor a path")


def _cell(file: File, row: int) -> str:
  return f"{file.path}, row {row}, column 'image'"


def open_cvbench(
  path: str = "",
  *,
  revision: str | None = None,
  split: str = "test",
  size: int = 0,
  partial: bool = False,
  defer: bool = False,
) -> CVBench:
  """Opens CV-Bench from the hub, or a local file or folder of its schema.

  Args:
    path: a parquet file, a folder of them, or a hub id; empty for `nyu-visionx/CV-Bench` itself.
    revision: of the hub repository. CV-Bench itself has a pinned one, whose row order is checked.
    split: where the files of a folder carry a split in their names (`test_2d.parquet`), which are read.
    size: only the first so many rows, 0 for all.
    partial: takes a local copy of CV-Bench that lacks questions, has more, or has them in another order.
    defer: as of `CVBench`.

  Raises:
    UserError: nothing there, no network, such a copy, or what `CVBench` raises.
  """
  path = os.path.expanduser(path)  # a shell leaves the ~ of --config.data.path=~/x as it is
  if path and Path(path).exists():
    found = CVBench(local_files(Path(path), split), size, defer=defer)
    if not size:
      _check_copy(found, path, partial)
    return found
  if path and (path.count("/") != 1 or path.startswith((".", "/", "~")) or path.endswith(".parquet")):
    raise UserError(f"{path}: no such file or folder; give a parquet file or a folder in CV-Bench's schema")
  repository = path or HUB_ID
  if repository != HUB_ID:
    files = _download(repository, revision, None)
    return CVBench([f for f in files if _of_split(f, files, split)], size, defer=defer)
  files = _download(HUB_ID, revision or HUB_REVISION, HUB_FILES)
  if (revision or HUB_REVISION) == HUB_REVISION:
    found = CVBench(files)
    if found.row_order != ROW_ORDER:
      raise UserError(
        f"{HUB_ID} at {HUB_REVISION[:8]}: {unlike_the_pinned(found.ids)} (row order {found.row_order}, not"
        f" {ROW_ORDER}); the download is damaged: delete it from the Hugging Face cache and start again"
      )
  return CVBench(files, size)


def questions(config: CVBenchConfig, *, defer: bool = False) -> CVBench:
  return open_cvbench(
    config.path,
    revision=config.revision,
    split=config.split,
    size=config.size,
    partial=config.partial,
    defer=defer,
  )


def examples(config: CVBenchConfig, *, defer: bool = False) -> Source:
  return QuestionExamples(questions(config, defer=defer))


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


def _mark_duplicates(places: Sequence[tuple[File, int]]) -> None:
  seen: dict[int, str] = {}
  for file, row in places:
    idx, where = file.ids[row], f"{file.path}, row {row}"
    if isinstance(file.rows[row], UserError):
      continue
    if idx in seen:
      file.rows[row] = UserError(f"{where}, column 'idx': {idx} stands already in {seen[idx]}")
    seen.setdefault(idx, where)


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
      f"({type(error).__name__}: {first_line(error)}); download it and give its folder as the path"
    ) from error
  files = [Path(folder, name) for name in names] if names else sorted(Path(folder).rglob("*.parquet"))
  absent = [f.name for f in files if not f.exists()] if files else ["*.parquet"]
  if absent:
    raise UserError(f"data set {repository!r} on the hub holds no {', '.join(absent)}")
  return files
