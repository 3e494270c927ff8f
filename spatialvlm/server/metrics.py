"""What Prometheus is told: requests and their times, and what the scheduler has at the moment."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from spatialvlm.serving.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
  """Counts of one server, in a registry of its own."""

  def __init__(self, scheduler: Scheduler):
    self._registry = CollectorRegistry()
    self._registry.register(_OfScheduler(scheduler))
    self.requests = Counter(
      "spatialvlm_requests", "Requests for completions by status; 499: the client left",
      ["status"], registry=self._registry,
    )  # fmt: skip
    self.seconds = Histogram(
      "spatialvlm_request_seconds", "From a request's first byte to its answer's last",
      buckets=_SECONDS, registry=self._registry,
    )  # fmt: skip
    self.first = Histogram(
      "spatialvlm_first_piece_seconds", "From a request's first byte to the first words of its answer",
      buckets=_SECONDS, registry=self._registry,
    )  # fmt: skip

  def text(self) -> bytes:
    """All of it, in Prometheus's text format."""
    return generate_latest(self._registry)


class _OfScheduler:
  """Reads the scheduler's numbers when they are asked for."""

  def __init__(self, scheduler: Scheduler):
    self._scheduler = scheduler

  def collect(self) -> Iterator[Metric]:
    scheduler = self._scheduler
    yield GaugeMetricFamily("spatialvlm_waiting", "Requests without a row", value=scheduler.waiting)
    yield GaugeMetricFamily("spatialvlm_running", "Requests that have a row", value=scheduler.running)
    yield GaugeMetricFamily("spatialvlm_rows", "Rows of each model", value=scheduler.config.rows)
    counters = {
      "prompt_tokens": ("Tokens of prompts, image tokens included", lambda lane: lane.counts.prompt_tokens),
      "said_tokens": ("Tokens of answers", lambda lane: lane.counts.said_tokens),
      "answers": ("Whole answers", lambda lane: lane.counts.answers),
      "turns": ("Programs that said a few tokens of all rows", lambda lane: lane.counts.turns),
      "row_steps": ("Tokens of these programs, summed over rows", lambda lane: lane.counts.row_steps),
      "encoded_tiles": ("Image tiles that the tower encoded", lambda lane: lane.shared.encoded),
      "prefixes_read": ("Prompts' beginnings that were read", lambda lane: lane.shared.read),
      "prefixes_kept": ("... and that were kept from before", lambda lane: lane.shared.prefixes.found),
    }
    for name, (said, value) in counters.items():
      family = CounterMetricFamily(f"spatialvlm_{name}", said, labels=["model"])
      for model in scheduler.models:
        family.add_metric([model], value(scheduler.lane(model)))
      yield family
