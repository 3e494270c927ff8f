"""The body of a request for a chat completion, read strictly: what is not known, or not fit, is named."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatialvlm.server.errors import Refused

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Fields that say nothing about the answer.
IGNORED = frozenset({"user", "metadata", "service_tier", "safety_identifier", "store", "parallel_tool_calls"})
IGNORED |= {"prompt_cache_key", "prompt_cache_retention"}
# Fields that are known, at the values that ask for what is done anyway. null asks for nothing.
NEUTRAL: Mapping[str, Sequence[Any]] = {
  "n": (1,),
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "logit_bias": ({},),
  "response_format": ({"type": "text"},),
  "tools": ([],),
  "functions": ([],),
  "tool_choice": ("none", "auto"),
  "function_call": ("none", "auto"),
  "modalities": (["text"],),
}
MOST_STOPS, LONGEST_STOP, MOST_TOPS = 16, 256, 20
LEAST_TEMPERATURE = 0.001


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image of a message: where it is said to lie, and in which field."""

  url: str
  param: str


@dataclasses.dataclass(frozen=True)
class Message:
  """One turn of a conversation: its role, as chat templates know it, and its texts and images in order."""

  role: str
  parts: tuple[str | Picture, ...]


@dataclasses.dataclass(frozen=True)
class Chat:
  """What is asked.

  Attributes:
    model: by name.
    stream, include_usage: whether the answer comes in pieces, and its counts in a last one.
    logprobs, tops: whether log-probabilities are told, and of how many likeliest tokens beside those said.
    max_tokens: None for as many as the context has room for.
    stop: texts before which the answer ends.
    seed: None for any.
    temperature: None for the server's own.
  """

  model: str
  messages: tuple[Message, ...]
  stream: bool = False
  include_usage: bool = False
  logprobs: bool = False
  tops: int = 0
  max_tokens: int | None = None
  stop: tuple[str, ...] = ()
  seed: int | None = None
  temperature: float | None = None
  top_p: float = 1.0

  @property
  def pictures(self) -> tuple[Picture, ...]:
    """All images, in order."""
    return tuple(part for m in self.messages for part in m.parts if isinstance(part, Picture))


def read(body: bytes) -> Chat:
  """What a body asks for.

  Raises:
    Refused: no JSON object, a field that is not known or whose value cannot be; the field is named.
  """
  fields = _object(body)
  for name, value in fields.items():
    if name in NEUTRAL:
      _check_neutral(name, value)
    elif name not in _READERS and name not in IGNORED and name not in _OTHERS:
      raise Refused(
        400,
        f"{name}: not supported, and it might change the answer; leave it out",
        param=name,
        code="unsupported_parameter",
      )
  found = {name: reads(fields[name], name) for name, reads in _READERS.items() if name in fields}
  for name in ("model", "messages"):
    if name not in found:
      raise _wrong(name, "is missing", code="missing_required_parameter")
  options = fields.get("stream_options")
  if options is not None:
    _check_options(options, found.get("stream", False))
  limits = {found.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in found}
  if len(limits) > 1:
    raise _wrong("max_tokens", "differs from max_completion_tokens; send one of them")
  tops = found.pop("top_logprobs", 0)
  if tops and not found.get("logprobs"):
    raise _wrong("top_logprobs", "needs logprobs to be true")
  return Chat(
    **found,
    tops=tops,
    max_tokens=next(iter(limits), None),
    include_usage=bool((options or {}).get("include_usage")),
  )


def _object(body: bytes) -> dict[str, Any]:
  """The body's fields, without those that are null."""
  try:
    found = json.loads(body, parse_constant=_no_number)
  except (ValueError, RecursionError) as error:
    raise Refused(400, f"the body is no JSON: {error}", code="invalid_json") from None
  if not isinstance(found, dict):
    raise Refused(400, "the body must be a JSON object", code="invalid_json")
  return {name: value for name, value in found.items() if value is not None}


def _no_number(name: str) -> None:
  raise ValueError(f"{name} is no number of JSON")


def _check_neutral(name: str, value: Any) -> None:
  known = NEUTRAL[name]
  if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in known):
    shown = " or ".join(json.dumps(one) for one in known)
    raise Refused(
      400, f"{name}: only {shown} is supported; leave it out", param=name, code="unsupported_value"
    )


def _check_options(options: Any, stream: bool) -> None:
  if not isinstance(options, dict) or not stream:
    raise _wrong("stream_options", "must be an object, beside stream: true")
  for name in options:
    if name not in ("include_usage", "include_obfuscation"):
      raise _wrong(f"stream_options.{name}", "is not supported; leave it out", code="unsupported_parameter")
    _flag(options[name], f"stream_options.{name}")


def _wrong(param: str, what: str, code: str | None = "invalid_value") -> Refused:
  return Refused(400, f"{param}: {what}", param=param, code=code)


