"""Kind "hf": any data set that Hugging Face `datasets` reads, with a small mapping of its columns."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import HFConfig
from spatialvlm.data.sources import named_boxes
from spatialvlm.data.sources.cells import Answers, first_text, is_empty, options_of, tag_of, text_of
from spatialvlm.data.sources.conversation import parse_turns
from spatialvlm.data.sources.hf_files import open_dataset
from spatialvlm.data.sources.hf_rows import Rows, sound
from spatialvlm.data.sources.hf_tables import Table
from spatialvlm.data.sources.pictures import file_names
from spatialvlm.data.sources.registry import Source
from spatialvlm.processing.images import side_by_side
from spatialvlm.types import IMAGE_MARK, LETTERS, Deferred, Example, Question, Turn, UserError, choice_prompt

__all__ = ["HubExamples", "HubQuestions", "examples", "open_dataset", "questions"]


def examples(config: HFConfig, *, defer: bool = False) -> Source:
  rows, root = open_dataset(config.path, split=config.split, revision=config.revision, files=config.files)
  return HubExamples(rows, config, root, defer=defer)


def questions(config: HFConfig) -> Sequence[Question]:
  rows, root = open_dataset(config.path, split=config.split, revision=config.revision, files=config.files)
  return HubQuestions(rows, config, root)


class Conversations:
  """Rows as conversations, one by one.

  Args:
    rows, config: as `HubExamples` has them.

  Attributes:
    answers: how answers name options; to be learned of all rows, where the config does not say it.
  """

  def __init__(self, rows: Rows, config: HFConfig):
    self._rows, self._config = rows, config
    self.answers = Answers(config.answers, stated=bool(config.choices))
    if "messages" not in rows and not ("question" in rows and "answer" in rows):
      raise UserError(
        f"{config.path}: no column serves as messages, nor two as question and answer; there are "
        f"{', '.join(rows.names)}: map them in `columns`, e.g. columns.question='...'"
      )

  @property
  def lettered(self) -> bool:
    """Whether rows are questions with options."""
    return "messages" not in self._rows and bool(self._config.choices or "choices" in self._rows)

  def example(self, row: Mapping[str, Any], index: int) -> Example:
    """A row that `Rows.read` gave, with its pictures decoded; raises a UserError for what cannot be used."""
    images = self._rows.drawn(self._rows.pixels(row, index), index)
    turns, task = self.turns(row, index, len(images)), tag_of(row.get("task"))
    where = self._rows.place(index, named_boxes.NAME)
    return Example(
      images=images,
      turns=turns,
      id=tag_of(row.get("id")),
      task=task,
      source=tag_of(row.get("source")),
      files=file_names(self._rows.pictures(row, index)[1]),
      facts=None if is_empty(row.get("facts")) else lambda: self._text(row, index, "facts"),
      geometry=named_boxes.geometry(row.get(named_boxes.NAME), task, len(turns), images, where),
    )

  def _text(self, row: Mapping[str, Any], index: int, name: str) -> str:
    return text_of(row[name], self._rows.place(index, name))

  def turns(self, row: Mapping[str, Any], index: int, images: int) -> tuple[Turn, ...]:
    """The conversation of a row with so many images; raises a UserError for one that cannot be used."""
    if "messages" not in row and (self._config.choices or not is_empty(row.get("choices"))):
      fields = question_fields(self._rows, row, index, self._config, self.answers)
      return (Turn(fields["prompt"], LETTERS[fields["answer"]]),)
    if "messages" not in row:
      question = text_of(row["question"], self._rows.place(index, "question"))
      answer = first_text(row["answer"], self._rows.place(index, "answer"))
      row = {"messages": [{"user": question, "assistant": answer}]}
    try:
      return parse_turns(row["messages"], images)
    except UserError as error:
      raise UserError(f"{self._rows.row(index)}: {error}") from error


class HubExamples(Sequence[Example]):
  """The rows of a data set as conversations.

  A row has `messages` (see `conversation.parse_turns`), or `question` and `answer`; with `choices` as well it
  becomes a lettered question (see `HubQuestions`). `image` or `images` may be absent. All rows are checked
  when the data set is opened, also that files of images are there; images are decoded when they are read.

  Args:
    table: an opened data set (`open_dataset`), as `hf_tables.Table`.
    config: `columns`, `templates`, `choices`, `answers`, `shuffle_choices`: what serves as what.
    root: folder of images that are named.
    defer: whether a row that cannot be used is refused when it is read, not when the data set is opened.

  Raises:
    UserError: a column that is not there or cannot be used; the first row that cannot be used, by its number.
  """

  def __init__(self, table: Table, config: HFConfig, root: Path | None = None, *, defer: bool = False):
    _refuse_broken(table, but_all=defer)
    _refuse_empty(table, config)
    self._rows, self._config = Rows(table, config, root), config
    self._size = min(config.size, len(table)) if config.size else len(table)
    self._read = Conversations(self._rows, config)
    if config.several_images != "refuse":
      raise UserError(
        f"{config.path}: several_images is for questions that are scored; examples keep all their images"
      )
    self._broken = {index: error for index, error in table.broken.items() if index < self._size}
    self._counts = self._rows.picture_counts(size=self._size, broken=self._broken if defer else None)
    self._rows.refuse_unread(self._counts)
    if self._read.lettered:
      learn(self._read.answers, self._rows, self._rows.texts(self._size), config)
    self._check_texts(defer)

  def _check_texts(self, defer: bool) -> None:
    doubled = self._rows.second_conversations(self._counts)
    for index, row in enumerate(self._rows.texts(self._size)):
      if index in self._broken:
        continue
      try:
        if index in doubled:
          raise doubled[index]
        self._read.turns(sound(row), index, int(self._counts[index]))
        self._rows.marks(index, int(self._counts[index]))
      except UserError as error:
        if not defer:
          raise
        self._broken[index] = error

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    for index in indices:
      if index in self._broken:
        raise self._broken[index]
    rows = self._rows.read(indices)
    return [self._read.example(row, index) for row, index in zip(rows, indices, strict=True)]

  def picture_counts(self, size: int) -> np.ndarray:
    """How many images each of the first `size` rows has; those that are broken are left out."""
    return np.array([n for i, n in enumerate(self._counts[:size]) if i not in self._broken], int)


class HubQuestions(Sequence[Question]):
  """The rows of a data set as multiple-choice questions.

  Everything but the pixels is read and checked when it is opened, names of images' files too. The prompt is
  CV-Bench's, unless `prompt` is mapped. A question's `idx` is the number of its row.

  Args: as `HubExamples`, and `several_images` of the config.

  Attributes:
    ids: the `idx` of all questions, in order.
    row_order: SHA-1 over all texts, to be kept with any result.

  Raises:
    UserError: the first cell that cannot be used, by row and column; when a question is read: a corrupt
      image.
  """

  def __init__(self, table: Table, config: HFConfig, root: Path | None = None):
    _refuse_broken(table)
    _refuse_empty(table, config)
    self._rows, self._config = Rows(table, config, root), config
    _check_names(self._rows, config)
    counts = self._rows.picture_counts()
    _refuse(self._rows, counts, config.several_images)
    self._rows.refuse_unread(counts[: config.size or None])
    texts = list(map(sound, self._rows.texts()))
    _refuse_duplicates(self._rows, texts)
    kept = [i for i in range(len(texts)) if counts[i] == 1 or config.several_images != "skip"]
    self.ids = tuple(kept[: config.size or None])
    if config.marks:
      raise UserError(f"{config.path}: marks are drawn into examples, not into questions that are scored")
    for index in self.ids:
      self._rows.marks(index, int(counts[index]))
    answers = Answers(config.answers, stated=bool(config.choices))
    learn(answers, self._rows, texts, config)
    self._fields = [question_fields(self._rows, texts[i], i, config, answers) for i in self.ids]
    for idx, fields in zip(self.ids, self._fields, strict=True):
      shown = 1 if config.several_images == "join" else counts[idx]
      if (marks := fields["prompt"].count(IMAGE_MARK)) not in (0, shown):
        place = self._rows.place(idx, "prompt" if "prompt" in self._rows else "question")
        raise UserError(f"{place}: {marks} {IMAGE_MARK} marks for {shown} image(s)")
    digest = hashlib.sha1(usedforsecurity=False)
    for idx, fields in zip(self.ids, self._fields, strict=True):
      digest.update(repr((idx, fields)).encode())
    self.row_order = digest.hexdigest()

  def __len__(self) -> int:
    return len(self.ids)

  def place(self, index: int) -> str:
    return self._rows.place(self.ids[index], "prompt" if "prompt" in self._rows else "question")

  def unopened(self, index: int) -> Question:
    return self._question(index, *self._rows.unopened(self.ids[index]), _joined)

  def __getitem__(self, index: int) -> Question:
    idx = self.ids[index]
    (row,) = self._rows.read([idx])
    images, names = self._rows.pixels(row, idx), file_names(self._rows.pictures(row, idx)[1])
    return self._question(index, images, names, side_by_side)

  def _question(
    self, index: int, images: tuple[Any, ...], files: Sequence[str], join: Callable[[Sequence[Any]], Any]
  ) -> Question:
    names = [name for name in files if name]
    joined = self._config.several_images == "join" and len(images) > 1
    return Question(
      idx=self.ids[index],
      images=(join(images),) if joined else images,
      filename=",".join(names),
      source_filename=",".join(names),
      **self._fields[index],
    )


def _joined(images: Sequence[Deferred]) -> Deferred:
  """Images side by side, before they are decoded."""
  height, width = max(image.shape[0] for image in images), sum(image.shape[1] for image in images)
  key = " ".join(image.key for image in images)
  return Deferred((height, width, 3), key, lambda: side_by_side([image.make() for image in images]))


def learn(
  answers: Answers, rows: Rows, texts: Iterable[Mapping[str, Any] | UserError], config: HFConfig
) -> None:
  """Finds how all rows write their answers (`Answers.learn`); rows that are broken are not asked."""

  def asked():
    for index, row in enumerate(texts):
      if isinstance(row, UserError):
        continue
      try:
        yield (
          row["answer"],
          _options(rows, row, index, config),
          functools.partial(rows.place, index, "answer"),
        )
      except UserError:
        continue

  answers.learn(asked())


def question_fields(
  rows: Rows, row: Mapping[str, Any], index: int, config: HFConfig, answers: Answers
) -> dict[str, Any]:
  """The fields of a `Question` that are not its number or its images.

  Raises:
    UserError: a cell that cannot be used, by row and column.
  """
  question = _text(rows, row["question"], index, "question")
  choices = _options(rows, row, index, config)
  answer = answers.index(row["answer"], choices, rows.place(index, "answer"))
  if config.shuffle_choices:
    order = shuffled(len(choices), f"{config.seed}/{index}")
    choices, answer = tuple(choices[i] for i in order), order.index(answer)
  prompt = (
    _text(rows, row["prompt"], index, "prompt") if "prompt" in row else choice_prompt(question, choices)
  )
  return dict(
    type=tag_of(row.get("type")),
    task=tag_of(row.get("task")) or "all",
    question=question,
    choices=choices,
    answer=answer,
    prompt=prompt,
    source=tag_of(row.get("source")) or str(rows.where),
    source_dataset=tag_of(row.get("source_dataset")),
  )


def _text(rows: Rows, cell: Any, index: int, name: str) -> str:
  place = rows.place(index, name)
  if is_empty(cell) or (isinstance(cell, str) and not cell.strip()):
    raise UserError(f"{place}: expected a text, got {cell!r}")
  return text_of(cell, place)


def _options(rows: Rows, row: Mapping[str, Any], index: int, config: HFConfig) -> tuple[str, ...]:
  return config.choices or options_of(row["choices"], rows.place(index, "choices"))


def shuffled(count: int, key: str) -> list[int]:
  """A permutation that depends on `key` alone, the same on any machine."""
  return sorted(range(count), key=lambda i: hashlib.sha256(f"{key}/{i}".encode()).digest())


def _refuse_broken(table: Table, *, but_all: bool = False) -> None:
  """Refuses rows that cannot be read: the first of them, or with `but_all` only where all are such."""
  if table.broken and (not but_all or len(table.broken) == len(table)):
    raise table.broken[min(table.broken)]


def _refuse_empty(table: Table, config: HFConfig) -> None:
  if not len(table):
    raise UserError(f"{config.path}: holds no rows; look at `path`, `files` and `split`")


def _check_names(rows: Rows, config: HFConfig) -> None:
  missing = [name for name in ("question", "choices", "answer") if name not in rows]
  missing = [name for name in missing if name != "choices" or not config.choices]
  missing += [] if "image" in rows or "images" in rows else ["image"]
  if missing:
    raise UserError(
      f"{config.path}: no column serves as {', '.join(missing)}; there are {', '.join(rows.names)}: "
      "map them in `columns`"
    )
  if config.choices and not 1 < len(config.choices) <= len(LETTERS):
    raise UserError(f"choices: expected 2 to 26, got {list(config.choices)}")
  if config.shuffle_choices and "prompt" in rows:
    raise UserError(
      "shuffle_choices: the data's own `prompt` lists the options in their order; map no prompt"
    )


def _refuse(rows: Rows, counts: np.ndarray, several: str) -> None:
  name = "images" if "images" in rows else "image"
  for index in np.flatnonzero(counts == 0)[:1]:
    raise UserError(f"{rows.place(index, name)}: the cell is empty, where an image is wanted")
  for index in np.flatnonzero(counts > 1)[: several == "refuse"]:
    raise UserError(
      f"{rows.place(index, name)}: {counts[index]} images, where a question has one; "
      "set several_images to 'keep' (all of them), 'join' (side by side in one) or 'skip'"
    )


def _refuse_duplicates(rows: Rows, texts: Sequence[Mapping[str, Any]]) -> None:
  seen: dict[Any, int] = {}
  for index, row in enumerate(texts if "id" in rows else ()):
    name = tag_of(row["id"])
    if name in seen:
      raise UserError(
        f"{rows.place(index, 'id')}: {row['id']!r} stands already in row {seen[name]}; "
        "if it is no id of questions, set columns.id to another column, or to ''"
      )
    if name:
      seen[name] = index
