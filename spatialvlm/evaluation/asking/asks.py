"""From a question to the prompts that its passes ask, those that share a text and an image as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import numpy as np

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.asking.extraction import extract_choice
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, Prompter
from spatialvlm.evaluation.records import SIGHTED, Key, Prediction
from spatialvlm.serving.pictures import Picture, Pictures
from spatialvlm.types import Question


@dataclasses.dataclass(frozen=True)
class Reading:
  """One answer that is read off a prompt.

  Attributes:
    choices: options in the order in which they were shown.
    letters: int32 (K,), tokens of their letters.
    answers: tokens of their texts, where texts are scored.
    limit: most tokens of a generated answer, else 0.
    fields: further fields of the row.
  """

  protocol: str
  condition: str
  shift: int
  choices: tuple[str, ...]
  letters: np.ndarray
  answers: tuple[tuple[int, ...], ...] = ()
  limit: int = 0
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def kind(self) -> str:
    return PROTOCOLS[self.protocol].reading


@dataclasses.dataclass(frozen=True, eq=False)
class Stem:
  """A prompt, and all that is read off it.

  Attributes:
    question: as it was asked, but for the order of its options; without pixels.
    image: name of the question's own image, for its row.
    tokens, image_slot: int32 (T,), as in `Encoded`.
    cut: where the text begins that is read behind a prefix: after the image.
    bidirectional: how many leading tokens see each other, as in `Encoded.prefix`. Where there are any, all of
      them are the prefix, and the text begins with the last of them, which is read again.
    shown: key of the image that is shown; None without one.
    picture: gives its tiles or features; None without one, or once they are placed.
  """

  question: Question
  image: str
  tokens: np.ndarray
  image_slot: np.ndarray
  cut: int
  shown: Hashable | None
  picture: Callable[[], Picture] | None
  tile_count: int
  readings: tuple[Reading, ...]
  bidirectional: int = 0

  @property
  def prefix(self) -> int:
    """Length of what is read once for all texts behind it."""
    return self.bidirectional or self.cut


def keys(
  idx: int, task: str, question: str, choices: tuple[str, ...], gold: str, config: ScoreConfig
) -> list[Key]:
  """The rows that a question gets, in the order of the file within a pass.

  Args:
    gold: the letter that is right on the image as it is.
  """
  found = [(protocol, SIGHTED, idx, 0) for protocol in config.protocols]
  for condition in config.controls:
    if condition == "flip" and controls.flipped_letter(task, question, choices, gold) is None:
      continue
    shifts = controls.shifts(condition, len(choices))
    found += [(config.protocols[0], condition, idx, shift) for shift in shifts]
  return found


def keys_of_question(question: Question, config: ScoreConfig) -> list[Key]:
  """`keys` of a question."""
  return keys(
    int(question.idx),
    question.task,
    question.question,
    tuple(question.choices),
    records.LETTERS[question.answer],
    config,
  )


def keys_of_row(row: Prediction, config: ScoreConfig) -> list[Key]:
  """`keys` of the question of any row."""
  gold = row.gold
  if row.condition == "flip":
    gold = controls.flipped_letter(row.task, row.question, row.choices, gold) or gold
  return keys(row.idx, row.task, row.question, row.choices, gold, config)


class Asker:
  """Makes the stems of questions. Safe to use from several threads."""

  def __init__(self, prompter: Prompter, config: ScoreConfig, pictures: Pictures | None = None):
    self._prompter, self._config = prompter, config
    self._pictures = pictures or Pictures(prompter)

  def stems(
    self,
    question: Question,
    image: str,
    rules: Mapping[str, str],
    missing: Collection[Key],
    donor: tuple[Question, str] | None = None,
  ) -> list[Stem]:
    """The prompts of a question's missing rows.

    Args:
      image: hash of its pixels.
      rules: see `Prediction`.
      donor: another question and the hash of its image, for `other_image`.
    """
    name = records.image_name(question)
    stems: dict[Hashable, Stem] = {}
    for key in keys_of_question(question, self._config):
      if key not in missing:
        continue
      protocol, condition, _, shift = key
      asked, shown, fields = self._asked(question, image, condition, shift, donor)
      if condition == SIGHTED and protocol == self._config.protocols[0]:
        fields = fields | {"rules": dict(rules)}
      stem = self._stem(asked, protocol, condition, shift, shown, fields, name)
      same = (stem.shown, stem.tokens.tobytes())
      if same in stems:
        stem = dataclasses.replace(stems[same], readings=stems[same].readings + stem.readings)
      stems[same] = stem
    return list(stems.values())

  def _asked(
    self,
    question: Question,
    image: str,
    condition: str,
    shift: int,
    donor: tuple[Question, str] | None,
  ) -> tuple[Question, tuple[Hashable, np.ndarray] | None, dict[str, Any]]:
    """The question under a condition, the image that is shown with its key, further fields of the row."""
    own = (image, question.image)
    if condition == "circular":
      return controls.rotated(question, shift), own, {}
    if condition == "grey":
      return question, (("grey", question.image.shape), question.image), {}
    if condition == "no_image":
      return question, None, {}
    if condition == "other_image":
      other, other_hash = donor
      return question, (other_hash, other.image), {"image_shown": records.image_name(other)}
    if condition == "flip":
      mirrored = controls.flipped(question)
      return mirrored, (("flip", image), mirrored.image), {}
    return question, own, {}

  def _stem(
    self,
    asked: Question,
    protocol: str,
    condition: str,
    shift: int,
    shown: tuple[Hashable, np.ndarray] | None,
    fields: Mapping[str, Any],
    name: str,
  ) -> Stem:
    layout = self._pictures.layout(shown[1]) if shown else None
    tiles = len(layout.pixels) if shown else 0
    encoded, letters = self._prompter(asked, protocol, layout, blind=layout is None)
    rule = PROTOCOLS[protocol]
    limit = rule.limit and min(rule.limit, self._config.new_tokens or rule.limit)
    reading = Reading(
      protocol=protocol,
      condition=condition,
      shift=shift,
      choices=tuple(asked.choices),
      letters=letters,
      answers=self._prompter.answers(asked.choices) if rule.reading == "texts" else (),
      limit=limit,
      fields=fields,
    )
    images = np.flatnonzero(encoded.image_slot >= 0)
    cut = int(images[-1]) + 1 if len(images) else 1
    return Stem(
      question=_without_pixels(controls.rotated(asked, -shift % len(asked.choices))),
      image=name,
      tokens=encoded.tokens,
      image_slot=encoded.image_slot,
      cut=encoded.prefix - 1 if encoded.prefix else cut,
      shown=shown[0] if shown else None,
      picture=self._pictures.ahead(*shown, tiles) if shown else None,
      tile_count=tiles,
      readings=(reading,),
      bidirectional=encoded.prefix,
    )


def row(
  stem: Stem, reading: Reading, *, logprobs: np.ndarray | None = None, output: str = "", ended: bool = False
) -> Prediction:
  """The row of a reading; log-probabilities come in the order in which the options were shown."""
  count = len(reading.choices)
  fields = dict(
    image=stem.image,
    protocol=reading.protocol,
    condition=reading.condition,
    shift=reading.shift,
    **reading.fields,
  )
  if reading.kind == "generated":
    shown = extract_choice(output, reading.choices, reading.protocol)
    choice = controls.unrotated(shown, reading.shift, count)
    return records.answer(stem.question, choice, output=output, ended=ended, **fields)
  values = np.roll(np.asarray(logprobs, np.float64)[:count], reading.shift)
  if reading.kind == "texts":
    lengths = np.roll([len(answer) for answer in reading.answers], reading.shift)
    return records.predict(stem.question, values / lengths, tokens=tuple(int(n) for n in lengths), **fields)
  return records.predict(stem.question, values, **fields)


def _without_pixels(question: Question) -> Question:
  return dataclasses.replace(question, image=np.zeros((0, 0, 3), np.uint8))
