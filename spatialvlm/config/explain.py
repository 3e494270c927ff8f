"""The typed configuration of a look inside models over a benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

# What can be measured (`causes.parts.PARTS`), and the kinds of question (`causes.cases.TASKS`).
PARTS = ("regions", "edges", "maps", "layers", "heads", "probes")
TASKS = ("Depth", "LeftRight", "box", "side", "letters")


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
  """What the answers of models hang on, over rendered scenes whose truth is known (`launch/explain.py`).

  Attributes:
    name: of the run; the default workdir is named after it.
    models: by the names that tables give them: folders, hub ids, adapters or workdirs of training runs.
      Further ones are held against the first, question by question.
    dtype: "float32" or "bfloat16", of weights and activations.
    max_tiles: tile budget of an image; None for the checkpoints' own.
    drawn: ask the first model with drawn weights as well: what its shape alone gives.
    tasks: kinds of question; each part takes those that it can.
    parts: what is measured.
    questions: of each task, whose regions are greyed and swapped.
    edge_questions, map_questions, layer_questions, head_questions: of each task, of the parts of these names.
    head_blocks: blocks of the decoder, from 1 on, whose heads are taken out; empty for all. Each head is a
      reading of every question, and a model of 30 blocks has hundreds.
    answer_questions: of each task, on whose last position probes are fitted and tested.
    scenes, validation, test: numbers of scenes that probes of features are fitted on, choose their penalties
      by, and are held against.
    ablation: what a head that is taken out says: its "mean" over questions, or "zero".
    image_size: edge in pixels of the rendered scenes, a multiple of `grid`.
    grid: rows and columns of cells of maps and of probes.
    steps: parts in which a picture is deleted and inserted.
    rows: of one batch; each reads one question under one intervention.
    bootstrap: resamples of the intervals.
    seed: of the rendered worlds, the drawn weights and the resamples; heads are checked on `seed` + 1.
  """

  name: str = "explain"
  models: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dtype: str = "float32"
  max_tiles: int | None = None
  drawn: bool = True
  tasks: tuple[str, ...] = TASKS
  parts: tuple[str, ...] = PARTS
  questions: int = 200
  edge_questions: int = 1000
  map_questions: int = 100
  layer_questions: int = 100
  head_questions: int = 128
  head_blocks: tuple[int, ...] = ()
  answer_questions: int = 1000
  scenes: int = 800
  validation: int = 200
  test: int = 500
  ablation: Literal["mean", "zero"] = "mean"
  image_size: int = 96
  grid: int = 8
  steps: int = 8
  rows: int = 32
  bootstrap: int = 1000
  seed: int = 1_000_000