def _flag(value: Any, param: str) -> bool:
  if not isinstance(value, bool):
    raise _wrong(param, "must be true or false")
  return value


def _whole(least: int, most: int | None = None) -> Callable[[Any, str], int]:
  bounds = f"at least {least}" if most is None else f"from {least} to {most}"

  def reads(value: Any, param: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most or value) < value:
      raise _wrong(param, f"must be a whole number {bounds}")
    return value

  return reads


def _seed(value: Any, param: str) -> int:
  if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
    raise _wrong(param, "must be a whole number of 64 bits")
  return value


def _number(least: float, most: float, open_below: bool = False) -> Callable[[Any, str], float]:
  bounds = f"{'above' if open_below else 'from'} {least:g} {'and at most' if open_below else 'to'} {most:g}"

  def reads(value: Any, param: str) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (open_below and value == least):
      raise _wrong(param, f"must be a number {bounds}")
    return float(value)

  return reads


def _temperature(value: Any, param: str) -> float:
  found = _number(0, 2)(value, param)
  if 0 < found < LEAST_TEMPERATURE:  # logits divided by less would no longer be numbers
    raise _wrong(param, f"must be 0, or from {LEAST_TEMPERATURE:g} to 2")
  return found


def _text(value: Any, param: str) -> str:
  if not isinstance(value, str):
    raise _wrong(param, "must be a string")
  try:
    value.encode()
  except UnicodeEncodeError:
    raise _wrong(param, "holds half of a character (a lone surrogate)") from None
  return value


def _stops(value: Any, param: str) -> tuple[str, ...]:
  stops = [value] if isinstance(value, str) else value
  if not isinstance(stops, list) or len(stops) > MOST_STOPS:
    raise _wrong(param, f"must be a string, or a list of at most {MOST_STOPS}")
  for index, stop in enumerate(stops):
    if not 0 < len(_text(stop, f"{param}[{index}]")) <= LONGEST_STOP:
      raise _wrong(f"{param}[{index}]", f"must have 1 to {LONGEST_STOP} characters")
  return tuple(stops)


def _messages(value: Any, param: str) -> tuple[Message, ...]:
  if not isinstance(value, list) or not value:
    raise _wrong(param, "must be a list of at least one message")
  found = tuple(_message(one, f"{param}[{index}]") for index, one in enumerate(value))
  if found[-1].role == "assistant":
    raise _wrong(f"{param}[{len(found) - 1}].role", "the last message must ask something (user or system)")
  return found


def _message(value: Any, param: str) -> Message:
  if not isinstance(value, dict):
    raise _wrong(param, "must be an object")
  fields = {name: one for name, one in value.items() if one is not None}
  for name in fields:
    if name not in ("role", "content", "name") and fields[name] not in ([], {}):
      raise _wrong(f"{param}.{name}", "is not supported; leave it out", code="unsupported_parameter")
  role = fields.get("role")
  if not isinstance(role, str) or role not in ROLES:
    raise _wrong(f"{param}.role", f"must be one of {', '.join(ROLES)}")
  content = fields.get("content")
  if isinstance(content, str):
    return Message(ROLES[role], (_text(content, f"{param}.content"),))
  if not isinstance(content, list) or not content:
    raise _wrong(f"{param}.content", "must be a string, or a list of at least one part")
  parts = tuple(_part(one, f"{param}.content[{index}]") for index, one in enumerate(content))
  if role == "assistant" and any(isinstance(part, Picture) for part in parts):
    raise _wrong(f"{param}.content", "an answer shows no pictures")
  return Message(ROLES[role], parts)


def _part(value: Any, param: str) -> str | Picture:
  kind = value.get("type") if isinstance(value, dict) else None
  if kind not in ("text", "image_url") or set(value) - {"type", kind}:
    raise _wrong(param, 'must be {"type": "text", "text": ...} or {"type": "image_url", "image_url": ...}')
  if kind == "text":
    return _text(value.get("text"), f"{param}.text")
  image, param = value.get("image_url"), f"{param}.image_url"
  image = {"url": image} if isinstance(image, str) else image
  if not isinstance(image, dict) or set(image) - {"url", "detail"}:
    raise _wrong(param, 'must be {"url": ...}')
  if image.get("detail") not in (None, "auto", "high"):
    raise _wrong(
      f"{param}.detail",
      'only "auto" and "high" are supported: pictures are cut as the server was started (--max_tiles)',
      code="unsupported_value",
    )
  return Picture(_text(image.get("url"), f"{param}.url"), f"{param}.url")


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
  "model": _text,
  "messages": _messages,
  "stream": _flag,
  "logprobs": _flag,
  "top_logprobs": _whole(0, MOST_TOPS),
  "max_tokens": _whole(1),
  "max_completion_tokens": _whole(1),
  "stop": _stops,
  "seed": _seed,
  "temperature": _temperature,
  "top_p": _number(0, 1, open_below=True),
}
_OTHERS = frozenset({"stream_options"})
