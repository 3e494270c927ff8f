"""Conversations as public data sets write them, into turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm.data.sources.cells import text_of
from spatialvlm.data.sources.pictures import is_nothing, row_cells
from spatialvlm.data.sources.unread import unread
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

# LLaVA's marks of what nothing here sees or hears, on a line of their own; Qwen-VL's pictures within texts.
_OTHER_MARK = re.compile(r"^\s*<(?:video|audio|speech|sound)>\s*$|<img>[^<\s]+</img>", re.MULTILINE)
# How others mark the place of a picture; text where there are no pictures.
_FOREIGN_MARK = re.compile(
  r"<\|?(?:image|img)[ _]?\d+\|?>|<\|image\|>|<\|image_pad\|>|<image_placeholder>|<imagehere>|<img>"
  r"|<image>",
  re.IGNORECASE,
)
_PICTURE_PARTS = ("image", "image_url")
# Under what a part may bring its picture.
_CARRIED = ("image", "image_url", "path", "url", "bytes", "base64", "data", "source")
# Under what a row may hold its conversation; `texts` is The Cauldron's.
TALKS = ("messages", "conversations", "texts")
_SPOKEN = ("from", "value", "role", "content", "user", "assistant")


def picture_cells(row: Mapping[str, Any], where: str) -> tuple[str, list[Any]]:
  """The pictures of a row, and which of `image`, `images` and `messages` they stand under.

  Parts of messages may bring theirs: `{"type": "image", "image": ...}` (or `path`, `url`, `base64`), or
  `{"type": "image_url", "image_url": {"url": ...}}`.

  Raises:
    UserError: pictures in two places, or a part without one beside a part that has one.
  """
  name, cells = row_cells(row, where)
  parts = [_carried(part) for part in _parts(row.get("messages"))]
  inside = [cell for cell in parts if not is_nothing(cell)]
  if not inside:
    return name, cells
  if cells:
    raise UserError(
      f"{where}: {name!r} and the parts of messages both hold pictures; leave out one of the two"
    )
  if len(inside) < len(parts):
    raise UserError(f"{where}: {len(parts)} parts of messages are images, but {len(inside)} of them hold one")
  return "messages", inside


def _parts(messages: Any) -> list[Mapping[str, Any]]:
  """Parts that are images, in their order."""
  contents = (
    [m.get("content") for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
  )
  parts = [part for content in contents if isinstance(content, list) for part in content]
  return [part for part in parts if isinstance(part, Mapping) and part.get("type") in _PICTURE_PARTS]


def _carried(part: Mapping[str, Any]) -> Any:
  found = [part.get(key) for key in _CARRIED]
  return next((cell for cell in found if not is_nothing(cell)), None)


def refuse_two(row: Mapping[str, Any], names: Sequence[str], images: int, choose: str) -> None:
  """Refuses a row whose keys `names` hold conversations that differ; one in two spellings is one.

  Args:
    choose: says how one of the two is chosen.

  Raises:
    UserError: two of them differ, or cannot both be read.
  """
  filled = [name for name in names if isinstance(row.get(name), list) and row[name]]
  filled = [name for name in filled if isinstance(row[name][0], Mapping)]  # others are no conversations
  for other in filled[1:]:
    if row[other] != row[filled[0]] and _turns(row[other], images) != _turns(row[filled[0]], images):
      raise UserError(
        f"{filled[0]!r} and {other!r} both hold conversations, and they differ; leave out one, or {choose}"
      )


def _turns(messages: Any, images: int) -> tuple[Turn, ...] | UserError:
  try:
    return parse_turns(messages, images)
  except UserError as error:
    return error


def parse_turns(messages: Any, images: int) -> tuple[Turn, ...]:
  """Turns of a conversation.

  Understood are LLaVA's `{"from": "human" | "gpt", "value"}`, `{"role", "content"}` with text or a list of
  parts (`{"type": "image"}`, see `picture_cells`, `{"type": "text", "text"}`), and The Cauldron's
  `{"user", "assistant"}` pairs. A system message goes before the first prompt. One line break on either side
  of an `<image>` mark is taken as part of the mark.

  Args:
    images: how many images the example has.

  Raises:
    UserError: no conversation, an unknown role, no alternation, an empty answer, marks that are not as many
      as the images, or others' marks.
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
    if other := _OTHER_MARK.search(prompt):
      raise UserError(
        f"a prompt holds the mark {other[0].strip()}, of which nothing is read; leave such rows out, and "
        f"name pictures in `images`, with {IMAGE_MARK} in their place"
      )
    if images and (other := _FOREIGN_MARK.search(prompt.replace(IMAGE_MARK, ""))):
      raise UserError(f"a prompt holds the mark {other[0]}; the place of a picture is marked {IMAGE_MARK}")
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
  if unseen := unread(message, pictures=False, read=_SPOKEN):
    raise UserError(
      f"a message holds {unseen!r}, of which nothing is read there; pictures stand in the row's "
      "`images`, or in parts of the content"
    )
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
  if isinstance(content, (str, bool, int, float)):
    return text_of(content, "the content of a message") if content != "" else ""
  if not isinstance(content, Sequence):
    raise UserError(f"the content of a message is neither text nor a list of parts: {content!r}")
  texts = []
  for part in content:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _PICTURE_PARTS:
      texts.append(IMAGE_MARK)
    elif kind == "text" and isinstance(part.get("text"), str):
      texts.append(part["text"])
    else:
      raise UserError(f"a part of a message is neither text nor an image: {part!r}")
  return "".join(texts)
