"""Prompts: conversations into text by the checkpoint's chat template, images into their placeholder text."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spatialvlm.types import IMAGE_MARK, Turn, UserError

FAKE_TOKEN = "<fake_token_around_image>"
GLOBAL_TOKEN = "<global-img>"
END_OF_UTTERANCE = "<end_of_utterance>"

Message = Mapping[str, Any]


def image_block(rows: int, cols: int, tokens_per_tile: int) -> str:
  """The text that stands for one image (transformers' `processing_idefics3.py`).

  A grid of `rows` x `cols` tiles and then the global view; the global view alone where both are 0.
  """
  tile = IMAGE_MARK * tokens_per_tile
  whole = f"{FAKE_TOKEN}{GLOBAL_TOKEN}{tile}{FAKE_TOKEN}"
  if rows == 0 and cols == 0:
    return whole
  lines = (
    "".join(f"{FAKE_TOKEN}<row_{r + 1}_col_{c + 1}>{tile}" for c in range(cols)) + "\n" for r in range(rows)
  )
  return "".join(lines) + "\n" + whole


class ChatTemplate:
  """A checkpoint's Jinja chat template, rendered in a sandbox as transformers renders it."""

  def __init__(self, source: str, tokens: Mapping[str, str] | None = None, where: str = "chat template"):
    """Compiles `source`; `tokens` are the special tokens that it may name, such as `bos_token`.

    Raises:
      UserError: the template does not compile.
    """
    self.source = source
    self._where = where
    self._tokens = dict(tokens or {})
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = functools.partial(_refuse, where)
    try:
      self._template = environment.from_string(source)
    except TemplateError as error:
      raise UserError(f"{where}: the chat template does not compile: {error}") from error

  def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text of a conversation; `content` may be a string or a list of parts.

    Raises:
      UserError: the template refuses the conversation.
    """
    messages = [{**m, "content": _parts(m["content"])} for m in messages]
    try:
      return self._template.render(
        messages=messages, add_generation_prompt=add_generation_prompt, **self._tokens
      )
    except TemplateError as error:
      raise UserError(f"{self._where}: the chat template fails on this conversation: {error}") from error


def messages(turns: Sequence[Turn], images: int) -> list[Message]:
  """A conversation's user and assistant messages, its images in their places.

  Where no prompt holds an `<image>` mark, all images stand before the first prompt.
  """
  marked = any(IMAGE_MARK in turn.prompt for turn in turns)
  result: list[Message] = []
  for index, turn in enumerate(turns):
    prompt = turn.prompt if marked or index else IMAGE_MARK * images + turn.prompt
    result.append({"role": "user", "content": _split(prompt)})
    result.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
  return result


def _split(prompt: str) -> list[dict[str, str]]:
  parts: list[dict[str, str]] = []
  for index, text in enumerate(prompt.split(IMAGE_MARK)):
    if index:
      parts.append({"type": "image"})
    if text:
      parts.append({"type": "text", "text": text})
  return parts or [{"type": "text", "text": ""}]


def _parts(content: Any) -> Any:
  return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _refuse(where: str, message: str) -> None:
  raise UserError(f"{where}: {message}")
