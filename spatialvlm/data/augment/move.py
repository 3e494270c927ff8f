"""An example in a moved picture: pixels, dense targets, words and boxes together, or none of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from spatialvlm.data.augment import words
from spatialvlm.data.augment.legality import REVERSED, TASKS, THIRDS, asked_of
from spatialvlm.data.augment.warp import Warp
from spatialvlm.shots import mirrored, normals_of
from spatialvlm.types import Asked, Example, Geometry, Shot, Turn


def moved(example: Example, warp: Warp) -> Example:
  """The example as it is true of its picture under a warp that is legal for it (`legality`)."""
  (image,) = example.images
  asked = asked_of(example)
  turns = example.turns
  facts = example.facts
  if warp.flip:
    turns = tuple(_mirrored(turn, a) for turn, a in zip(turns, asked, strict=True))
    facts = facts and (lambda: words.swapped(example.facts()))
  # What stands to the right or below is another thing for a camera that is turned.
  facts = facts if warp.straight else None
  geometry = example.geometry and _geometry(example.geometry, warp)
  return dataclasses.replace(
    example,
    images=(warp.image(image),),
    turns=turns,
    facts=facts,
    dense=_dense(example, warp),
    geometry=geometry,
    shots=tuple(_shot(shot, warp) for shot in example.shots),
  )


def _mirrored(turn: Turn, asked: Asked) -> Turn:
  task = TASKS[asked.task]
  if task.blind:
    return turn
  if task.flip is REVERSED:
    turned = lambda answer: words.reversed_list(turn.prompt, answer, len(asked.named))
    return Turn(turn.prompt, turned(turn.answer), tuple(map(turned, turn.false)))
  return Turn(words.swapped(turn.prompt), words.swapped(turn.answer), tuple(map(words.swapped, turn.false)))


def _geometry(geometry: Geometry, warp: Warp) -> Geometry:
  """Where things are in the moved picture; a list that is turned round names them in its order."""

  def box(named: tuple[float, ...], slack: float) -> tuple[float, ...]:
    low, high = warp.box(named, 0.0 if warp.still else slack)
    return tuple(float(v) for v in (*low[:2], *high[2:]))

  def one(asked: Asked) -> Asked:
    named = tuple(box(b, asked.slack) for b in asked.named)
    turned = warp.flip and asked.axis == "across" and TASKS[asked.task].flip is REVERSED
    return dataclasses.replace(asked, named=named[::-1] if turned else named)

  instances = geometry.instances and (lambda: warp.map(geometry.instances()))
  focal = geometry.focal and geometry.focal * warp.scale
  # Behind a shifted window the optical axis is no longer in the middle.
  focal = focal if not any(warp.shift) else None
  return Geometry(tuple(map(one, geometry.asked)), focal, instances)


def _shot(shot: Shot, warp: Warp) -> Shot:
  """How the moved picture was taken, by a camera that is mirrored, turned and looks through another lens.

  A turned picture is that of the camera which the warp was drawn for, with its axis in the middle; of another
  camera nobody knows then how it stands.
  """
  if not warp.straight and not _of_warp(shot, warp):
    return Shot()
  height, width = warp.size
  seen = mirrored(shot) if warp.flip else shot
  turn = np.eye(4)
  turn[:3, :3] = warp.turn
  known = shot.normals is not None or (shot.depth is not None and shot.focal is not None)
  sign = np.float32([-1 if warp.flip else 1, 1, 1])
  through = lambda normals: np.stack([warp.map(normals[..., k]) for k in range(3)], -1) * sign
  return Shot(
    focal=seen.focal and (seen.focal[0] * warp.scale, seen.focal[1] * warp.scale),
    middle=(
      seen.middle[0] * warp.scale + warp.shift[0] / width,
      seen.middle[1] * warp.scale + warp.shift[1] / height,
    ),
    pose=None if seen.pose is None else seen.pose @ turn.T,
    depth=shot.depth and (lambda: warp.depth(shot.depth())),
    # Of the moved depth, whose pixels are repeated or left out, they would be those of steps.
    normals=(lambda: through(normals_of(shot)) @ warp.turn.T.astype(np.float32)) if known else None,
  )


def _of_warp(shot: Shot, warp: Warp) -> bool:
  """Whether a shot's camera is the one that a warp turns."""
  height, width = warp.size
  if shot.focal is None:
    return False
  lens = np.array([shot.focal[0] * width, shot.focal[1] * height])
  return np.allclose(lens, warp.focal, rtol=1e-4) and np.allclose(shot.middle, 0.5, atol=1e-4)


def _dense(example: Example, warp: Warp) -> dict[str, np.ndarray]:
  found = {}
  if any(name in THIRDS for name in example.dense) and example.geometry:
    instances = warp.map(example.geometry.instances())
  for name, values in example.dense.items():
    if name == "depth":
      found[name] = warp.depth(values)
    elif name in THIRDS and not (warp.still and name == "row"):
      found[name] = _thirds(instances, THIRDS[name], values.dtype)
    else:
      found[name] = warp.map(values)
  return found


def _thirds(instances: np.ndarray, axis: int, dtype: np.dtype) -> np.ndarray:
  """By pixel, the third along an axis that the box of its object is centred on; -1 where no object is."""
  size = instances.shape[axis]
  classes = np.full(max(int(instances.max()), 0) + 2, -1, dtype)  # the last is that of -1
  for number in np.unique(instances[instances >= 0]):
    places = np.flatnonzero((instances == number).any(1 - axis))
    classes[number] = min(int(3 * (places[0] + places[-1] + 1) / 2 / size), 2)
  return classes[instances]
