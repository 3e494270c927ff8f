"""Ctrl-C, from the first import on: a command says "interrupted" and ends with exit code 130, always.

Python's own way is a KeyboardInterrupt in the main thread between two of its instructions. While libraries
are imported, that is a traceback; in a callback of theirs it is swallowed; a program that compiles delays it.
So the system's own signal wakes a thread (`signal.set_wakeup_fd`). Before `main` of a command begins, when
nothing is written yet, the thread ends the process at once. Afterwards it gives the KeyboardInterrupt `GRACE`
seconds to bring the command to an end in order, and then ends it too; a second Ctrl-C does so at once.

Handlers that the code below installs itself, as training does for its steps, are left to do their work. This
module imports nothing heavy and comes before everything that does.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable

CODE = 130
# Seconds that a command has to end in order.
GRACE = 5.0


class _State:
  watching = False
  orderly = False
  came = False
  came_to_watch = False
  resent = 0
  ending = threading.Lock()


def watch() -> None:
  """Begins, in a process that a command was started as; in any other one Ctrl-C stays what it was."""
  if _State.watching or not _is_command() or threading.current_thread() is not threading.main_thread():
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.signal(signal.SIGINT, _handler)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(reading,), name="interrupts", daemon=True).start()
  sys.unraisablehook = _raise_again
  _State.watching = True


def in_order(work: Callable[[], int]) -> int:
  """Does a command's work, which a KeyboardInterrupt can end in order; returns its exit code.

  Errors pass, but for those that come of an interrupt: libraries turn it into errors of their own.
  """
  _State.orderly = True
  try:
    return work()
  except BaseException as error:
    if _State.came:
      _end()
    if not isinstance(error, KeyboardInterrupt):
      raise
    print("interrupted", file=sys.stderr, flush=True)
    return CODE
  finally:
    _State.orderly = False


def _end() -> None:
  """Ends the process here: on the ordinary way out, threads of libraries may crash or wait."""
  _State.ending.acquire()  # for good: it is said once
  if threading.current_thread() is threading.main_thread():  # another one might wait for it
    with contextlib.suppress(OSError, ValueError):
      sys.stdout.flush()
  with contextlib.suppress(OSError):
    os.write(2, b"interrupted\n")
  os._exit(CODE)


def _is_command() -> bool:
  """Whether one of `launch/` was started: by its path, by `-m`, or by its installed name."""
  if multiprocessing.parent_process() is not None:
    return False
  started = pathlib.Path(sys.argv[0] if sys.argv else "")
  return started.name.startswith("spatialvlm-") or started.name == "-m" or started.parent.name == "launch"


def _handler(number: int, frame: object) -> None:
  if _State.orderly:
    _State.came = True
    raise KeyboardInterrupt


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
  """A KeyboardInterrupt that fell into a callback, such as JAX's of the garbage collection, is sent anew."""
  if not (_State.came and issubclass(unraisable.exc_type, KeyboardInterrupt)):
    sys.__unraisablehook__(unraisable)
  elif _State.orderly:
    # Not here, where it would fall into the same callback.
    threading.Timer(0.05, _send).start()


def _send() -> None:
  _State.resent += 1
  _thread.interrupt_main()


def _watch(reading: int) -> None:
  asked = 0
  while True:
    asked += os.read(reading, 64).count(signal.SIGINT)
    if signal.getsignal(signal.SIGINT) is not _handler:
      asked = _State.resent
    elif asked > _State.resent and (not _State.orderly or asked > _State.resent + 1):
      _end()
    elif asked > _State.resent and not _State.came_to_watch:
      _State.came_to_watch = True
      threading.Thread(target=_end_later, name="interrupted", daemon=True).start()


def _end_later() -> None:
  time.sleep(GRACE)
  _end()
