"""Records of json files, read as they stand there.

A file is a list of records or has one a line, whatever its name ends in; a byte-order mark is passed over.
A key that stands twice in one object is refused.
Values keep what is written: numbers are `cells.Written` or int, texts that look like dates stay texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import refuse_pointer
from spatialvlm.data.sources.cells import Written
from spatialvlm.types import UserError

_MARK = b"\xef\xbb\xbf"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_INTEGER = 1000
# Keys by which an object is told to be a record, and not what holds records.
_OF_RECORDS = {"conversations", "messages", "texts", "question", "answer", "image", "images"}


def open_records(path: str | Path) -> Records:
  """The records of a file, parsed when they are asked for where the file has one a line.

  Raises:
    UserError: no such file, no text, no json; a pointer of git-lfs; a file that is one object over several
      lines, or, in a .json file, one object alone.
  """
  path = Path(path).expanduser()
  try:
    first = _head(path)[:1]
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a .json or .jsonl file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read as text ({error.strerror or error})") from error
  if first == b"[":
    found = _list(path)
    if found is not None:
      return Records(path, found)
  if first == b"{" and (path.suffix == ".json" or not _begins_with_line(path)):
    whole = _whole(path)
    if isinstance(whole, dict):
      raise UserError(f"{path}: expected a list of records, or one a line, but it is {_instead(whole)}")
  return Lines(path)


class Records(Sequence[Any]):
  """The records of a list, in memory; one that is an error is raised when it is asked for."""

  def __init__(self, path: Path, records: Sequence[Any]):
    self.path, self._records = path, records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Any:
    record = self._records[index]
    if isinstance(record, UserError):
      raise record
    return record

  def where(self, index: int) -> str:
    """What errors call a record."""
    return f"{self.path}, row {index}"


class Lines(Records):
  """The records of a file of lines: only where they begin is kept. Safe to read from several threads."""

  def __init__(self, path: Path):
    self.path = path
    self._spans, self._numbers = _spans(path)

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index: int) -> Any:
    start, end = map(int, self._spans[index])
    with open(self.path, "rb") as stream:
      stream.seek(start)
      return parse_record(_decoded(stream.read(end - start).rstrip(), self.where(index)), self.where(index))

  def where(self, index: int) -> str:
    return f"{self.path}:{self._numbers[index]}"


def _head(path: Path) -> bytes:
  with open(path, "rb") as stream:
    head = stream.read(4096).removeprefix(_MARK).lstrip()
  refuse_pointer(path, head)
  return head


def _spans(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """Start and end in bytes of each line that is not blank, and its number from 1."""
  spans, numbers = [], []
  with open(path, "rb") as stream:
    start = len(_MARK) if stream.read(len(_MARK)) == _MARK else 0
    stream.seek(start)
    for number, line in enumerate(stream, start=1):
      end = start + len(line)
      if line.strip():
        spans.append((start, end))
        numbers.append(number)
      start = end
  return np.array(spans, np.int64).reshape(-1, 2), np.array(numbers, np.int64)


def _list(path: Path) -> list[Any] | None:
  """The list that a file is, None where it has a list a line."""
  text = _decoded(path.read_bytes(), path)
  try:
    records, doubled = _loads(text, str(path))
    if not doubled:
      return records
    places = [(f"{path}, row {index}", record) for index, record in enumerate(records)]
    return [_refused(where, key) if (key := _doubled_in(record)) else record for where, record in places]
  except json.JSONDecodeError as error:
    if error.msg == "Extra data":
      return None
    raise UserError(f"{path}: not JSON ({error.msg}, line {error.lineno}, column {error.colno})") from error
  except RecursionError:
    raise UserError(f"{path}: not JSON that can be read (nested too deep)") from None


def _whole(path: Path) -> Any:
  try:
    return json.loads(_decoded(path.read_bytes(), path), parse_int=_integer)
  except (json.JSONDecodeError, RecursionError):
    return None


def _begins_with_line(path: Path) -> bool:
  """Whether the first line is json by itself."""
  with open(path, "rb") as stream:
    line = next((line for line in stream if line.removeprefix(_MARK).strip()), b"")
  try:
    json.loads(line.removeprefix(_MARK), parse_int=_integer)
  except (ValueError, RecursionError):
    return False
  return True


def _instead(whole: Mapping[str, Any]) -> str:
  """What a file that is one object holds, and what to do about it."""
  rows = lambda value: isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)
  listed = [f"{key!r} ({len(value)})" for key, value in whole.items() if rows(value)]
  if _OF_RECORDS & {*whole}:
    return "one record alone; put it in brackets, [{...}], or on one line of a .jsonl file"
  if listed:
    return f"one object, with lists under {', '.join(listed)}; write the list of records alone into a file"
  if whole and all(isinstance(value, dict) for value in whole.values()):
    return f"one object of {len(whole)} objects by name; write these alone, as a list"
  return "one object alone; if that is a record, put it in brackets, [{...}]"


def _decoded(raw: bytes, where: Path | str) -> str:
  try:
    return raw.removeprefix(_MARK).decode("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: cannot be read as text ({error})") from error


class _Doubled(dict):
  """An object with a key that stands in it twice."""

  key = ""


def _doubled_in(value: Any) -> str:
  """The first key that stands twice in an object of a value; "" for none."""
  if isinstance(value, _Doubled):
    return value.key
  parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return next(filter(None, map(_doubled_in, parts)), "")


def _refused(where: str, key: str) -> UserError:
  return UserError(f"{where}: the key {key!r} stands twice in one object; leave out one of the two")


def _loads(text: str, where: str) -> tuple[Any, bool]:
  """What a text means, and whether an object in it is `_Doubled`."""
  doubled = []

  def built(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
      made = _Doubled(made)
      names = [name for name, _ in pairs]
      made.key = next(name for name in names if names.count(name) > 1)
      doubled.append(made.key)
    return made

  found = json.loads(
    text, parse_float=Written, parse_int=_integer, parse_constant=Written, object_pairs_hook=built
  )
  if _HALF.search(text):  # half a character, where its other half is missing
    try:
      json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      half = error.object[error.start].encode("ascii", "backslashreplace").decode()
      raise UserError(f"{where}: a text holds {half}, half of a character, which no model can read") from None
  return found, bool(doubled)


def _integer(text: str) -> int | Written:
  """A whole number; what Python would write otherwise, or not read at all, stays as it is written."""
  return Written(text) if text == "-0" or len(text) > _LONGEST_INTEGER else int(text)


def parse_record(text: str, where: str) -> Any:
  """What a record's text means; raises a UserError for what is no json, or has a key twice in one object."""
  try:
    found, doubled = _loads(text, where)
  except json.JSONDecodeError as error:
    raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
  except RecursionError:
    raise UserError(f"{where}: not JSON that can be read (nested too deep)") from None
  if doubled:
    raise _refused(where, _doubled_in(found))
  return found
