"""From a text with images' marks to token ids, as transformers' processors give them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from spatialvlm.processing.prompts import PromptFormat
from spatialvlm.types import UserError


class Expanded(NamedTuple):
  """Token ids of a text, which of them lie in its spans, and how many of them stand before its boundary."""

  ids: list[int]
  loss: list[bool]
  prefix: int


class Expander:
  """Tokenises texts, each image's mark replaced by its image's tokens. Safe to use from several threads.

  Attributes:
    image_id, end_id: token ids of the format's mark and of what ends an answer. A format without
      marks has no `image_id`.
    block: (rows, cols) -> ids of an image of so many tiles, its global view not counted.
  """

  def __init__(self, tokenizer: Tokenizer, prompt_format: PromptFormat, tokens_per_tile: int, where: str):
    """Raises a UserError that names `where` for a tokenizer that is not the format's."""
    self._tokenizer, self._format, self._tokens_per_tile = tokenizer, prompt_format, tokens_per_tile
    if prompt_format.mark:
      for token in prompt_format.special:
        self._check_special(token, where)
    self.image_id = tokenizer.token_to_id(prompt_format.mark) if prompt_format.mark else None
    self.end_id = tokenizer.token_to_id(prompt_format.end)
    family = prompt_format.family
    if prompt_format.bare and len(tokenizer.encode("a").ids) != len(self._tokenize("a")[0]):
      raise UserError(f"{where}: the tokenizer adds tokens of its own to a text; {family}'s adds none")
    # A text without images is one piece, so that tokenizers that look across special tokens do so.
    cuts = "|".join(map(re.escape, prompt_format.special)) if prompt_format.mark else "(?!)"
    self._cuts = re.compile(f"({cuts})")
    self._remember()

  def _remember(self) -> None:
    self._ids = functools.lru_cache(maxsize=8192)(self._tokenize)
    self.block = functools.lru_cache(maxsize=128)(self._block_ids)

  def __getstate__(self) -> dict[str, Any]:
    """For another process, which remembers by itself."""
    return {name: value for name, value in vars(self).items() if name not in ("_ids", "block")}

  def __setstate__(self, state: Mapping[str, Any]) -> None:
    """Of `__getstate__`."""
    vars(self).update(state)
    self._remember()

  def __call__(
    self,
    text: str,
    blocks: Sequence[Sequence[int]] | None,
    spans: Sequence[tuple[int, int]] = (),
    name: str = "prompt",
    boundary: int = 0,
    opened: bool = False,
  ) -> Expanded:
    """Tokens of a text with each image's mark replaced by its block.

    The text is tokenised in the pieces between special tokens, where the tokenizer itself cuts first, so
    the ids are those of the whole text. Without `blocks` the text is taken as it stands.

    Args:
      spans: start and end of stretches of characters.
      boundary: a character before which the text is tokenised apart from what follows; 0 for none.
      opened: with the tokens that the tokenizer itself adds to a text; of a format without marks.
    """
    mark = self._format.mark
    marks = text.count(mark) if mark else 0
    if blocks is not None and marks != len(blocks):
      raise UserError(f"{name}: {marks} <image> marks in the text, but {len(blocks)} images")
    ids: list[int] = []
    loss: list[bool] = []
    at, image, prefix = 0, 0, 0
    pieces = self._cuts.split(text[:boundary]) if boundary else []
    for piece in [*pieces, *self._cuts.split(text[boundary:])]:
      if mark and piece == mark and blocks is not None:
        ids += blocks[image]
        loss += [False] * len(blocks[image])
        image += 1
      elif piece:
        piece_ids, offsets = self._ids(piece, opened)
        ids += piece_ids
        near = [s for s in spans if s[0] < at + len(piece) and s[1] > at]
        if near:
          loss += [any(at + a < stop and at + b > start for start, stop in near) for a, b in offsets]
        else:
          loss += [False] * len(piece_ids)
      at += len(piece)
      if at <= boundary:
        prefix = len(ids)
    return Expanded(ids, loss, prefix)

  def _tokenize(self, text: str, opened: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = self._tokenizer.encode(text, add_special_tokens=opened)
    return encoding.ids, encoding.offsets

  def _block_ids(self, rows: int, cols: int) -> list[int]:
    marker = self._format.grid_marker
    known = lambda row, col: self._tokenizer.token_to_id(marker.format(row=row, col=col)) is not None
    if rows and marker and known(1, 1) and not known(rows, cols):
      raise UserError(
        f"an image would become {rows} x {cols} tiles, for which this tokenizer has no markers;"
        " lower longest_edge or max_tiles"
      )
    return self._tokenize(self._format.block(rows, cols, self._tokens_per_tile))[0]

  def _check_special(self, token: str, where: str) -> None:
    """A text may be cut at a token that the tokenizer takes out first, whatever stands beside it."""
    index = self._tokenizer.token_to_id(token)
    if index is None or self._tokenize(token)[0] != [index]:
      raise UserError(f"{where}: the tokenizer has no special token {token}; is it {self._format.family}'s?")
    flags = self._tokenizer.get_added_tokens_decoder().get(index)
    if flags is None or flags.lstrip or flags.rstrip or flags.single_word or flags.normalized:
      raise UserError(
        f"{where}: the tokenizer's token {token} must be special and keep the white space beside it"
      )
    if self._tokenize(f"a b{token}a b")[0] != [*self._tokenize("a b")[0], index, *self._tokenize("a b")[0]]:
      raise UserError(f"{where}: the tokenizer reads a text otherwise behind its token {token}")
