"""A live server on a free port, asked by OpenAI's own client, and by clients that behave badly."""

import concurrent.futures
import dataclasses
import http.client
import json
import socket
import time
import urllib.parse

import openai
import pytest
from PIL import Image

from spatialvlm.server import run
from tests.server import support
from tests.server.support import QUESTIONS, SMALL, messages, picture, written

KEY = "a key"
SHOWN = [picture(0), picture(1, (24, 40)), picture(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  Image.fromarray(SHOWN[0]).save(folder / "a.png")
  return folder


@pytest.fixture(scope="module")
def service(models, folder):
  scheduling = dataclasses.replace(SMALL, queue=24)
  return support.service(models, scheduling, images=folder, most_bytes=100_000, most_pixels=10_000)


@pytest.fixture(scope="module")
def address(service):
  with run.served(service, KEY) as found:
    yield found


@pytest.fixture(scope="module")
def client(address):
  return openai.OpenAI(base_url=address, api_key=KEY, max_retries=0, timeout=600)


def ask(client, question, *shown, model="base", **fields):
  fields = {"max_tokens": 9, "temperature": 0} | fields
  return client.chat.completions.create(model=model, messages=messages(question, *shown), **fields)


def post(address, body, headers=None, path="/chat/completions"):
  """(status, JSON) of bytes that are sent as they are."""
  parts = urllib.parse.urlsplit(address)
  connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
  headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | (headers or {})
  connection.request("POST", parts.path + path, body, headers)
  answer = connection.getresponse()
  found = answer.status, json.loads(answer.read())
  connection.close()
  return found


def idle(service):
  """Waits until no row, no place in the queue is taken, which is soon."""
  until = time.monotonic() + 120
  while service.scheduler.running or service.scheduler.waiting:
    assert time.monotonic() < until, "a row or a place in the queue is still taken"
    time.sleep(0.01)


def test_the_official_client_gets_the_models_answer(client, vlm):
  found = ask(client, QUESTIONS[0], SHOWN[0])
  assert found.choices[0].message.content == vlm.chat([SHOWN[0]], QUESTIONS[0], max_new_tokens=9)
  assert found.choices[0].finish_reason in ("stop", "length") and found.model == "base"
  usage = found.usage
  assert usage.completion_tokens == 9 and usage.total_tokens == usage.prompt_tokens + 9 > 40
  by_path = messages(QUESTIONS[0])
  by_path[0]["content"].insert(0, {"type": "image_url", "image_url": {"url": "a.png"}})
  again = client.chat.completions.create(model="base", messages=by_path, max_tokens=9, temperature=0)
  assert again.choices == found.choices


def test_models_by_name(client, vlm):
  assert [model.id for model in client.models.list()] == ["base", "other"]
  assert client.models.retrieve("other").id == "other"
  found = ask(client, QUESTIONS[0], SHOWN[0], model="other").choices[0].message.content
  assert found == vlm.set_adapter("other").chat([SHOWN[0]], QUESTIONS[0], max_new_tokens=9)
  vlm.disable_adapters()
  with pytest.raises(openai.NotFoundError, match="'third' does not exist"):
    ask(client, "x", model="third")
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve("third")


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.1, "top_p": 0.9, "seed": 4}])
def test_a_stream_says_what_the_whole_answer_says(client, drawn):
  fields = drawn | {"logprobs": True, "top_logprobs": 2, "max_tokens": 20}
  whole = ask(client, QUESTIONS[1], SHOWN[1], **fields)
  chunks = list(
    ask(client, QUESTIONS[1], SHOWN[1], stream=True, stream_options={"include_usage": True}, **fields)
  )
  assert chunks[-1].usage == whole.usage and not chunks[-1].choices
  choices = [chunk.choices[0] for chunk in chunks[:-1]]
  assert choices[0].delta.role == "assistant" and len(choices) > 3
  assert "".join(c.delta.content or "" for c in choices) == whole.choices[0].message.content
  assert [c.finish_reason for c in choices if c.finish_reason] == [whole.choices[0].finish_reason]
  told = [token for c in choices if c.logprobs for token in c.logprobs.content]
  assert [t.token for t in told] == [t.token for t in whole.choices[0].logprobs.content]
  for one, other in zip(told, whole.choices[0].logprobs.content, strict=True):
    assert one.logprob == pytest.approx(other.logprob, abs=1e-4) and len(one.top_logprobs) == 2
  said = b"".join(bytes(t.bytes) for t in told).decode(errors="replace")
  assert whole.choices[0].message.content in said


