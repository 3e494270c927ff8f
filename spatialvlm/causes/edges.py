"""Part "edges": do answers about depth hang on the objects' depth, or on where their lower edges lie?

Scenes are drawn so that lower edge, size and place say little of depth by themselves. What the log-odds
follow is then a regression: on the ratio of the two depths, the difference of the lower edges, the ratio of
the boxes' areas, and which lies nearer to the picture's middle, each in its own deviations.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from spatialvlm.causes import cases as cases_lib
from spatialvlm.causes import intervals, kept
from spatialvlm.causes.cases import Case
from spatialvlm.causes.kept import Line
from spatialvlm.causes.reader import Reader, Row, log_odds
from spatialvlm.config import ExplainConfig
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

TASK = "Depth"
# What speaks for the first of two objects.
CUES = {
  "nearer": "log of the second depth over the first",
  "lower edge": "how much lower the first box ends, as a share of the picture",
  "bigger box": "log of the first box's area over the second's",
  "centre": "how much nearer the first box's middle is to the picture's, as a share of the picture",
}

# Questions, of which each resample still holds more than there are weights to fit.
_LEAST = 32


def check(name: str, model: VlmConfig, config: ExplainConfig) -> None:
  """Raises a UserError where questions are too few for each of their resamples to fix all weights."""
  del name, model
  if config.edge_questions < _LEAST:
    raise UserError(
      f"config.edge_questions: {config.edge_questions} are too few to fit {len(CUES)} cues; ask {_LEAST}"
    )


def asked(tasks: tuple[str, ...]) -> bool:
  """Whether the part has anything to ask of these tasks."""
  return TASK in tasks


def measure(reader: Reader, folder: pathlib.Path, config: ExplainConfig, show: Any) -> None:
  """Asks questions about depth as they are."""
  cases = cases_lib.make(TASK, config.seed, config.edge_questions, config.image_size)
  reader.fit([reader.prompt(case) for case in cases])

  def block(some: list[Case]) -> list[Line]:
    found = reader.ask([Row(reader.prompt(case), reader.cut(case.image)) for case in some])
    return [
      {
        "id": case.id,
        "scene": case.scene,
        "answer": case.answer,
        "base": base,
        "cues": cues(case),
        "rules": case.rules,
      }
      for case, base in zip(some, found, strict=True)
    ]

  with show(f"{reader.name}: edges") as progress:
    kept.measured(folder / "edges.jsonl", cases, config.rows, block, progress)


def cues(case: Case) -> list[float]:
  """What each of `CUES` says for the first object of a question about two."""
  (x0, y0, x1, y1), (u0, v0, u1, v1) = case.boxes
  height, width = case.instance.shape
  away = lambda a0, b0, a1, b1: np.hypot((a0 + a1 - width) / 2, (b0 + b1 - height) / 2) / max(height, width)
  return [
    float(np.log(case.depths[1] / case.depths[0])),
    (y1 - v1) / height,
    float(np.log((x1 - x0) * (y1 - y0) / ((u1 - u0) * (v1 - v0)))),
    float(away(u0, v0, u1, v1) - away(x0, y0, x1, y1)),
  ]


def collect(folders: Mapping[str, pathlib.Path], config: ExplainConfig) -> dict[str, Any]:
  """By model: `accuracy`, the same where each rule agrees with the truth and where not, and `weights`.

  A weight is the change of the log-odds of the first object for one deviation of a cue, the others held.
  """
  found: dict[str, Any] = {}
  for name, folder in folders.items():
    lines = kept.read(folder / "edges.jsonl")
    base, answers = kept.array([line["base"] for line in lines]), np.array([line["answer"] for line in lines])
    scenes = [line["scene"] for line in lines]
    right = (np.nanargmax(base, 1) == answers).astype(float)
    scores = {"accuracy": intervals.mean(right, scenes, config)}
    for rule in ("lower edge", "bigger box"):
      agrees = np.array([line["rules"].get(rule, -1) for line in lines])
      for word, where in (("agrees", agrees == answers), ("disagrees", (agrees >= 0) & (agrees != answers))):
        scores[f"accuracy where {rule} {word}"] = intervals.mean(
          np.where(where, right, np.nan), scenes, config
        )
    weights = intervals.fitted(
      kept.array([line["cues"] for line in lines]), log_odds(base, 0), scenes, config
    )
    found[name] = {"scores": scores, "weights": dict(zip(CUES, weights, strict=True))}
  return found
