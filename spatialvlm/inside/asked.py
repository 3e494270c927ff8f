"""A question as a model reads it, and its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spatialvlm.inside.places import Canvas, canvases
from spatialvlm.processing.encoded import Encoded
from spatialvlm.processing.processor import Processor
from spatialvlm.types import LETTERS, Question, Shot, UserError, choice_prompt


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of the text, as people read it: some tokens that stand one behind the other.

  Attributes:
    text: without white space around it.
    at: positions of its tokens.
  """

  text: str
  at: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
  """A question as a model reads it: its last token is where the answer begins.

  Attributes:
    encoded: tokens and tiles.
    pictures: uint8 (H, W, 3) each, as they were before they were cut.
    canvases: where the image tokens stand in each.
    words: those of the text, in their order; tokens of images and special tokens are none.
    question: its text, without options.
    options: texts of the options, none of a free question.
    option_ids: the token by which each option would be answered.
    right: the place of the right option; -1 where nobody knows.
    name: what messages and files call it.
  """

  encoded: Encoded
  pictures: tuple[np.ndarray, ...]
  canvases: tuple[Canvas, ...]
  words: tuple[Word, ...]
  question: str
  options: tuple[str, ...] = ()
  option_ids: tuple[int, ...] = ()
  right: int = -1
  name: str = "question"

  @property
  def image_at(self) -> np.ndarray:
    """int32 (M,): positions of the image tokens, in the order of their slots."""
    slots = self.encoded.image_slot
    found = np.flatnonzero(slots >= 0)
    return found[np.argsort(slots[found])].astype(np.int32)


def ask(
  processor: Processor,
  pictures: Sequence[np.ndarray],
  question: str,
  options: Sequence[str] = (),
  right: str = "",
  shots: Sequence[Shot] = (),
) -> Asked:
  """A question of a user's own.

  Args:
    pictures: uint8 (H, W, 3) each.
    options: texts of the options; the prompt then lists them by letters, as benchmarks do.
    right: the letter of the right one, "" where it is not known.
    shots: how each picture was taken, for a model with priors.

  Raises:
    UserError: no picture, no question, a model that reads none, a letter that no option has; or the prompt is
      longer than the model's context.
  """
  check_sight(processor, len(pictures))
  if not question.strip():
    raise UserError("the question is empty; write what the picture is to be asked")
  letters = LETTERS[: len(options)]
  if right and (len(right) != 1 or right not in letters):
    known = f"one of {', '.join(letters)}" if options else "no letter without --options"
    raise UserError(f"right {right!r}: expected {known}")
  text = choice_prompt(question, options) if options else question
  encoded = processor.encode_prompt(pictures, text, shots=shots)
  return Asked(
    encoded=encoded,
    pictures=tuple(pictures),
    canvases=laid(processor, pictures),
    words=words(processor, encoded),
    question=question,
    options=tuple(options),
    option_ids=processor.letter_ids(len(options)) if options else (),
    right=letters.index(right) if right else -1,
  )


def of_benchmark(
  processor: Processor, question: Question, encoded: Encoded, option_ids: Sequence[int]
) -> Asked:
  """A question of a benchmark, as an evaluation put it.

  Raises:
    UserError: as `ask`.
  """
  check_sight(processor, len(question.images))
  return Asked(
    encoded=encoded,
    pictures=question.images,
    canvases=laid(processor, question.images),
    words=words(processor, encoded),
    question=question.question,
    options=tuple(question.choices),
    option_ids=tuple(int(i) for i in option_ids),
    right=int(question.answer),
    name=str(question.idx),
  )


def check_sight(processor: Processor, pictures: int) -> None:
  """Raises a UserError where there is nothing to look at, or nobody knows what a tile shows."""
  if not processor.sees:
    raise UserError("a language model by itself, without a vision tower: it looks at no picture")
  if not pictures:
    raise UserError("the question has no image; give one with --image=FILE")
  if not processor.tiler.even:
    raise UserError(
      "pictures are laid into borders before they are cut (layout), so that nobody knows what a tile"
      " shows; use"
      " the checkpoint's own layout"
    )


def laid(processor: Processor, pictures: Sequence[np.ndarray]) -> tuple[Canvas, ...]:
  """The canvases of pictures that a processor cuts; errors as of `places.canvases`."""
  grids = [processor.tiler.grid(*picture.shape[:2]) for picture in pictures]
  return canvases(grids, processor.tokens_per_tile)


def words(processor: Processor, encoded: Encoded) -> tuple[Word, ...]:
  """The words of a prompt's text. What stands between white space is divided at signs that are no letters."""
  tokenizer = processor.tokenizer
  special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
  decode = lambda ids: tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
  groups: list[list[int]] = []
  before = ""
  for at, index in enumerate(encoded.tokens.tolist()):
    if encoded.image_slot[at] >= 0 or index in special:
      continue
    piece = decode([index])
    inner = piece.strip()
    joins = bool(groups) and groups[-1][-1] == at - 1 and piece == inner and _joins(before, inner)
    if joins:
      groups[-1].append(at)
    else:
      groups.append([at])
    before = piece
  found = (Word(decode(encoded.tokens[group]).strip(), tuple(group)) for group in groups)
  return tuple(word for word in found if word.text)


def _joins(before: str, piece: str) -> bool:
  """Whether a piece goes on with the word that ends in `before`: letters and figures with their like."""
  if not piece or not before.strip():
    return False
  broken = "\ufffd"  # a part of a character
  return broken in (before[-1], piece[0]) or (before[-1].isalnum() and piece[0].isalnum())
