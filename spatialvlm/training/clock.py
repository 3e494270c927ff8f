"""How fast a run is."""

from __future__ import annotations

import time


class Clock:
  """Rates since the last row: of training alone, without compilation, validation and saving."""

  def __init__(self):
    self._begin = time.perf_counter()
    self._reset()

  def _reset(self) -> None:
    self._since, self._paused = time.perf_counter(), 0.0
    self._steps = self._samples = self._tokens = self._flops = 0

  def count(self, flops: float) -> None:
    self._steps += 1
    self._flops += flops

  def read(self, samples: int, tokens: int, flops: float) -> None:
    self._samples += samples
    self._tokens += tokens
    self._flops += flops

  def pause(self, seconds: float) -> None:
    self._paused += seconds

  def rates(self) -> dict[str, float]:
    seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
    rates = {
      "samples_per_second": self._samples / seconds,
      "tokens_per_second": self._tokens / seconds,
      "flops_per_second": self._flops / seconds,
      "seconds_per_step": seconds / max(self._steps, 1),
      "time": time.time(),
    }
    self._reset()
    return rates

  def total(self) -> float:
    return time.perf_counter() - self._begin
