"""What a run leaves for others: the forms of `export.AFTER_TRAINING`, and the heads of its objectives."""

from __future__ import annotations

import pathlib

from spatialvlm import hub
from spatialvlm.config import RunConfig
from spatialvlm.export import AFTER_TRAINING, EXPORTERS, Exportable
from spatialvlm.training.objectives import Terms, heads
from spatialvlm.training.state import Trainee


def export(
  config: RunConfig, trainee: Trainee, terms: Terms, source: pathlib.Path, workdir: pathlib.Path
) -> dict[str, str]:
  """Writes `adapter/` and `model/`, as far as the model has these forms, and `heads/`; returns their paths.

  The forms are of the model alone: neither heads nor other models go into them.

  Raises:
    UserError: the disk is full.
  """
  if not config.train.export:
    return {}
  whole = Exportable(trainee.vlm, hub.assembled(config.model).path, source, config.model)
  written: dict[str, str] = {}
  for name, head in trainee.heads.items():
    heads.save_head(workdir / heads.FOLDER, name, head, terms[name][1], whole.base)
    written["heads"] = str(workdir / heads.FOLDER)
  for name, folder in AFTER_TRAINING.items():
    if EXPORTERS[name].why_not(trainee.vlm) is None:
      written[folder] = str(EXPORTERS[name].write(whole, workdir / folder))
  return written