def test_many_clients_at_once_get_their_own_answers(client, vlm, service):
  asked = [(QUESTIONS[i % 3] * (1 + i % 2), SHOWN[i % 2 : i % 2 + i % 3]) for i in range(24)]
  fields = lambda i: {"max_tokens": 3 + i % 7, "seed": i} | ({"temperature": 0.9} if i % 2 else {})

  def one(i):
    question, shown = asked[i]
    if i % 3:
      return ask(client, question, *shown, **fields(i)).choices[0].message.content
    chunks = ask(client, question, *shown, stream=True, **fields(i))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

  with concurrent.futures.ThreadPoolExecutor(24) as pool:
    answers = list(pool.map(one, range(24)))
  for i in (0, 3, 7, 10, 16, 23):
    question, shown = asked[i]
    drawn = {"temperature": 0.9} if i % 2 else {}
    assert answers[i] == vlm.chat(shown, question, max_new_tokens=3 + i % 7, seed=i, **drawn)
  assert [one(i) for i in (1, 2, 5, 8)] == [answers[i] for i in (1, 2, 5, 8)]
  idle(service)


def test_streams_that_are_left_free_their_rows(client, service, address):
  for _ in range(6):  # more than there are rows
    stream = ask(client, QUESTIONS[2], SHOWN[2], stream=True, max_tokens=300)
    next(iter(stream))
    stream.close()
  parts = urllib.parse.urlsplit(address)
  for _ in range(3):  # gone before the answer
    body = json.dumps(support.body(QUESTIONS[2], SHOWN[2], max_tokens=300)).encode()
    with socket.create_connection((parts.hostname, parts.port)) as gone:
      head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
      gone.sendall(
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
      )
  idle(service)
  assert ask(client, QUESTIONS[0]).choices[0].message.content


def test_bodies_that_break_off_and_bodies_that_are_none(client, service, address):
  parts = urllib.parse.urlsplit(address)
  with socket.create_connection((parts.hostname, parts.port)) as gone:
    head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    gone.sendall(f'{head}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{{"model'.encode())
  cases = [
    (b"{", None, 400, "no JSON"),
    (b"\xff", None, 400, "no JSON"),
    (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
    (b"x" * 200_000, None, 413, "larger than 100000 bytes"),
    (b"{}", {"Authorization": "Bearer other"}, 401, "API key"),
    (b"{}", {"Authorization": "Bearer \xff"}, 401, "API key"),
    (json.dumps(support.body("hi", n=3)), None, 400, "n: only 1"),
    (json.dumps(support.body("hi", top_k=3)), None, 400, "top_k: not supported"),
  ]
  for body, headers, status, message in cases:
    found, said = post(address, body, headers)
    assert found == status and message in said["error"]["message"], said
    assert set(said["error"]) == {"message", "type", "param", "code"}
  assert post(address, b"{}", path="/embeddings")[0] == 404
  assert ask(client, QUESTIONS[0]).choices[0].message.content
  idle(service)


def test_pictures_that_are_refused_are_named(client):
  for address, message in (
    ("https://example.com/a.png", "not fetched"),
    ("../a.png", "no such picture"),
    (written(support.bomb(30_000, 30_000)), "too large"),
  ):
    asked = messages("what?")
    asked[0]["content"].append({"type": "image_url", "image_url": {"url": address}})
    with pytest.raises(openai.BadRequestError, match=message) as refused:
      client.chat.completions.create(model="base", messages=asked)
    assert refused.value.param == "messages[0].content[1].image_url.url"


def test_a_full_queue_says_429_and_the_client_may_come_again(models, vlm):
  served = support.service(models, dataclasses.replace(SMALL, rows=1, queue=1))
  with run.served(served) as address:
    eager = openai.OpenAI(base_url=address, api_key="any", max_retries=0, timeout=600)
    patient = openai.OpenAI(base_url=address, api_key="any", max_retries=20, timeout=600)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
      found = [pool.submit(ask, eager, QUESTIONS[0], max_tokens=200) for _ in range(6)]
      waited = ask(patient, QUESTIONS[0])
    refused = [one.exception() for one in found if one.exception() is not None]
    assert refused and all(isinstance(one, openai.RateLimitError) for one in refused)
    assert all(one.response.headers["retry-after"] == "1" for one in refused)
    assert waited.choices[0].message.content == vlm.chat(None, QUESTIONS[0], max_new_tokens=9)


def test_health_and_metrics(client, address):
  parts = urllib.parse.urlsplit(address)

  def get(path, key=None):
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()

  assert json.loads(get("/health")[1])["status"] == "ok"
  assert get("/metrics")[0] == 401 and get("/metrics", "b key")[0] == 401
  before = get("/metrics", KEY)[1]
  ask(client, QUESTIONS[0], SHOWN[0], max_tokens=9)
  after = get("/metrics", KEY)[1]
  value = lambda text, name: float(next(x.split()[1] for x in text.splitlines() if x.startswith(name)))
  said = 'spatialvlm_said_tokens_total{model="base"}'
  assert value(after, said) == value(before, said) + 9
  served = 'spatialvlm_requests_total{status="200"}'
  assert value(after, served) == value(before, served) + 1
  assert value(after, "spatialvlm_running") == 0 and 'status="413"' in after
  # Clients that left while their picture was opened, or later, are no failures of the server.
  assert value(after, 'spatialvlm_requests_total{status="499"}') > 5 and 'status="500"' not in after
