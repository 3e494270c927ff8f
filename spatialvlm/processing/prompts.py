"""Prompts: conversations into text as each family of models writes them, images into placeholder text."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import jinja2.ext
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spatialvlm.types import IMAGE_MARK, Turn, UserError

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """How the texts of one family are made of tokens.

  Attributes:
    family: its name, for errors.
    mark: the token that stands for an image in a text, and fills the image's slots when it is expanded. Users
      write `<image>` whatever the family. "" of a family that reads no images.
    end: the token that ends an answer.
    apart: further special tokens of the family: the tokenizer cuts texts there first.
    block: (rows, columns, tokens of a tile) -> the text that one image becomes; rows and columns are both 0
      where the global view stands alone.
    grid_marker: a tile's marker by its `{row}` and `{col}`; a tokenizer has either none of them or too few.
    bare: the tokenizer itself adds no token to a text.
    opened: when the tokens that the tokenizer itself adds to a text, such as a `<bos>`, stand there: never;
      in calls with a text, as of transformers' tokenizers, and not where a chat template writes them; always.
    bidirectional: what stands before the answer is a prefix whose tokens all see each other.
    nested_pixels: pixels come as transformers' (B, I, 3, S, S) with a mask, else as (N, 3, S, S).
  """

  family: str
  mark: str
  end: str
  apart: tuple[str, ...]
  block: Callable[[int, int, int], str]
  grid_marker: str = ""
  bare: bool = True
  opened: Literal["never", "calls", "always"] = "never"
  bidirectional: bool = False
  nested_pixels: bool = False

  @property
  def special(self) -> tuple[str, ...]:
    """All tokens that the family's tokenizer must have."""
    return tuple(token for token in (self.mark, self.end, *self.apart) if token)

  def marked(self, text: str) -> str:
    """A user's text with the family's own mark in the place of each `<image>`."""
    return text.replace(IMAGE_MARK, self.mark) if self.mark else text


_FAKE, _GLOBAL, _MARKER = "<fake_token_around_image>", "<global-img>", "<row_{row}_col_{col}>"
_CONTEXT, _BOS = "<IMG_CONTEXT>", "<bos>"


def _idefics3_block(rows: int, cols: int, tokens: int) -> str:
  """transformers' `processing_idefics3.py`: the grid row by row, then the global view."""
  tile = IMAGE_MARK * tokens
  whole = f"{_FAKE}{_GLOBAL}{tile}{_FAKE}"
  if rows == 0 and cols == 0:
    return whole
  lines = (
    "".join(f"{_FAKE}{_MARKER.format(row=r + 1, col=c + 1)}{tile}" for c in range(cols)) + "\n"
    for r in range(rows)
  )
  return "".join(lines) + "\n" + whole


def _internvl_block(rows: int, cols: int, tokens: int) -> str:
  """transformers' `processing_internvl.py`: nothing stands between the tiles."""
  return f"<img>{_CONTEXT * tokens * (rows * cols + 1)}</img>"


def _paligemma_block(rows: int, cols: int, tokens: int) -> str:
  return IMAGE_MARK * tokens


SMOLVLM = PromptFormat(
  family="SmolVLM",
  mark=IMAGE_MARK,
  end="<end_of_utterance>",
  apart=(_FAKE,),
  block=_idefics3_block,
  grid_marker=_MARKER,
  nested_pixels=True,
)
INTERNVL = PromptFormat(
  family="InternVL", mark=_CONTEXT, end="<|im_end|>", apart=("<|im_start|>", "<img>", "</img>"),
  block=_internvl_block,
)  # fmt: skip
PALIGEMMA = PromptFormat(
  family="PaliGemma", mark=IMAGE_MARK, end="<eos>", apart=(_BOS,), block=_paligemma_block,
  bare=False, bidirectional=True,
)  # fmt: skip
# What SmolVLM-256M and -500M add to the 49,152 tokens of SmolLM2, in the order of their ids; the 88 between
# `<image>` and `<end_of_utterance>` mean nothing.
SMOLVLM_TOKENS = (
  _GLOBAL,
  *(_MARKER.format(row=row, col=col) for row in range(1, 7) for col in range(1, 7)),
  _FAKE,
  IMAGE_MARK,
  *(f"<|reserved_image_token_{i}|>" for i in range(88)),
  SMOLVLM.end,
)
# Tokens for places and shapes that transformers' processor adds to a tokenizer that lacks them.
PALIGEMMA_PLACES = tuple(f"<loc{i:0>4}>" for i in range(1024)) + tuple(f"<seg{i:0>3}>" for i in range(128))


