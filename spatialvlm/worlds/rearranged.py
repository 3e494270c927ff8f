"""The same scene rearranged, so that a sentence about it becomes false: pictures as hard negatives.

What a sentence speaks of is changed and nothing else: two things change places or depths, colours are
exchanged, one is painted over or taken away. Floor, light, camera and all other objects stay; the renderer is
the same. A picture counts only where the sentence is surely false of what is then seen
(`statements.surely_false`). Winoground (Thrush et al., arXiv 2204.03162) asks for such pairs of pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from spatialvlm.worlds import layout, render, statements, world

# Heights of an object's lower end on which it can be carried: by a pedestal, from above.
_STANDS = (layout.PEDESTAL, layout.HANGING)
_N = render.MAX_OBJECTS


class Told(NamedTuple):
  """A sentence, and the objects of its scene that it is about: the two that it names, or those that it counts
  and all others that are in sight.
  """

  sentence: str
  named: tuple[int, ...]
  others: tuple[int, ...] = ()


Change = Callable[[layout.Layout, Told, np.random.Generator], layout.Layout | None]


class Asked(NamedTuple):
  """A scene of a pool, a statement about it, the boxes that are drawn (object -> colour), and what draws."""

  scene: int
  frame: world.Frame
  sentence: str
  boxes: Mapping[int, str]
  rng: np.random.Generator


def against(pool: world.Pool, asked: Sequence[Asked], most: int) -> list[list[np.ndarray]]:
  """For each statement up to `most` pictures, uint8 (H, W, 3), of which it is surely false."""
  about, scenes, counts = [], [], []
  for one in asked:
    scene = jax.tree.map(lambda a, b=one.scene: np.asarray(a[b]), pool.layout)
    about.append(told(one.sentence, one.frame))
    # One more than is wanted: some are not plain enough.
    new = rearranged(scene, about[-1], one.rng, most + 1)
    scenes += new
    counts.append(len(new))
  if not scenes:
    return [[] for _ in asked]
  seen = world.rendered(scenes, pool.size, pool.look)
  frames = iter([world.frame(seen, b) for b in range(len(scenes))])
  parts = [[next(frames) for _ in range(count)] for count in counts]
  return [pictures(part, what, one.boxes, most) for part, what, one in zip(parts, about, asked, strict=True)]


def rearranged(scene: layout.Layout, told: Told, rng: np.random.Generator, most: int) -> list[layout.Layout]:
  """Up to `most` changed scenes, of different kinds as far as there are, in an order that is drawn.

  Args:
    scene: of numpy arrays.
  """
  changes = PAIR if not told.sentence.startswith("There ") else COUNT
  found = (change(scene, told, rng) for change in rng.permutation(np.array(list(changes.values()), object)))
  return [new for new in found if new is not None][:most]


def told(sentence: str, frame: world.Frame) -> Told:
  """What a statement (`statements.statement`) of a frame is about."""
  if sentence.startswith("There "):
    color = statements.counted(sentence)[1]
    at = {o.index: o.color == color for o in frame.objects}
    return Told(
      sentence, tuple(k for k, own in at.items() if own), tuple(k for k, own in at.items() if not own)
    )
  a, _, b = statements.related(sentence)
  index = {o.name: o.index for o in frame.objects}
  return Told(sentence, (index[a], index[b]))


def pictures(
  frames: Sequence[world.Frame], told: Told, boxes: Mapping[int, str], most: int
) -> list[np.ndarray]:
  """Up to `most` pictures of changed scenes, as they are shown: those of which the sentence is surely false.

  Args:
    boxes: colours of the boxes that are drawn, by object; a picture that lacks one would be told by that.
  """
  found = []
  for frame in frames:
    seen = {o.index: o for o in frame.objects}
    if boxes.keys() <= seen.keys() and statements.surely_false(told.sentence, frame):
      image = frame.image.copy()
      for k, color in boxes.items():
        world.draw_box(image, seen[k].box, color)
      found.append(image)
  return found[:most]


def places(scene: layout.Layout, told: Told, rng: np.random.Generator) -> layout.Layout:
  """Two things in each other's place, each as large as what stood there."""
  a, b = told.named
  center, half = scene.scene.center, scene.scene.half
  new = {}
  for k, there in ((a, b), (b, a)):
    size = half[k] * half[there].max() / half[k].max()
    middle = center[there].copy()
    middle[2] += size[2] - half[there][2]  # the lower end stays where it was
    new[k] = middle, size, scene.stand[there]
  return _moved(scene, new)


