"""What a run leaves for others: the forms of `export.AFTER_TRAINING`."""

from __future__ import annotations

import pathlib

from spatialvlm import hub
from spatialvlm.config import RunConfig
from spatialvlm.export import AFTER_TRAINING, EXPORTERS, Exportable
from spatialvlm.models.vlm import Vlm


def export(config: RunConfig, model: Vlm, source: pathlib.Path, workdir: pathlib.Path) -> dict[str, str]:
  """Writes `adapter/` and `model/`, as far as the model has these forms; returns their paths.

  Raises:
    UserError: the disk is full.
  """
  if not config.train.export:
    return {}
  whole, written = Exportable(model, hub.assembled(config.model).path, source), {}
  for name, folder in AFTER_TRAINING.items():
    if EXPORTERS[name].why_not(model) is None:
      written[folder] = str(EXPORTERS[name].write(whole, workdir / folder))
  return written
