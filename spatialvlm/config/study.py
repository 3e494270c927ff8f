"""The typed configuration of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialvlm.config.schema import EvalConfig


@dataclasses.dataclass(frozen=True)
class CellConfig:
  """One way of training that a study compares: a recipe, and what is other than there.

  Attributes:
    recipe: path or bare name of a recipe of a training, with `:argument`, as `--config` of `launch/train.py`.
    settings: dotted names and values, each as `--config.NAME=VALUE` there: {"optim.learning_rate": 1e-3}. A
      text stands as it would on the command line; groups may be nested as well.
  """

  recipe: str = ""
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """Ways of training side by side (`launch/study.py`): each with each seed, all asked the same questions.

  Attributes:
    name: of the study; the default workdir and the runs are named after it.
    cells: ways of training, by the names that tables give them.
    control: name of the cell that the others are held against, beside the untrained model: what does a loss
      add to the answers' own? Empty for none.
    seeds: every cell is trained once with each. Seed 0 leaves the seeds of the recipe as they are.
    settings: as of a cell, for all of them; a cell's own win.
    questions: what the untrained model and every trained one is asked, in place of the recipes' `eval`. The
      untrained one is asked once for all; `bootstrap` and `seed` are those of the study's intervals too.
  """

  name: str = "study"
  cells: Mapping[str, CellConfig] = dataclasses.field(default_factory=dict)
  control: str = ""
  seeds: tuple[int, ...] = (0, 1, 2)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  questions: EvalConfig = EvalConfig()
