"""What a process has used so far, as lines for the screen: memory, and compiled programs."""

from __future__ import annotations

import collections
import resource
import sys
from collections.abc import Collection

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen = 0


def _listen(event: str, duration: float, **_: object) -> None:
  global _seen
  _seen += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)


def compiled() -> int:
  """Programs that this process has compiled since this module was imported, or taken from jax's cache."""
  return _seen


def programs(called: Collection[tuple], compiled: int) -> str:
  """One line: the model's programs, and all that were compiled or taken from the cache of compiled ones.

  The model's are as many as there are shapes: of prefixes (a length in steps of `generation.bucket`, and one
  of `score.tiles`), behind each of them of texts (`score.lengths`, three pauses of a generated answer, widths
  of options), however many questions there are. Others, of a few operations, keep what prompts share.

  Args:
    called: (name, *shapes) of each, as `Scorer.programs` keeps them.
    compiled: the difference of two calls of `compiled`.
  """
  if not called:
    return "programs: none, all was done"
  counts = collections.Counter(name for name, *_ in called)
  parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
  return f"programs: {len(called)} of the model ({parts}); {compiled} compiled or read from the cache"


def peak_memory() -> str:
  """One line: `peaks` in words."""
  found = peaks()
  device = f", device {_gigabytes(found['device'])}" if found["device"] else ""
  return f"peak memory: process {_gigabytes(found['process'])}{device}"


def peaks() -> dict[str, int | None]:
  """Bytes at the peak so far, of the `process` itself and of its fullest `device`, None where none tells."""
  devices = [stats["peak_bytes_in_use"] for d in jax.local_devices() if (stats := d.memory_stats())]
  return {"process": _process(), "device": max(devices, default=None)}


def _process() -> int:
  """Bytes of the largest resident set so far."""
  try:
    with open("/proc/self/status") as file:
      # Not getrusage: what a process inherits there from the one that started it is not its own.
      return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
  except (OSError, StopIteration):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gigabytes(count: int) -> str:
  return f"{count / 1e9:.2f} GB"
