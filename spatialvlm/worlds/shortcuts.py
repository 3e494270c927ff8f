"""What a question can be answered with without any sense of space: rules of two dimensions, and text alone.

A model's score on Relation, Depth and Distance means something only as far as it is above these.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from spatialvlm.types import Question

Box = tuple[float, ...]


def _middle(box: Box) -> np.ndarray:
  return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def _area(box: Box) -> float:
  return (box[2] - box[0]) * (box[3] - box[1])


def _saturation(image: np.ndarray, box: Box) -> float:
  """Mean saturation (of HSV) inside a box."""
  x0, y0, x1, y1 = (round(v) for v in box)
  rgb = image[y0:y1, x0:x1].astype(np.float32)
  high, low = rgb.max(-1), rgb.min(-1)
  return float(((high - low) / np.maximum(high, 1.0)).mean())


def _lower_edge(question: Question, boxes: Sequence[Box]) -> float:
  return boxes[0][3] - boxes[1][3]


def _bigger_box(question: Question, boxes: Sequence[Box]) -> float:
  return _area(boxes[0]) - _area(boxes[1])


def _nearer_in_image(question: Question, boxes: Sequence[Box]) -> float:
  reference = _middle(question.bbox[0])
  first, second = (np.linalg.norm(_middle(box) - reference) for box in boxes)
  return float(second - first)


def _centre(question: Question, boxes: Sequence[Box]) -> float:
  height, width = question.images[0].shape[:2]
  first, second = (np.linalg.norm(_middle(box) - (width / 2, height / 2)) for box in boxes)
  return float(second - first)


def _most_saturated(question: Question, boxes: Sequence[Box]) -> float:
  return _saturation(question.images[0], boxes[0]) - _saturation(question.images[0], boxes[1])


# Each says how much rather the first of two objects than the second.
RULES: dict[str, Callable[[Question, Sequence[Box]], float]] = {
  "lower edge": _lower_edge,
  "bigger box": _bigger_box,
  "nearer in the image": _nearer_in_image,
  "centre": _centre,
  "most saturated": _most_saturated,
}


def rule_choice(rule: str, question: Question) -> int | None:
  """The option that a rule takes, or None where it says nothing.

  On Depth and Distance a rule takes one of the two objects asked about. On Relation it takes the option
  "left" or "above" where the first object wins: a fixed, arbitrary reading, so that always taking the other
  option is a rule as well (`rule_scores` reports the better). The lower edge says nothing about above and
  below, for there it is the question itself; nearer in the image needs a reference, which Distance alone has.
  """
  if question.task not in ("Relation", "Depth", "Distance") or len(question.bbox or ()) < 2:
    return None
  vertical = question.task == "Relation" and "above" in question.choices
  if (rule == "nearer in the image" and question.task != "Distance") or (rule == "lower edge" and vertical):
    return None
  boxes = question.bbox[-2:]
  preference = RULES[rule](question, boxes)
  if preference == 0:
    return None
  first = preference > 0
  if question.task == "Relation":
    return next(k for k, choice in enumerate(question.choices) if (choice in ("left", "above")) == first)
  # The first object named in the question has the first box; options may stand the other way round.
  first_named, second_named = (question.question.index(f"the {c}") for c in question.choices)
  return int(not first) ^ int(first_named > second_named)


def rule_scores(questions: Iterable[Question]) -> dict[str, dict[str, float]]:
  """Accuracy of each rule by task (Relation split by axis, the better of both readings there)."""
  right: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
  for question in questions:
    axis = " above/below" if "above" in question.choices else " left/right"
    name = question.task + (axis if question.task == "Relation" else "")
    for rule in RULES:
      choice = rule_choice(rule, question)
      if choice is not None:
        right[name, rule].append(choice == question.answer)
  scores: dict[str, dict[str, float]] = collections.defaultdict(dict)
  for (name, rule), hits in right.items():
    accuracy = float(np.mean(hits))
    scores[name][rule] = max(accuracy, 1 - accuracy) if name.startswith("Relation") else accuracy
  return dict(scores)


def _words(question: Question, k: int, position: int) -> Hashable:
  parts = question.choices[k].split()
  return parts[position] if len(parts) == 2 else None


def _rank(question: Question, k: int) -> Hashable:
  numbers = sorted(question.choices, key=lambda c: (len(c), c))
  return len(numbers), numbers.index(question.choices[k])


def _mention(question: Question, k: int) -> Hashable:
  places = [question.question.find(choice) for choice in question.choices]
  return sorted(places).index(places[k]) if min(places) >= 0 else None


def _stripped(text: str) -> str:
  return re.sub(r"\(.*?\)", "", text)


# What a reader of the text alone may know of option k; its rate of being right is the prior.
PRIORS: dict[str, Callable[[Question, int], Hashable]] = {
  "letter": lambda q, k: (len(q.choices), k),
  "option text": lambda q, k: q.choices[k],
  "option text among options": lambda q, k: (q.choices[k], tuple(sorted(q.choices))),
  "rank of a number": lambda q, k: _rank(q, k) if q.task == "Count" else None,
  "first mentioned": _mention,
  "colour of the option": lambda q, k: _words(q, k, 0),
  "shape of the option": lambda q, k: _words(q, k, 1),
  "question and option": lambda q, k: (_stripped(q.question), q.choices[k]),
  "words and option": lambda q, k: (tuple(re.findall(r"(\w+) \(|(\w+) are", q.question)), q.choices[k]),
}


def guessing(questions: Sequence[Question]) -> float:
  return float(np.mean([1 / len(q.choices) for q in questions]))


def prior_score(prior: str, fitted: Sequence[Question], tested: Sequence[Question]) -> float:
  """Accuracy on `tested` of the option whose feature was right most often on `fitted`; equal ones share."""
  feature = PRIORS[prior]
  right: collections.Counter = collections.Counter()
  seen: collections.Counter = collections.Counter()
  for q in fitted:
    for k in range(len(q.choices)):
      key = feature(q, k)
      seen[key] += 1
      right[key] += k == q.answer
  total = 0.0
  for q in tested:
    # One right and one wrong case more: what was hardly seen is not trusted.
    rates = np.array(
      [(right[f] + 1) / (seen[f] + len(q.choices)) for f in (feature(q, k) for k in range(len(q.choices)))]
    )
    best = rates == rates.max()
    total += best[q.answer] / best.sum()
  return total / len(tested)


def prior_scores(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
  """By task: each prior fitted on one half and tested on the other, both ways, and guessing."""
  scores: dict[str, dict[str, float]] = {}
  for task in dict.fromkeys(q.task for q in questions):
    of_task = [q for q in questions if q.task == task]
    half = len(of_task) // 2
    first, second = of_task[:half], of_task[half:]
    scores[task] = {
      name: (prior_score(name, first, second) + prior_score(name, second, first)) / 2 for name in PRIORS
    }
    scores[task]["guessing"] = guessing(of_task)
  return scores
