"""The typed configuration of a study."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from spatialvlm.config.schema import EvalConfig
from spatialvlm.config.sources import SourceConfig


@dataclasses.dataclass(frozen=True)
class CellConfig:
  """One way of training that a study compares: a recipe, and what is other than there.

  Attributes:
    recipe: path or bare name of a recipe of a training, with `:argument`, as `--config` of `launch/train.py`.
    settings: dotted names and values, each as `--config.NAME=VALUE` there: {"optim.learning_rate": 1e-3}. A
      text stands as it would on the command line; groups may be nested as well.
    at: where the cell stands on the axes of a grid, {"questions": 1000, "noise": 0.1}; for drawings and for
      readers, it changes nothing. `crossed` writes it.
  """

  recipe: str = ""
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  at: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
      untrained one is asked once for all; `bootstrap` and `seed` are those of the study's intervals too. Of
      its controls that show another image or none, tables say what the image gives.
    axis: the coordinate of `CellConfig.at`, a number above 0, along which results are drawn on a logarithmic
      axis; cells that differ in other coordinates are different lines. Empty for no such drawing.
    beside: further questions, by the names that tables give them, asked as `questions` are, without controls:
      worlds of a shifted kind, other benchmarks.
    skills: what else a model must not forget: skills of `worlds.skills` whose answers are held against the
      exact text, before and after.
    skill_count: questions of each of them.
  """

  name: str = "study"
  cells: Mapping[str, CellConfig] = dataclasses.field(default_factory=dict)
  control: str = ""
  seeds: tuple[int, ...] = (0, 1, 2)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  questions: EvalConfig = EvalConfig()
  axis: str = ""
  beside: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
  skills: tuple[str, ...] = ()
  skill_count: int = 100


def crossed(recipe: str, axes: Mapping[str, Mapping[Any, Mapping[str, Any]]]) -> dict[str, CellConfig]:
  """A grid: a cell for every combination of the axes' values, the first axis outermost.

  Cells are named by their values, `1000_wrong-30`; a dot in a value reads `p` there.

  Args:
    recipe: of all cells.
    axes: by the axis' name, each of its values with the settings that make it. Later axes win. A setting
      `recipe` takes the place of the recipe.
  """
  cells = {}
  for values in itertools.product(*(axis.items() for axis in axes.values())):
    at = dict(zip(axes, (value for value, _ in values), strict=True))
    settings: dict[str, Any] = {}
    for _, own in values:
      settings |= own
    name = "_".join(map(str, at.values())).replace(".", "p")
    cells[name] = CellConfig(settings.pop("recipe", recipe), settings, at)
  return cells
