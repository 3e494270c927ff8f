"""How much memory a process took at most."""

from __future__ import annotations

import resource
import sys

import jax


def peak() -> str:
  """One line: the peak of the process's own memory and, where devices tell, of the fullest one's."""
  devices = [stats["peak_bytes_in_use"] for d in jax.local_devices() if (stats := d.memory_stats())]
  device = f", device {_gigabytes(max(devices))}" if devices else ""
  return f"peak memory: process {_gigabytes(_process())}{device}"


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
