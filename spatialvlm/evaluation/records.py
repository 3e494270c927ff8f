"""What is kept of every answer, and the file that it is kept in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.config import read_json
from spatialvlm.types import LETTERS, Deferred, Question, UserError

FILE = "predictions.jsonl"
SIGHTED = "sighted"

Key = tuple[str, str, int, int]


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One answer to one question: a row of a pass.

  Attributes:
    idx, type, task, source, source_dataset, filename: as in the data set.
    image: the photo or scene, as the data set names it, else a hash of the pixels. Questions on one image
      are resampled together; boxes drawn for one question do not make another image of it.
    choices: texts of the options, in the order of their letters.
    gold: the letter that is right, as the question was asked (`flip` swaps left and right).
    choice: a letter, or "" where none was answered. Letters are those of the unshifted options.
    logprobs: log-probability of each option, over the whole vocabulary, in order: of its letter, or the mean
      over the tokens of its text. Empty where an answer was generated.
    rules: what simple rules of two dimensions would choose, where they are known (`baselines.rule_letters`).
    question: its text, without the options.
    protocol, condition: the pass.
    shift: how far the options were rotated: option (j + shift) % K stood j-th.
    image_shown: name of the other image that was shown instead, or whose shots were given.
    tokens: number of tokens of each option's text, where texts were scored.
    output: the raw answer, where one was generated.
    ended: whether it ended by itself, or was cut at the limit of its length.
  """

  idx: int
  type: str
  task: str
  source: str
  source_dataset: str
  filename: str
  image: str
  choices: tuple[str, ...]
  gold: str
  choice: str
  correct: bool
  logprobs: tuple[float, ...]
  rules: Mapping[str, str] = dataclasses.field(default_factory=dict)
  question: str = ""
  protocol: str = "native"
  condition: str = SIGHTED
  shift: int = 0
  image_shown: str = ""
  tokens: tuple[int, ...] = ()
  output: str | None = None
  ended: bool | None = None

  @property
  def key(self) -> Key:
    return self.protocol, self.condition, self.idx, self.shift

  def to_json(self) -> str:
    row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    row["logprobs"] = dict(zip(LETTERS, self.logprobs, strict=False))
    return json.dumps(row, ensure_ascii=False)


def image_hash(image: np.ndarray | Deferred) -> str:
  """Sixteen hex digits that name the pixels of a decoded image (H, W, 3); of one that is not, its key."""
  if isinstance(image, Deferred):
    return image.key
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
  digest.update(np.ascontiguousarray(image))
  return digest.hexdigest()


def images_hash(images: Sequence[np.ndarray]) -> str:
  """Sixteen hex digits that name several images in their order; of one image its `image_hash`."""
  hashes = [image_hash(image) for image in images]
  if len(hashes) == 1:
    return hashes[0]
  return hashlib.blake2b(" ".join(hashes).encode(), digest_size=8).hexdigest()


def image_name(question: Question) -> str:
  """What tells a question's photo or scene, or several, from others of its source."""
  if question.source_filename:
    return f"{question.source_dataset}/{question.source_filename}"
  return images_hash(question.images)


def predict(
  question: Question, logprobs: Sequence[float], rules: Mapping[str, str] | None = None, **fields: Any
) -> Prediction:
  """Chooses the likeliest option, the first of equals.

  Args:
    logprobs: of the options, in their order.
    fields: further fields of `Prediction`.

  Raises:
    UserError: a log-probability is not finite, which no healthy model gives.
  """
  values = tuple(float(v) for v in logprobs)
  if not all(math.isfinite(v) for v in values):
    raise UserError(
      f"question {question.idx}: the log-probabilities are {values}; the model's numbers overflow: "
      f"try --config.model.dtype=float32, or check its weights"
    )
  return answer(question, LETTERS[int(np.argmax(values))], rules, logprobs=values, **fields)


def answer(
  question: Question, choice: str, rules: Mapping[str, str] | None = None, **fields: Any
) -> Prediction:
  """The row of a question whose answer is `choice`, a letter or ""; `fields` as in `predict`."""
  gold = LETTERS[question.answer]
  values = dict(
    idx=int(question.idx),
    type=question.type,
    task=question.task,
    source=question.source,
    source_dataset=question.source_dataset,
    filename=question.filename,
    choices=tuple(question.choices),
    gold=gold,
    choice=choice,
    correct=choice == gold,
    logprobs=(),
    rules=dict(rules or {}),
    question=question.question,
  )
  if "image" not in fields:
    values["image"] = image_name(question)
  return Prediction(**(values | fields))


