"""Pictures resized as Pillow does: by Pillow, or by XLA on this machine's processor, with the same bits.

XLA takes a fraction of Pillow's time (benchmarks/host.py), but has to compile a program for each shape
first. So Pillow makes small pictures, and the first few of every shape.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from spatialvlm.core import resample as sums
from spatialvlm.processing import pillow

# Pictures of a shape that Pillow makes, before it is worth a compilation of seconds.
BY_PILLOW = 4
# Pixels of the largest size below which Pillow is fast enough; edges above which there are too many shapes.
LEAST, LONGEST = 2**20, 4096
# Edges are padded to multiples of it, so that few shapes are compiled.
_ROOM = 256

_seen: collections.Counter[Hashable] = collections.Counter()
# Shapes of which a picture's bits by XLA were Pillow's, and those of which they were not.
_same: set[Hashable] = set()
_other: set[Hashable] = set()
_lock = threading.Lock()


def resized(
  image: np.ndarray,
  sizes: Sequence[tuple[int, int]],
  resample: int,
  *,
  keep: int = 1,
  beside: tuple[int, int] = (0, 0),
) -> list[np.ndarray]:
  """A picture resized to one size after the other, each time rounded to 8 bits.

  Safe to call from several threads.

  Args:
    image: uint8 (H, W, 3).
    sizes: heights and widths; the size that a picture has already changes nothing.
    resample: Pillow's number of the filter.
    keep: how many of the last sizes are returned.
    beside: a size that the picture is resized to as well, elsewhere: whoever is worth a program for that is
      worth one for these.

  Returns:
    uint8 (h, w, 3) for each of the last `keep` sizes; not to be written to.
  """
  arguments = (image, sizes, resample, len(sizes) - keep)
  shape = (_padded(image.shape[:2]), *map(_padded, sizes), resample)
  if not _worth(image.shape[:2], (*sizes, beside), resample):
    return _by_pillow(*arguments)
  with _lock:
    _seen[shape] += 1
    number = _seen[shape]
  if number <= BY_PILLOW or shape in _other:
    return _by_pillow(*arguments)
  found = _by_xla(*arguments)
  if shape not in _same:  # another Pillow may sum otherwise
    known = _by_pillow(*arguments)
    (_same if all(map(np.array_equal, found, known)) else _other).add(shape)
    return known
  return found


def _worth(source: tuple[int, int], sizes: Sequence[tuple[int, int]], resample: int) -> bool:
  """Whether a program may be compiled for such a picture."""
  if resample not in pillow.FILTERS or max(*source, *map(max, sizes)) > LONGEST:
    return False
  return max(h * w for h, w in sizes) >= LEAST and _processor() is not None


def _by_pillow(
  image: np.ndarray, sizes: Sequence[tuple[int, int]], resample: int, skip: int
) -> list[np.ndarray]:
  picture, found = Image.fromarray(image), []
  for number, (height, width) in enumerate(sizes):
    if picture.size != (width, height):
      picture = picture.resize((width, height), Image.Resampling(resample))
    if number >= skip:
      found.append(np.asarray(picture))
  return found


def _by_xla(
  image: np.ndarray, sizes: Sequence[tuple[int, int]], resample: int, skip: int
) -> list[np.ndarray]:
  size, found = image.shape[:2], []
  pixels: Any = np.zeros((*_padded(size), 3), np.uint8)
  pixels[: size[0], : size[1]] = image
  with jax.default_device(_processor()):
    for number, target in enumerate(sizes):
      passes = [(sums.across, 1), (sums.down, 0)]
      for run, edge in reversed(passes) if pillow.down_first(size, target) else passes:
        if target[edge] != size[edge]:
          room = _padded(target)[edge]
          pixels = run(pixels, *pillow.axis(size[edge], target[edge], resample, room=room))
      size = target
      if number >= skip:
        found.append(pixels)
  return [np.asarray(one)[:h, :w] for one, (h, w) in zip(found, sizes[skip:], strict=True)]


def _padded(size: tuple[int, int]) -> tuple[int, int]:
  height, width = (-(-edge // _ROOM) * _ROOM for edge in size)
  return height, width


@functools.cache
def _processor() -> jax.Device | None:
  """This machine's processor as a device of JAX; None where JAX was told to do without."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return None
