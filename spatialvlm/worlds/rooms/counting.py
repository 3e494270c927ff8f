"""What pixels say of things: how much of each shows, where, what hides it, and how near it comes."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from spatialvlm.worlds.rooms.dial import MAX_THINGS
from spatialvlm.worlds.rooms.render import Buffers


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """What is seen of N = MAX_THINGS things; a leading axis B counts scenes where there are several.

  Attributes:
    box: (N, 4) int (x0, y0, x1, y1), half-open, around the visible pixels; zeros where none.
    visible: (N,) int pixels. covered: (N,) int, those that it would have if nothing stood before it.
    hides: (N, N) int, [a, b]: pixels that show a, and would show b if a, and what stands between them, were
      not there.
    nearest: (N,) metres, least distance from the camera of what shows of it; infinite where nothing does.
  """

  box: np.ndarray
  visible: np.ndarray
  covered: np.ndarray
  hides: np.ndarray
  nearest: np.ndarray


def count(surface: np.ndarray, depth: np.ndarray, met: np.ndarray, focal: float) -> Seen:
  """Of one picture's buffers (`render.Buffers`); `focal` as share of the width."""
  size, N = surface.shape[0], MAX_THINGS
  box, nearest = np.zeros((N, 4), np.int64), np.full(N, np.inf)
  visible = np.bincount(surface.ravel(), minlength=N)[:N]
  for k, place in enumerate(ndimage.find_objects(np.where(surface < N, surface + 1, 0), N)):
    if place is None:
      continue
    rows, columns = place
    box[k] = columns.start, rows.start, columns.stop, rows.stop
    v = (np.arange(rows.start, rows.stop) + 0.5) / size - 0.5
    u = (np.arange(columns.start, columns.stop) + 0.5) / size - 0.5
    square = (u[None] ** 2 + v[:, None] ** 2) / focal**2 + 1.0
    far = np.where(surface[place] == k, depth[place] * np.sqrt(square), np.inf)
    nearest[k] = far.min()
  # Pixels that show the same thing and meet the same things are counted together.
  codes, number = np.unique(met.astype(np.int64) * 32 + surface, return_counts=True)
  winner, bits = codes % 32, codes // 32
  meets = (bits[:, None] >> np.arange(N)) & 1
  hides = np.zeros((32, N), np.int64)
  np.add.at(hides, winner, meets * number[:, None])
  return Seen(box, visible, (meets * number[:, None]).sum(0), hides[:N], nearest)


def count_all(buffers: Buffers, focals: np.ndarray) -> Seen:
  """Of B pictures, as arrays with B first."""
  each = [
    count(*(np.asarray(a)[b] for a in (buffers.surface, buffers.depth, buffers.met)), focals[b])
    for b in range(len(focals))
  ]
  return Seen(*(np.stack([getattr(one, f.name) for one in each]) for f in dataclasses.fields(Seen)))
