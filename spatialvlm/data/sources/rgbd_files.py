"""Maps beside photographs: depth in metres, ids of objects, intrinsics; what is wrong is one line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from spatialvlm.config import read_json, refuse_pointer
from spatialvlm.types import UserError

# Medians that no room and no street has: in metres above, in millimetres below.
_MOST_METRES, _LEAST_MILLIMETRES = 200.0, 50.0
UNITS = {"m": 1.0, "mm": 1e-3}


class Intrinsics(NamedTuple):
  """Focal lengths and principal point, in pixels; the centre of the first pixel is (0.5, 0.5)."""

  fx: float
  fy: float
  cx: float
  cy: float


def read_map(file: Path) -> np.ndarray:
  """One number a pixel, (H, W): a PNG of one channel, a .npy array, or the `dataset` of an HDF5 file.

  Raises:
    UserError: no such file, one that cannot be read, several channels; h5py is missing.
  """
  if not file.is_file():
    raise UserError(f"{file}: no such file")
  refuse_pointer(file)
  reader = {".npy": _numpy, ".hdf5": _hdf5, ".h5": _hdf5}.get(file.suffix.lower(), _picture)
  try:
    found = reader(file)
  except UserError:
    raise
  except UnidentifiedImageError:
    raise UserError(f"{file}: cannot be read as a map (its format is not known)") from None
  except Exception as error:  # of Pillow, NumPy and h5py, nearly any exception on damaged bytes
    raise UserError(f"{file}: cannot be read as a map ({error}); is it cut short?") from error
  found = found[..., 0] if found.ndim == 3 and found.shape[-1] == 1 else found
  if found.ndim != 2 or not found.size:
    raise UserError(f"{file}: expected one number a pixel, (H, W), got {found.shape}")
  return found


def _picture(file: Path) -> np.ndarray:
  with Image.open(io.BytesIO(file.read_bytes())) as image:
    return np.asarray(image)


def _numpy(file: Path) -> np.ndarray:
  return np.load(file, allow_pickle=False)


def _hdf5(file: Path) -> np.ndarray:
  with hdf5(file) as opened:
    return np.asarray(opened["dataset"])


@contextlib.contextmanager
def hdf5(file: Path) -> Iterator[Any]:
  """An HDF5 file, open to read.

  Raises:
    UserError: h5py is not installed, or the file is damaged.
  """
  try:
    import h5py
  except ImportError:
    raise UserError(
      f"{file}: HDF5 is read by h5py, which is not installed; pip install 'spatialvlm[rgbd]'"
    ) from None
  try:
    with h5py.File(file, "r") as opened:
      yield opened
  except (OSError, KeyError, ValueError) as error:
    raise UserError(f"{file}: cannot be read as HDF5 ({error}); is it cut short?") from error


def metres(raw: np.ndarray, unit: str, file: Path | str, *, nan_is_none: bool = False) -> np.ndarray:
  """Depth in metres, float32 (H, W), 0 where there is none.

  Args:
    raw: as it is stored, 0 where there is none.
    unit: "m" or "mm"; "" for millimetres where numbers are whole, as depth cameras write them, else metres.
    nan_is_none: whether NaN stands where there is no depth.

  Raises:
    UserError: NaN, infinite or negative numbers, no depth at all, 8 bits, or numbers that are far from what
      the unit says.
  """
  whole = np.issubdtype(raw.dtype, np.integer)
  if raw.dtype == bool or raw.dtype.itemsize == 1:
    raise UserError(
      f"{file}: 8 bits hold no depth in metres; write 16 bits of millimetres, or .npy in metres"
    )
  depth = raw.astype(np.float32)
  wrong = ~np.isfinite(depth)
  if nan_is_none:
    depth, wrong = np.where(wrong, 0, depth), np.zeros(())
  if wrong.any():
    what = "NaN" if np.isnan(depth).any() else "infinite"
    raise UserError(f"{file}: {int(wrong.sum())} pixels are {what}; write 0 where there is no depth")
  if (depth < 0).any():
    raise UserError(f"{file}: {int((depth < 0).sum())} pixels are negative; write 0 where there is no depth")
  if not (depth > 0).any():
    raise UserError(f"{file}: no pixel has a depth")
  unit = unit or ("mm" if whole else "m")
  middle = float(np.median(depth[depth > 0]))
  if unit == "m" and middle > _MOST_METRES:
    raise UserError(f"{file}: a median of {middle:g} is no depth in metres; if it is in millimetres, unit=mm")
  if unit == "mm" and middle < _LEAST_MILLIMETRES:
    raise UserError(f"{file}: a median of {middle:g} is no depth in millimetres; if it is in metres, unit=m")
  return depth * np.float32(UNITS[unit])


def read_intrinsics(file: Path) -> Intrinsics:
  """From JSON (an object with fx, fy, cx, cy, or a matrix of 3 x 3 or 4 x 4) or a text of 9 or 16 numbers.

  Raises:
    UserError: neither, or no focal length above 0.
  """
  try:
    text = file.read_text(encoding="utf-8")
    found = json.loads(text) if file.suffix == ".json" else [float(word) for word in text.split()]
    found = _of(found)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise UserError(
      f"{file}: no intrinsics ({error}); write fx, fy, cx, cy in JSON, or a 3 x 3 matrix, in pixels"
    ) from None
  if not (np.isfinite(found).all() and found.fx > 0 and found.fy > 0):
    raise UserError(f"{file}: intrinsics {tuple(found)} have no focal length above 0")
  return found


def _of(found: Any) -> Intrinsics:
  if isinstance(found, dict):
    return Intrinsics(*(float(found[name]) for name in Intrinsics._fields))
  flat = np.asarray(found, float).ravel()
  side = {9: 3, 16: 4}.get(flat.size)
  if side is None:
    raise ValueError(f"{flat.size} numbers")
  matrix = flat.reshape(side, side)
  return Intrinsics(*(float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))))


def check_intrinsics(found: Intrinsics, shape: tuple[int, ...], file: Path) -> None:
  """Refuses intrinsics of another size than the picture's, told by where they put its middle.

  Raises:
    UserError: the principal point lies outside of the middle half of the picture.
  """
  height, width = shape[:2]
  if abs(found.cx - width / 2) > width / 4 or abs(found.cy - height / 2) > height / 4:
    raise UserError(
      f"{file}: intrinsics with their middle at ({found.cx:g}, {found.cy:g}) are not of a picture of "
      f"{width} x {height}"
    )


def read_names(file: Path) -> dict[int, str]:
  """Names by id, from a JSON object: {"1": "chair"}.

  Raises:
    UserError: no such file, or another form.
  """
  found = read_json(file, missing='names of ids are wanted, as {"1": "chair"}')
  if not all(key.isdecimal() and isinstance(name, str) for key, name in found.items()):
    raise UserError(f'{file}: expected names by id, as {{"1": "chair"}}')
  return {int(key): name for key, name in found.items()}
