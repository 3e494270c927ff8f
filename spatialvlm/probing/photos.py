"""Photographs whose depth is known: does what a probe learned on rendered scenes hold there?

A folder holds pictures, each beside its truth: `NAME.png` or `.jpg`, and `NAME.depth.npy` (farther is larger)
or `NAME.disparity.npy` (nearer is larger), a float array of the picture's height and width, in any unit; what
is not finite, or not above 0, is not known. Nothing is fitted here: probes come from the scenes as they are,
and only the order that they give a photograph's cells counts, since metres of a rendered camera mean nothing
in another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import stats

from spatialvlm.probing import probes
from spatialvlm.probing.worlds import Worlds
from spatialvlm.types import UserError

PICTURES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True, eq=False)
class Photos:
  """Photographs and their truth.

  Attributes:
    names: of the files, without their endings.
    images: uint8 (H, W, 3), each of its own size.
    depth_NC: float64, the larger the farther a cell is; NaN where less than half of it is known.
  """

  names: tuple[str, ...] = ()
  images: tuple[np.ndarray, ...] = ()
  depth_NC: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 1)))


def read(folder: str | Path, grid: int) -> Photos:
  """The photographs of a folder in the order of their names; none for an empty path.

  Raises:
    UserError: there are none, one has no truth or another size than it, or a file is broken.
  """
  if not str(folder):
    return Photos()
  folder = Path(folder).expanduser()
  files = sorted(f for f in folder.glob("*") if f.suffix.lower() in PICTURES) if folder.is_dir() else []
  if not files:
    raise UserError(
      f"{folder}: no photographs; expected NAME.png beside NAME.depth.npy or NAME.disparity.npy"
    )
  images = [_image(file) for file in files]
  cells = [_truth(file, image, grid) for file, image in zip(files, images, strict=True)]
  return Photos(tuple(file.stem for file in files), tuple(images), np.stack(cells))


def identity(photos: Photos) -> dict[str, str]:
  """What tells these photographs from others, by name."""
  digest = lambda image, cells: hashlib.sha256(image.tobytes() + cells.tobytes()).hexdigest()
  pairs = zip(photos.images, photos.depth_NC, strict=True)
  return {name: digest(*pair) for name, pair in zip(photos.names, pairs, strict=True)}


def _image(file: Path) -> np.ndarray:
  try:
    with Image.open(file) as image:
      return np.asarray(image.convert("RGB"))
  except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise UserError(f"{file}: no picture that can be read ({error}); replace or remove it") from None


def _truth(file: Path, image: np.ndarray, grid: int) -> np.ndarray:
  found = [file.with_name(f"{file.stem}.{kind}.npy") for kind in ("depth", "disparity")]
  there = [path for path in found if path.is_file()]
  if len(there) != 1:
    told = "both stand beside it; remove one" if there else "write one of them"
    raise UserError(f"{file}: its truth is {found[0].name} or {found[1].name}; {told}")
  try:
    map_HW = np.load(there[0], allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{there[0]}: no array that can be read ({error}); write it by numpy.save") from None
  if map_HW.shape != image.shape[:2] or map_HW.dtype.kind not in "fiu":
    raise UserError(
      f"{there[0]}: {map_HW.dtype} of {map_HW.shape}; expected numbers of {image.shape[:2]}, as its picture"
    )
  sign = -1.0 if there[0] == found[1] else 1.0
  return sign * _cells(map_HW.astype(np.float64), grid)


def _cells(map_HW: np.ndarray, grid: int) -> np.ndarray:
  """(C,): the mean of what is known in each cell; NaN where that is less than half."""
  known_HW = np.isfinite(map_HW) & (map_HW > 0)
  filled_HW = np.where(known_HW, map_HW, 0.0)
  edges = [np.round(np.arange(grid + 1) * n / grid).astype(int)[:-1] for n in map_HW.shape]
  sums = lambda x: np.add.reduceat(np.add.reduceat(x, edges[0], axis=0), edges[1], axis=1).reshape(-1)
  count_C, known_C = sums(np.ones_like(filled_HW)), sums(known_HW.astype(np.float64))
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(known_C >= 0.5 * count_C, sums(filled_HW) / known_C, np.nan)


def score(
  cells_NCD: np.ndarray, photo_NCD: np.ndarray, worlds: Worlds, photos: Photos, penalties: Sequence[float]
) -> dict[str, dict[str, float | int | None]]:
  """What the scenes' probes say of each photograph.

  Args:
    cells_NCD: features of the scenes, which the probes are fitted on.
    photo_NCD: features of the photographs.

  Returns:
    by photograph: `depth`, Spearman's rank correlation of the depth probe's prediction with the truth over
    the cells whose truth is known; `across` and `down`, that of a probe of a cell's own place with its place;
    and the number of `cells`. None where a probe gives one answer for all.
  """
  far = probes.fit_depth(cells_NCD, worlds, penalties)
  side = round(photo_NCD.shape[1] ** 0.5)
  place_C2 = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
  where = probes.fit_place(cells_NCD, worlds, place_C2, penalties)
  found = {}
  for name, x_CD, depth_C in zip(photos.names, photo_NCD, photos.depth_NC, strict=True):
    known_C = np.isfinite(depth_C)
    seen_C2 = where(x_CD)
    found[name] = {
      "depth": _rank(far(x_CD[known_C])[:, 0], depth_C[known_C]),
      "across": _rank(seen_C2[:, 0], place_C2[:, 0]),
      "down": _rank(seen_C2[:, 1], place_C2[:, 1]),
      "cells": int(known_C.sum()),
    }
  return found


def lower_is_nearer(photos: Photos) -> dict[str, float | None]:
  """The rule to beat: Spearman's correlation of the height in the picture with depth, by photograph."""
  side = round(photos.depth_NC.shape[1] ** 0.5)
  up_C = -np.repeat(np.arange(side), side).astype(np.float64)
  found = {}
  for name, depth_C in zip(photos.names, photos.depth_NC, strict=True):
    known_C = np.isfinite(depth_C)
    found[name] = _rank(up_C[known_C], depth_C[known_C])
  return found


def _rank(a: np.ndarray, b: np.ndarray) -> float | None:
  if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
    return None
  return float(stats.spearmanr(a, b).statistic)
