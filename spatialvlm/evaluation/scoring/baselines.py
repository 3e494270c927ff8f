"""What can be scored without a sense of space: guessing, priors of the answers, rules of two dimensions.

A prior is fitted on the folds that it is not asked about (five folds, an image's questions all in one), so
it never sees the answer it predicts. What it says of a question is a distribution: equal options share.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.scoring import boxes
from spatialvlm.evaluation.scoring.aggregation import guessing
from spatialvlm.types import LETTERS, Question
from spatialvlm.worlds import shortcuts

FOLDS = 5
# The `source` of rendered scenes.
SCENES = "Scenes"


def priors(rows: Sequence[Prediction], seed: int = 0) -> dict[str, np.ndarray]:
  """The chance of being right of each prior baseline, by its name, float64 (N,)."""
  return {
    "guessing": guessing(rows),
    "majority letter": majority_letter(rows, seed),
    "majority text": majority_text(rows, seed),
  }


def majority_letter(rows: Sequence[Prediction], seed: int = 0) -> np.ndarray:
  """The letter that is oftenest right among questions of the same task and number of options."""
  return _cross_fitted(
    rows, seed, group=lambda r: (r.task, len(r.choices)), options=lambda r: LETTERS[: len(r.choices)]
  )


def majority_text(rows: Sequence[Prediction], seed: int = 0) -> np.ndarray:
  """The option whose text is oftenest the answer among questions of the same task and source."""
  return _cross_fitted(rows, seed, group=lambda r: (r.task, r.source), options=lambda r: r.choices)


def rule_letters(question: Question) -> Mapping[str, str]:
  """What simple rules of two dimensions ("the bigger box is nearer") choose, where they say anything.

  What the question's source knows of them counts (`Question.rules`). Else of rendered scenes, whose boxes are
  known to be those of the objects asked about, in order; of other questions for Depth and Distance, where the
  boxes are found in the picture in the colours that the question names.
  """
  if question.rules:
    found = question.rules
  elif question.source == SCENES:
    found = {rule: shortcuts.rule_choice(rule, question) for rule in shortcuts.RULES}
  else:
    found = _rules_by_drawn_boxes(question)
  return {rule: LETTERS[choice] for rule, choice in found.items() if choice is not None}


def _rules_by_drawn_boxes(question: Question) -> dict[str, int | None]:
  options = [choice.lower() for choice in question.choices]
  if question.task not in ("Depth", "Distance") or len(options) != 2:
    return {}
  named = boxes.named_boxes(question)
  if named is None or not set(options) <= named.keys():
    return {}
  pair = [named[option] for option in options]
  # Distance names its reference first; without one, nearness to it says nothing.
  reference = [box for name, box in named.items() if name not in options]
  placed = dataclasses.replace(question, bbox=(*reference, *pair))
  found: dict[str, int | None] = {}
  for rule, preference in shortcuts.RULES.items():
    if rule != "nearer in the image" or reference:
      value = preference(placed, pair)
      found[rule] = None if value == 0 else int(value < 0)
  return found


def rules(rows: Sequence[Prediction]) -> dict[str, np.ndarray]:
  """The chance of being right of each rule, by its name, float64 (N,); it guesses where it says nothing.

  What a rule means for left and right, or above and below, is a matter of reading: it gets the better one.
  """
  chance = guessing(rows)
  axis_N = np.array([_axis(row) for row in rows], dtype=object)
  found = {}
  for rule in sorted({rule for row in rows for rule in row.rules}):
    right = np.array(
      [float(row.rules[rule] == row.gold) if rule in row.rules else np.nan for row in rows], float
    )
    for axis in sorted(set(axis_N) - {""}):
      of_axis = axis_N == axis
      if np.nansum(right[of_axis]) < np.nansum(1 - right[of_axis]):
        right[of_axis] = 1 - right[of_axis]
    found[rule] = np.where(np.isnan(right), chance, right)
  return found


def folds(rows: Sequence[Prediction], seed: int, count: int = FOLDS) -> np.ndarray:
  """The fold of each row, int (N,): images are dealt in a drawn order, with all of their questions."""
  images = sorted({row.image for row in rows})
  order = np.random.default_rng(seed).permutation(len(images))
  fold = {image: int(place) % count for image, place in zip(images, order, strict=True)}
  return np.array([fold[row.image] for row in rows], dtype=int)


def _cross_fitted(
  rows: Sequence[Prediction],
  seed: int,
  group: Callable[[Prediction], Hashable],
  options: Callable[[Prediction], Sequence[str]],
) -> np.ndarray:
  fold_N = folds(rows, seed)
  total: collections.Counter = collections.Counter()
  inside: collections.Counter = collections.Counter()
  for row, fold in zip(rows, fold_N, strict=True):
    key = (group(row), options(row)[LETTERS.index(row.gold)])
    total[key] += 1
    inside[fold, key] += 1
  right = np.zeros(len(rows))
  for i, (row, fold) in enumerate(zip(rows, fold_N, strict=True)):
    keys = [(group(row), option) for option in options(row)]
    counts = np.array([total[key] - inside[fold, key] for key in keys])
    best = counts == counts.max()
    right[i] = best[LETTERS.index(row.gold)] / best.sum()
  return right


def _axis(row: Prediction) -> str:
  """The axis that a Relation question asks about, such as "left right"; "" for other tasks."""
  return " ".join(sorted(row.choices)) if row.task == "Relation" else ""
