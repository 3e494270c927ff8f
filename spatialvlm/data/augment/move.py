"""An example in a moved picture: pixels, dense targets, words and boxes together, or none of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from spatialvlm.data.augment import words
from spatialvlm.data.augment.legality import REVERSED, TASKS, THIRDS, asked_of
from spatialvlm.data.augment.warp import Warp
from spatialvlm.types import Asked, Example, Geometry, Turn


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
