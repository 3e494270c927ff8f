"""Conversations as public data sets write them, into turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm.types import IMAGE_MARK, Turn, UserError

_ROLES = {
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "model": "assistant",
  "system": "system",
}
# LLaVA separates its mark from the text by line breaks; SmolVLM's prompts have none there.
_MARK = re.compile(rf"\n?{re.escape(IMAGE_MARK)}\n?")


def parse_turns(messages: Any, images: int) -> tuple[Turn, ...]:
  """Turns of a conversation.

  Understood are LLaVA's `{"from": "human" | "gpt", "value"}`, `{"role", "content"}` with text or a list of
  parts (`{"type": "image"}`, `{"type": "text", "text"}`), and The Cauldron's `{"user", "assistant"}` pairs.
  A system message goes before the first prompt. One line break on either side of an `<image>` mark is taken
  as part of the mark.

  Args:
    images: how many images the example has.

  Raises:
    UserError: no conversation, an unknown role, no alternation, an empty answer, or marks that are not as
      many as the images.
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
    raise UserError(f"expected a list of messages, got {messages!r}")
  said = [pair for message in messages for pair in _messages(message)]
  system = [text for role, text in said if role == "system"]
  said = [(role, text) for role, text in said if role != "system"]
  turns = []
  for start in range(0, len(said), 2):
    pair = said[start : start + 2]
    if [role for role, _ in pair] != ["user", "assistant"]:
      roles = ", ".join(role for role, _ in said)
      raise UserError(f"user and assistant must take turns and the assistant end, but the roles are: {roles}")
    (_, prompt), (_, answer) = pair
    if IMAGE_MARK in answer:
      raise UserError(f"an answer holds an {IMAGE_MARK} mark; images stand in prompts only")
    if not answer.strip():
      raise UserError("an answer is empty; there is nothing to learn from it")
    prompt = _MARK.sub(IMAGE_MARK, prompt)
    prompt = "\n".join([*system, prompt]) if system and not turns else prompt
    turns.append(Turn(prompt, answer))
  if not turns:
    raise UserError("the conversation holds no turn")
  marks = sum(turn.prompt.count(IMAGE_MARK) for turn in turns)
  if marks and marks != images:
    raise UserError(f"{marks} {IMAGE_MARK} marks for {images} images")
  return tuple(turns)


def _messages(message: Any) -> list[tuple[str, str]]:
  """(role, text) of one message, or of a pair."""
  if not isinstance(message, Mapping):
    raise UserError(f"a message is not an object: {message!r}")
  if "user" in message and "assistant" in message:
    return [("user", _text(message["user"])), ("assistant", _text(message["assistant"]))]
  for role_key, text_key in (("from", "value"), ("role", "content")):
    if role_key in message and text_key in message:
      role = str(message[role_key]).lower()
      if role not in _ROLES:
        raise UserError(f"unknown role {role!r}; known: {', '.join(_ROLES)}")
      return [(_ROLES[role], _text(message[text_key]))]
  raise UserError(
    f"a message has keys {', '.join(map(repr, message))}; expected 'from' and 'value', 'role' and 'content', "
    "or 'user' and 'assistant'"
  )


def _text(content: Any) -> str:
  if isinstance(content, str):
    return content
  if not isinstance(content, Sequence):
    raise UserError(f"the content of a message is neither text nor a list of parts: {content!r}")
  texts = []
  for part in content:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
      texts.append(IMAGE_MARK)
    elif kind == "text" and isinstance(part.get("text"), str):
      texts.append(part["text"])
    else:
      raise UserError(f"a part of a message is neither text nor an image: {part!r}")
  return "".join(texts)
