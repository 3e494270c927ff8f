"""The model of a training run: its base with the trainables of one of its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spatialvlm import hub, loading, peft
from spatialvlm import workdir as workdir_lib
from spatialvlm.config import ModelConfig, RunConfig, from_stored, read_json
from spatialvlm.core import axes
from spatialvlm.loading import Found
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import UserError

CHECKPOINTS = "checkpoints"
SUMMARY_FILE = "summary.json"
_OF_THE_RUN = ("path", "revision", "from_scratch", "seed", "encoders", "encoder_size")
_OF_THE_RUN += ("connector", "connector_factor", "connector_from", "text_only")
_OF_THE_RUN += ("quantize", "quantize_block", "quantize_double", "quantize_target")


def find(model: ModelConfig, adapter: str | None = None) -> Found:
  """What `model.path` names: a training run's workdir, a checkpoint of it, or what `loading.find` knows.

  Of a workdir (`runs/x`) the checkpoint is the one whose parameters the finished run exports; before the end
  it is the best one where `train.best` names what is best, else the last. `runs/x/checkpoints/300` names one.
  Base, revision, seed and quantisation are the run's; numbers, attention and image settings are those of
  `model`.

  Raises:
    UserError: as `loading.find`; a run without checkpoints, without that one, or on other weights than it
      began with.
  """
  path = Path(model.path).expanduser()
  chosen = path.name if path.parent.name == CHECKPOINTS and is_run(path.parent.parent) else None
  workdir = path.parent.parent if chosen else path
  if not is_run(workdir):
    return loading.find(model, adapter)
  if adapter:
    raise UserError(f"config.adapter: {workdir} is a training run, with its own; leave config.adapter out")
  config = from_stored(_read(workdir / workdir_lib.CONFIG_FILE), RunConfig)
  if config.stages:
    return _find_stage(workdir, config, model)
  trained = config.model
  config = dataclasses.replace(config, model=_model(config.model, model))
  step = _step(workdir, config, chosen)
  try:
    plain = hub.assembled(config.model)
    folder = hub.resolve(plain.path, plain.revision)
  except UserError as error:
    raise UserError(
      f"{workdir}: a training run whose base is not found ({error}); start from the folder in which it was"
      " trained, or put the base back"
    ) from error
  base = loading.identity(config.model)
  _check_base(workdir, base)
  return Found(
    name=f"{workdir}, step {step}",
    base=plain.path,
    folder=folder,
    load=lambda mesh: _load(workdir, config, step, mesh),
    identity=lambda: base | {"run": _identity(workdir / CHECKPOINTS / str(step), step)},
    priors=config.priors,
    trained=trained,
  )


def is_run(folder: Path) -> bool:
  """Whether a folder is a training run's workdir."""
  try:
    config = json.loads((folder / workdir_lib.CONFIG_FILE).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return False
  return isinstance(config, Mapping) and {"model", "peft", "train", "optim"} <= set(config)


def _model(run: ModelConfig, asked: ModelConfig) -> ModelConfig:
  if asked.quantize not in (None, run.quantize):
    kept = f"in {run.quantize}" if run.quantize else "in full"
    raise UserError(
      f"config.model.quantize: {asked.path} is a training run, whose base is kept {kept}; leave it out"
    )
  return dataclasses.replace(
    asked,
    **{name: getattr(run, name) for name in _OF_THE_RUN},
  )


def _find_stage(workdir: Path, config: RunConfig, model: ModelConfig) -> Found:
  """What `find` finds in the last stage that has begun."""
  begun = [name for name in sorted(config.stages) if (workdir / name / CHECKPOINTS).is_dir()]
  if not begun:
    raise UserError(f"{workdir}: a training run without checkpoints yet; wait for its first, or name a model")
  return find(dataclasses.replace(model, path=str(workdir / begun[-1])))


def _step(workdir: Path, config: RunConfig, chosen: str | None) -> int:
  from spatialvlm.training.checkpoint import VALIDATION, Checkpoints

  folder = workdir / CHECKPOINTS
  if not folder.is_dir():
    raise UserError(f"{workdir}: a training run without checkpoints yet; wait for its first, or name a model")
  with contextlib.closing(
    Checkpoints(folder, config.train.keep, config.train.best or VALIDATION, reads=True)
  ) as kept:
    steps, best = kept.steps, kept.best if config.train.best else None
  if not steps:
    raise UserError(f"{folder}: holds no whole checkpoint yet; wait for the first, or name a model")
  if chosen is not None:
    step: Any = int(chosen) if chosen.isdecimal() else chosen
  elif (workdir / SUMMARY_FILE).exists():
    step = _read(workdir / SUMMARY_FILE).get("step")
  else:
    step = max(steps) if best is None else best
  if step not in steps:
    raise UserError(f"{folder}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
  return step


def _check_base(workdir: Path, base: Mapping[str, Any]) -> None:
  """The trainables fit one base only, and nothing else would tell that another lies under its name."""
  began = _read(workdir / workdir_lib.IDENTITY_FILE).get("model") or {}
  if began.get("sha256") != base["model"].get("sha256"):
    raise UserError(f"{workdir}: trained on other weights than lie at its base's path now; restore the base")


def _load(workdir: Path, config: RunConfig, step: int, mesh: Mesh | None) -> Vlm:
  """The model alone: of its checkpoint neither heads nor the optimizer's state are read."""
  from spatialvlm.training import start
  from spatialvlm.training import state as state_lib
  from spatialvlm.training import step as step_lib
  from spatialvlm.training.checkpoint import Checkpoints

  mesh = mesh or axes.make_mesh({}, jax.devices()[:1])
  model = start.build_model(config, mesh, workdir)
  split = state_lib.Split(model, peft.trainable_filter(model, config.peft), mesh)
  del model
  like = step_lib.abstract(split.params)
  split.params = {}
  with contextlib.closing(Checkpoints(workdir / CHECKPOINTS, config.train.keep, reads=True)) as kept:
    return split.model(kept.weights(step, like), split.frozen)


def _identity(folder: Path, step: int) -> dict[str, Any]:
  files = sorted(file for file in folder.rglob("*") if file.is_file())
  return {"step": step, "sha256": loading.hash_files(folder, files)}


def _read(file: Path) -> dict[str, Any]:
  not_whole = "the workdir of the run is not whole"
  return read_json(file, missing=not_whole, damaged=not_whole)
