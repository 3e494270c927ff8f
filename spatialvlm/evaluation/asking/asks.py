"""From a question to the requests of its passes, and from their answers to its rows.

Passes that share a text and an image are one request.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import shots
from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.asking.extraction import extract_choice
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, Prompter
from spatialvlm.evaluation.records import SIGHTED, Key, Prediction
from spatialvlm.processing.tiling import Tiles
from spatialvlm.serving.pictures import Pictures
from spatialvlm.serving.requests import (
  Answer,
  EngineConfig,
  Generated,
  Letters,
  Request,
  Texts,
  Wanted,
  prefix_length,
)
from spatialvlm.types import LETTERS, Question, Shot, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
  """One answer that is read off a prompt, and the tag by which it comes back: all that its row says of it.

  Attributes:
    question: as it was asked, but for the order of its options; without pixels.
    image: name of the question's own image, for its row.
    choices: options in the order in which they were shown.
    fields: further fields of the row.
  """

  question: Question
  image: str
  protocol: str
  condition: str
  shift: int
  choices: tuple[str, ...]
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
  """The images that a question is shown.

  Attributes:
    key: equal where the pixels of all of them are.
    images: uint8 (H, W, 3) each, of their sizes.
    shots: how each was taken; empty where nobody knows.
    treat: what is done to each, by its place from 0, before it is cut.
    blind: priors say nothing of them.
  """

  key: Hashable
  images: tuple[np.ndarray, ...]
  shots: tuple[Shot, ...] = ()
  treat: Callable[[int, np.ndarray], np.ndarray] = lambda place, pixels: pixels
  blind: bool = False


def engine_config(config: ScoreConfig) -> EngineConfig:
  """What an evaluation's engine takes of its settings."""
  return EngineConfig(
    batch_size=config.batch_size,
    lengths=config.lengths,
    tiles=config.tiles,
    pool_tiles=config.pool_tiles,
    pool_prefixes=config.pool_prefixes,
    section="score.",
  )


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
  """The rows that a question gets, before it is asked."""
  return keys(
    int(question.idx),
    question.task,
    question.question,
    tuple(question.choices),
    LETTERS[question.answer],
    config,
  )


def keys_of_row(row: Prediction, config: ScoreConfig) -> list[Key]:
  """The rows that the question behind any kept row gets."""
  gold = row.gold
  if row.condition == "flip":
    gold = controls.flipped_letter(row.task, row.question, row.choices, gold) or gold
  return keys(row.idx, row.task, row.question, row.choices, gold, config)


