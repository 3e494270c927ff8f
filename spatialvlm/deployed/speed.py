"""How long a runtime takes for one question, and how much memory."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

from spatialvlm.deployed.asked import Asked
from spatialvlm.deployed.client import Child


def measure(
  module: str, folder: Path, settings: dict[str, Any], asked: Asked, repeats: int, tokens: int
) -> dict[str, Any]:
  """Times of a question, each with the least and the most of all repeats, in a process of its own.

  Returns:
    first_token_s: from picture and text to the first token of the answer, [median, least, most] in seconds;
    what this library cuts for a runtime is counted in. tokens_per_s: of the `tokens` behind it, likewise.
    peak_bytes: the most memory that the process ever held; empty_bytes: before the model was there.
    prompt_tokens. served: the prompt that the runtime's own chat template makes, None without one.
  """
  firsts, rates = [], []
  with Child(module, folder, settings) as child:
    child.generate(asked.given, 2)  # pages are read, programs are warm
    for _ in range(repeats):
      came, _ = child.generate(asked.given, 1 + tokens)
      (first, _), (last, _) = came[0], came[-1]
      firsts.append(first + asked.seconds)
      rates.append(sum(number for _, number in came[1:]) / (last - first))
    memory = child.memory()
    served = child.served(asked.text, asked.given["pictures"]) if asked.given["prompt"] else None
  spread = lambda values: [statistics.median(values), min(values), max(values)]
  return {
    "first_token_s": spread(firsts),
    "tokens_per_s": spread(rates),
    "peak_bytes": memory["peak"],
    "empty_bytes": memory["empty"],
    "prompt_tokens": asked.tokens,
    "served": served,
  }


def machine(threads: int) -> str:
  """What times are those of, in a few words."""
  name = platform.processor() or platform.machine()
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
  except OSError:  # no Linux
    pass
  return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
