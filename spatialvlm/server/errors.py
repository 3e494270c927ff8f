"""What a client is told that cannot be served, in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID, OVERLOADED, FAILED = "invalid_request_error", "rate_limit_error", "server_error"
UNAUTHORISED = "authentication_error"


class Refused(Exception):
  """A request that gets no answer.

  Attributes:
    status: of HTTP.
    body: the JSON that says why.
    headers: that go with it.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    kind: str = INVALID,
    headers: Mapping[str, str] | None = None,
  ):
    """`param`: the field that is wrong, such as "messages[0].content"; `code`: a word for programs."""
    super().__init__(message)
    self.status, self.headers = status, dict(headers or {})
    message = " ".join(message.split())
    self.body: dict[str, Any] = {
      "error": {"message": message, "type": kind, "param": param, "code": code},
    }
