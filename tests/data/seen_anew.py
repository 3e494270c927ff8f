"""What is true of a moved picture of the embedded world: its scene, cast anew ray by ray, and asked again.

Nothing here is of `spatialvlm.data.augment` but the matrix that says which pixel shows what. Answers are
found from the objects as they are then seen, in words of this file's own.
"""

import dataclasses
import re

import numpy as np

from spatialvlm.worlds import statements, targets, world
from tests.worlds import analytic


@dataclasses.dataclass
class Seen:
  """An object in the moved picture: `box` around what shows of it, `clear` where it may be named."""

  name: str
  center: np.ndarray
  box: tuple
  clear: bool

  @property
  def color(self):
    return self.name.split()[0]

  @property
  def shape(self):
    return self.name.split()[1]

  @property
  def middle(self):
    return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclasses.dataclass
class View:
  """A moved picture.

  Attributes:
    objects: what is seen in it, by index. surface: (H, W), the object of a pixel, -1 for none.
    depth: (H, W) metres along the axis of the turned camera, 0 for none.
    boxes: colour of a drawn box -> index.
    turn: (3, 3), how the camera was turned.
  """

  objects: dict
  surface: np.ndarray
  depth: np.ndarray
  boxes: dict
  turn: np.ndarray
  mirror: bool
  size: int

  def camera(self, o):
    """An object's centre as the turned camera has it."""
    return self.turn @ (o.center * ([-1, 1, 1] if self.mirror else [1, 1, 1]))


def look(pool, b, warp, boxes=None):
  """Scene `b` of a pool under a warp."""
  layout, size = pool.layout, pool.size
  scene = type(layout.scene)(**{k: np.asarray(v)[b] for k, v in vars(layout.scene).items()})
  rotation = np.asarray(layout.camera.rotation[b], np.float64)
  origin = np.asarray(layout.camera.position[b], np.float64)
  focal = float(layout.camera.focal[b]) * size
  steps = np.arange(size) + 0.5
  there = np.stack([*np.meshgrid(steps, steps), np.ones((size, size))], -1) @ np.linalg.inv(warp.matrix).T
  pixel = there[..., :2] / there[..., 2:]
  local = np.concatenate([(pixel - size / 2) / focal, np.ones((size, size, 1))], -1)
  direction = local @ rotation.T
  shown = ((pixel >= 0) & (pixel < size)).all(-1)
  with np.errstate(divide="ignore"):
    depth = np.where(direction[..., 2] < 0, -origin[2] / direction[..., 2], np.inf)
  surface, alone = np.full((size, size), -1), {}
  for k in np.flatnonzero(scene.active):
    t = analytic.first_hit(scene, k, origin, direction, 0.05)
    surface = np.where(t < depth, k if k < world.render.MAX_OBJECTS else -1, surface)
    depth = np.minimum(depth, t)
    alone[k] = np.isfinite(t) & shown
  surface = np.where(shown, surface, -1)
  # The depth along the axis of the camera that was turned; a mirrored one has the axis of the other.
  across = local * ([-1, 1, 1] if warp.flip else [1, 1, 1])
  depth = np.where(shown & (depth < world.render.FAR), depth * (across @ warp.turn[2]), 0)
  objects = {}
  # The moved picture has the pixels of the first: what was hidden there does not come out.
  surface = np.where(np.append(pool.rendering.visible[b], 0)[surface] > 0, surface, -1)
  for k in np.unique(surface[surface >= 0]):
    mask = surface == k
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    # At 48 pixels what may be named shows 15 of them: a few more or less are the grid's doing.
    least = 0.5 if pool.clear[b, k] else 1.5
    clear = mask.sum() >= least * world.MIN_PIXELS * (size / 96) ** 2
    clear &= mask.sum() >= least * world.MIN_FRACTION * alone[k].sum()
    name = f"{world.COLORS[layout.color[b, k]]} {world.SHAPES[layout.shape[b, k]]}"
    box = (int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1)
    objects[int(k)] = Seen(name, np.asarray(pool.center_camera[b, k], float), box, bool(clear))
  return View(objects, surface, depth, dict(boxes or {}), warp.turn, warp.flip, size)


def answer(view, prompt, answered):
  """What the answer to a question is, in the form of `answered`; None where it cannot be told any more."""
  question, *options = prompt.split("\n")
  texts = [option[4:] for option in options]
  said = _said(view, question, texts, answered)
  if said is None or not texts:
    return said
  return "ABCDEFGHIJ"[texts.index(said)] if said in texts else None


def _named(view, name):
  """The one object of a name, where it is clear and alone with it."""
  found = [o for o in view.objects.values() if o.name == name]
  return found[0] if len(found) == 1 and found[0].clear else None


def _boxed(view, color):
  o = view.objects.get(view.boxes[color])
  return o if o and o.clear else None


def _cell(view, o):
  x, y = o.middle
  third = lambda v: min(int(3 * v / view.size), 2)
  return f"{('top', 'middle', 'bottom')[third(y)]} {('left', 'center', 'right')[third(x)]}"


def _far(view, o):
  return targets.DEPTH_WORDS[int(targets.depth_step(view.camera(o)[2]))]


