"""Who of a run's processes is still there: one that ends before its time is noticed at once.

Collectives notice a dead neighbour on some devices, and barriers on none: both would wait. So each process
keeps a TCP connection to the first one, open and silent. The system closes those of a process that is killed,
the first one sees it and tells the others, and each ends with one line and exit code `LEFT`, by a thread of
its own, whatever its main thread waits for. Of a computer that vanishes nothing is closed: TCP asks it after
30 silent seconds, every 10 s, and gives it up after 90 s in all.

A process that ends with an error of its own says so first, and stays for up to `GRACE` seconds: what ails all
of them, as a wrong setting does, each is to tell by itself. One that has done its work takes leave.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from spatialvlm.types import Note

# Exit code of a process that another one left alone.
LEFT = 3
# Seconds that others have to tell the error of one as their own.
GRACE = 10.0
# Seconds that the first process, which JAX's own service is in, waits for the others to end before it.
LAST = 5.0
SAID = "another process of this run has ended; the same command, on any number of processes, goes on from the"
SAID += " last checkpoint"
# What processes say, one byte each: the work is done, an error was told, all are to end.
_DONE, _ERROR, _END = b".", b"!", b"x"
_HELLO = struct.Struct("16sI")
_KEY = "spatialvlm/watch"
# Seconds to reach the first process.
_REACH = 120


class Watch:
  """One process's part; made once, after the processes have found each other (`begin`)."""

  def __init__(self, index: int, count: int):
    """Knows process `index` of `count`, and nobody yet."""
    self._index, self._count = index, count
    self._changed, self._ending = threading.Condition(), threading.Lock()
    self._connections: dict[int, socket.socket] = {}
    self._said: dict[int, bytes] = {}  # last, by process
    self._closed: set[int] = set()
    self._told_end = False
    self._own_error = False

  def listen(self) -> tuple[int, bytes]:
    """The first process's side: the port that the others are to come to, and the word that they say."""
    word = secrets.token_bytes(16)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, backlog=self._count, dualstack_ipv6=dual)
    self._thread(self._accept, server, word)
    return server.getsockname()[1], word

  def reach(self, host: str, port: int, word: bytes) -> None:
    """The others' side. Raises an OSError where the first process cannot be reached."""
    connection = socket.create_connection((host, port), timeout=_REACH)
    connection.settimeout(None)
    connection.sendall(_HELLO.pack(word, self._index))
    self._know(0, connection)

  def end(self, code: int) -> NoReturn:
    """Ends this process, whose own error is told, and all others after they had time to tell theirs."""
    self._ending.acquire()  # for good: whoever comes later waits here for the end
    _flush()
    self._own_error = True
    if self._index:
      self._say(0, _ERROR)
      self._until(lambda: self._told_end or 0 in self._closed, GRACE + LAST)
    else:
      self._until(lambda: self._told_end or self._all_told(), GRACE)
      self._dismiss()
    os._exit(code)

  def leave_alone(self) -> NoReturn:
    """Ends this process because of another one, in one line; where it ends already, nothing more is said."""
    self._ending.acquire()
    _flush()
    with contextlib.suppress(OSError):
      os.write(2, f"error: {SAID}\n".encode())
    if self._index:
      self._say(0, _END)
    else:
      self._dismiss()
    os._exit(LEFT)

  def leave(self) -> None:
    """Takes leave of the others, at the end of a process that has done its work."""
    for other in list(self._connections):
      self._say(other, _DONE)

  def _accept(self, server: socket.socket, word: bytes) -> None:
    while len(self._connections) < self._count - 1:
      connection, _ = server.accept()
      self._thread(self._welcome, connection, word)

  def _welcome(self, connection: socket.socket, word: bytes) -> None:
    with contextlib.suppress(OSError, struct.error):
      connection.settimeout(_REACH)
      said, index = _HELLO.unpack(connection.recv(_HELLO.size, socket.MSG_WAITALL))
      if secrets.compare_digest(said, word) and 0 < index < self._count and index not in self._connections:
        connection.settimeout(None)
        self._know(index, connection)
        return
    connection.close()

  def _know(self, other: int, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
      if hasattr(socket, name):  # macOS has other names, and two hours
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    with self._changed:
      self._connections[other] = connection
    self._thread(self._hear, other, connection)

  def _hear(self, other: int, connection: socket.socket) -> None:
    while True:
      try:
        said = connection.recv(1)
      except OSError:
        said = b""
      with self._changed:
        before = self._said.get(other, b"")
        if said:
          self._said[other] = said
        else:
          self._closed.add(other)
        self._told_end |= said == _END
        self._changed.notify_all()
      if said == _END or (not said and before not in (_DONE, _ERROR)):
        self._thread(self.leave_alone)  # this one must hear who ends
      if said == _ERROR and not self._index:
        self._thread(self._left_after_grace)
      if not said:
        return

  def _left_after_grace(self) -> None:
    """Somebody told an error of its own: the others, and this one, may be about to tell the same."""
    self._until(lambda: self._own_error and self._all_told(), GRACE)
    self.leave_alone()

  def _dismiss(self) -> None:
    """Sends the others away. JAX's clients, whose service ends with this process, would say much about it."""
    for other in list(self._connections):
      self._say(other, _END)
    self._until(lambda: self._closed >= set(self._connections), LAST)

  def _all_told(self) -> bool:
    return all(self._said.get(o) == _ERROR or o in self._closed for o in self._connections)

  def _say(self, other: int, said: bytes) -> None:
    with contextlib.suppress(OSError, KeyError):
      self._connections[other].sendall(said)

  def _until(self, true: Callable[[], bool], seconds: float) -> None:
    with self._changed:
      self._changed.wait_for(true, seconds)

  def _thread(self, what: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=what, args=arguments, name="watch", daemon=True).start()


def begin() -> Watch:
  """Joins the watch of this run's processes, which have found each other (`jax.distributed.initialize`)."""
  # The store of JAX's processes has no public name.
  from jax._src import distributed

  state = distributed.global_state
  watch = Watch(state.process_id, state.num_processes)
  if state.process_id == 0:
    port, word = watch.listen()
    state.client.key_value_set(_KEY, f"{port} {word.hex()}")
  else:
    port, word = state.client.blocking_key_value_get(_KEY, _REACH * 1000).split()
    host = state.coordinator_address.rsplit(":", 1)[0].strip("[]")
    try:
      watch.reach(host, int(port), bytes.fromhex(word))
    except OSError as error:
      said = (
        f"the first process cannot be reached at {host}:{port} ({error}); should one die, the others notice"
      )
      warnings.warn(Note(f"{said} where collectives do, or by JAX's heartbeats after 100 s"), stacklevel=2)
  # Before what JAX does at the end, which waits for all.
  atexit.register(lambda: None if hasattr(sys, "last_value") else watch.leave())
  return watch


def _flush() -> None:
  """What was printed so far, unless the main thread is printing at this moment."""
  for stream in (sys.stdout, sys.stderr):
    flushing = threading.Thread(target=_flushed, args=(stream,), daemon=True)
    flushing.start()
    flushing.join(1.0)


def _flushed(stream: TextIO) -> None:
  with contextlib.suppress(OSError, ValueError, RuntimeError):
    stream.flush()
