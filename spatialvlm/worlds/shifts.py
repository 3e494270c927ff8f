"""How a world looks: the one that training shows, and the table of shifted ones that it never does.

`PLAIN` is the look of every world unless a source says otherwise (`ScenesConfig.shift`). Each entry of
`SHIFTS` differs from it in one thing alone, by a value outside of all that `PLAIN` draws from, so that a
score there says how far what was learned hangs on that thing. Scene i of a seed is drawn from the same random
numbers under every look: where a shift touches neither shapes nor camera it is the same scene.

A further shift is one more entry here.
"""

from __future__ import annotations

import dataclasses

from spatialvlm.config import nearest
from spatialvlm.types import UserError

Range = tuple[float, float]
Rgb = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Form:
  """A shape that objects can have.

  Attributes:
    word: its name. solid: which of `render.SOLIDS` it is made of.
    width, height: half sizes of an object of scale 1, least and greatest; widths are across the floor.
    round: whether both widths are alike.
  """

  word: str
  solid: str
  width: Range = (1.0, 1.0)
  height: Range = (1.0, 1.0)
  round: bool = True

  @property
  def plural(self) -> str:
    return self.word + "s"


@dataclasses.dataclass(frozen=True)
class Color:
  """A colour that objects can have: its name and its albedo."""

  word: str
  albedo: Rgb


@dataclasses.dataclass(frozen=True)
class Look:
  """What scenes are drawn from. Angles are degrees, ranges are drawn from evenly.

  Attributes:
    differs: in what it differs from the plain look, in a few words.
    forms, colors: of objects; as many in every look.
    floors: albedos of the floor.
    pitch: of the camera, downwards; its height follows. roll: of the camera, to either side.
    view: the camera's field of view.
    tilt: of the light, from the zenith. ambient: share of light that reaches shadows. lamp: its colour.
    patterned: share of objects with stripes or checks. speckled: whether objects are grained as well.
    tiled: whether the floor is laid with square tiles of uneven brightness, in metres; 0 for not.
  """

  differs: str
  forms: tuple[Form, ...]
  colors: tuple[Color, ...]
  floors: tuple[Rgb, ...]
  pitch: Range = (10.0, 44.0)
  roll: Range = (0.0, 0.0)
  view: Range = (44.0, 62.0)
  tilt: Range = (5.0, 32.0)
  ambient: Range = (0.5, 0.62)
  lamp: Rgb = (1.0, 1.0, 1.0)
  patterned: float = 0.3
  speckled: bool = False
  tiled: float = 0.0

  @property
  def shape_words(self) -> tuple[str, ...]:
    return tuple(form.word for form in self.forms)

  @property
  def color_words(self) -> tuple[str, ...]:
    return tuple(color.word for color in self.colors)

  @property
  def drawn(self) -> Look:
    """What a layout is drawn by, so that looks which differ in paint and light's colour share a program."""
    painted = dict(colors=PLAIN.colors, lamp=PLAIN.lamp, speckled=False, tiled=0.0)
    return dataclasses.replace(self, differs="", **painted)

  @property
  def same_scenes(self) -> bool:
    """Whether its scenes are the plain ones in another guise: scene i has the same boxes and depths."""
    return all(getattr(self, n) == getattr(PLAIN, n) for n in ("forms", "pitch", "roll", "view"))

  @property
  def words(self) -> tuple[str, ...]:
    """All words by which its objects are named."""
    return (*self.color_words, *self.shape_words, *(form.plural for form in self.forms))


