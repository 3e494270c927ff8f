"""From a StudyConfig to its runs, each of them checked before any begins."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from spatialvlm import workdir as workdir_lib
from spatialvlm.config import (
  EvaluateConfig,
  MeshConfig,
  ModelConfig,
  RunConfig,
  ScenesConfig,
  ScoreConfig,
  SkillsConfig,
  SourceConfig,
  StudyConfig,
  nearest,
  read_json,
)
from spatialvlm.study import beside
from spatialvlm.study.beside import Beside
from spatialvlm.training import one_run, stages
from spatialvlm.training.checkpoint import VALIDATION
from spatialvlm.types import UserError

# Folders of a study: of the untrained model's evaluation (of a further one, with other eyes,
# `untrained-CELL`), and of the runs, `runs/CELL/seed-N`.
BASE, RUNS = "untrained", "runs"
# Between the worlds of two seeds: recipes hold worlds out whose seeds are near those that they train on.
STRIDE = 10_007
# What a study says itself, by the first words of a setting's name, and where.
_OWN = {
  "name": "config.name",
  "seed": "config.seeds",
  "peft.seed": "config.seeds",
  "eval": "config.questions",
}
_PLAIN = re.compile(r"[A-Za-z0-9][\w.+-]*")
_FEW_BITS = ("quantize", "quantize_block", "quantize_double", "quantize_target")
# In these, cells may differ; each such model has an untrained row of its own.
_EYES = ("encoders", "encoder_size", "connector", "connector_factor", "connector_from")

# Makes a training's config of a recipe (`path.py:arg`, or a bare name) and pairs (dotted name, text).
Read = Callable[[str, Sequence[tuple[str, str]]], RunConfig]


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of the grid.

  Attributes:
    cell: name of its way of training.
    config: complete, as its workdir keeps it.
    folder: its workdir.
    beside: what is asked of what it ended with, beside its own questions.
  """

  cell: str
  seed: int
  config: RunConfig
  folder: pathlib.Path
  beside: Beside = Beside()

  @property
  def name(self) -> str:
    return f"{self.cell}, seed {self.seed}"

  @property
  def key(self) -> str:
    """What its claim is called."""
    return f"{self.cell}.seed-{self.seed}"

  @property
  def mesh(self) -> MeshConfig:
    return self.config.mesh

  @property
  def finished(self) -> bool:
    return (self.folder / one_run.SUMMARY_FILE).exists() and self.beside.finished(self.folder)

  @property
  def parts(self) -> list[pathlib.Path]:
    """The workdirs of its stages, in order; its own where it has none."""
    return [self.folder / name for name in sorted(self.config.stages)] or [self.folder]


@dataclasses.dataclass(frozen=True)
class Base:
  """An untrained model that cells begin from.

  Attributes:
    cells: their names.
    config: its evaluation.
    folder: the workdir of that.
    beside: what else it is asked.
  """

  cells: tuple[str, ...]
  config: EvaluateConfig
  folder: pathlib.Path
  beside: Beside

  @property
  def name(self) -> str:
    return self.folder.name

  @property
  def key(self) -> str:
    return self.name

  @property
  def mesh(self) -> MeshConfig:
    return self.config.mesh

  @property
  def finished(self) -> bool:
    return (self.folder / one_run.SUMMARY_FILE).exists() and self.beside.finished(self.folder)


