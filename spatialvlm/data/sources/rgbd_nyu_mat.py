"""NYUv2 as it is distributed: one MATLAB file (version 7.3, which is HDF5) of all labelled pictures.

Silberman et al., "Indoor segmentation and support inference from RGBD images" (ECCV 2012). Arrays lie as HDF5
shows MATLAB's: the picture's number first, then columns, then rows.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.data.sources.rgbd_files import Intrinsics, hdf5, metres
from spatialvlm.data.sources.rgbd_layouts import Files, Nyuv2, Objects, of_classes
from spatialvlm.types import UserError

FILE = "nyu_depth_v2_labeled.mat"
_ARRAYS = ("images", "depths", "labels", "instances", "names")


class NyuMat(Nyuv2):
  """A folder with nyu_depth_v2_labeled.mat."""

  def find(self, root: Path) -> list[Files]:
    file = root / FILE
    if not file.is_file():
      return []
    with hdf5(file) as opened:
      if missing := [name for name in _ARRAYS if name not in opened]:
        raise UserError(f"{file}: holds no {', '.join(missing)}; is it the labelled set?")
      count = len(opened["images"])
    return [Files(file, file, file, file, number=number) for number in range(1, count + 1)]

  def image(self, files: Files) -> np.ndarray:
    return np.ascontiguousarray(_read(files, "images").transpose(2, 1, 0))

  def shape(self, files: Files) -> tuple[int, ...]:
    return self.image(files).shape

  def depth(self, files: Files, unit: str) -> np.ndarray:
    return metres(_read(files, "depths").T, unit, f"{files.where}, depths")

  def objects(self, files: Files) -> Objects:
    labels, instances = (_read(files, name).T.astype(np.int64) for name in ("labels", "instances"))
    return of_classes(labels, instances, _names(files.image))

  def intrinsics(self, files: Files, shape: tuple[int, ...]) -> Intrinsics | None:
    return super().intrinsics(Files(files.image, files.depth), shape)


def _read(files: Files, name: str) -> np.ndarray:
  with hdf5(files.image) as opened:
    return np.asarray(opened[name][files.number - 1])


@functools.lru_cache(maxsize=4)
def _names(file: Path) -> dict[int, str]:
  """Names of classes by their numbers from 1: each a text of 16-bit letters behind a reference."""
  with hdf5(file) as opened:
    found: Any = opened["names"]
    texts = [np.asarray(opened[reference]).ravel() for reference in np.asarray(found).ravel()]
  return {number: "".join(map(chr, text)) for number, text in enumerate(texts, 1)}
