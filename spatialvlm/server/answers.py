"""Answers as JSON: whole, and in the pieces of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spatialvlm.server.chat import Chat
from spatialvlm.server.service import Event
from spatialvlm.server.speech import Vocabulary
from spatialvlm.serving.lane import Token


class Answers:
  """Writes the answer to one request."""

  def __init__(self, chat: Chat, prompt_tokens: int, vocabulary: Vocabulary):
    self._chat, self._prompt_tokens, self._vocabulary = chat, prompt_tokens, vocabulary
    self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

  def whole(self, events: Sequence[Event]) -> dict[str, Any]:
    """A `chat.completion` of all events, the last of which ends the answer."""
    text = "".join(event.piece.text for event in events)
    tokens = [token for event in events for token in event.piece.tokens]
    choice = {
      "index": 0,
      "message": {"role": "assistant", "content": text, "refusal": None},
      "logprobs": self._logprobs(tokens),
      "finish_reason": events[-1].finish,
    }
    return self._head("chat.completion") | {"choices": [choice], "usage": self._usage(events[-1].said)}

  def first(self) -> dict[str, Any]:
    """The chunk that begins a stream."""
    return self._chunk({"role": "assistant", "content": ""})

  def chunks(self, event: Event) -> Iterable[dict[str, Any]]:
    """The chunks of one event: what is said, the end, and the counts if they were asked for."""
    if event.piece.text or event.piece.tokens:
      yield self._chunk({"content": event.piece.text}, self._logprobs(event.piece.tokens))
    if event.finish is not None:
      yield self._chunk({}, finish=event.finish)
      if self._chat.include_usage:
        yield self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage(event.said)}

  def _chunk(
    self, delta: Mapping[str, Any], logprobs: Any = None, finish: str | None = None
  ) -> dict[str, Any]:
    choice = {"index": 0, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish}
    return self._head("chat.completion.chunk") | {"choices": [choice]}

  def _head(self, kind: str) -> dict[str, Any]:
    return {"id": self._id, "object": kind, "created": self._created, "model": self._chat.model}

  def _usage(self, said: int) -> dict[str, int]:
    return {
      "prompt_tokens": self._prompt_tokens,
      "completion_tokens": said,
      "total_tokens": self._prompt_tokens + said,
    }

  def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
    if not self._chat.logprobs:
      return None
    return {"content": [self._told(token) for token in tokens], "refusal": None}

  def _told(self, token: Token) -> dict[str, Any]:
    tops = [self._named(*top) for top in token.top[: self._chat.tops]]
    return self._named(token.id, token.logprob) | {"top_logprobs": tops}

  def _named(self, id: int, logprob: float) -> dict[str, Any]:
    written = self._vocabulary.bytes(id)
    # JSON knows no -inf; OpenAI writes what is next to impossible so, too.
    logprob = max(logprob, -9999.0)
    return {"token": written.decode(errors="replace"), "logprob": logprob, "bytes": list(written)}


def models(names: Iterable[str], created: int) -> dict[str, Any]:
  """The list of models."""
  return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> dict[str, Any]:
  """One of them."""
  return {"id": name, "object": "model", "created": created, "owned_by": "spatialvlm"}
