"""HTTP: routes, keys, limits, streams. All that a request is about lies in `service`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from spatialvlm.server import answers, chat
from spatialvlm.server.answers import Answers
from spatialvlm.server.errors import FAILED, OVERLOADED, UNAUTHORISED, Refused
from spatialvlm.server.metrics import CONTENT_TYPE, Metrics
from spatialvlm.server.service import Asked, Event, Service

# Status of a request whose client left, as nginx counts it; nobody ever sees it sent.
LEFT = 499
# Requests that are laid out at the same time: pictures are large while they are opened.
PREPARING = 4


class _Left(Exception):
  """The client has gone."""


class Door:
  """How many requests are inside; there are no more than may wait and run."""

  def __init__(self, most: int):
    self._most, self.inside = most, 0

  @contextlib.contextmanager
  def enter(self):
    """Counts a request for as long as it is served.

    Raises:
      Refused: too many are inside.
    """
    if self.inside >= self._most:
      raise Refused(
        429,
        f"{self.inside} requests are being served or wait already; try again later",
        code="rate_limit_exceeded",
        kind=OVERLOADED,
        headers={"Retry-After": "1"},
      )
    self.inside += 1
    try:
      yield
    finally:
      self.inside -= 1


class Completions:
  """The endpoint of chat completions, as an ASGI application: it must know when a client leaves."""

  def __init__(self, service: Service, metrics: Metrics):
    scheduling = service.scheduler.config
    self._service, self._metrics = service, metrics
    self._seconds = scheduling.seconds
    self._door = Door(scheduling.queue + scheduling.rows * len(service.scheduler.models))
    self._pool = concurrent.futures.ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    began, visit = time.monotonic(), _Visit(receive, send)
    status = 500
    try:
      with self._door.enter():
        status = await self._served(Request(scope, receive), visit, began)
    except Refused as refused:
      status = refused.status
      await visit.refuse(refused, scope)
    except (_Left, ClientDisconnect, OSError):
      status = LEFT
    finally:
      self._metrics.requests.labels(str(status)).inc()
      self._metrics.seconds.observe(time.monotonic() - began)

  async def _served(self, request: Request, visit: _Visit, began: float) -> int:
    asked_for = chat.read(await self._body(request))
    self._service.check(asked_for)
    loop, events = asyncio.get_running_loop(), asyncio.Queue()
    async with visit.watched() as gone:
      prepared = await gone(loop.run_in_executor(self._pool, self._service.prepare, asked_for))
      asked = self._service.ask(asked_for, prepared, _into(events, loop))
      try:
        await self._answer(asked_for, asked, self._events(events, gone, began), visit)
      finally:
        self._service.cancel(asked)
    return 200

  async def _events(self, events: asyncio.Queue, gone: Callable, began: float) -> AsyncIterator[Event]:
    """Events up to the last; an error is raised."""
    first = True
    while True:
      event: Event = await gone(events.get())
      if first:
        self._metrics.first.observe(time.monotonic() - began)
        first = False
      if event.error is not None:
        raise event.error
      yield event
      if event.last:
        return

  async def _answer(
    self, asked_for: chat.Chat, asked: Asked, events: AsyncIterator[Event], visit: _Visit
  ) -> None:
    written = Answers(asked_for, asked.prompt_tokens, self._service.vocabulary)
    if not asked_for.stream:
      await visit.json(written.whole([event async for event in events]))
      return
    await visit.begin_stream()
    await visit.event(written.first())
    async for event in events:
      for chunk in written.chunks(event):
        await visit.event(chunk)
    await visit.end_stream()

  async def _body(self, request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
      # A page in a browser may send other kinds anywhere without asking first.
      raise Refused(415, "the body must be of content-type application/json", code="unsupported_media_type")
    most = self._service.config.most_bytes
    too_large = Refused(413, f"the body is larger than {most} bytes", code="request_too_large")
    with contextlib.suppress(ValueError):
      if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    parts, size = [], 0
    try:
      async with asyncio.timeout(self._seconds):
        async for part in request.stream():
          size += len(part)
          if size > most:
            raise too_large
          parts.append(part)
    except TimeoutError:
      raise Refused(408, f"the body did not come within {self._seconds:g} seconds", code="timeout") from None
    return b"".join(parts)


class _Visit:
  """One client: what is sent to it, and whether it is still there."""

  def __init__(self, receive: Receive, send: Send):
    self._receive, self._send = receive, send
    self._begun = False

  @contextlib.asynccontextmanager
  async def watched(self):
    """Gives what waits for something as long as the client is there; else `_Left` is raised."""
    left = asyncio.ensure_future(self._leaves())

    async def gone(what):
      task = asyncio.ensure_future(what)
      try:
        done, _ = await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task not in done:
          raise _Left
        return task.result()
      finally:
        task.cancel()  # of one that is done this does nothing

    try:
      yield gone
    finally:
      left.cancel()

  async def json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
    response = JSONResponse(body, status, headers)
    self._begun = True
    await self._send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
    await self._send({"type": "http.response.body", "body": response.body})

  async def begin_stream(self) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    # Proxies would collect pieces otherwise.
    headers.append((b"x-accel-buffering", b"no"))
    self._begun = True
    await self._send({"type": "http.response.start", "status": 200, "headers": headers})

  async def event(self, value: Any) -> None:
    await self._write(json.dumps(value, separators=(",", ":")))

  async def end_stream(self) -> None:
    await self._write("[DONE]", more=False)

  async def refuse(self, refused: Refused, scope: Scope) -> None:
    """Tells of an error; in a stream as its last event."""
    if not self._begun:
      await self.json(refused.body, refused.status, refused.headers)
      return
    await self._write(json.dumps(refused.body), more=False)

  async def _write(self, data: str, more: bool = True) -> None:
    body = f"data: {data}\n\n".encode()
    await self._send({"type": "http.response.body", "body": body, "more_body": more})

  async def _leaves(self) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
      message = await self._receive()


def _into(events: asyncio.Queue, loop: asyncio.AbstractEventLoop) -> Callable[[Event], None]:
  """What puts events into a queue from another thread."""

  def put(event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
      loop.call_soon_threadsafe(events.put_nowait, event)

  return put


@dataclasses.dataclass(frozen=True)
class _Keyed:
  """Lets those in who know the key; `open` paths are for everybody."""

  app: Any
  key: str
  open: frozenset[str] = frozenset({"/health"})

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["path"] not in self.open:
      said = dict(scope["headers"]).get(b"authorization", b"")
      if not secrets.compare_digest(said, f"Bearer {self.key}".encode()):
        refused = Refused(
          401,
          "a wrong API key, or none (Authorization: Bearer ...)",
          code="invalid_api_key",
          kind=UNAUTHORISED,
          headers={"WWW-Authenticate": "Bearer"},
        )
        await JSONResponse(refused.body, refused.status, refused.headers)(scope, receive, send)
        return
    await self.app(scope, receive, send)


def make(service: Service, api_key: str | None = None) -> Any:
  """The application. The service's scheduler is started and stopped by who serves it."""
  metrics, created = Metrics(service.scheduler), int(time.time())
  scheduler = service.scheduler

  def models(request: Request) -> Response:
    return JSONResponse(answers.models(scheduler.models, created))

  def model(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in scheduler.models:
      raise HTTPException(404, f"model {name!r} does not exist")
    return JSONResponse(answers.model(name, created))

  def health(request: Request) -> Response:
    if not scheduler.alive:
      return JSONResponse({"status": "stopped"}, 503)
    return JSONResponse({"status": "ok", "waiting": scheduler.waiting, "running": scheduler.running})

  def numbers(request: Request) -> Response:
    return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

  app = Starlette(
    routes=[
      Route("/v1/chat/completions", Completions(service, metrics), methods=["POST"]),
      Route("/v1/models", models),
      Route("/v1/models/{name:path}", model),
      Route("/health", health),
      Route("/metrics", numbers),
    ],
    exception_handlers={HTTPException: _no_such, Exception: _failed},
  )
  return _Keyed(app, api_key) if api_key else app


def _no_such(request: Request, error: HTTPException) -> Response:
  refused = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
  return JSONResponse(refused.body, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> Response:
  refused = Refused(500, "the server failed on this request; its log says more", code="failed", kind=FAILED)
  return JSONResponse(refused.body, 500)
