"""What a cell of a data set says: text as it is written, options, and which of them is right.

One reader for answers, options, tasks and templates, in training and in evaluation. A cell is what a file's
reader gives: `str`, `bool`, `int`, `Written` (a number of a json file), `float`, `Label`, a list, None.
"""

from __future__ import annotations

import ast
import datetime
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from spatialvlm.types import LETTERS, Note, UserError

# How an answer may name an option, and what each is called.
READINGS = {
  "index": "an index from 0",
  "ordinal": "a number from 1",
  "letter": "a letter",
  "text": "the text",
}
_SAID = {True: ("yes", "true"), False: ("no", "false")}


class Written(float):
  """A number of a text file, which reads as it is written there: 1.10 stays "1.10"."""

  text: str

  def __new__(cls, text: str) -> Written:
    number = super().__new__(cls, text)
    number.text = text
    return number

  def __reduce__(self):
    return Written, (self.text,)

  def __str__(self) -> str:
    return self.text

  __repr__ = __str__


class Label(str):
  """A class of a `ClassLabel` column: its name, and its number among the classes."""

  number: int

  def __new__(cls, name: str, number: int) -> Label:
    label = super().__new__(cls, name)
    label.number = number
    return label

  def __reduce__(self):
    return Label, (str(self), self.number)


def is_empty(cell: Any) -> bool:
  """Nothing, no text, no items, or not a number."""
  if isinstance(cell, float):
    return math.isnan(cell)
  return cell is None or (isinstance(cell, (str, bytes, list)) and not cell)


def text_of(cell: Any, where: str) -> str:
  """The text of a cell.

  Numbers of json files read as they stand there, `true` and `false` as json writes them.

  Raises:
    UserError: an empty cell, or one whose text nobody has written: a time, bytes, an object, a list.
  """
  if is_empty(cell):
    raise UserError(f"{where}: the cell is empty")
  if isinstance(cell, bool):
    return "true" if cell else "false"
  if isinstance(cell, (str, int, float)):
    return str(cell)
  kind = "a time" if isinstance(cell, (datetime.date, datetime.time)) else f"of type {type(cell).__name__}"
  raise UserError(
    f"{where}: expected a text, got {cell!r:.120}, which is {kind}; write it to the file as the text that a "
    "model is to read"
  )


def tag_of(cell: Any) -> str:
  """What a cell that only sorts rows is called, "" for an empty one; a list by all of its items."""
  if isinstance(cell, list):
    return ", ".join(filter(None, map(tag_of, cell)))
  if is_empty(cell):
    return ""
  return text_of(cell, "") if isinstance(cell, (str, bool, int, float)) else str(cell)


def first_text(cell: Any, where: str) -> str:
  """The text of an answer that is taught: of several right ones, a list, the first.

  Raises:
    UserError: as `text_of`.
  """
  if isinstance(cell, list) and cell:
    return text_of(cell[0], where)
  return text_of(cell, where)


def options_of(cell: Any, where: str) -> tuple[str, ...]:
  """The options of a question, 2 to 26; empty ones at the end are left out.

  Args:
    cell: a list; the text of one, as MMMU has it (`"['left', 'right']"`); or an object, by letters
      (`{"A": "left", "B": "right"}`) or of two lists as ARC has it (`{"label": ["A", "B"], "text": [...]}`).

  Raises:
    UserError: no list of options, or one of them is empty or no text.
  """
  said, cell = cell, _list_of(cell)
  if cell is None:
    raise UserError(
      f"{where}: expected 2 to 26 choices (a list, the text of one, or an object whose keys are A, B, ...), "
      f"got {said!r:.120}"
    )
  while cell and is_empty(cell[-1]):  # fewer options than there are columns
    cell = cell[:-1]
  if not 1 < len(cell) <= len(LETTERS):
    raise UserError(f"{where}: expected 2 to 26 choices, got {cell!r:.120}")
  if any(is_empty(choice) for choice in cell):
    raise UserError(f"{where}: a choice is empty: {cell!r:.120}")
  return tuple(text_of(choice, where) for choice in cell)