def depths(scene: layout.Layout, told: Told, rng: np.random.Generator) -> layout.Layout | None:
  """Two things at each other's depth, where they were in the picture and as large there; None where one of
  them would stand in the floor, too high, or within another object.
  """
  a, b = told.named
  center, half, camera = scene.scene.center, scene.scene.half, scene.camera
  depth = (center[:_N] - camera.position) @ camera.rotation[:, 2]
  new = {}
  for k, there in ((a, b), (b, a)):
    ratio = depth[there] / depth[k]
    middle = camera.position + (center[k] - camera.position) * ratio
    size = half[k] * ratio
    low = middle[2] - size[2]
    stand = next((i for i, (least, most) in enumerate(_STANDS, 1) if least < low < most), None)
    if stand is None:
      return None
    new[k] = middle.astype(np.float32), size.astype(np.float32), stand
  changed = _moved(scene, new)
  girth = 0.85 * np.linalg.norm(changed.scene.half[:_N, :2], axis=-1)
  apart = np.linalg.norm(changed.scene.center[:_N, None, :2] - changed.scene.center[None, :_N, :2], axis=-1)
  close = (apart < girth[:, None] + girth) & scene.present & scene.present[:, None] & ~np.eye(_N, dtype=bool)
  return None if close[[a, b]].any() else changed


def colors(scene: layout.Layout, told: Told, rng: np.random.Generator) -> layout.Layout | None:
  """The colours of two things exchanged; None where they have one."""
  a, b = told.named
  return None if scene.color[a] == scene.color[b] else _painted(scene, {a: scene.color[b], b: scene.color[a]})


def repainted(scene: layout.Layout, told: Told, rng: np.random.Generator) -> layout.Layout:
  """One of the things in another colour."""
  k = told.named[int(rng.integers(len(told.named)))]
  others = [c for c in range(len(world.COLORS)) if c != scene.color[k]]
  return _painted(scene, {k: others[int(rng.integers(len(others)))]})


def one_more(scene: layout.Layout, told: Told, rng: np.random.Generator) -> layout.Layout | None:
  """Another thing in the colour that is counted."""
  if not told.others:
    return None
  return _painted(scene, {told.others[int(rng.integers(len(told.others)))]: scene.color[told.named[0]]})


def one_less(scene: layout.Layout, told: Told, rng: np.random.Generator) -> layout.Layout:
  """One of what is counted taken away, with what carried it."""
  k = told.named[int(rng.integers(len(told.named)))]
  present, active = scene.present.copy(), scene.scene.active.copy()
  present[k] = active[k] = active[k + _N] = False
  return dataclasses.replace(scene, present=present, scene=dataclasses.replace(scene.scene, active=active))


# By what the sentence speaks of: two things, or a number.
PAIR: dict[str, Change] = {"places": places, "depths": depths, "colors": colors, "repainted": repainted}
COUNT: dict[str, Change] = {"one_more": one_more, "one_less": one_less, "repainted": repainted}


def _painted(scene: layout.Layout, new: Mapping[int, int]) -> layout.Layout:
  color = scene.color.copy()
  for k, painted in new.items():
    color[k] = painted
  return dataclasses.replace(scene, color=color)


def _moved(scene: layout.Layout, new: Mapping[int, tuple[np.ndarray, np.ndarray, int]]) -> layout.Layout:
  """Objects with another centre, half size and stand, and what carries them put there."""
  center, half, stand = scene.scene.center.copy(), scene.scene.half.copy(), scene.stand.copy()
  active = scene.scene.active.copy()
  for k, (middle, size, on) in new.items():
    center[k], half[k], stand[k] = middle, size, on
  column_center, column_half = layout.carriers(half[:_N], center[:_N], stand, np)
  for k in new:
    center[k + _N], half[k + _N] = column_center[k], column_half[k]
    active[k + _N] = layout.STANDS[stand[k]] in ("pedestal", "hanging")
  changed = dataclasses.replace(scene.scene, center=center, half=half, active=active)
  return dataclasses.replace(scene, scene=changed, stand=stand)