def expand(study: StudyConfig, folder: pathlib.Path, read: Read) -> list[Run]:
  """All runs of a study: every cell with the first seed, then every cell with the next one.

  Raises:
    UserError: no cells or seeds, a control that is no cell, a name that is no folder's, a seed that stands
      twice, an axis that no cell stands on; by the cell's name: what `read` refuses, a setting that is the
      study's own, settings that cannot work, another model than the other cells', or a run that would be
      chosen by, or trained on, what it is scored on.
  """
  if not study.cells:
    raise UserError("config.cells: empty; name at least one way of training")
  if study.control and study.control not in study.cells:
    raise UserError(f"config.control: no cell {study.control!r}; {nearest(study.control, study.cells)}")
  if not study.seeds:
    raise UserError("config.seeds: empty; name at least one")
  for seed in study.seeds:
    if study.seeds.count(seed) > 1 or seed < 0:
      raise UserError(f"config.seeds: {seed} {'stands twice' if seed >= 0 else 'is below 0'}")
  for name in study.cells:
    if not _PLAIN.fullmatch(name):
      raise UserError(f"config.cells.{name}: the name becomes a folder's; letters, digits and - _ . + do")
  _check_axis(study)
  recipes = {name: _recipe(study, name, read) for name in study.cells}
  _one_model({name: config.model for name, config in recipes.items()})
  runs = [_run(study, name, seed, folder, recipes[name]) for seed in study.seeds for name in study.cells]
  asked = {"questions.source": study.questions.source}
  asked |= {f"beside.{name}": source for name, source in study.beside.items()}
  for run in runs:
    with _named(run.cell):
      _check(run, asked)
  return runs


def bases(study: StudyConfig, runs: Sequence[Run], folder: pathlib.Path) -> list[Base]:
  """The untrained models, in full numbers whatever a cell quantises: one for all cells that begin alike."""
  plain = {name: None for name in _FEW_BITS}
  score = ScoreConfig(**{f.name: getattr(study.questions, f.name) for f in dataclasses.fields(ScoreConfig)})
  first: dict[str, Run] = {}
  for run in runs:
    first.setdefault(run.cell, run)
  models: dict[tuple[ModelConfig, str | None], list[Run]] = {}
  for run in first.values():
    models.setdefault((dataclasses.replace(run.config.model, **plain), _adapter(run.config)), []).append(run)
  found = []
  for (model, adapter), own in models.items():
    name = f"{BASE}-{own[0].cell}" if found else BASE
    mesh = own[0].config.mesh
    config = EvaluateConfig(f"{study.name}-{name}", model, adapter, study.questions.source, score, {}, mesh)
    cells = tuple(run.cell for run in own)
    found.append(Base(cells, config, folder / name, beside.of(study, model, mesh, adapter)))
  return found


def check_folders(study: StudyConfig, runs: Sequence[Run], folder: pathlib.Path, busy: bool = False) -> None:
  """Raises a UserError where what lies in a study's folder is another's, or of other settings.

  Args:
    busy: runs that are not finished may be at work in another process, of whatever settings; they are passed
      by.
  """
  own = folder / workdir_lib.CONFIG_FILE
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder}: is a file; name a folder with --workdir")
  if folder.is_dir() and any(folder.iterdir()):
    stored = read_json(own)
    if not {"cells", "seeds", "questions"} <= set(stored):
      raise UserError(f"{folder}: not empty, and it holds no study; name another --workdir")
  for one in bases(study, runs, folder):
    workdir_lib.check(one.folder, one.config, shared=True)
  for run in runs:
    if run.finished or not busy:
      with _named(f"{run.cell}, seed {run.seed}"):
        workdir_lib.check(run.folder, run.config, shared=True)