def passes(rows: Iterable[Prediction]) -> dict[tuple[str, str], list[Prediction]]:
  """The rows of each pass, (protocol, condition), in the order in which they come."""
  found: dict[tuple[str, str], list[Prediction]] = {}
  for row in rows:
    found.setdefault((row.protocol, row.condition), []).append(row)
  return found


def read(folder: pathlib.Path) -> list[Prediction]:
  """Reads a run's rows back, of all passes; the file stays as it is.

  A torn last line counts for nothing: a run was killed there, or is writing it at this moment.

  Raises:
    UserError: a line is damaged or cannot be, or a row stands twice and not alike.
  """
  path = folder / FILE
  if not path.exists():
    return []
  data = path.read_bytes()
  whole = data.rfind(b"\n") + 1
  return parse(data[:whole], str(path), _single_protocol(folder))


def parse(data: bytes, where: str, protocol: str = "native") -> list[Prediction]:
  """The rows in the bytes of a file of whole lines; errors as `read`, which name `where`.

  A row that stands twice alike, as two processes once could leave it, counts once.

  Args:
    protocol: of rows that name none, as runs of a single pass once wrote them.
  """
  rows: list[Prediction] = []
  seen: dict[Key, Prediction] = {}
  for number, line in enumerate(data.splitlines(), start=1):
    row = _parse(line, f"{where}:{number}", protocol)
    if row.key not in seen:
      rows.append(row)
      seen[row.key] = row
    elif not _equal(row, seen[row.key]):
      raise UserError(
        f"{where}:{number}: question {row.idx} stands twice, with different answers; name another --workdir"
      )
  return rows


class Writer:
  """Appends predictions to a run's file; each batch is on the disk before the next is begun.

  A torn last line that an earlier run has left is cut off first, so only the run itself may open one.
  """

  def __init__(self, folder: pathlib.Path):
    self._path = folder / FILE
    with workdir.writing(self._path):
      folder.mkdir(parents=True, exist_ok=True)
      with open(self._path, "a+b") as f:
        f.seek(0)
        f.truncate(f.read().rfind(b"\n") + 1)
      self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

  def write(self, rows: Iterable[Prediction]) -> None:
    with workdir.writing(self._path):
      self._file.write("".join(row.to_json() + "\n" for row in rows))
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    with workdir.writing(self._path):
      self._file.close()


def rewrite(folder: pathlib.Path, rows: Sequence[Prediction]) -> None:
  """Puts the finished file in the order of passes and questions, whole or not at all."""
  workdir.write_text(folder / FILE, "".join(row.to_json() + "\n" for row in rows))


def _parse(line: bytes, where: str, protocol: str) -> Prediction:
  try:
    row: dict[str, Any] = json.loads(line)
    row["logprobs"] = tuple(row["logprobs"].values())
    row["choices"] = tuple(row["choices"])
    row["tokens"] = tuple(row.get("tokens", ()))
    row.setdefault("protocol", protocol)
    return _checked(Prediction(**row))
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise UserError(f"{where}: not a prediction ({e}); remove the line, or name another --workdir") from e


def _equal(row: Prediction, other: Prediction) -> bool:
  """Whether two rows say the same; in other batches a log-probability is rounded otherwise."""
  same = dataclasses.replace(row, logprobs=()) == dataclasses.replace(other, logprobs=())
  return same and np.allclose(row.logprobs, other.logprobs, rtol=0, atol=1e-3)


def _checked(row: Prediction) -> Prediction:
  """Raises a ValueError where a row cannot be one of ours, though its fields are there."""
  letters = set(LETTERS[: len(row.choices)])
  if row.choice not in letters | {""} or row.gold not in letters:
    raise ValueError(f"the choice {row.choice!r} and the answer {row.gold!r} of {len(letters)} options")
  if row.correct != (row.choice == row.gold):
    raise ValueError(f"choice {row.choice!r}, answer {row.gold!r}, and yet `correct` is {row.correct}")
  if row.logprobs and (len(row.logprobs) != len(letters) or not all(map(math.isfinite, row.logprobs))):
    raise ValueError(f"log-probabilities {row.logprobs} of {len(letters)} options")
  return row


def _single_protocol(folder: pathlib.Path) -> str:
  """The protocol of a run from before there were passes, as its config names it."""
  score = read_json(folder / workdir.CONFIG_FILE).get("score")
  return str(score.get("protocol", "native")) if isinstance(score, Mapping) else "native"
