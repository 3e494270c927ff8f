"""What a run has read of its data, counted over all of its processes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatialvlm.data.pipeline import BatchInfo


@dataclasses.dataclass
class Tally:
  """Counts of rows.

  Attributes:
    seen: by source, the rows that were read, and how many of them had no picture.
    skipped: why rows were left out (`DataConfig.bad_rows`), by source[index].
    changes: by source, the rows that each change of place was drawn for (`BatchInfo.changes`), and those of
      them that stayed as they were.
  """

  seen: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  changes: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

  def count(self, info: BatchInfo) -> None:
    """Adds this process's share of a batch."""
    seen = {name: [n, info.blind.get(name, 0)] for name, n in info.sources.items()}
    self.add(Tally(seen, {**info.skipped}, {name: dict(found) for name, found in info.changes.items()}))

  def add(self, other: Tally) -> None:
    for name, (rows, blind) in other.seen.items():
      read, without = self.seen.get(name, (0, 0))
      self.seen[name] = [read + rows, without + blind]
    self.skipped.update(other.skipped)
    for name, found in other.changes.items():
      self.changes[name] = dict(Counter(self.changes.get(name, {})) + Counter(found))


def of_all_processes(tally: Tally) -> Tally:
  """The sum of what the processes have counted; each of them must call this."""
  if jax.process_count() == 1:
    return tally
  said = json.dumps(dataclasses.asdict(tally)).encode()
  size = int(multihost_utils.process_allgather(np.int32(len(said))).max())
  total = Tally()
  for text in multihost_utils.process_allgather(np.frombuffer(said.ljust(size), np.uint8)):
    total.add(Tally(**json.loads(bytes(text))))
  return total