def pairs(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
  """Settings as a command line says them: (dotted name, text), nested groups laid flat."""
  for key, value in settings.items():
    name = f"{above}{key}"
    if isinstance(value, Mapping) and value:
      yield from pairs(value, f"{name}.")
    else:
      yield name, value if isinstance(value, str) else repr(value)


def _adapter(config: RunConfig) -> str | None:
  """The adapter that a run goes on from; what it gained is counted from there."""
  stages_ = [stage.peft for _, stage in sorted(config.stages.items()) if stage.peft]
  return (stages_[0] if stages_ else config.peft).resume_from


def seeded(config: RunConfig, seed: int) -> RunConfig:
  """A run with other seeds: of order and dropout, of first values, and of the worlds it is trained on.

  They are the recipe's with `seed` added, of worlds `STRIDE` times of it: a recipe's endless questions are
  otherwise the same ones in every run.
  """
  if not seed:
    return config
  moved = {
    name: stage and dataclasses.replace(stage, peft=_peft(stage.peft, seed), data=_data(stage.data, seed))
    for name, stage in config.stages.items()
  }
  return dataclasses.replace(
    config,
    seed=config.seed + seed,
    peft=_peft(config.peft, seed),
    data=_data(config.data, seed),
    stages=moved,
  )


def _peft(settings: Any, seed: int) -> Any:
  return settings and dataclasses.replace(settings, seed=settings.seed + seed)


def _data(data: Any, seed: int) -> Any:
  if data is None:
    return None
  sources = {
    name: dataclasses.replace(source, seed=source.seed + STRIDE * seed) if _rendered(source) else source
    for name, source in data.sources.items()
  }
  return dataclasses.replace(data, sources=sources)


def _rendered(source: SourceConfig) -> bool:
  return isinstance(source, (ScenesConfig, SkillsConfig))


def _recipe(study: StudyConfig, name: str, read: Read) -> RunConfig:
  with _named(name):
    said = [*pairs(study.settings), *pairs(study.cells[name].settings)]
    for key, _ in said:
      plain = re.sub(r"^stages\.[^.]+\.", "", key)
      for own, where in _OWN.items():
        if plain == own or plain.startswith(f"{own}."):
          raise UserError(f"settings: {key} is the study's own; set {where}")
    if not study.cells[name].recipe:
      raise UserError("recipe: is missing; name one, as --config of launch/train.py")
    return stages.completed(read(study.cells[name].recipe, said))


def _run(study: StudyConfig, name: str, seed: int, folder: pathlib.Path, recipe: RunConfig) -> Run:
  asked = dataclasses.replace(study.questions, before=False)
  config = dataclasses.replace(seeded(recipe, seed), name=f"{study.name}-{name}-{seed}", eval=asked)
  own = folder / RUNS / name / f"seed-{seed}"
  return Run(name, seed, config, own, beside.of(study, stages.after(config.model, own), config.mesh))


def _check_axis(study: StudyConfig) -> None:
  if not study.axis:
    return
  known = sorted({axis for cell in study.cells.values() for axis in cell.at})
  if study.axis not in known:
    where = f"config.axis: no cell stands on {study.axis!r} (cells.NAME.at)"
    raise UserError(f"{where}; {nearest(study.axis, known)}")
  for name, cell in study.cells.items():
    at = cell.at.get(study.axis, 1)
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not at > 0:
      raise UserError(
        f"config.cells.{name}.at.{study.axis}: {at!r} has no place on a logarithmic axis; use a number above"
        " 0"
      )


def _one_model(models: Mapping[str, ModelConfig]) -> None:
  (first, model), *others = models.items()
  for name, other in others:
    for field in dataclasses.fields(ModelConfig):
      was, now = getattr(model, field.name), getattr(other, field.name)
      if was != now and field.name not in (*_FEW_BITS, *_EYES):
        raise UserError(
          f"config.cells.{name}: model.{field.name} is {now!r}, and {was!r} in {first!r}; all cells of a"
          " study begin from one model, its eyes excepted"
        )


def _check(run: Run, asked: Mapping[str, SourceConfig]) -> None:
  parts = [part for _, part in stages.split(run.config, run.folder)] if run.config.stages else [run.config]
  for part in parts:
    one_run.check(part)
    if part.train.best not in (None, VALIDATION):
      raise UserError(
        f"train.best: {part.train.best!r} chooses the step by the questions that the study is scored on;"
        f" choose it by {VALIDATION!r}"
      )
    for (name, source), (where, held) in itertools.product(part.data.sources.items(), asked.items()):
      if _rendered(source) and isinstance(held, ScenesConfig) and source.seed == held.seed:
        raise UserError(
          f"data.sources.{name}: with seed {run.seed} it trains on the worlds that are asked about (seed"
          f" {held.seed}); give config.{where} another seed"
        )


@contextlib.contextmanager
def _named(cell: str) -> Iterator[None]:
  """Puts a cell's name before what is refused."""
  try:
    yield
  except UserError as error:
    raise UserError(f"config.cells.{cell}: {error}") from None
