"""What a run leaves for others: a PEFT folder, and a checkpoint in Hugging Face's format."""

from __future__ import annotations

import pathlib

from spatialvlm import hub, peft
from spatialvlm.config import RunConfig
from spatialvlm.models.vlm import Vlm


def export(config: RunConfig, model: Vlm, source: pathlib.Path, workdir: pathlib.Path) -> dict[str, str]:
  """Writes `adapter/` (where adapters were trained) and `model/`, adapters merged; returns their paths.

  Raises:
    UserError: the disk is full.
  """
  if not config.train.export:
    return {}
  written = {}
  if config.peft.method != "none":
    peft.save_adapter(model, workdir / "adapter", hub.assembled(config.model).path)
    written["adapter"] = str(workdir / "adapter")
  hub.save_model(peft.merge(model), workdir / "model", source)
  return written | {"model": str(workdir / "model")}
