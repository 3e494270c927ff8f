"""What is checked of every encoded example: the commonest mistakes in fine-tuning vision-language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialvlm.types import Example, ImageLayout, UserError

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded, Processor


def check_encoded(
  encoded: Encoded, example: Example, layout: ImageLayout, *, longest: int, most_tiles: int | None = None
) -> None:
  """Refuses an example that would train a model wrongly.

  Args:
    longest: the largest sequence bucket.
    most_tiles: the largest number of tiles that a bucket has for an example; None for any.

  Raises:
    UserError: the number of image tokens is not the number that the tiles give (cut or doubled ones), an
      image token, the first position or one in a bidirectional prefix is supervised, nothing is supervised,
      the supervised stretches are not as many as the answers, or the example is too long or of too many
      tiles.
  """
  tokens, loss = np.asarray(encoded.tokens), np.asarray(encoded.loss_mask)
  image = tokens == layout.image_token_id
  wanted = len(encoded.tiles) * layout.tokens_per_tile
  found = int(np.count_nonzero(image))
  if found != wanted:
    raise UserError(
      f"{found} image tokens for {len(encoded.tiles)} tiles of {layout.tokens_per_tile} ({wanted} wanted); "
      "image tokens were cut, or the text holds the image token itself"
    )
  if not np.array_equal(np.flatnonzero(encoded.image_slot >= 0), np.flatnonzero(image)):
    raise UserError("image features would land on tokens that are no image tokens")
  if len(tokens) > min(longest, layout.max_length):
    # An image that is one tile can be made no smaller.
    images = ", lower model.max_tiles or model.longest_edge" if layout.max_tiles > 1 else ""
    said = f" ({found} of them are of images)" if found else ""
    raise UserError(
      f"{len(tokens)} tokens are more than the longest sequence of {min(longest, layout.max_length)}{said};"
      f" shorten the text{images}, or raise data.lengths"
    )
  if most_tiles is not None and len(encoded.tiles) > most_tiles:
    raise UserError(
      f"{len(encoded.tiles)} image tiles are more than the largest of data.tiles, {most_tiles}; raise it, or"
      " lower model.max_tiles or model.longest_edge"
    )
  if np.any(loss & image):
    raise UserError(f"the loss would be taken on {np.count_nonzero(loss & image)} image tokens")
  if not np.any(loss):
    raise UserError("no token is supervised; the answer is empty")
  if loss[0]:
    raise UserError("the first token is supervised, but nothing stands before it to predict it from")
  if np.any(loss[: encoded.prefix]):
    raise UserError("tokens are supervised that the bidirectional prefix shows to those before them")
  stretches = len(supervised_stretches(loss))
  if stretches != len(example.turns):
    raise UserError(
      f"the loss lies on {stretches} stretches of the text, but there are {len(example.turns)} answers"
    )


def supervised_stretches(loss_mask: np.ndarray) -> list[tuple[int, int]]:
  """Start and end of each stretch of neighbouring supervised tokens."""
  edges = np.flatnonzero(np.diff(np.concatenate([[False], loss_mask, [False]]).astype(np.int8)))
  return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def check_answers(encoded: Encoded, example: Example, processor: Processor) -> None:
  """Refuses an example whose supervised tokens do not read as its answers, e.g. for a part of the prompt.

  Raises:
    UserError: the first answer that reads otherwise; white space aside.
  """
  for number, (start, end) in enumerate(supervised_stretches(encoded.loss_mask)):
    answer = example.turns[number].answer if number < len(example.turns) else ""
    text = _text(encoded.tokens[start:end], processor)
    if not _same(text, answer):
      raise UserError(
        f"the supervised tokens of turn {number + 1} read {text!r}, but its answer is {answer!r}"
      )


def wrongly_supervised(encoded: Encoded, example: Example, processor: Processor) -> np.ndarray:
  """Bool (T,): supervised image tokens, and stretches that do not read as the answer that is due."""
  wrong = encoded.loss_mask & (encoded.tokens == processor.layout.image_token_id)
  due = [turn.answer for turn in example.turns]
  for start, end in supervised_stretches(encoded.loss_mask):
    if due and _same(_text(encoded.tokens[start:end], processor), due[0]):
      due.pop(0)
    else:
      wrong[start:end] = True
  return wrong


def _text(ids: np.ndarray, processor: Processor) -> str:
  return processor.decode([i for i in ids if i not in processor.stop_ids], skip_special_tokens=False)


def _same(text: str, answer: str) -> bool:
  return "".join(text.split()) == "".join(answer.split())