class Asker:
  """Makes the requests of questions. Safe to use from several threads."""

  def __init__(self, prompter: Prompter, config: ScoreConfig, pictures: Pictures | None = None):
    self._prompter, self._config = prompter, config
    self._pictures = pictures or Pictures()

  def requests(
    self,
    question: Question,
    image: str,
    rules: Mapping[str, str],
    missing: Collection[Key],
    donor: tuple[Question, str] | None = None,
  ) -> list[Request]:
    """The requests of a question's missing rows; every `tag` in them is a `Reading`.

    Args:
      image: hash of its images' pixels.
      rules: see `Prediction`.
      donor: another question and the hash of its images, for `controls.DONATED`.
    """
    name = records.image_name(question)
    found: dict[Hashable, Request] = {}
    for key in keys_of_question(question, self._config):
      if key not in missing:
        continue
      protocol, condition, _, shift = key
      asked, shown, fields = self._asked(question, image, condition, shift, donor)
      if condition == SIGHTED and protocol == self._config.protocols[0]:
        fields = fields | {"rules": dict(rules)}
      reading = Reading(
        question=_without_pixels(controls.rotated(asked, -shift % len(asked.choices))),
        image=name,
        protocol=protocol,
        condition=condition,
        shift=shift,
        choices=tuple(asked.choices),
        fields=fields,
      )
      request = self._request(asked, shown, reading)
      same = (request.image, request.tokens.tobytes())
      if same in found:
        request = dataclasses.replace(found[same], wanted=found[same].wanted + request.wanted)
      found[same] = request
    return list(found.values())

  def _asked(
    self,
    question: Question,
    image: str,
    condition: str,
    shift: int,
    donor: tuple[Question, str] | None,
  ) -> tuple[Question, Shown | None, dict[str, Any]]:
    """The question under a condition, the images that are shown, further fields of the row."""
    own = Shown(image, question.images, question.shots) if self._prompter.sees else None
    if condition == "circular":
      return controls.rotated(question, shift), own, {}
    if condition in ("grey", "prior_alone"):
      key = ("grey", *(shown.shape for shown in question.images))
      blind = condition == "grey"
      treat = lambda _, pixels: controls.grey(pixels)
      return question, Shown(key, question.images, question.shots, treat, blind), {}
    if condition == "first_image":
      if len(question.images) < 2:
        raise UserError(
          f"question {question.idx}: has {len(question.images)} image, of which none can be left out; leave"
          " 'first_image' out of score.controls"
        )
      taken = tuple(shot if n == 0 else Shot() for n, shot in enumerate(question.shots))
      return question, Shown(("first", image), question.images, taken, controls.first_alone), {}
    if condition == "no_image":
      return question, None, {}
    if condition == "other_image":
      other, other_hash = donor
      shown = Shown(other_hash, other.images, other.shots)
      return question, shown, {"image_shown": records.image_name(other)}
    if condition == "no_prior":
      return question, dataclasses.replace(own, blind=True), {}
    if condition == "other_prior":
      other, _ = donor
      shown = dataclasses.replace(own, shots=other.shots)
      return question, shown, {"image_shown": records.image_name(other)}
    if condition == "flip":
      mirrored = controls.flipped(_without_pixels(question))
      turned = tuple(map(shots.mirrored, question.shots))
      treat = lambda _, pixels: controls.mirror(pixels)
      return mirrored, Shown(("flip", image), question.images, turned, treat), {}
    return question, own, {}

  def _request(self, asked: Question, shown: Shown | None, reading: Reading) -> Request:
    layouts = [self._prompter.layout(image) for image in shown.images] if shown else []
    count = sum(len(layout.pixels) for layout in layouts)
    encoded, letters = self._prompter(asked, reading.protocol, layouts, blind=shown is None)
    cut = lambda: np.concatenate(
      [self._prompter.cut(shown.treat(n, i)).pixels for n, i in enumerate(shown.images)]
    )
    priors, key = self._priors(asked, shown, layouts) if shown else ({}, None)
    return Request(
      tokens=encoded.tokens,
      image_slot=encoded.image_slot,
      prefix=prefix_length(encoded.image_slot, encoded.prefix),
      wanted=(self._wanted(asked, letters, reading),),
      bidirectional=encoded.prefix > 0,
      image=key,
      picture=self._pictures.ahead(key, count, cut, priors) if shown else None,
      tile_count=count,
      name=f"question {asked.idx}",
    )

  def _priors(
    self, asked: Question, shown: Shown, layouts: Sequence[Tiles]
  ) -> tuple[Mapping[str, np.ndarray], Hashable]:
    """What priors say of the images that are shown, and a key that tells of pixels and of that."""
    try:
      priors = self._prompter.priors(shown.shots, layouts, shown.blind)
    except UserError as error:
      raise UserError(f"question {asked.idx}: {error}") from error
    if not priors:
      return priors, shown.key
    digest = hashlib.blake2b(digest_size=16)
    for name, values in sorted(priors.items()):
      digest.update(f"{name} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return priors, (shown.key, digest.hexdigest())

  def _wanted(self, asked: Question, letters: np.ndarray, reading: Reading) -> Wanted:
    rule = PROTOCOLS[reading.protocol]
    if rule.reading == "letters":
      return Letters(tuple(letters.tolist()), reading)
    if rule.reading == "texts":
      return Texts(self._prompter.answers(asked.choices), reading)
    limit = min(rule.limit, self._config.new_tokens or rule.limit)
    return Generated(limit, tuple(self._prompter.stop_ids), reading)


def row(answer: Answer, decode: Callable[[Iterable[int]], str]) -> Prediction:
  """The row of an answer whose tag is a `Reading`; `decode` makes text of generated tokens."""
  reading = answer.tag
  count = len(reading.choices)
  fields = dict(
    image=reading.image,
    protocol=reading.protocol,
    condition=reading.condition,
    shift=reading.shift,
    **reading.fields,
  )
  if isinstance(answer.wanted, Generated):
    output = decode(answer.tokens)
    shown = extract_choice(output, reading.choices, reading.protocol)
    choice = controls.unrotated(shown, reading.shift, count)
    return records.answer(reading.question, choice, output=output, ended=answer.ended, **fields)
  # Log-probabilities come in the order in which the options were shown.
  values = np.roll(np.asarray(answer.logprobs, np.float64), reading.shift)
  if isinstance(answer.wanted, Texts):
    lengths = np.roll([len(text) for text in answer.wanted.texts], reading.shift)
    return records.predict(
      reading.question, values / lengths, tokens=tuple(int(n) for n in lengths), **fields
    )
  return records.predict(reading.question, values, **fields)


def _without_pixels(question: Question) -> Question:
  return dataclasses.replace(question, images=(), shots=())
