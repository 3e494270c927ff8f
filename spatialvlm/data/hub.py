"""Any data set that Hugging Face `datasets` reads, by id or from disk, with a small column mapping.

No code of a data set is ever run: `datasets` 4 and later has no loading scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.data.conversation import parse_turns
from spatialvlm.data.cvbench import LETTERS, choice_prompt
from spatialvlm.data.images import open_image
from spatialvlm.types import Example, Question, Turn, UserError

OUR_COLUMNS = ("image", "images", "question", "choices", "answer", "messages", "id", "task", "source")


class HubExamples(Sequence[Example]):
  """The rows of a data set as conversations.

  A row has `messages` (see `conversation.parse_turns`), or `question` and `answer`; with `choices` as well it
  becomes a lettered question (see `HubQuestions`). `image` or `images` may be absent.

  Args:
    rows: an opened data set (`open_dataset`).
    columns: our name -> the data set's; a column that carries our name needs no entry. The data sets' usual
      `conversations` and `texts` are found as `messages`.
    where: what errors call the data set.
    size: only the first so many rows, 0 for all.

  Raises:
    UserError: a column that is not there or cannot be used; when a row is read: its number and what is wrong.
  """

  def __init__(self, rows: Any, columns: Mapping[str, str], where: str, size: int = 0):
    self._columns = _columns(rows.column_names, columns, where)
    self._where = where
    self._rows = _with_encoded_images(rows)
    self._size = min(size, len(rows)) if size else len(rows)
    if "messages" not in self._columns and not {"question", "answer"} <= set(self._columns):
      raise UserError(
        f"{where}: no column serves as messages, nor two as question and answer; there are "
        f"{', '.join(rows.column_names)}: map them in `columns`, e.g. columns.question='...'"
      )

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    rows = self._rows[list(indices)]
    by_name = {ours: rows[theirs] for ours, theirs in self._columns.items()}
    return [
      self._example({ours: values[i] for ours, values in by_name.items()}, index)
      for i, index in enumerate(indices)
    ]

  def _example(self, row: Mapping[str, Any], index: int) -> Example:
    where = f"{self._where}, row {index}"
    images = _images(row, where)
    try:
      turns = _turns(row, len(images))
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
    task, source = str(row.get("task") or ""), str(row.get("source") or "")
    files = _files(row)
    return Example(
      images=images, turns=turns, id=str(row.get("id", "")), task=task, source=source, files=files
    )


class HubQuestions(Sequence[Question]):
  """The rows of a data set as multiple-choice questions, in CV-Bench's prompt.

  `answer` is an index from 0, a letter (with or without parentheses), or the text of a choice.
  """

  def __init__(self, rows: Any, columns: Mapping[str, str], where: str, size: int = 0):
    self._columns = _columns(rows.column_names, columns, where)
    missing = [name for name in ("question", "choices", "answer") if name not in self._columns]
    if missing:
      raise UserError(
        f"{where}: no column serves as {', '.join(missing)}; there are {', '.join(rows.column_names)}: "
        "map them in `columns`"
      )
    self._rows, self._where = _with_encoded_images(rows), where
    self._size = min(size, len(rows)) if size else len(rows)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Question:
    row = self._rows[int(index)]
    row = {ours: row[theirs] for ours, theirs in self._columns.items()}
    where = f"{self._where}, row {index}"
    images = _images(row, where)
    if len(images) != 1:
      raise UserError(f"{where}: a question has one image, this one {len(images)}")
    try:
      choices, answer = _choice(row)
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
    return Question(
      idx=index,
      type=str(row.get("task") or "all"),
      task=str(row.get("task") or "all"),
      image=images[0],
      question=row["question"],
      choices=choices,
      answer=answer,
      prompt=choice_prompt(row["question"], choices),
      source=str(row.get("source") or self._where),
    )


def open_dataset(path: str, *, split: str, revision: str | None = None) -> Any:
  """Opens a `datasets.Dataset`.

  Args:
    path: a folder that `save_to_disk` wrote, a folder or file of parquet, json or csv, a folder of images
      with a metadata file (`imagefolder`), or a hub id, its configuration after a colon ("user/set:name").

  Raises:
    UserError: nothing there, no such split, or no network.
  """
  if not path:
    raise UserError("a source of kind 'hf' needs a `path`: a local folder or a hub id")
  import datasets

  local = Path(path).expanduser()
  try:
    if local.exists():
      opened = _open_local(datasets, local, split)
    else:
      identity, _, name = path.partition(":")
      opened = datasets.load_dataset(identity, name or None, split=split, revision=revision)
  except UserError:
    raise
  except Exception as error:  # its own errors, the hub client's, fsspec's and pyarrow's
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"data set {path!r}, split {split!r}: cannot be opened ({type(error).__name__}: {reason}); "
      "give a local folder, or a hub id with network at hand"
    ) from error
  if isinstance(opened, datasets.DatasetDict):
    if split not in opened:
      raise UserError(f"data set {path!r}: no split {split!r}; {nearest(split, opened)}")
    opened = opened[split]
  return opened


def _open_local(datasets: Any, path: Path, split: str) -> Any:
  if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
    return datasets.load_from_disk(str(path))
  if path.is_file():
    kinds = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
    if path.suffix not in kinds:
      raise UserError(f"{path}: expected a file of {', '.join(kinds)}")
    return datasets.load_dataset(kinds[path.suffix], data_files={split: str(path)}, split=split)
  return datasets.load_dataset(str(path), split=split)


def _columns(names: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
  for ours, theirs in mapping.items():
    if ours not in OUR_COLUMNS:
      raise UserError(f"{where}: columns.{ours}: not a name of ours; {nearest(ours, OUR_COLUMNS)}")
    if theirs not in names:
      raise UserError(f"{where}: columns.{ours}={theirs!r}: no such column; {nearest(theirs, names)}")
  found = {name: name for name in OUR_COLUMNS if name in names} | dict(mapping)
  for usual in ("conversations", "texts"):
    if "messages" not in found and "question" not in found and usual in names:
      found["messages"] = usual
  return found


def _with_encoded_images(rows: Any) -> Any:
  """The same rows, their images left as bytes, so that `open_image` alone decides how they are decoded."""
  import datasets

  for name, feature in rows.features.items():
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.Image):
      rows = rows.cast_column(name, datasets.Image(decode=False))
    elif isinstance(inner, datasets.Image):
      rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
  return rows


def _images(row: Mapping[str, Any], where: str) -> tuple[np.ndarray, ...]:
  return tuple(_image(cell, f"{where}, image {i}") for i, cell in enumerate(_cells(row)))


def _files(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The name that each image of a row carries, empty where it carries none."""
  cells = _cells(row)
  paths = [cell.get("path") if isinstance(cell, Mapping) else cell for cell in cells]
  return tuple(Path(path).name if isinstance(path, str) else "" for path in paths)


