"""Bodies of requests: what is read, and that nothing is passed over in silence."""

import json

import pytest

from spatialvlm.server import chat
from spatialvlm.server.errors import Refused

LOW = {"type": "image_url", "image_url": {"url": "x", "detail": "low"}}
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read(**fields):
  return chat.read(json.dumps(PLAIN | fields).encode())


def test_what_clients_send_is_read():
  picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "high"}}
  found = read(
    messages=[
      {"role": "developer", "content": "be short", "name": "x"},
      {"role": "user", "content": [picture, {"type": "text", "text": "what?"}]},
      {"role": "assistant", "content": "a cone", "refusal": None, "tool_calls": []},
      {"role": "user", "content": "and now?"},
    ],
    stream=True,
    stream_options={"include_usage": True},
    logprobs=True,
    top_logprobs=3,
    max_completion_tokens=7,
    stop="\n",
    seed=-1,
    temperature=0,
    top_p=0.5,
    n=1,
    frequency_penalty=0.0,
    response_format={"type": "text"},
    logit_bias=None,
    user="me",
  )
  assert [m.role for m in found.messages] == ["system", "user", "assistant", "user"]
  assert found.pictures[0].param == "messages[1].content[0].image_url.url"
  assert (found.stream, found.include_usage, found.logprobs, found.tops) == (True, True, True, 3)
  assert (found.max_tokens, found.stop, found.seed, found.temperature) == (7, ("\n",), -1, 0.0)
  assert read().temperature is None and read().max_tokens is None
  assert read(max_tokens=5, max_completion_tokens=5).max_tokens == 5


@pytest.mark.parametrize(
  ("fields", "param"),
  [
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_k": 5}, "top_k"),
    ({"repetition_penalty": 1.0}, "repetition_penalty"),
    ({"model": 3}, "model"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "audio": {"id": "1"}}]}, "messages[0].audio"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [LOW]}]}, "messages[0].content[0].image_url.detail"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 1e-30}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": 2**64}, "seed"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
  ],
)  # fmt: skip
def test_what_is_not_known_or_cannot_be_is_named(fields, param):
  with pytest.raises(Refused) as refused:
    read(**fields)
  error = refused.value.body["error"]
  assert refused.value.status == 400 and error["param"] == param
  assert error["message"].startswith(f"{param}: ") and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
  "body", [b"", b"{", b"[]", b'{"seed": NaN}', b"[" * 100_000, b"\xff\xfe", b"1" * 9999]
)
def test_bodies_that_are_no_object(body):
  with pytest.raises(Refused) as refused:
    chat.read(body)
  assert refused.value.body["error"]["code"] == "invalid_json"
