"""Files that are written together or not at all, and what exporters of several forms need beside a model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spatialvlm.config import ModelConfig
from spatialvlm.export.exporter import Exportable
from spatialvlm.processing.processor import Processor, load_processor
from spatialvlm.types import UserError


def write_files(files: Mapping[str, Callable[[Path], None]], folder: Path) -> Path:
  """Writes files beside their place, in this order, and moves them there together; names may lie in folders.

  Raises:
    UserError: what writing one of them raises, or a full disk; nothing is left then.
  """
  scratch = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    for name, make in files.items():
      (scratch / name).parent.mkdir(exist_ok=True)
      make(scratch / name)
    scratch.chmod(0o755)
    scratch.rename(folder)
  except OSError as error:
    raise UserError(
      f"{folder}: could not be written ({error.strerror or error}); nothing was left behind"
    ) from None
  finally:
    if scratch is not None:
      shutil.rmtree(scratch, ignore_errors=True)
  return folder


def read_processor(model: Exportable) -> Processor:
  """The base's processor as the model was trained with it."""
  tiling: dict[str, Any] = model.trained.tiling if isinstance(model.trained, ModelConfig) else {}
  return load_processor(model.folder, **tiling)