def _list_of(cell: Any) -> list[Any] | None:
  """The list of options that a cell is, writes or holds by letters; else None."""
  if isinstance(cell, str):
    return _written_list(cell)
  if not isinstance(cell, Mapping):
    return cell if isinstance(cell, list) else None
  if cell.keys() == {"label", "text"}:
    labels, texts = cell["label"], cell["text"]
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
      return None
    cell = dict(zip(map(str, labels), texts, strict=True))
    if len(cell) < len(labels):
      return None
  letters = sorted(cell)
  return [cell[letter] for letter in letters] if letters == list(LETTERS[: len(letters)]) else None


def _written_list(text: str) -> list[Any] | None:
  """The list that a text writes, as Python or json do; numbers in it read as they stand there."""
  if not (text.strip().startswith("[") and text.strip().endswith("]")):
    return None
  try:
    return json.loads(text, parse_float=Written)
  except (ValueError, RecursionError):
    pass
  try:
    found = ast.parse(text.strip(), mode="eval").body
    values = [ast.literal_eval(node) for node in found.elts] if isinstance(found, ast.List) else None
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None
  if values is None:
    return None
  return [
    Written(ast.get_source_segment(text.strip(), node)) if type(value) is float else value
    for node, value in zip(found.elts, values, strict=True)
  ]


class Answers:
  """Which option an answer names, read alike in all rows of a data set.

  Args:
    how: "index" (from 0), "ordinal" (from 1), "letter" (with or without parentheses), "text" (of one option),
      or "" for whichever of them fits.
    stated: whether the options are those of the config, the same for every row.

  With "", `learn` first looks at all rows. One reading that fits each of them is that of the data set; where
  two do and differ in a row, none is guessed. Where no reading fits all rows, each row must have one alone.

  `true` and `false` name the options yes, no, true and false, of which one must be there; numbers are they
  with `how="index"` alone, or where the config's own options name neither. A `Label` is its name; its number
  counts with `how="index"`. Where all answers are 0 or 1 and all options yes and no, an index that
  is not what 1 for yes and 0 for no would be is not guessed either.
  """

  def __init__(self, how: str, *, stated: bool):
    self._how, self._stated = how, stated
    self._fitting: set[str] = set()

  def learn(self, rows: Iterable[tuple[Any, Sequence[str], Callable[[], str]]]) -> None:
    """Finds the reading that fits all rows: their answers, options, and names for errors.

    Rows that no reading fits are passed over; `index` refuses them.

    Raises:
      UserError: two readings fit all rows and differ, in the first row where they do.
    """
    if self._how:
      return
    fitting, numbers, where = set(READINGS) - {"ordinal"}, [], None
    spoken, inverted = True, ()  # 1 as yes, 0 as no fit all numbers; the first whose index is the other
    torn: dict[tuple[str, str], tuple] = {}  # pairs of readings, and the first row in which they differ
    for answer, choices, where in rows:
      found = {kind: value for kind, value in self._readings(answer, choices).items() if value is not None}
      if not found:
        continue
      fitting &= found.keys()
      if (place := found.get("index")) is not None:
        numbers.append(place)
        said = _named(bool(place), choices) if place < 2 == len(choices) else []
        spoken = spoken and len(said) == 1
        if said != [place] and not inverted:
          inverted = (answer, choices[place], where)
      for one, other in itertools.combinations(sorted(found), 2):
        if found[one] != found[other] and (one, other) not in torn:
          torn[one, other] = (answer, choices, where, found)
    self._fitting = fitting
    for pair, (answer, choices, where, found) in torn.items():
      if fitting.issuperset(pair):
        raise UserError(f"{where()}: " + _torn(answer, choices, {kind: found[kind] for kind in pair}))
    if spoken and inverted and fitting <= {"index"}:
      answer, choice, where = inverted
      raise UserError(
        f"{where()}: {answer!r} may be the index of {choice!r} or mean the other, 1 for yes and 0 for no; "
        "set answers='index' if it is the index, else write true and false, or the options themselves"
      )
    if fitting <= {"index"} and numbers and min(numbers) > 0:
      warnings.warn(
        Note(
          f"{where()}: up to here none of the {len(numbers)} answers that are numbers is 0; they are read as "
          "counted from 0. If they count from 1, set answers='ordinal'"
        ),
        stacklevel=2,
      )

  def index(self, answer: Any, choices: Sequence[str], where: str) -> int:
    """The index of the right option. Of a list of right answers, those that name an option name the same.

    Raises:
      UserError: no reading fits, or two of them say different things.
    """
    if is_empty(answer) or (isinstance(answer, Label) and answer.number < 0):
      raise UserError(f"{where}: the cell is empty")
    found = self._readings(answer, choices)
    said = {k: v for k, v in found.items() if v is not None and (not self._fitting or k in self._fitting)}
    said = said or {k: v for k, v in found.items() if v is not None}
    if len(_distinct(said)) == 1:
      return next(iter(said.values()))
    if said:
      raise UserError(f"{where}: " + _torn(answer, choices, said))
    raise UserError(f"{where}: {_unfit(answer, choices, self._how)}")

  def _readings(self, answer: Any, choices: Sequence[str]) -> dict[str, int | None]:
    if isinstance(answer, list):
      every = [self._readings(one, choices) for one in answer if not is_empty(one)]
      return {kind: _agreed([one.get(kind) for one in every]) for kind in READINGS}
    kinds = (self._how,) if self._how else ("index", "letter", "text")
    return {kind: self._reading(kind, answer, choices) for kind in kinds}

  def _reading(self, kind: str, answer: Any, choices: Sequence[str]) -> int | None:
    if isinstance(answer, bool):
      return self._bool(kind, answer, choices)
    if kind in ("index", "ordinal"):
      number = answer.number if self._how and isinstance(answer, Label) else _number(answer)
      place = None if number is None else number - (kind == "ordinal")
      return place if place is not None and 0 <= place < len(choices) else None
    text = str(answer) if isinstance(answer, (str, int, float)) else ""
    if kind == "letter":
      letter = text.strip().strip("().").upper()
      return LETTERS.index(letter) if letter in tuple(LETTERS[: len(choices)]) else None
    return list(choices).index(text) if list(choices).count(text) == 1 else None

  def _bool(self, kind: str, answer: bool, choices: Sequence[str]) -> int | None:
    if kind == "text":
      named = _named(answer, choices)
      return named[0] if len(named) == 1 else None
    said = _named(True, choices) + _named(False, choices)
    if kind == "index" and (self._how or (self._stated and not said)):
      return int(answer)
    return None


