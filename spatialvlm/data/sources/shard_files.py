"""Which files the shards of a data set are: found by their names, refused where some cannot be meant."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from spatialvlm.config import refuse_pointer
from spatialvlm.types import UserError

ENDINGS = (".parquet", ".tar")
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COUNTED = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")


def find_shards(path: str, files: str, *, missing: bool = False) -> tuple[list[Path], str]:
  """The shards in the order of their names, and the ending that all of them have.

  Args:
    path: a folder, or one shard.
    files: pattern below `path`, or numbers in braces (`{000..127}.tar`), each of which must be there; empty
      for every shard below `path`.
    missing: whether some may be missing of those that names like `x-00003-of-00128` count.

  Raises:
    UserError: none is there, or not all of them; files of several kinds, packed or empty ones, pointers of
      git-lfs; without `files`, names that differ in more than numbers (`train-0` beside `test-0`).
  """
  if not path:
    raise UserError("a source of kind 'stream' needs a `path`: the folder of its shards")
  folder = Path(path).expanduser()
  if not folder.exists():
    raise UserError(
      f"{folder}: no such folder; a stream's `path` is the folder of its shards, on this machine"
    )
  found = [folder] if folder.is_file() else _below(folder, files)
  kinds = {file.suffix for file in found}
  if packed := [file for file in found if file.suffix in _PACKED]:
    raise UserError(f"{packed[0]}: is packed, so that no row can be read by itself; unpack it to a .tar file")
  if len(kinds) > 1 or not kinds <= {*ENDINGS}:
    raise UserError(
      f"{folder}: shards are files of one kind, .parquet or .tar, but there are {', '.join(sorted(kinds))}; "
      "set `files` to a pattern of those that are meant"
    )
  for file in found:
    refuse_pointer(file)
    if not file.stat().st_size:
      raise UserError(f"{file}: the file is empty; copy it again")
  if not files and folder.is_dir():
    _refuse_several(folder, found)
  if not missing:
    _refuse_missing(folder, found)
  return found, kinds.pop()


class Stamps:
  """How files were when a run began: their sizes, and the times of their last change."""

  def __init__(self, files: Sequence[Path]):
    self._known = {file: self._of(file) for file in files}

  def __getitem__(self, file: Path) -> list[int]:
    return self._known[file]

  def check(self, file: Path) -> None:
    """Raises a UserError for a file that is gone or another one now, whose rows stand elsewhere."""
    try:
      now = self._of(file)
    except OSError as error:
      raise UserError(f"{file}: is gone since the run began ({error.strerror}); put it back") from error
    if now != self._known[file]:
      raise UserError(f"{file}: was changed since the run began; put it back as it was, or begin anew")

  @staticmethod
  def _of(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _below(folder: Path, files: str) -> list[Path]:
  if not files:
    found = [file for file in folder.rglob("*") if file.suffix in ENDINGS and _shown(file, folder)]
    if not found:
      raise UserError(f"{folder}: holds no {' or '.join(ENDINGS)} file; look at `path` and `files`")
    return sorted(found)
  found = []
  for name in _spelled(files):
    one = sorted(file for file in folder.glob(name) if file.is_file() and _shown(file, folder))
    if not one:
      part = f", one of {files}" if name != files else ""
      raise UserError(f"{folder}: holds no {name}{part}; look at `path` and `files`")
    found += one
  return list(dict.fromkeys(found))


def _shown(file: Path, folder: Path) -> bool:
  return not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _spelled(files: str) -> list[str]:
  """The names that numbers in braces stand for; a pattern without any is itself."""
  braces = _BRACES.search(files)
  if braces is None:
    return [files]
  first, last = braces.groups()
  if int(first) > int(last):
    raise UserError(f"files={files!r}: {braces[0]} counts down; write {{{last}..{first}}}")
  head, tail = files[: braces.start()], files[braces.end() :]
  numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
  return [
    f"{glob.escape(head) if not glob.has_magic(head) else head}{n}{rest}"
    for n in numbers
    for rest in _spelled(tail)
  ]


def _refuse_several(folder: Path, found: Sequence[Path]) -> None:
  """Refuses shards of which nobody said that all are meant: a folder may hold splits, or several sets."""
  names = {re.sub(r"\d+", "#", file.name): file for file in reversed(found)}
  if len(names) > 1:
    shown = ", ".join(sorted(file.name for file in names.values())[:4])
    raise UserError(
      f"{folder}: holds shards of {len(names)} names ({shown}), of which some may be for scores alone; set "
      "`files` to a pattern of those that are meant"
    )


def _refuse_missing(folder: Path, found: Sequence[Path]) -> None:
  """Refuses part of a set whose names say how many there are: from 0 on, or from 1."""
  sets: dict[tuple[str, str, str], set[int]] = {}
  for file in found:
    if counted := _COUNTED.fullmatch(str(file.relative_to(folder)) if file != folder else file.name):
      head, number, total, tail = counted.groups()
      sets.setdefault((head, total, tail), set()).add(int(number))
  for (head, total, tail), numbers in sets.items():
    first = 1 if int(total) in numbers else 0
    lacking = [n for n in range(first, int(total) + first) if n not in numbers]
    if lacking:
      name = f"{head}{lacking[0]:0{len(total)}d}-of-{total}{tail}"
      raise UserError(
        f"{folder}: {len(lacking)} of {int(total)} shards are missing, the first {name}; copy them, or set "
        "missing=true to do without"
      )
    if max(numbers) >= int(total) + first:
      raise UserError(
        f"{folder}: shard {max(numbers)} of {int(total)} ({head}...{tail}): its name cannot be right"
      )
