"""Listens: uvicorn around the application, the scheduler's thread beside it."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import uvicorn

from spatialvlm.server import app
from spatialvlm.server.service import Service
from spatialvlm.types import UserError

# Seconds that answers on their way have when the server is told to end.
GRACE = 10


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens; port 0 takes any that is free.

  Raises:
    UserError: the address cannot be had.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  found = socket.socket(family, socket.SOCK_STREAM)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((host, port))
    found.listen(1024)
  except (OSError, OverflowError, UnicodeError) as error:
    found.close()
    raise UserError(f"--host={host} --port={port}: cannot be listened at ({error})") from None
  return found


def address(listening: socket.socket) -> str:
  """Where clients find it."""
  host, port = listening.getsockname()[:2]
  return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _server(service: Service, api_key: str | None) -> uvicorn.Server:
  config = uvicorn.Config(
    app.make(service, api_key),
    log_level="warning",
    access_log=False,
    lifespan="off",
    timeout_graceful_shutdown=GRACE,
  )
  return uvicorn.Server(config)


def serve(service: Service, listening: socket.socket, api_key: str | None = None) -> None:
  """Serves until a signal (SIGINT, SIGTERM) comes; answers on their way are finished for `GRACE` seconds."""
  service.scheduler.start()
  try:
    _server(service, api_key).run([listening])
  finally:
    service.scheduler.stop()


@contextlib.contextmanager
def served(service: Service, api_key: str | None = None) -> Iterator[str]:
  """Serves in threads of this process at a free port, for as long as the block lasts; gives the address."""
  listening = listen("127.0.0.1", 0)
  server = _server(service, api_key)
  thread = threading.Thread(target=server.run, args=([listening],), name="server", daemon=True)
  service.scheduler.start()
  thread.start()
  try:
    while not server.started and thread.is_alive():
      time.sleep(0.01)
    yield address(listening)
  finally:
    server.should_exit = True
    thread.join()
    service.scheduler.stop()
    listening.close()


def complain(error: Exception) -> None:
  """Writes an error with its traceback to stderr."""
  traceback.print_exception(error, file=sys.stderr)
