"""Data sets as files: from a folder, file or hub id to the opened rows of Hugging Face `datasets`.

No code of a data set is ever run: `datasets` 4 and later has no loading scripts.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatialvlm.config import nearest
from spatialvlm.types import UserError

_KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
_LIST_OF_LISTS = re.compile(r"\s*\[\s*\[")


def open_dataset(
  path: str, *, split: str, revision: str | None = None, files: str = ""
) -> tuple[Any, Path | None]:
  """Opens a `datasets.Dataset`.

  Args:
    path: a folder that `save_to_disk` wrote, a folder or file of parquet, json, jsonl, csv or tsv, a folder
      of images with a metadata file (`imagefolder`), or a hub id, its configuration after a colon
      ("user/set:name").
    files: which files of the folder, or of the hub repository, hold the rows, e.g. "Counting/val-*.parquet".

  Returns:
    The rows, and the folder in which their images' names are looked up (None: only the hub knows).

  A json file of lists has columns `column0`, `column1`, ...; cells of csv and tsv files are text.

  Raises:
    UserError: nothing there, no such split, or no network.
  """
  if not path:
    raise UserError(
      "a source of kind 'hf' needs a `path`: the folder of the data set, or its hub id where there is one"
    )
  import datasets

  local = Path(path).expanduser()
  try:
    if not local.exists() and files:
      local = _download(path, revision, files)
    if local.exists():
      return _open_local(datasets, local, split, files), local if local.is_dir() else local.parent
    identity, _, name = path.partition(":")
    opened = datasets.load_dataset(identity, name or None, split=split, revision=revision)
    return _split(opened, path, split), None
  except UserError:
    raise
  except Exception as error:  # its own errors, the hub client's, fsspec's and pyarrow's
    cause = error.__cause__ or error  # `datasets` wraps what a reader says
    reason = str(cause).strip().split("\n")[0]
    raise UserError(
      f"data set {path!r}, split {split!r}: cannot be opened ({type(cause).__name__}: {reason}); "
      "give a local folder, or a hub id with network at hand"
    ) from error


def _download(path: str, revision: str | None, files: str) -> Path:
  from huggingface_hub import snapshot_download

  return Path(snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=[files]))


def _open_local(datasets: Any, path: Path, split: str, files: str) -> Any:
  if path.is_file():
    return _read(datasets, [path], split)
  if files:
    found = sorted(file for file in path.glob(files) if file.is_file())
    if not found:
      raise UserError(f"{path}: holds no {files}; give the folder that does as `path`, or set `files`")
    return _read(datasets, found, split)
  if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
    return _split(datasets.load_from_disk(str(path)), str(path), split)
  return datasets.load_dataset(str(path), split=split)


def _split(opened: Any, path: str, split: str) -> Any:
  import datasets

  if not isinstance(opened, datasets.DatasetDict):
    return opened
  if split not in opened:
    raise UserError(f"data set {path!r}: no split {split!r}; {nearest(split, opened)}")
  return opened[split]


def _read(datasets: Any, files: Sequence[Path], split: str) -> Any:
  kinds = {_KINDS.get(file.suffix) for file in files}
  if None in kinds or len(kinds) > 1:
    raise UserError(f"{files[0]}: expected a file of {', '.join(_KINDS)}, and files of one kind alone")
  (kind,) = kinds
  if kind == "json" and _holds_lists(files[0]):
    return _from_lists(datasets, files)
  options: dict[str, Any] = {}
  if kind == "csv":
    # As text, and empty alone is empty: "007", "None" and "1" are answers like any other.
    separator = "\t" if files[0].suffix == ".tsv" else ","
    text = datasets.Value("string")
    features = datasets.Features({name: text for name in _header(files[0], separator)})
    options = {"sep": separator, "features": features, "keep_default_na": False, "na_values": [""]}
  names = {split: [str(file) for file in files]}
  datasets.disable_progress_bars()  # files on this disk are read in a moment
  return datasets.load_dataset(kind, data_files=names, split=split, **options)


def _header(file: Path, separator: str) -> list[str]:
  with open(file, encoding="utf-8-sig", newline="") as stream:
    names = next(csv.reader(stream, delimiter=separator), [])
  if not names or len(set(names)) != len(names):
    raise UserError(f"{file}: its first line must name every column, each once; it is {names}")
  return names


def _holds_lists(file: Path) -> bool:
  if file.suffix != ".json":
    return False
  with open(file, encoding="utf-8") as stream:
    return bool(_LIST_OF_LISTS.match(stream.read(1024)))


def _from_lists(datasets: Any, files: Sequence[Path]) -> Any:
  rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
  width = len(rows[0])
  for i, row in enumerate(rows):
    if not isinstance(row, list) or len(row) != width:
      raise UserError(f"{files[0]}, row {i}: expected a list of {width} cells like row 0, got {row!r:.80}")
  return datasets.Dataset.from_dict({f"column{i}": [row[i] for row in rows] for i in range(width)})
