"""What is kept of every question that was scored, and the file that it is kept in."""

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
from spatialvlm.types import Question, UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FILE = "predictions.jsonl"


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One scored question.

  Attributes:
    idx, type, task, source, source_dataset, filename: as in the data set.
    image: the photo or scene, as the data set names it, else a hash of the pixels. Questions on one image
      are resampled together; boxes drawn for one question do not make another image of it.
    choices: texts of the options, in the order of their letters.
    gold, choice: letters.
    logprobs: log-probability of each option's letter, over the whole vocabulary, in order.
    rules: what simple rules of two dimensions would choose, where they are known (`baselines.rule_letters`).
    question: its text, without the options.
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

  def to_json(self) -> str:
    row = dataclasses.asdict(self)
    row["logprobs"] = dict(zip(LETTERS, self.logprobs, strict=False))
    return json.dumps(row, ensure_ascii=False)


def image_hash(image: np.ndarray) -> str:
  """Sixteen hex digits that name the pixels of a decoded image (H, W, 3)."""
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
  digest.update(np.ascontiguousarray(image))
  return digest.hexdigest()


def image_name(question: Question) -> str:
  """What tells a question's photo or scene from others of its source."""
  if question.source_filename:
    return f"{question.source_dataset}/{question.source_filename}"
  return image_hash(question.image)


def predict(
  question: Question, logprobs: Sequence[float], rules: Mapping[str, str] | None = None
) -> Prediction:
  """Chooses the likeliest letter, the first of equals.

  Raises:
    UserError: a log-probability is not finite, which no healthy model gives.
  """
  values = tuple(float(v) for v in logprobs)
  if not all(math.isfinite(v) for v in values):
    raise UserError(
      f"question {question.idx}: the log-probabilities are {values}; the model's numbers overflow: "
      f"try --config.model.dtype=float32, or check its weights"
    )
  best = int(np.argmax(values))
  return Prediction(
    idx=int(question.idx),
    type=question.type,
    task=question.task,
    source=question.source,
    source_dataset=question.source_dataset,
    filename=question.filename,
    image=image_name(question),
    choices=tuple(question.choices),
    gold=LETTERS[question.answer],
    choice=LETTERS[best],
    correct=best == question.answer,
    logprobs=values,
    rules=dict(rules or {}),
    question=question.question,
  )


def read(folder: pathlib.Path) -> list[Prediction]:
  """Reads a run's predictions back. A torn last line, the trace of a kill, is cut from the file.

  Raises:
    UserError: a line before the last is damaged, or a question stands twice.
  """
  path = folder / FILE
  if not path.exists():
    return []
  data = path.read_bytes()
  whole = data.rfind(b"\n") + 1
  if whole < len(data):
    with workdir.writing(path), open(path, "r+b") as f:
      f.truncate(whole)
  return parse(data[:whole], str(path))


def parse(data: bytes, where: str) -> list[Prediction]:
  """The predictions in the bytes of a file of whole lines; errors as `read`, which name `where`."""
  rows, seen = [], set()
  for number, line in enumerate(data.splitlines(), start=1):
    row = _parse(line, f"{where}:{number}")
    if row.idx in seen:
      raise UserError(f"{where}:{number}: question {row.idx} stands twice; name another --workdir")
    seen.add(row.idx)
    rows.append(row)
  return rows


class Writer:
  """Appends predictions to a run's file; each batch is on the disk before the next is begun."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / FILE
    with workdir.writing(self._path):
      folder.mkdir(parents=True, exist_ok=True)
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
  """Puts the finished file in the order of the questions, whole or not at all."""
  workdir.write_text(folder / FILE, "".join(row.to_json() + "\n" for row in rows))


def _parse(line: bytes, where: str) -> Prediction:
  try:
    row: dict[str, Any] = json.loads(line)
    row["logprobs"] = tuple(row["logprobs"].values())
    row["choices"] = tuple(row["choices"])
    return Prediction(**row)
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise UserError(f"{where}: not a prediction ({e}); remove the line, or name another --workdir") from e