def _cells(row: Mapping[str, Any]) -> list[Any]:
  cells = row.get("images")
  cells = [row.get("image")] if cells is None else cells
  return [cell for cell in (cells if isinstance(cells, list) else [cells]) if cell is not None]


def _image(cell: Any, where: str) -> np.ndarray:
  if isinstance(cell, Mapping):
    cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
  if isinstance(cell, list):
    cell = np.asarray(cell, np.uint8)
  if cell is None or isinstance(cell, (int, float)):
    raise UserError(f"{where}: expected an image, its bytes or its path, got {cell!r}")
  return open_image(cell, where)


def _turns(row: Mapping[str, Any], images: int) -> tuple[Turn, ...]:
  if "messages" in row:
    return parse_turns(row["messages"], images)
  if row.get("choices"):
    choices, answer = _choice(row)
    return (Turn(choice_prompt(row["question"], choices), LETTERS[answer]),)
  pair = {"user": row["question"], "assistant": _scalar(row["answer"])}
  return parse_turns([pair], images)


def _scalar(answer: Any) -> Any:
  return str(answer) if isinstance(answer, (int, float)) else answer


def _choice(row: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
  question, choices, answer = row["question"], row["choices"], row["answer"]
  if not isinstance(question, str) or not question:
    raise UserError(f"the question is {question!r}")
  if not isinstance(choices, list) or not 1 < len(choices) <= len(LETTERS):
    raise UserError(f"expected 2 to 26 choices, got {choices!r}")
  choices = tuple(str(choice) for choice in choices)
  if isinstance(answer, int) and 0 <= answer < len(choices):
    return choices, answer
  if isinstance(answer, str):
    if choices.count(answer) == 1:
      return choices, choices.index(answer)
    letter = answer.strip().strip("().").upper()
    if letter in tuple(LETTERS[: len(choices)]):
      return choices, LETTERS.index(letter)
  raise UserError(f"the answer {answer!r} is neither an index, a letter nor the text of one of {choices}")
