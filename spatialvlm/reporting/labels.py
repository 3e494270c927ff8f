"""What scores are called and in which rows they stand: for every table of a run's `summary.json`.

`summary` is such a file: `scores[name]` by aggregation, `baselines[baseline][name]` as shares from 0 to 1,
and `official_note`, which is empty where the official formula applies to all questions.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

LABELS = {
  "official": "official",
  "official/2D": "2D, official",
  "official/3D": "3D, official",
  "plain": "all, plain mean",
  "macro": "mean of the tasks",
}


def label(name: str, summary: Mapping[str, Any] | None = None) -> str:
  """`task/Depth` -> `Depth`; the aggregates in words, the official one of a part (of `summary`) as such."""
  part = name.startswith("official") and bool(summary and summary.get("official_note"))
  return LABELS.get(name, name.split("/", 1)[-1]) + (" formula, part" if part else "")


def rows_of(scores: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
  """The scores worth a row, with whether a line follows: (name, line, score)."""
  # A lone source is all questions once more.
  kinds = collections.Counter(name.split("/")[0] for name in scores)
  names = [n for n in scores if kinds[n.split("/")[0]] > 1 or "/" not in n or n.startswith("task/")]
  for i, name in enumerate(names):
    last = i + 1 < len(names) and _kind(names[i + 1]) != _kind(name)
    yield name, last, scores[name]


def best_shortcut(summary: Mapping[str, Any], name: str) -> tuple[str, float]:
  """The best of the baselines that know something, and its score of that name.

  Guessing knows nothing; the others are priors of the answers, and rules of two dimensions. Of equal ones the
  first is taken.
  """
  found = {k: v[name] for k, v in summary["baselines"].items() if k != "guessing" and name in v}
  best = max(found, key=found.get)
  return best, found[best]


def short(baseline: str) -> str:
  """A baseline's name as it stands in a cell: `majority text` -> `text`."""
  return baseline.removeprefix("majority ")


def _kind(name: str) -> str:
  return "plain" if name == "macro" else name.split("/")[0]