class Template(Protocol):
  """Conversations into text."""

  def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The whole text, up to where an answer begins with `add_generation_prompt`."""
    ...

  def prompt(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text that a user hands to the processor, which `frame` turns into the whole."""
    ...

  def frame(self, text: str) -> str:
    """What the family's processor makes of a user's text before images are expanded."""
    ...


class _Generation(jinja2.ext.Extension):
  """`{% generation %}...{% endgeneration %}`, which marks an assistant's words, written as they are."""

  tags = frozenset({"generation"})

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    """What lies between the tags, in a scope of its own as in transformers."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

  def _as_it_is(self, caller: Callable[[], str]) -> str:
    return caller()


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """Plain JSON; Jinja's own filter escapes what HTML would mistake."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


class ChatTemplate:
  """A checkpoint's Jinja chat template, rendered in a sandbox as transformers renders it.

  A template sees `messages`, `add_generation_prompt`, the special tokens, `tools` and `documents` (None), and
  what transformers gives it (`utils/chat_template_utils.py`): `raise_exception`, `strftime_now`, `tojson`
  without escapes, loop controls, and `{% generation %}`.
  """

  def __init__(self, source: str, tokens: Mapping[str, str] | None = None, where: str = "chat template"):
    """Compiles `source`; `tokens` are the special tokens that it may name, such as `bos_token`.

    Raises:
      UserError: the template does not compile.
    """
    self.source = source
    self.where = where
    self.tokens = dict(tokens or {})
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = functools.partial(_refuse, where)
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    try:
      self._template = environment.from_string(source)
    except TemplateError as error:
      raise UserError(f"{where}: the chat template does not compile: {error}") from error

  def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, Mapping[str, str], str]]:
    """For another process, which compiles it anew."""
    return ChatTemplate, (self.source, self.tokens, self.where)

  def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text of a conversation; `content` may be a string or a list of parts.

    Raises:
      UserError: the template refuses the conversation.
    """
    messages = [{**m, "content": _parts(m["content"])} for m in messages]
    return self.filled(messages, add_generation_prompt)

  def filled(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The template filled with these very messages.

    Raises:
      UserError: the template refuses them.
    """
    try:
      return self._template.render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **self.tokens,
      )
    except TemplateError as error:
      raise UserError(f"{self.where}: the chat template fails on this conversation: {error}") from error

  prompt = render

  def frame(self, text: str) -> str:
    """The text itself: the template has written all of it."""
    return text


class PrefixTemplate:
  """PaliGemma's only form (`processing_paligemma.py`): images, `<bos>`, prompt, line break, answer, `<eos>`.

  There is one turn. Its images stand before the text, where alone the model knows them: marks at the end of a
  prompt go there too, and marks within it are refused.
  """

  def __init__(self, where: str):
    self._where = where

  def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The text of one turn, with its answer where there is one.

    Raises:
      UserError: there is more than one turn, or an image in the middle of the text.
    """
    answer = "".join(p["text"] for p in _parts(messages[1]["content"])) if len(messages) == 2 else None
    framed = self.frame(self._asked(messages))
    return framed if answer is None else framed + answer + PALIGEMMA.end

  def prompt(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The images' marks and the prompt, to which the processor itself adds the rest.

    Raises:
      UserError: as `render`, or the conversation holds an answer.
    """
    if len(messages) > 1:
      raise UserError(f"{self._where}: PaliGemma's answers are no part of the prompt; pass them as suffix=")
    return self._asked(messages)

  def frame(self, text: str) -> str:
    """The text with `<bos>` behind the last mark and a line break at the end."""
    start = text.rfind(IMAGE_MARK)
    start = start + len(IMAGE_MARK) if start >= 0 else 0
    return f"{text[:start]}{_BOS}{text[start:]}\n"

  def _asked(self, messages: Sequence[Message]) -> str:
    if [m["role"] for m in messages] not in (["user"], ["user", "assistant"]):
      roles = ", ".join(str(m["role"]) for m in messages)
      raise UserError(
        f"{self._where}: PaliGemma knows one question and its answer, but the roles are: {roles}; keep the"
        " first turn only"
      )
    parts = _parts(messages[0]["content"])
    is_text = [part["type"] == "text" for part in parts]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    if any(is_text):
      first, last = is_text.index(True), len(parts) - is_text[::-1].index(True)
      if not all(is_text[first:last]):
        raise UserError(
          f"{self._where}: PaliGemma knows images before the text only; move the <image> marks to the"
          " beginning of the prompt"
        )
    return IMAGE_MARK * (len(parts) - sum(is_text)) + text


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
