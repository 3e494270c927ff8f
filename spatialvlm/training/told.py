"""Priors of a run: how they are read, where their values begin, and what does not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialvlm import hub, peft, priors
from spatialvlm.config import RunConfig
from spatialvlm.hub import contents
from spatialvlm.training.teachers import Teacher
from spatialvlm.types import UserError


def reads(config: RunConfig) -> dict[str, Any]:
  """What `load_processor` is told of a run's model: places of a soft prompt, and its priors."""
  return {"reserved": peft.positions(config.peft), "priors": priors.reader_of(config.priors)}


def begins_at(config: RunConfig) -> Path | None:
  """The folder whose priors a run goes on from: its adapter's, else its base's; None where none lie there.

  Raises:
    UserError: they are others than the run's.
  """
  plain = hub.assembled(config.model)
  folders = [hub.resolve(plain.path, plain.revision)]
  if config.peft.resume_from:
    folders.insert(0, hub.resolve(config.peft.resume_from))
  for folder in folders:
    if contents.has_priors(folder):
      priors.check_start(config.priors, folder)
      return folder
  return None


def check(config: RunConfig, asked: Mapping[str, Teacher]) -> None:
  """Raises a UserError where a teacher would be asked without the priors that it has, or pictures are turned
  whose cameras may not have their axis in the middle, so that nobody knows how they stand then."""
  before = begins_at(config)
  for name, teacher in asked.items():
    if teacher.found is not None and teacher.found.priors:
      raise UserError(
        f"config.teachers.{name}.path: {teacher.config.path} has priors ({', '.join(teacher.found.priors)}),"
        " which no teacher is told; use one without"
      )
    if before is not None and teacher.found is None and not teacher.averaged:
      raise UserError(
        f"config.teachers.{name}.path: the run begins from {before}, whose priors no teacher is told; name"
        " another teacher, or the base that has none"
      )
  augment = config.data.augment
  turned = [name for name in ("roll", "perspective") if augment and getattr(augment, name)]
  for name, source in config.data.sources.items() if config.priors and turned else ():
    if source.kind not in ("scenes", "skills", "views") and (not augment.sources or name in augment.sources):
      raise UserError(
        f"config.data.augment.{turned[0]}: turns pictures of {name!r}, whose cameras the run's priors"
        " could not follow; set it to 0, or name rendered sources in config.data.augment.sources"
      )
