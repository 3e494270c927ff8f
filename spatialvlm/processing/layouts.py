"""Layouts: how a runtime cuts pictures into tiles, and with that lays out their prompts; chosen by name.

A layout turns a checkpoint's own tiler into the runtime's; prompts follow, since an image's tokens follow
from its grid (`prompts.PromptFormat.block`). A further one is a line in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable

from spatialvlm.config import nearest
from spatialvlm.processing import mtmd
from spatialvlm.processing.tiling import Tiler
from spatialvlm.types import UserError

OWN = "own"
LAYOUTS: dict[str, Callable[[Tiler, str], Tiler]] = {
  OWN: lambda tiler, where: tiler,
  "mtmd": mtmd.tiler,
}


def laid_out(layout: str, tiler: Tiler, where: str) -> Tiler:
  """The tiler of a layout.

  Raises:
    UserError: there is no such layout, or it knows no such pictures.
  """
  if layout not in LAYOUTS:
    raise UserError(f"layout: there is no {layout!r}; {nearest(layout, LAYOUTS)}")
  return LAYOUTS[layout](tiler, where)
