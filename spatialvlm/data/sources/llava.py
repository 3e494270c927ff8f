"""Kind "llava": json and jsonl files in LLaVA's form (github.com/haotian-liu/LLaVA, Custom Data)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spatialvlm.config import LlavaConfig
from spatialvlm.data.sources.conversation import parse_turns
from spatialvlm.data.sources.registry import Source
from spatialvlm.processing.images import open_image
from spatialvlm.types import Example, Turn, UserError


@dataclasses.dataclass(frozen=True)
class _Record:
  where: str
  id: str
  images: tuple[Path, ...]
  turns: tuple[Turn, ...]
  task: str


def examples(config: LlavaConfig) -> Source:
  if not config.path:
    raise UserError("a source of kind 'llava' needs a `path`: a .json or .jsonl file")
  return Llava(config.path, config.image_root, config.size)


class Llava(Sequence[Example]):
  """The conversations of a file; their images are read when asked for.

  A record has `conversations` (or `messages`: see `conversation.parse_turns`), and `image` or `images`: paths
  under `image_root`, none for text alone. All records are checked when the file is opened, also that their
  images are there.

  Args:
    path: a .json file (a list of records) or a .jsonl file (one a line).
    image_root: empty for the folder of the file.
    size: only the first so many records, 0 for all.

  Raises:
    UserError: a broken record, named by file and line (file and number of the record for .json).
  """

  def __init__(self, path: str | Path, image_root: str | Path = "", size: int = 0):
    path = Path(path).expanduser()
    root = Path(image_root).expanduser() if image_root else path.parent
    self._records = []
    for where, raw in _read(path):
      if size and len(self._records) == size:
        break
      try:
        self._records.append(_record(where, raw, root))
      except UserError as error:
        raise UserError(f"{where}: {error}") from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    record = self._records[index]
    images = tuple(open_image(path, f"{record.where}, image {path}") for path in record.images)
    files = tuple(path.name for path in record.images)
    return Example(images=images, turns=record.turns, id=record.id, task=record.task, files=files)


def _read(path: Path) -> Iterator[tuple[str, Any]]:
  try:
    text = path.read_text(encoding="utf-8")
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a .json or .jsonl file in LLaVA's form") from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read as text ({error})") from error
  if path.suffix == ".json":
    records = _parse(text, str(path))
    if not isinstance(records, list):
      raise UserError(f"{path}: expected a list of records; a file of one record a line is named .jsonl")
    yield from ((f"{path}, record {i}", record) for i, record in enumerate(records))
    return
  for number, line in enumerate(text.split("\n"), start=1):
    if line.strip():
      yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error


def _record(where: str, raw: Any, root: Path) -> _Record:
  if not isinstance(raw, dict):
    raise UserError(f"expected an object, got {type(raw).__name__}")
  names = raw.get("images") if raw.get("images") is not None else raw.get("image")
  names = [] if names is None else [names] if isinstance(names, str) else names
  if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
    raise UserError(f"'image' is neither a path nor a list of paths: {names!r}")
  images = tuple(root / name for name in names)
  for path in images:
    if not path.is_file():
      raise UserError(f"no image {path}; is image_root right?")
  talk = raw.get("conversations") if raw.get("conversations") is not None else raw.get("messages")
  if talk is None:
    raise UserError(f"neither 'conversations' nor 'messages' among the keys {', '.join(map(repr, raw))}")
  task = raw.get("task") or raw.get("source") or ""
  return _Record(where, str(raw.get("id", "")), images, parse_turns(talk, len(images)), str(task))