def _number(answer: Any) -> int | None:
  """The whole number that a cell is, or that a text writes."""
  if isinstance(answer, (bool, Label)):
    return None
  if isinstance(answer, int):
    return answer
  if isinstance(answer, float):
    return int(answer) if answer.is_integer() else None
  return int(answer) if isinstance(answer, str) and answer.isascii() and answer.isdecimal() else None


def _named(answer: bool, choices: Sequence[str]) -> list[int]:
  """The options that say what a bool says: yes or true, no or false."""
  return [i for i, choice in enumerate(choices) if choice.strip().rstrip(".").lower() in _SAID[answer]]


def _agreed(values: Sequence[int | None]) -> int | None:
  found = {value for value in values if value is not None}
  return found.pop() if len(found) == 1 else None


def _distinct(found: Mapping[str, int | None]) -> set[int]:
  return {value for value in found.values() if value is not None}


def _torn(answer: Any, choices: Sequence[str], said: Mapping[str, int]) -> str:
  kinds = sorted((kind for kind in said), key=lambda kind: kind != "text")
  names = {"text": "the text of one", "letter": "the letter of another", "index": "the index of another"}
  also = ", or to 'ordinal' if they count from 1" if "index" in kinds else ""
  return (
    f"{answer!r} is {' and '.join(names[kind] for kind in kinds)} of {list(choices)}; "
    f"set `answers` to {' or '.join(map(repr, sorted(kinds)))}{also}"
  )


def _unfit(answer: Any, choices: Sequence[str], how: str) -> str:
  if how in ("", "text") and not isinstance(answer, list) and list(choices).count(str(answer)) > 1:
    return f"{answer!r} stands twice among {list(choices)}"
  if isinstance(answer, list):
    return f"{answer!r:.120} names no single one of {list(choices)}, where a question has one right choice"
  if isinstance(answer, bool):
    said = text_of(answer, "")
    return (
      f"{said} names none of {list(choices)}; set answers='index' if false is the first and true the second"
    )
  kinds = {"": "neither an index, a letter nor the text", "text": "not the text"}.get(how, f"not the {how}")
  ordinal = (
    " (it may count from 1: answers='ordinal')"
    if how != "ordinal" and _number(answer) == len(choices)
    else ""
  )
  return f"{answer!r} is {kinds} of one of {list(choices)}{ordinal}"