def _two(view, question, texts):
  """Relation, Depth and Distance."""
  known = rf"\b((?:{'|'.join(world.COLORS)}) (?:{'|'.join(world.SHAPES)}))\b"
  names = list(dict.fromkeys(re.findall(known, question)))
  found = [_named(view, name) for name in names]
  if None in found:
    return None
  if question.startswith("Considering"):
    a, b = found
    down = "above" in texts
    lower = a.middle[down] < b.middle[down]
    return (("right", "left"), ("below", "above"))[down][lower]
  if question.startswith("Which"):
    far = [np.linalg.norm(view.camera(o)) for o in found]
    deep = [view.camera(o)[2] for o in found]
    return names[int(np.argmin(far))] if np.argmin(far) == np.argmin(deep) else None
  reference, *rest = (view.camera(o) for o in found)
  return names[1 + int(np.argmin([np.linalg.norm(c - reference) for c in rest]))]


def _true(view, sentence):
  """Whether a sentence of the skill `statement` is true."""
  every = list(view.objects.values())
  if found := re.fullmatch(r"There (?:is|are) (\d+) (\w+) objects?\.", sentence):
    return sum(o.color == found[2] for o in every) == int(found[1])
  a, relation, b = re.fullmatch(r"The (\w+ \w+) is (.*) the (\w+ \w+)\.", sentence).groups()
  a, b = _named(view, a), _named(view, b)
  if a is None or b is None:
    return False
  (ax, ay), (bx, by), near, far = a.middle, b.middle, view.camera(a)[2], view.camera(b)[2]
  return {
    "left of": ax < bx,
    "right of": ax > bx,
    "above": ay < by,
    "below": ay > by,
    "nearer than": near < far,
    "farther than": near > far,
  }[relation]


def _said(view, question, texts, answered):
  every = list(view.objects.values())
  clear = sorted((o for o in every if o.clear), key=lambda o: o.middle[0])
  if question.startswith(("Considering", "Which object", "Estimate")):
    return _two(view, question, texts)
  if found := re.fullmatch(r"How many (.*) are in the image\? Select.*", question):
    *color, plural = found[1].split()
    alike = [o for o in every if world.PLURALS[o.shape] == plural and color in ([], [o.color])]
    return str(len(alike)) if all(o.clear for o in alike) else None
  if question == "How many objects are there?":
    return str(len(every)) if all(o.clear for o in every) else None
  if found := re.fullmatch(r"How many (\w+) objects are there\?", question):
    return str(sum(o.color == found[1] for o in every))
  if found := re.fullmatch(r"Are there any (.*)\?", question):
    *color, plural = found[1].split()
    return (
      "yes" if any(world.PLURALS[o.shape] == plural and color in ([], [o.color]) for o in every) else "no"
    )
  if found := re.fullmatch(r"Is there a (.*)\?", question):
    return "yes" if any(o.name == found[1] and o.clear for o in every) else "no"
  if found := re.match(r"(What is|What color is|What shape is|Where is) (?:in )?the (\w+) box\?", question):
    o = _boxed(view, found[2])
    kinds = {"What is": "name", "What color is": "color", "What shape is": "shape"}
    return o and (_cell(view, o) if found[1] == "Where is" else getattr(o, kinds[found[1]]))
  if found := re.fullmatch(r"How far is the (\w+) box\?", question):
    o = _boxed(view, found[1])
    return o and _far(view, o)
  if found := re.fullmatch(r"How far ahead is the (\w+ \w+)\? Answer in meters\.", question):
    o = _named(view, found[1])
    return o and f"{view.camera(o)[2]:.1f} m"
  if found := re.fullmatch(r"Which box is around the (.*)\?", question):
    o = _named(view, found[1])
    return next((color for color, k in view.boxes.items() if view.objects.get(k) is o), None) if o else None
  if found := re.fullmatch(r"What color is the (\w+)\?", question):
    same = [o for o in every if o.shape == found[1]]
    return same[0].color if len(same) == 1 and same[0].clear else None
  if found := re.fullmatch(r"What shape is the (\w+) object\?", question):
    same = [o for o in every if o.color == found[1]]
    return same[0].shape if len(same) == 1 and same[0].clear else None
  if found := re.fullmatch(r"Where is the (\w+ \w+)\?", question):
    o = _named(view, found[1])
    return o and _cell(view, o)
  boxed = [(color, _boxed(view, color)) for color in ("red", "blue", "green") if color in view.boxes]
  if question == "List the boxes from near to far.":
    near = sorted(boxed, key=lambda item: view.camera(item[1])[2]) if all(o for _, o in boxed) else []
    return ", ".join(color for color, _ in near)
  if question == "Describe the boxes.":
    if not all(o for _, o in boxed):
      return None
    return "; ".join(f"{color}: {o.name}, {_cell(view, o)}, {_far(view, o)}" for color, o in boxed)
  if question == "List the objects from left to right.":
    return ", ".join(o.name for o in clear)
  if question == "Describe the objects from left to right.":
    return "; ".join(f"{o.name}, {_cell(view, o)}" for o in clear)
  if question in statements.PROMPTS:
    return answered if _true(view, answered) else "something else"
  if found := re.match(r"The answer is (.*)\. Select", question):
    return found[1]
  raise AssertionError(f"what is this? {question!r}, answered {answered!r}")
