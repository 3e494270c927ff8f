"""Real processes of JAX, on one machine, that know each other."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parents[1]


def until(what: Callable[[], bool], seconds: float = 400) -> None:
  """Waits for something that other processes do; fails where it does not come."""
  begun = time.monotonic()
  while not what():
    assert time.monotonic() < begun + seconds, "it did not come to that"
    time.sleep(0.02)


def begin(command: Sequence[str], count: int, **environment: str) -> list[subprocess.Popen]:
  """Starts `python COMMAND` so many times, each with one device and one thread; what they say is kept."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  started = []
  for process in range(count):
    own = dict(
      os.environ,
      **environment,
      PYTHONPATH=str(ROOT),
      XLA_FLAGS="--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false",
      JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
      JAX_NUM_PROCESSES=str(count),
      JAX_PROCESS_ID=str(process),
    )
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(subprocess.Popen([sys.executable, *command], env=own, cwd=ROOT, **pipes))
  return started


def wait(started: Sequence[subprocess.Popen], seconds: float = 400) -> list[tuple[int, str, str]]:
  """(exit code, stdout, stderr) of each, in order; none of them lives on."""
  try:
    said = [process.communicate(timeout=seconds) for process in started]
  finally:
    for process in started:
      process.kill()
  return [(process.returncode, *both) for process, both in zip(started, said, strict=True)]


def children(parent: int) -> list[pathlib.Path]:
  """The folders in /proc of a process's children."""
  found = []
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
        found.append(process)
  return found


def start(script: str, *arguments: str, count: int = 2) -> None:
  """Runs `script` in all until they end; fails where one does not end well."""
  done = wait(begin(["-c", script, *arguments], count))
  assert [code for code, _, _ in done] == [0] * count, done
