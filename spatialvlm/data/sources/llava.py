"""Kind "llava": json and jsonl files in LLaVA's form (github.com/haotian-liu/LLaVA, Custom Data)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import LlavaConfig
from spatialvlm.data.sources import marks, named_boxes, pictures
from spatialvlm.data.sources.cells import is_empty, tag_of, text_of
from spatialvlm.data.sources.conversation import parse_turns, picture_cells, refuse_two
from spatialvlm.data.sources.json_files import open_records
from spatialvlm.data.sources.registry import Source
from spatialvlm.data.sources.unread import UnreadError, refusal, unread
from spatialvlm.types import Example, Turn, UserError

_READ = ("id", "image", "images", "conversations", "messages", "task", "source", "facts", named_boxes.NAME)
_TALKS = ("conversations", "messages")


@dataclasses.dataclass(frozen=True)
class _Record:
  """What is kept of a record.

  Its `facts` and `boxes` as they stand; its pictures as cells, or their number where they stand in the file
  itself.
  """

  id: str
  images: tuple[Any, ...]
  turns: tuple[Turn, ...]
  task: str
  facts: Any
  boxes: Any


def examples(config: LlavaConfig, *, defer: bool = False) -> Source:
  if not config.path:
    raise UserError("a source of kind 'llava' needs a `path`: a .json or .jsonl file")
  return Llava(config.path, config.image_root, config.size, config.ignore, defer=defer)


class Llava(Sequence[Example]):
  """The conversations of a file; their images are read when asked for.

  A record has `conversations` (or `messages`: see `conversation.parse_turns`), and `image` or `images`: what
  `pictures.locate` takes, names of files under `image_root` or base64; none, or empty, for text alone. Its
  `facts` are what is true of them, in words, for teachers that are told (`Example.facts`). All
  records are checked when the file is opened, also that their images are there.

  Args:
    path: a file that is a list of records or has one a line.
    image_root: empty for the folder of the file.
    size: only the first so many records, 0 for all.
    ignore: keys of pictures, video, sound or marks (`marks`), or one of two conversations, that are left
      unread on purpose.
    defer: whether a broken record is refused when it is read, not when the file is opened; keys that nothing
      reads are refused in any case.

  Raises:
    UserError: a broken record, named by file and line (file and number of the record in a list).
  """

  def __init__(
    self,
    path: str | Path,
    image_root: str | Path = "",
    size: int = 0,
    ignore: Sequence[str] = (),
    *,
    defer: bool = False,
  ):
    self._file = open_records(path)
    self._root = Path(image_root).expanduser() if image_root else Path(path).expanduser().parent
    self._talks = [key for key in _TALKS if key not in ignore]
    self._records: list[_Record | UserError] = []
    for index in range(min(size or len(self._file), len(self._file))):
      try:
        self._records.append(self._record(index, ignore))
      except UserError as error:
        where = self._file.where(index)
        named = UserError(str(error) if str(error).startswith(where) else f"{where}: {error}")
        if not defer or isinstance(error, UnreadError):
          raise named from error
        self._records.append(named)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    record = self._records[index]
    if isinstance(record, UserError):
      raise record
    where = self._file.where(index % len(self))
    images = tuple(
      pictures.load(cell, self._root, f"{where}, {_called(cell)}") for cell in self._cells(index % len(self))
    )
    files = pictures.file_names(record.images)
    told = lambda: text_of(record.facts, f"{where}, 'facts'")
    facts = None if is_empty(record.facts) else told
    place = f"{where}, {named_boxes.NAME!r}"
    boxes = named_boxes.geometry(record.boxes, record.task, len(record.turns), images, place)
    return Example(
      images=images,
      turns=record.turns,
      id=record.id,
      task=record.task,
      files=files,
      facts=facts,
      geometry=boxes,
    )

  def picture_counts(self, size: int) -> np.ndarray:
    """How many images each of the first `size` records has."""
    good = [record for record in self._records[:size] if isinstance(record, _Record)]
    return np.array([len(record.images) for record in good], int)

  def _cells(self, index: int) -> Sequence[Any]:
    """The pictures of a record; those that are not names of files are read from the file once more."""
    kept = self._records[index].images
    if all(isinstance(cell, str) for cell in kept):
      return kept
    return picture_cells(self._served(self._file[index]), "")[1]

  def _served(self, raw: dict[str, Any]) -> dict[str, Any]:
    talks = [raw[key] for key in self._talks if raw.get(key) is not None]
    filled = [talk for talk in talks if not is_empty(talk)]
    return raw | {"messages": next(iter(filled or talks), None)}

  def _record(self, index: int, ignore: Sequence[str]) -> _Record:
    raw = self._file[index]
    if not isinstance(raw, dict):
      raise UserError(f"expected an object, got {type(raw).__name__}")
    row = self._served(raw)
    _, cells = picture_cells(row, self._file.where(index))
    for cell in cells:
      pictures.check(cell, self._root, _called(cell))
    if key := unread(raw, pictures=bool(cells), read=(*_READ, *ignore), root=self._root):
      raise UnreadError(refusal(key, raw[key]))
    if key := marks.undrawn(raw, ignore):
      marks.marks_of({key: raw[key]}, {}, len(cells))
    if row["messages"] is None:
      raise UserError(f"neither 'conversations' nor 'messages' among the keys {', '.join(map(repr, raw))}")
    task = tag_of(raw.get("task")) or tag_of(raw.get("source"))
    kept = tuple(cell if pictures.may_be_name(cell) else None for cell in cells)
    turns = parse_turns(row["messages"], len(cells))
    refuse_two(raw, self._talks, len(cells), f'set ignore="({self._talks[-1]!r},)"')
    return _Record(tag_of(raw.get("id")), kept, turns, task, raw.get("facts"), raw.get(named_boxes.NAME))


def _called(cell: Any) -> str:
  return f"image {cell}" if pictures.may_be_name(cell) and len(cell) < 256 else "'image'"
