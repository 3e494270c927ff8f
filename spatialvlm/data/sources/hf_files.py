"""Data sets as files: from a folder, file or hub id to rows by columns (`hf_tables`).

Files of text (json, csv, tsv; metadata of image folders) are read as they are written, wherever they lie;
Hugging Face `datasets` reads the rest. No code of a data set is ever run: `datasets` 4 and later has no
loading scripts.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialvlm.config import nearest, refuse_pointer
from spatialvlm.data.sources.hf_tables import ArrowTable, PlacedTable, RecordTable, Table
from spatialvlm.data.sources.json_files import Records, open_records
from spatialvlm.types import Note, UserError

_KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
_INFOS = ("dataset_info.json", "dataset_infos.json")
_METADATA = ("metadata.jsonl", "metadata.csv")


def open_dataset(
  path: str, *, split: str, revision: str | None = None, files: str = ""
) -> tuple[Table, Path | None]:
  """Opens the rows of a data set.

  Args:
    path: a folder that `save_to_disk` wrote, a folder or file of parquet, json, jsonl, csv or tsv, a folder
      of images with a metadata file or with a folder for each class (`imagefolder`), or a hub id, its
      configuration after a colon ("user/set:name").
    files: which files of the folder, or of the hub repository, hold the rows, e.g. "Counting/val-*.parquet".

  Returns:
    The rows, and the folder in which their images' names are looked up (None: only the hub knows).

  A json file of lists has columns `column0`, `column1`, ...; cells of csv and tsv files are text.

  Raises:
    UserError: nothing there, no such split, or no network; a folder of pictures without a word, beside files
      of rows that `files` does not name. Other files of rows that are passed by are a `types.Note`.
  """
  if not path:
    raise UserError(
      "a source of kind 'hf' needs a `path`: the folder of the data set, or its hub id where there is one"
    )
  import datasets

  datasets.disable_progress_bars()  # files on this disk are read in a moment
  local = Path(path).expanduser()
  try:
    if not local.exists() and files:
      local = _download(path, revision, files)
    if local.exists():
      return _open_local(datasets, local, split, files), local if local.is_dir() else local.parent
    identity, _, name = path.partition(":")
    builder = datasets.load_dataset_builder(identity, name or None, revision=revision)
    return _built(datasets, builder, path, split), None
  except UserError:
    raise
  except Exception as error:  # its own errors, the hub client's, fsspec's and pyarrow's
    for file in _rows_below(local, (".arrow", *_KINDS)):
      refuse_pointer(file)
    cause = error.__cause__ or error  # `datasets` wraps what a reader says
    reason = str(cause).strip().split("\n")[0]
    raise UserError(
      f"data set {path!r}, split {split!r}: cannot be opened ({type(cause).__name__}: {reason}); "
      "give a local folder, or a hub id with network at hand"
    ) from error


def _download(path: str, revision: str | None, files: str) -> Path:
  from huggingface_hub import snapshot_download

  return Path(snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=[files]))


def _open_local(datasets: Any, path: Path, split: str, files: str) -> Table:
  if path.is_file():
    return _read(datasets, [path], split)
  if files:
    found = sorted(file for file in path.glob(files) if file.is_file())
    if not found:
      raise UserError(f"{path}: holds no {files}; give the folder that does as `path`, or set `files`")
    return _read(datasets, found, split)
  if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
    return ArrowTable(_split(datasets.load_from_disk(str(path)), str(path), split), str(path))
  builder = datasets.load_dataset_builder(str(path))
  unread = _unread(path, builder)
  table = _built(datasets, builder, str(path), split)
  if unread:
    _say_unread(path, unread, table)
  return table


def _rows_below(path: Path, ends: Sequence[str]) -> list[Path]:
  """Files that may hold rows, by their endings, of a folder or the one file."""
  if not path.is_dir():
    return [path]
  found = [file for file in path.rglob("*") if file.suffix in ends and file.name not in _INFOS]
  hidden = lambda file: any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
  return sorted(file for file in found if not hidden(file) and file.is_file())


def _unread(path: Path, builder: Any) -> list[str]:
  """Files of rows in a folder that a builder of `datasets`, which reads files of one kind, passes by."""
  read = {Path(file).resolve() for found in (builder.config.data_files or {}).values() for file in found}
  return [str(f.relative_to(path)) for f in _rows_below(path, tuple(_KINDS)) if f.resolve() not in read]


def _say_unread(path: Path, unread: Sequence[str], table: Table) -> None:
  shown = ", ".join(unread[:5]) + (f" and {len(unread) - 5} more" if len(unread) > 5 else "")
  way_out = f"set files to what holds the rows, e.g. files={unread[0]!r}"
  if set(table.names) <= {"image"}:
    raise UserError(
      f"{path}: holds pictures and {shown}, of which `datasets` would read the pictures alone; {way_out}"
    )
  warnings.warn(
    Note(f"{path}: {shown} not read beside what was; if they hold the rows, {way_out}"), stacklevel=2
  )


def _split(opened: Any, path: str, split: str) -> Any:
  import datasets

  if not isinstance(opened, datasets.DatasetDict):
    return opened
  if split not in opened:
    raise UserError(f"data set {path!r}: no split {split!r}; {nearest(split, opened)}")
  return opened[split]


def _built(datasets: Any, builder: Any, path: str, split: str) -> Table:
  """The rows that a builder of `datasets` finds files of; texts among them are read here."""
  kind = type(builder).__module__.rsplit(".", 1)[-1]
  files = {str(name): list(map(str, found)) for name, found in (builder.config.data_files or {}).items()}
  metadata = {name: [file for file in found if Path(file).name in _METADATA] for name, found in files.items()}
  placed = kind == "imagefolder" and any(metadata.values())
  if kind not in ("json", "csv") and not placed:
    builder.download_and_prepare()
    return ArrowTable(builder.as_dataset(split=split), path)
  wanted = metadata if placed else files
  # A split may be a slice ("train[:100]"), which `datasets` knows how to read.
  names = {name for name in wanted if name in split}
  if not names:
    raise UserError(f"data set {path!r}: no split {split!r}; {nearest(split, wanted)}")
  local = {name: [Path(file) for file in datasets.DownloadManager().download(wanted[name])] for name in names}
  table = PlacedTable if placed else RecordTable
  tables = {name: table(list(map(_records, found)), builder.info.features) for name, found in local.items()}
  if split in tables:
    return tables[split]
  parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(t) for name, t in tables.items()})
  if len(parts) != 1:
    raise UserError(f"data set {path!r}: split {split!r} is of several; name one")
  return tables[parts[0].splitname].cut(parts[0].from_ or 0, parts[0].to)


def _read(datasets: Any, files: Sequence[Path], split: str) -> Table:
  kinds = {_KINDS.get(file.suffix) for file in files}
  if None in kinds or len(kinds) > 1:
    raise UserError(f"{files[0]}: expected a file of {', '.join(_KINDS)}, and files of one kind alone")
  (kind,) = kinds
  if kind == "parquet":
    for file in files:
      refuse_pointer(file)  # of which `datasets` writes a log of its own
    names = {split: [str(file) for file in files]}
    return ArrowTable(datasets.load_dataset(kind, data_files=names, split=split), str(files[0]))
  return RecordTable(list(map(_records, files)))


def _records(file: Path) -> Records:
  return _rows_of_text(file) if _KINDS.get(file.suffix) == "csv" else open_records(file)


def _rows_of_text(file: Path) -> Records:
  """A csv or tsv file; every cell is the text that stands there, empty alone is empty."""
  refuse_pointer(file)
  csv.field_size_limit(2**31 - 1)  # images in base64
  try:
    with open(file, encoding="utf-8-sig", newline="") as stream:
      rows = csv.reader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
      names = _header(file, next(rows, []))
      return Records(file, list(_filled(file, names, rows)))
  except UnicodeDecodeError as error:
    raise UserError(f"{file}: cannot be read as text ({error})") from error
  except csv.Error as error:
    raise UserError(f"{file}: cannot be read as a table ({error})") from error


def _filled(
  file: Path, names: Sequence[str], rows: Iterable[list[str]]
) -> Iterable[Mapping[str, str | None] | UserError]:
  for index, row in enumerate(filter(None, rows)):
    if len(row) == len(names):
      yield dict(zip(names, (cell or None for cell in row), strict=True))
    else:
      said = f"{len(row)} cells, where the first line names {len(names)} columns"
      yield UserError(f"{file}, row {index}: {said}")


def _header(file: Path, names: list[str]) -> list[str]:
  if not names or len(set(names)) != len(names):
    raise UserError(f"{file}: its first line must name every column, each once; it is {names}")
  return names
