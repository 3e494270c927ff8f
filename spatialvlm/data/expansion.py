"""From a text with `<image>` marks to token ids, as transformers' processors give them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from spatialvlm.data import prompts
from spatialvlm.types import IMAGE_MARK, UserError


class Expander:
  """Tokenises texts, each `<image>` mark replaced by its image's tokens. Safe to use from several threads.

  Attributes:
    image_id, end_id: token ids of `<image>` and `<end_of_utterance>`.
    block: (rows, cols) -> ids of an image of so many tiles, its global view not counted.
  """

  def __init__(self, tokenizer: Tokenizer, tokens_per_tile: int, where: str):
    """Raises a UserError that names `where` for a tokenizer that is not SmolVLM's."""
    self._tokenizer, self._tokens_per_tile = tokenizer, tokens_per_tile
    self.image_id = self._special(IMAGE_MARK, where)
    self.end_id = self._special(prompts.END_OF_UTTERANCE, where)
    self._special(prompts.FAKE_TOKEN, where)
    if len(tokenizer.encode("a").ids) != len(tokenizer.encode("a", add_special_tokens=False).ids):
      raise UserError(f"{where}: the tokenizer adds tokens of its own to a text; SmolVLM's adds none")
    self._cuts = self._safe_cuts()
    self._ids = functools.lru_cache(maxsize=8192)(self._tokenize)
    self.block = functools.lru_cache(maxsize=128)(self._block_ids)

  def __call__(
    self,
    text: str,
    blocks: Sequence[Sequence[int]] | None,
    spans: Sequence[tuple[int, int]] = (),
    name: str = "prompt",
  ) -> tuple[list[int], list[bool]]:
    """Ids of a text with each `<image>` mark replaced by its block, and which of them lie in `spans`.

    The text is tokenised in the pieces between special tokens, where the tokenizer itself cuts first, so
    the ids are those of the whole text. Without `blocks` the text is taken as it stands.
    """
    marks = text.count(IMAGE_MARK)
    if blocks is not None and marks != len(blocks):
      raise UserError(f"{name}: {marks} <image> marks in the text, but {len(blocks)} images")
    ids: list[int] = []
    loss: list[bool] = []
    at, image = 0, 0
    for piece in self._cuts.split(text):
      if piece == IMAGE_MARK and blocks is not None:
        ids += blocks[image]
        loss += [False] * len(blocks[image])
        image += 1
      elif piece:
        piece_ids, offsets = self._ids(piece)
        ids += piece_ids
        near = [s for s in spans if s[0] < at + len(piece) and s[1] > at]
        if near:
          loss += [any(at + a < stop and at + b > start for start, stop in near) for a, b in offsets]
        else:
          loss += [False] * len(piece_ids)
      at += len(piece)
    return ids, loss

  def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

  def _block_ids(self, rows: int, cols: int) -> list[int]:
    known = self._tokenizer.token_to_id
    if rows and known("<row_1_col_1>") is not None and known(f"<row_{rows}_col_{cols}>") is None:
      raise UserError(
        f"an image would become {rows} x {cols} tiles, for which this tokenizer has no markers;"
        " lower longest_edge or max_tiles"
      )
    block = prompts.image_block(rows, cols, self._tokens_per_tile)
    return self._tokenizer.encode(block, add_special_tokens=False).ids

  def _special(self, token: str, where: str) -> int:
    index = self._tokenizer.token_to_id(token)
    if index is None or self._tokenizer.encode(token, add_special_tokens=False).ids != [index]:
      raise UserError(f"{where}: the tokenizer has no special token {token}; is it SmolVLM's?")
    return index

  def _safe_cuts(self) -> re.Pattern[str]:
    """Splits a text at the special tokens that the tokenizer takes out first, whatever stands beside them."""
    wanted = (IMAGE_MARK, prompts.END_OF_UTTERANCE, prompts.FAKE_TOKEN)
    added = {t.content: t for t in self._tokenizer.get_added_tokens_decoder().values()}
    for token in wanted:
      flags = added.get(token)
      if flags is None or flags.lstrip or flags.rstrip or flags.single_word or flags.normalized:
        raise UserError(f"the tokenizer's token {token} must be special and keep the white space beside it")
    return re.compile("(" + "|".join(map(re.escape, wanted)) + ")")
