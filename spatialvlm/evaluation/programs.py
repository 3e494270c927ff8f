"""How many programs an evaluation had compiled: those of the model by name, and all of them."""

from __future__ import annotations

import collections
from collections.abc import Collection

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen = 0


def _listen(event: str, duration: float, **_: object) -> None:
  global _seen
  _seen += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)


def compiled() -> int:
  """Programs that this process has compiled so far, or taken from the cache of compiled ones."""
  return _seen


def line(called: Collection[tuple], compiled: int) -> str:
  """One line: the model's programs (`Scorer.programs`), and all that were compiled or taken from the cache.

  The model's are as many as there are shapes: of prefixes (a length in steps of `generation.bucket`, and one
  of `score.tiles`), behind each of them of texts (`score.lengths`, three pauses of a generated answer, widths
  of options), however many questions there are. Others, of a few operations, keep what prompts share.
  """
  if not called:
    return "programs: none, all was done"
  counts = collections.Counter(name for name, *_ in called)
  parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
  return f"programs: {len(called)} of the model ({parts}); {compiled} compiled or read from the cache"
