"""Language models by themselves: conversations of text alone, in the folder's own words.

Unlike the vision-language families they share no form: the chat template says how a conversation is written,
and by which token it ends an answer. A folder without one holds a base model, which continues a text.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from spatialvlm.processing import prompts
from spatialvlm.processing.prompts import Message, PromptFormat
from spatialvlm.processing.tiling import TileOptions, Tiles
from spatialvlm.types import Note, UserError

# Stands for an answer where a template is asked how it ends one.
_PROBE = "spatialvlm"


def _no_block(rows: int, cols: int, tokens: int) -> str:
  raise UserError("a language model by itself reads no images")


# `end` is the folder's own.
FORMAT = PromptFormat(
  family="a language model", mark="", end="", apart=(), block=_no_block, bare=False, opened="calls"
)


@dataclasses.dataclass(frozen=True)
class NoTiles:
  """The tiler of a model that reads no images: it refuses every one.

  Attributes:
    where: the folder, for errors.
  """

  where: str
  tile_size: int = 0
  max_tiles: int | None = 0

  @property
  def most_tiles(self) -> int:
    """None at all."""
    return 0

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Raises a UserError."""
    raise UserError(
      f"{self.where}: a language model by itself reads no images; leave them out, or take a model with eyes"
    )

  def __call__(self, image: np.ndarray) -> Tiles:
    """Raises a UserError."""
    self.grid(*image.shape[:2])
    raise AssertionError

  def normalise(self, tiles: np.ndarray) -> np.ndarray:
    """uint8 -> float32 of the same shape: nothing is ever shown, so they stay as they are."""
    return tiles.astype(np.float32)


def no_tiler(config: Mapping[str, Any], where: str, options: TileOptions, kind: str) -> NoTiles:
  """Raises a UserError for any option of tiles."""
  for field in dataclasses.fields(TileOptions):
    if (value := getattr(options, field.name)) != field.default:
      raise UserError(f"{where}: {field.name}={value}: a language model cuts no images; leave it out")
  return NoTiles(where)


class TextTemplate(prompts.ChatTemplate):
  """A chat template of texts: a message's content is a string, as transformers' tokenizers are given it."""

  def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text of a conversation.

    Raises:
      UserError: the template refuses the conversation, or an image stands in it.
    """
    messages = [{**m, "content": _text(m["content"], self.where)} for m in messages]
    return self.filled(messages, add_generation_prompt)

  prompt = render


class Completion:
  """Of a base model without chat template: texts as they stand, each answer ended by a token."""

  def __init__(self, end: str, where: str):
    self._end, self._where = end, where

  def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """Prompts and answers one after the other, nothing between them but `end` behind each answer.

    Raises:
      UserError: an image stands in the conversation.
    """
    texts = [_text(m["content"], self._where) for m in messages]
    ends = [self._end if m["role"] == "assistant" else "" for m in messages]
    return "".join(text + end for text, end in zip(texts, ends, strict=True))

  prompt = render

  def frame(self, text: str) -> str:
    """The text itself."""
    return text


def dialogue(
  template: str | None, tokenizer: Tokenizer, names: Mapping[str, str], where: str
) -> tuple[PromptFormat, prompts.Template]:
  """The form of a folder's texts, and how conversations become such.

  Args:
    template: source of the chat template, None where the folder has none.
    names: special tokens by their names, such as `eos_token`.

  Raises:
    UserError: no token that ends an answer can be told.
  """
  if template is not None:
    chat = TextTemplate(template, names, where)
    return dataclasses.replace(FORMAT, end=_end(chat, tokenizer, where)), chat
  end = names.get("eos_token")
  if end is None or tokenizer.token_to_id(end) is None:
    raise UserError(
      f"{where}: neither a chat template nor an eos_token that the tokenizer knows, so nothing would end an"
      " answer; copy the model's tokenizer_config.json there"
    )
  said = f"{where}: no chat template: prompts are continued as they stand, to {end}"
  warnings.warn(said, Note, stacklevel=2)
  return dataclasses.replace(FORMAT, end=end, opened="always"), Completion(end, where)


def _end(chat: TextTemplate, tokenizer: Tokenizer, where: str) -> str:
  """The special token that the template writes behind an answer."""
  asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
  behind = chat.render(asked).rpartition(_PROBE)[2]
  tokens = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
  places = {token: behind.find(token) for token in tokens if token in behind}
  end = min(places, key=lambda token: (places[token], -len(token)), default=None)
  if end is None or behind[: places[end]].strip():
    raise UserError(
      f"{where}: the chat template ends an answer by {behind[:40]!r}, which begins with no special token of"
      " the tokenizer, so nothing would stop an answer"
    )
  return end


def _text(content: Any, where: str) -> str:
  """A message's content, given as a string or in parts."""
  if isinstance(content, str):
    return content
  if any(part["type"] != "text" for part in content):
    raise UserError(f"{where}: an <image> mark in the text, but a language model by itself reads no images")
  return "".join(part["text"] for part in content)
