"""CV-Bench's aggregations, as data: every score is a weighted sum of accuracies over groups of questions.

Official formula (nyu-visionx/CV-Bench, data set card): 2D is the mean of the accuracies on ADE20K and COCO,
3D the accuracy on Omni3D, overall the mean of 2D and 3D. It is not the plain mean over questions, which some
harnesses report (lmms-eval does): 3D weighs 50 % instead of 45.5 %, ADE20K more than COCO. Both are given,
and the mean of the tasks (macro).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spatialvlm.data.sources.cvbench import SOURCES
from spatialvlm.evaluation.records import Prediction

TASKS = ("Count", "Relation", "Depth", "Distance")
OFFICIAL = {
  "official": {"source/ADE20K": 0.25, "source/COCO": 0.25, "source/Omni3D": 0.5},
  "official/2D": {"source/ADE20K": 0.5, "source/COCO": 0.5},
  "official/3D": {"source/Omni3D": 1.0},
}


@dataclasses.dataclass(frozen=True)
class Aggregation:
  """How rows become scores.

  Attributes:
    groups: name -> bool mask over the rows.
    scores: name -> {group: weight}, in the order of display; weights of one score sum to 1.
    official_note: empty; why the official formula does not apply to these rows; or of what part it is.
  """

  groups: Mapping[str, np.ndarray]
  scores: Mapping[str, Mapping[str, float]]
  official_note: str = ""

  def values(self, correct_N: np.ndarray) -> dict[str, float]:
    """Scores of a vector of correctness (bool, or the chance of being right), float in [0, 1]."""
    means = {name: float(np.mean(correct_N[mask])) for name, mask in self.groups.items()}
    return {name: sum(w * means[g] for g, w in parts.items()) for name, parts in self.scores.items()}

  def counts(self) -> dict[str, int]:
    """Questions that each score rests on."""
    return {n: int(sum(self.groups[g].sum() for g in parts)) for n, parts in self.scores.items()}


def aggregation(rows: Sequence[Prediction]) -> Aggregation:
  """Groups of these rows: all, 2D and 3D, tasks, sources, and sources' data sets where they say more."""
  groups = {"plain": np.ones(len(rows), bool)}
  for prefix, field, first in (
    ("type", "type", ("2D", "3D")),
    ("task", "task", TASKS),
    ("source", "source", tuple(SOURCES)),
    ("source_dataset", "source_dataset", ()),
  ):
    labels = np.array([getattr(row, field) for row in rows], dtype=object)
    found = sorted(set(labels), key=lambda v: (first.index(v) if v in first else len(first), v))
    for value in found:
      if value:
        groups[f"{prefix}/{value}"] = labels == value
  scores, note = _official(collections.Counter(row.source for row in rows))
  scores |= {name: {name: 1.0} for name in groups}
  tasks = [name for name in groups if name.startswith("task/")]
  if len(tasks) > 1:
    scores["macro"] = dict.fromkeys(tasks, 1 / len(tasks))
    first = ("official", "official/2D", "official/3D", "plain", "macro")
    scores = {name: scores[name] for name in (*(n for n in first if n in scores), *scores)}
  return Aggregation(groups, scores, note)


def guessing(rows: Sequence[Prediction]) -> np.ndarray:
  """The chance of being right by uniform guessing, per row: 1 / number of options, float64 (N,)."""
  return np.array([1.0 / len(row.choices) for row in rows])


def _official(counts: Mapping[str, int]) -> tuple[dict[str, Mapping[str, float]], str]:
  """The official scores of so many questions of each source, none where they do not apply; and a note."""
  foreign = sorted(set(counts) - set(SOURCES))
  if foreign:
    return {}, f"n/a: defined on {', '.join(SOURCES)}; these questions are from {', '.join(foreign)}"
  missing = [s for s in SOURCES if s not in counts]
  if missing:
    return {}, f"n/a: no question from {', '.join(missing)} in this run"
  if all(counts[source] == size for source, size in SOURCES.items()):
    return dict(OFFICIAL), ""
  parts = ", ".join(f"{source} {counts[source]} of {size:,}" for source, size in SOURCES.items())
  return dict(OFFICIAL), f"its formula on another number of questions than CV-Bench's ({parts})"
