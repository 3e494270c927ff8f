"""spatialvlm: spatial sense for small vision-language models, and honest proof of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spatialvlm import caches

if TYPE_CHECKING:
  from spatialvlm.api import LoadedVlm, load_processor, load_vlm
  from spatialvlm.encoder import LoadedEncoder, load_encoder
  from spatialvlm.models.outputs import Wants
  from spatialvlm.types import UserError

__all__ = ["LoadedEncoder", "LoadedVlm", "UserError", "Wants", "load_encoder", "load_processor", "load_vlm"]

_HOMES = dict.fromkeys(("LoadedVlm", "load_processor", "load_vlm"), "spatialvlm.api")
_HOMES |= dict.fromkeys(("LoadedEncoder", "load_encoder"), "spatialvlm.encoder")
_HOMES |= {"UserError": "spatialvlm.types", "Wants": "spatialvlm.models.outputs"}

# Libraries read where their caches lie when they are imported.
caches.prepare()


def __getattr__(name: str) -> Any:
  # Imported when first asked for, so that `import spatialvlm` costs nothing.
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  caches.say()
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return __all__