PLAIN = Look(
  differs="nothing",
  forms=(
    Form("sphere", "sphere"),
    Form("block", "block", (0.72, 1.0), (0.75, 1.05), round=False),
    Form("cylinder", "cylinder", (0.72, 0.9), (0.8, 1.3)),
    Form("cone", "cone", (0.82, 1.02), (0.9, 1.3)),
  ),
  colors=(
    Color("yellow", (0.98, 0.86, 0.08)),
    Color("purple", (0.56, 0.16, 0.74)),
    Color("orange", (0.97, 0.47, 0.04)),
    Color("cyan", (0.10, 0.86, 0.88)),
    Color("white", (0.99, 0.99, 0.99)),
    Color("black", (0.11, 0.11, 0.12)),
  ),
  floors=(
    (0.62, 0.56, 0.50),
    (0.66, 0.66, 0.64),
    (0.44, 0.42, 0.40),
    (0.58, 0.62, 0.56),
    (0.72, 0.68, 0.60),
  ),
)


def _but(differs: str, **changed) -> Look:
  return dataclasses.replace(PLAIN, differs=differs, **changed)


SHIFTS: dict[str, Look] = {
  "shapes": _but(
    "four shapes that training has not, with names of their own",
    forms=(
      Form("egg", "sphere", (0.62, 0.7), (0.95, 1.1)),
      Form("dome", "dome", (0.9, 1.0), (0.5, 0.62)),
      Form("barrel", "barrel", (0.78, 0.9), (0.8, 1.0)),
      Form("disk", "cylinder", (0.95, 1.05), (0.2, 0.28)),
    ),
  ),
  "proportions": _but(
    "blocks, cylinders and cones taller and slimmer than any in training",
    forms=(
      PLAIN.forms[0],
      Form("block", "block", (0.42, 0.54), (1.2, 1.5), round=False),
      Form("cylinder", "cylinder", (0.42, 0.52), (1.4, 1.7)),
      Form("cone", "cone", (0.52, 0.66), (1.4, 1.7)),
    ),
  ),
  "colors": _but(
    "six colours that training has not, with names of their own",
    colors=(
      Color("pink", (0.98, 0.62, 0.78)),
      Color("brown", (0.40, 0.22, 0.10)),
      Color("lime", (0.70, 0.98, 0.12)),
      Color("navy", (0.14, 0.16, 0.38)),
      Color("olive", (0.46, 0.44, 0.10)),
      Color("turquoise", (0.12, 0.76, 0.66)),
    ),
  ),
  "shades": _but(
    "other shades of the same six colours",
    colors=(
      Color("yellow", (0.99, 0.95, 0.52)),
      Color("purple", (0.70, 0.46, 0.92)),
      Color("orange", (0.86, 0.56, 0.26)),
      Color("cyan", (0.52, 0.93, 0.96)),
      Color("white", (0.94, 0.92, 0.86)),
      Color("black", (0.17, 0.15, 0.21)),
    ),
  ),
  "texture": _but("objects grained like granite", patterned=0.0, speckled=True),
  "floor": _but(
    "floors of other colours, laid with uneven tiles",
    floors=(
      (0.30, 0.42, 0.44),
      (0.50, 0.34, 0.30),
      (0.34, 0.40, 0.28),
      (0.40, 0.36, 0.48),
      (0.28, 0.30, 0.34),
    ),
    tiled=0.45,
  ),
  "high": _but("the camera looks down steeply, from higher up", pitch=(50.0, 62.0)),
  "low": _but("the camera looks ahead, from low above the floor", pitch=(0.0, 6.0)),
  "roll": _but("the camera is tilted sideways", roll=(12.0, 24.0)),
  "wide": _but("a wide field of view", view=(70.0, 80.0)),
  "narrow": _but("a narrow field of view", view=(28.0, 36.0)),
  "slanting": _but("a low sun with long shadows", tilt=(50.0, 66.0)),
  "dark": _but("half the light", lamp=(0.5, 0.5, 0.5)),
  "warm": _but("light of a warm colour", lamp=(1.0, 0.88, 0.70)),
}


def look(shift: str) -> Look:
  """The look of a shift's name; `PLAIN` of an empty one.

  Raises:
    UserError: no such shift.
  """
  if not shift:
    return PLAIN
  if shift not in SHIFTS:
    raise UserError(f"scenes: shift {shift!r} is unknown; {nearest(shift, SHIFTS)}")
  return SHIFTS[shift]
