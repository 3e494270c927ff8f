"""Was it looking? The same questions with other options' letters, another image, none, or the image mirrored.

Options in every cyclic order follow MMBench's circular evaluation (Liu et al. 2023, arXiv:2307.06281).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from spatialvlm.config import SourceConfig
from spatialvlm.types import LETTERS, Question, UserError, lettered

CONTROLS = {
  "circular": "every other cyclic order of the options",
  "grey": "uniform grey images of the same sizes",
  "no_image": "the text alone",
  "other_image": "the images of another question of the same task, as many",
  "first_image": "of several images the first as it is, the others grey",
  "flip": "the images mirrored left to right; where a side is asked for, left and right answers swap",
  "no_prior": "the images without what priors say of them",
  "other_prior": "the images with the shots of another question of the same task: its camera, its maps",
  "prior_alone": "uniform grey images with what priors say of the own ones",
}
# Tasks whose answers are sides, which swap in a mirrored world.
SIDED = ("Relation", "ViewRelation", "CameraMoved")
BLIND = ("grey", "no_image", "other_image")
# Of these it is told what is lost without what they take away.
GAPS = (*BLIND, "first_image", "no_prior", "other_prior", "prior_alone")
# Those that take something of another question.
DONATED = frozenset({"other_image", "other_prior"})
_OF_PRIORS = ("no_prior", "other_prior", "prior_alone")

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def check(source: SourceConfig, conditions: Sequence[str]) -> None:
  """Raises a UserError for a control that the questions cannot be asked under."""
  if getattr(source, "several_images", "") == "join" and "flip" in conditions:
    raise UserError(
      "score.controls: 'flip' would swap images that stand side by side; set data.several_images to 'skip',"
      " or leave 'flip' out"
    )


def check_sight(sees: bool, conditions: Sequence[str]) -> None:
  """Raises a UserError for a control of what is shown, where the model reads no images."""
  for name in conditions:
    if not sees and name != "circular":
      raise UserError(
        f"score.controls: {name!r} changes the images, which a language model by itself does not read; leave"
        " it out"
      )


def check_priors(has: bool, conditions: Sequence[str]) -> None:
  """Raises a UserError for a control of priors, where the model has none."""
  for name in conditions:
    if name in _OF_PRIORS and not has:
      raise UserError(
        f"score.controls: {name!r} takes away what priors say of images, and this model has none; leave"
        " it out"
      )


def shifts(condition: str, options: int) -> range:
  """How far the options are rotated under a condition: `circular` leaves out 0, the sighted row."""
  return range(1, options) if condition == "circular" else range(1)


def rotated(question: Question, shift: int) -> Question:
  """The question with its options rotated: option (j + shift) % K stands j-th, in its prompt too.

  Raises:
    UserError: the prompt does not list its options as `(A) ...`, line by line.
  """
  if not shift:
    return question
  order = [(j + shift) % len(question.choices) for j in range(len(question.choices))]
  choices = tuple(question.choices[i] for i in order)
  old = lettered(question.choices)
  if question.prompt.count(old) != 1:
    raise UserError(
      f"question {question.idx}: its prompt does not list its options as '(A) ...', line by line, so they"
      " cannot be rotated; leave 'circular' out of score.controls"
    )
  prompt = question.prompt.replace(old, lettered(choices))
  return dataclasses.replace(question, choices=choices, answer=order.index(question.answer), prompt=prompt)


def unrotated(letter: str, shift: int, options: int) -> str:
  """The letter among the unshifted options of one among the rotated; "" stays."""
  return letter and LETTERS[(LETTERS.index(letter) + shift) % options]


def displayed(letter: str, shift: int, options: int) -> str:
  """The letter under which an option stood when the options were rotated: the inverse of `unrotated`."""
  return letter and LETTERS[(LETTERS.index(letter) - shift) % options]


def flipped_letter(task: str, question: str, choices: Sequence[str], letter: str) -> str | None:
  """What an answer becomes when the images are mirrored: of a `SIDED` task left and right swap.

  Else it stays. None where that cannot be said: the swapped text is no option, or the question itself, or a
  question of another task, speaks of left or right.
  """
  if _SIDE.search(question) or (task not in SIDED and any(_SIDE.search(choice) for choice in choices)):
    return None
  if not letter:
    return ""
  text = choices[LETTERS.index(letter)]
  swapped = _SIDE.sub(_other_side, text)
  return LETTERS[list(choices).index(swapped)] if swapped in choices else None


def flipped(question: Question) -> Question | None:
  """The question on its images, each mirrored, with the answer that must follow; None where none can."""
  gold = flipped_letter(question.task, question.question, question.choices, LETTERS[question.answer])
  if gold is None:
    return None
  images = tuple(mirror(image) for image in question.images)
  return dataclasses.replace(question, images=images, answer=LETTERS.index(gold))


def mirror(image: np.ndarray) -> np.ndarray:
  """An image (H, W, C) with left and right swapped."""
  return np.ascontiguousarray(image[:, ::-1])


def first_alone(place: int, image: np.ndarray) -> np.ndarray:
  """The image itself where it is the first of a question, `place` 0; else grey."""
  return grey(image) if place else image


def grey(image: np.ndarray) -> np.ndarray:
  """Uniform middle grey of an image's size."""
  return np.full_like(image, 128)


class OtherImages:
  """Hands each question another question's images: the nearest earlier one of its task on another photo.

  Questions of one image and questions of several are apart, since a prompt may say where its images stand.

  CV-Bench draws a question's boxes into the photo, so other pixels may be the same photo still.

  The first questions of a task, before which there is none, get the first later one. What a question gets
  depends on the order of the questions alone.
  """

  def __init__(self) -> None:
    self._last: dict[tuple[str, int], tuple[str, Question]] = {}
    self._before: dict[tuple[str, int], Question] = {}
    self._waiting: dict[tuple[str, int], list] = {}

  def __call__(self, image: str, question: Question) -> Iterator[tuple[Question, Question]]:
    """Pairs (question, the one whose image it is shown) that are known now; `image` is its `image_name`."""
    task = question.task, len(question.images)
    if task in self._last and self._last[task][0] != image:
      self._before[task] = self._last[task][1]
      for waiting in self._waiting.pop(task, ()):
        yield waiting, question
    self._last[task] = image, question
    if task in self._before:
      yield question, self._before[task]
    else:
      self._waiting.setdefault(task, []).append(question)

  def close(self) -> None:
    """Raises a UserError where a task has one image only."""
    for (task, _), questions in self._waiting.items():
      raise UserError(
        f"question {questions[0].idx}: no other image among the questions of task {task!r}; "
        "leave 'other_image' and 'other_prior' out of score.controls"
      )


def _other_side(match: re.Match[str]) -> str:
  word = {"left": "right", "right": "left"}[match[0].lower()]
  return word.capitalize() if match[0][0].isupper() else word
