"""A posed RGB-D folder of rendered views: renders/, depth/ and transforms.json, which `transforms` reads.

Depth is PNG of 16 bits in millimetres along the optical axis, 0 where nothing is met or where it is farther
than 16 bits reach.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from spatialvlm import workdir
from spatialvlm.fields.field import Field, Rendered
from spatialvlm.fields.posed import transforms
from spatialvlm.fields.posed.cameras import Camera

RENDERS, DEPTH, TRANSFORMS = "renders", "depth", "transforms.json"
MILLIMETRES = 0.001
_FARTHEST = 65535


def write(
  field: Field,
  folder: pathlib.Path,
  wanted: Iterable[tuple[str, str, Camera]],
  show: Callable[[int, int], None],
) -> dict[str, Rendered]:
  """Renders and writes views.

  Args:
    wanted: (kind, file of the given picture or "", camera) each; kinds name files, e.g. new-0003.png.
    show: called with (done, total).

  Returns:
    the rendered views of each name.

  Raises:
    UserError: the folder cannot be written.
  """
  wanted, frames, found = list(wanted), [], {}
  with workdir.writing(folder):
    for name in (RENDERS, DEPTH):
      (folder / name).mkdir(parents=True, exist_ok=True)
  counts: dict[str, int] = {}
  for done, (kind, file, camera) in enumerate(wanted, 1):
    number = counts[kind] = counts.get(kind, -1) + 1
    name = f"{kind}-{number:04d}.png"
    view = found[f"{kind}-{number:04d}"] = field.render(camera)
    workdir.write_bytes(folder / RENDERS / name, png(view.image))
    workdir.write_bytes(folder / DEPTH / name, png(millimetres(view.depth)))
    frame = {"file_path": f"{RENDERS}/{name}", "depth_path": f"{DEPTH}/{name}", "kind": kind}
    frames.append(frame | ({"from": file} if file else {}))
    show(done, len(wanted))
  # The last one: where it stands, all that it names does.
  transforms.write(folder / TRANSFORMS, [camera for *_, camera in wanted], frames, MILLIMETRES)
  return found


def millimetres(depth: np.ndarray) -> np.ndarray:
  """(H, W) uint16; 0 for no depth, and for one of 65.536 m and more."""
  found = np.rint(depth.astype(np.float64) / MILLIMETRES)
  return np.where(found <= _FARTHEST, found, 0).astype(np.uint16)


def png(image: np.ndarray) -> bytes:
  """The bytes of a PNG: of (H, W, 3) uint8, or (H, W) uint16."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG")
  return buffer.getvalue()
