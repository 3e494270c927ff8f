"""The table of all classes of things: what they are composed of, how large they are, and where they stand.

A new class is one line here. Sizes are metres along the thing's own axes (front to back, side to side,
  foot to
top), each drawn between its ends; all three go up and down together as far as a thing keeps its proportions.
"""

from __future__ import annotations

import dataclasses
import functools

from spatialvlm.worlds.rooms.parts import Part, Solids, ball, belly, block, cone, dome, legs, solids, tube

Range = tuple[float, float]
# Most parts of one thing.
MAX_PARTS = 10


@dataclasses.dataclass(frozen=True)
class Class:
  """A class of things.

  Attributes:
    name, plural: as questions say them.
    size: ranges of depth, width and height in metres.
    parts: what it is composed of.
    places: out of "floor", "top" (of other things), "wall", "ceiling", "air", "outdoors".
    top: height of what others stand on, as share of its own, and share of its extent that they may take; none
      for nothing.
    front: whether it has a front that can be told from its back and sides.
    alike: things that could be called by each other's name have the same word here; by default its own.
    share: how often it is drawn, beside others of its places.
    hung: heights of its foot above the floor in metres, on a wall or in the air.
  """

  name: str
  plural: str
  size: tuple[Range, Range, Range]
  parts: tuple[Part, ...]
  places: frozenset[str]
  top: tuple[float, float] | None = None
  front: bool = False
  alike: str = ""
  share: float = 1.0
  hung: Range = (0.0, 0.0)

  @property
  def painted(self) -> bool:
    """Whether it has a colour of its own."""
    return any(part.material == "paint" for part in self.parts)

  @functools.cached_property
  def solids(self) -> Solids:
    return solids(list(self.parts))


def _of(
  name: str, size: tuple[Range, Range, Range], places: str, *parts: Part, plural: str = "", **more
) -> Class:
  return Class(name, plural or f"{name}s", size, parts, frozenset(places.split()), **more)


_TABLE = _of(
  "table", ((0.7, 1.0), (1.0, 1.8), (0.66, 0.80)), "floor",
  block(-.5, .5, -.5, .5, .93, 1), *legs(.05, .93, inset=.03), top=(1.0, 0.92), share=3, alike="table",
)  # fmt: skip
_DESK = _of(
  "desk", ((0.6, 0.8), (1.1, 1.5), (0.70, 0.78)), "floor",
  block(-.5, .5, -.5, .5, .94, 1), block(-.5, .46, -.48, -.14, 0, .94, m="oak"),
  block(-.5, .46, .44, .48, 0, .94, m="oak"), block(.46, .48, -.46, -.16, .50, .90, m="cream"),
  block(.46, .48, -.46, -.16, .06, .44, m="cream"), top=(1.0, 0.9), alike="table",
)  # fmt: skip
_CHAIR = _of(
  "chair", ((0.42, 0.56), (0.42, 0.52), (0.78, 1.05)), "floor",
  block(-.5, .5, -.5, .5, .42, .50), block(-.5, -.40, -.5, .5, .60, 1),
  block(-.48, -.42, -.44, -.34, .5, .6, m="wood"), block(-.48, -.42, .34, .44, .5, .6, m="wood"),
  *legs(.09, .42, inset=.02), top=(0.5, 0.7), front=True, share=4,
)  # fmt: skip
_SOFA = _of(
  "sofa", ((0.8, 1.0), (1.5, 2.2), (0.70, 0.92)), "floor",
  block(-.5, .5, -.5, .5, .06, .40), block(-.5, -.24, -.5, .5, .40, 1), block(-.5, .46, -.5, -.40, .40, .68),
  block(-.5, .46, .40, .5, .40, .68), block(-.24, .48, -.395, -.005, .40, .52, m="shade"),
  block(-.24, .48, .005, .395, .40, .52, m="shade"), top=(0.52, 0.5), front=True,
)  # fmt: skip
_BED = _of(
  "bed", ((1.8, 2.1), (0.9, 1.7), (0.75, 1.0)), "floor",
  block(-.5, .5, -.5, .5, .10, .32, m="wood"), block(-.47, .49, -.48, .48, .32, .55, m="white"),
  block(-.20, .495, -.49, .49, .34, .58), block(-.5, -.46, -.5, .5, 0, 1, m="wood"),
  ball(-.45, -.25, -.40, -.04, .50, .68, m="cream"), ball(-.45, -.25, .04, .40, .50, .68, m="cream"),
  top=(0.58, 0.5), front=True, share=0.7,
)  # fmt: skip
_CABINET = _of(
  "cabinet", ((0.36, 0.52), (0.6, 1.2), (0.6, 1.2)), "floor",
  block(-.5, .46, -.5, .5, 0, 1), block(.46, .49, -.47, .47, .68, .95, m="shade"),
  block(.46, .49, -.47, .47, .37, .64, m="shade"), block(.46, .49, -.47, .47, .06, .33, m="shade"),
  block(.48, .5, -.12, .12, .80, .84, m="metal"), block(.48, .5, -.12, .12, .49, .53, m="metal"),
  block(.48, .5, -.12, .12, .18, .22, m="metal"), top=(1.0, 0.85), front=True, share=1.5,
)  # fmt: skip
_BOOKCASE = _of(
  "bookcase", ((0.26, 0.36), (0.7, 1.1), (1.3, 2.0)), "floor",
  block(-.5, -.44, -.5, .5, 0, 1, m="wood"), block(-.44, .5, -.5, -.46, 0, 1, m="wood"),
  block(-.44, .5, .46, .5, 0, 1, m="wood"), block(-.44, .5, -.46, .46, .96, 1, m="wood"),
  block(-.44, .5, -.46, .46, .62, .66, m="wood"), block(-.44, .5, -.46, .46, .30, .34, m="wood"),
  block(-.44, .5, -.46, .46, 0, .05, m="wood"), block(-.40, .30, -.44, .10, .66, .86, m="clay"),
  block(-.40, .30, -.20, .44, .34, .54, m="cloth"), block(-.40, .34, -.44, .00, .05, .22, m="cream"),
  top=(1.0, 0.8), front=True, share=0.7,
)  # fmt: skip
_STOOL = _of(
  "stool", ((0.32, 0.42), (0.32, 0.42), (0.42, 0.72)), "floor",
  tube(-.5, .5, -.5, .5, .88, 1), *legs(.09, .88, inset=.10), top=(1.0, 0.6), share=1.2,
)  # fmt: skip
_LAMP = _of(
  "floor lamp", ((0.34, 0.46), (0.34, 0.46), (1.3, 1.75)), "floor",
  tube(-.35, .35, -.35, .35, 0, .02, m="metal"), tube(-.04, .04, -.04, .04, .02, .80, m="metal"),
  cone(-.5, .5, -.5, .5, .76, 1, top=.6), alike="lamp",
)  # fmt: skip
_TABLE_LAMP = _of(
  "table lamp", ((0.20, 0.32), (0.20, 0.32), (0.32, 0.55)), "top",
  cone(-.3, .3, -.3, .3, 0, .12, top=.5, m="metal"), tube(-.06, .06, -.06, .06, .1, .6, m="metal"),
  cone(-.5, .5, -.5, .5, .52, 1, top=.55), alike="lamp",
)  # fmt: skip
_CEILING_LAMP = _of(
  "ceiling lamp", ((0.28, 0.5), (0.28, 0.5), (0.5, 1.1)), "ceiling",
  tube(-.03, .03, -.03, .03, .3, 1, m="dark"), dome(-.5, .5, -.5, .5, .04, .32),
  ball(-.2, .2, -.2, .2, 0, .16, m="lit"), alike="lamp", share=1.5,
)  # fmt: skip
_PLANT = _of(
  "plant", ((0.3, 0.6), (0.3, 0.6), (0.45, 1.3)), "floor top",
  cone(-.28, .28, -.28, .28, 0, .30, top=.7, axis="-z"), tube(-.24, .24, -.24, .24, .29, .31, m="bark"),
  ball(-.5, .2, -.35, .3, .40, .85, m="leaf"), ball(-.2, .5, -.3, .4, .35, .80, m="grass"),
  ball(-.3, .3, -.5, .2, .50, .95, m="leaf"), ball(-.3, .3, -.2, .5, .60, 1, m="grass"),
  tube(-.04, .04, -.04, .04, .3, .6, m="bark"), alike="green", share=1.2,
)  # fmt: skip
_TELEVISION = _of(
  "television", ((0.14, 0.22), (0.7, 1.25), (0.48, 0.76)), "top",
  block(-.2, .2, -.5, .5, .12, 1, m="dark"), block(.2, .24, -.47, .47, .17, .96, m="screen"),
  block(-.1, .1, -.08, .08, .02, .14, m="dark"), block(-.5, .5, -.25, .25, 0, .03, m="dark"),
  block(.24, .26, -.30, .10, .55, .85, m="glass"), front=True, share=1.2,
)  # fmt: skip
_FRIDGE = _of(
  "refrigerator", ((0.6, 0.7), (0.6, 0.8), (1.4, 1.9)), "floor",
  block(-.5, .44, -.5, .5, 0, 1), block(.44, .49, -.49, .49, .02, .62, m="shade"),
  block(.44, .49, -.49, .49, .64, .99, m="shade"), block(.48, .5, -.44, -.40, .40, .60, m="dark"),
  block(.48, .5, -.44, -.40, .68, .86, m="dark"), top=(1.0, 0.7), front=True, share=0.6,
)  # fmt: skip
_BIN = _of(
  "trash can", ((0.26, 0.5), (0.26, 0.5), (0.34, 0.9)), "floor outdoors",
  cone(-.5, .5, -.5, .5, 0, .96, top=.8, axis="-z"), tube(-.5, .5, -.5, .5, .94, 1, m="shade"),
  tube(-.4, .4, -.4, .4, .99, 1.002, m="dark"),
)  # fmt: skip
_BASKET = _of(
  "basket", ((0.26, 0.46), (0.3, 0.55), (0.2, 0.38)), "floor top",
  cone(-.5, .5, -.5, .5, 0, .97, top=.78, axis="-z", m="oak"), tube(-.5, .5, -.5, .5, .9, .97, m="wood"),
  tube(-.42, .42, -.42, .42, .96, .98, m="dark"), block(-.03, .03, -.5, -.45, .9, 1.3, m="wood"),
  block(-.03, .03, .45, .5, .9, 1.3, m="wood"), block(-.03, .03, -.5, .5, 1.26, 1.32, m="wood"),
)  # fmt: skip
_SUITCASE = _of(
  "suitcase", ((0.22, 0.3), (0.4, 0.5), (0.55, 0.8)), "floor outdoors",
  block(-.5, .5, -.5, .5, .05, .86), block(-.1, .1, -.22, -.18, .86, 1, m="metal"),
  block(-.1, .1, .18, .22, .86, 1, m="metal"), block(-.1, .1, -.22, .22, .97, 1, m="dark"),
  block(-.52, .52, -.3, -.26, .05, .86, m="shade"), block(-.52, .52, .26, .3, .05, .86, m="shade"),
  tube(-.4, -.2, -.4, -.3, 0, .06, m="rubber"), tube(.2, .4, .3, .4, 0, .06, m="rubber"),
)  # fmt: skip
_PERSON = _of(
  "person", ((0.26, 0.34), (0.42, 0.54), (1.5, 1.9)), "floor outdoors",
  tube(-.22, .26, .06, .38, 0, .48, m="cloth"), tube(-.22, .26, -.38, -.06, 0, .48, m="cloth"),
  block(-.34, .34, -.38, .38, .46, .82), tube(-.18, .18, .38, .5, .42, .81, m="shade"),
  tube(-.18, .18, -.5, -.38, .42, .81, m="shade"), tube(-.12, .16, -.12, .12, .8, .87, m="skin"),
  ball(-.26, .36, -.22, .22, .85, .99, m="skin"), ball(-.40, .18, -.24, .24, .87, 1, m="hair"),
  ball(.30, .44, -.04, .04, .905, .935, m="skin"), block(-.2, .5, -.34, .34, 0, .03, m="rubber"),
  plural="people", front=True, share=1.2,
)  # fmt: skip
_DOG = _of(
  "dog", ((0.6, 0.9), (0.2, 0.3), (0.45, 0.65)), "floor outdoors",
  ball(-.40, .30, -.5, .5, .38, .80), *[tube(x, x + .09, y, y + .3, 0, .5, m="shade")
  for x in (-.33, .13) for y in (-.4, .1)], ball(.16, .46, -.4, .4, .62, 1), ball(.34, .5, -.2, .2, .66, .82,
  m="dark"),
  tube(-.5, -.36, -.06, .06, .62, .92, m="shade"), cone(.2, .3, -.46, -.2, .8, 1.08, m="dark"),
  cone(.2, .3, .2, .46, .8, 1.08, m="dark"), front=True,
)  # fmt: skip
_MUG = _of(
  "mug", ((0.11, 0.13), (0.08, 0.1), (0.09, 0.12)), "top",
  tube(-.5, .2, -.5, .5, 0, 1), tube(-.43, .13, -.42, .42, .98, 1.01, m="dark"),
  block(.15, .5, -.07, .07, .72, .86), block(.15, .5, -.07, .07, .18, .32), block(.4, .5, -.07, .07, .2, .84),
  share=2,
)  # fmt: skip
_BOTTLE = _of(
  "bottle", ((0.065, 0.1), (0.065, 0.1), (0.22, 0.34)), "top",
  tube(-.5, .5, -.5, .5, 0, .6), cone(-.5, .5, -.5, .5, .6, .8, top=.4), tube(-.2, .2, -.2, .2, .8, .93),
  tube(-.24, .24, -.24, .24, .93, 1, m="metal"), tube(-.51, .51, -.51, .51, .2, .46, m="cream"), share=2,
)  # fmt: skip
_BOOK = _of(
  "book", ((0.15, 0.22), (0.2, 0.3), (0.025, 0.07)), "top floor",
  block(-.5, .5, -.5, .5, 0, .14), block(-.5, .5, -.5, .5, .86, 1), block(-.5, -.44, -.5, .5, 0, 1),
  block(-.46, .46, -.47, .47, .14, .86, m="white"), top=(1.0, 0.7), share=2,
)  # fmt: skip
_BALL = _of(
  "ball", ((0.07, 0.34), (0.07, 0.34), (0.07, 0.34)), "top floor outdoors",
  ball(-.5, .5, -.5, .5, 0, 1), tube(-.502, .502, -.502, .502, .46, .54, m="shade"), share=1.6,
)  # fmt: skip
_BOX = _of(
  "box", ((0.14, 0.55), (0.16, 0.6), (0.12, 0.5)), "top floor outdoors",
  block(-.5, .5, -.5, .5, 0, 1), block(-.503, .503, -.07, .07, .02, 1.004, m="card"), top=(1.0, 0.8), share=2,
)  # fmt: skip
_VASE = _of(
  "vase", ((0.12, 0.26), (0.12, 0.26), (0.2, 0.5)), "top floor",
  belly(-.5, .5, -.5, .5, 0, .7), cone(-.36, .36, -.36, .36, .66, .86, top=.5),
  cone(-.3, .3, -.3, .3, .84, 1, top=.6, axis="-z"), tube(-.25, .25, -.25, .25, .99, 1.005, m="dark"),
  share=1.3,
)  # fmt: skip
_BOWL = _of(
  "bowl", ((0.16, 0.3), (0.16, 0.3), (0.07, 0.12)), "top",
  dome(-.5, .5, -.5, .5, .1, 1, axis="-z"), tube(-.25, .25, -.25, .25, 0, .14),
  tube(-.44, .44, -.44, .44, .985, 1.01, m="shade"), share=1.3,
)  # fmt: skip
_LAPTOP = _of(
  "laptop", ((0.3, 0.34), (0.32, 0.38), (0.2, 0.25)), "top",
  block(-.28, .5, -.5, .5, 0, .07), block(-.16, .3, -.42, .42, .07, .085, m="dark"),
  block(-.40, -.36, -.5, .5, .02, 1, tilt=14), block(-.36, -.345, -.46, .46, .10, .95, m="screen", tilt=14),
  block(.34, .46, -.14, .14, .07, .08, m="shade"), front=True, share=1.3,
)  # fmt: skip
_PILLOW = _of(
  "pillow", ((0.34, 0.42), (0.42, 0.6), (0.12, 0.2)), "floor top",
  ball(-.5, .5, -.5, .5, 0, 1), block(-.36, .36, -.36, .36, .12, .88), share=0.8,
)  # fmt: skip
_TEDDY = _of(
  "teddy bear", ((0.18, 0.3), (0.22, 0.36), (0.28, 0.55)), "floor top",
  ball(-.4, .3, -.36, .36, .04, .62), ball(-.36, .3, -.32, .32, .52, .98),
  ball(.10, .44, -.14, .14, .60, .78, m="cream"),
  ball(-.1, .1, -.40, -.18, .82, 1), ball(-.1, .1, .18, .40, .82, 1), ball(-.1, .5, -.46, -.14, 0, .24),
  ball(-.1, .5, .14, .46, 0, .24), ball(-.1, .26, -.5, -.28, .26, .56), ball(-.1, .26, .28, .5, .26, .56),
  ball(.38, .48, -.05, .05, .68, .76, m="dark"), front=True,
)  # fmt: skip
_APPLE = _of(
  "apple", ((0.07, 0.09), (0.07, 0.09), (0.07, 0.09)), "top",
  ball(-.5, .5, -.5, .5, 0, .92, m="red"), tube(-.05, .05, -.05, .05, .85, 1.05, m="bark"), share=1.3,
)  # fmt: skip
_CANDLE = _of(
  "candle", ((0.06, 0.09), (0.06, 0.09), (0.12, 0.26)), "top",
  tube(-.5, .5, -.5, .5, 0, .84), ball(-.18, .18, -.18, .18, .84, 1, m="lit"),
)  # fmt: skip
_TOASTER = _of(
  "toaster", ((0.17, 0.22), (0.27, 0.33), (0.18, 0.22)), "top",
  block(-.5, .5, -.5, .5, .06, 1), block(-.3, -.12, -.36, .36, .99, 1.01, m="dark"),
  block(.12, .3, -.36, .36, .99, 1.01, m="dark"), block(-.08, .08, .5, .56, .5, .68, m="dark"),
  block(-.46, .46, -.46, .46, 0, .07, m="dark"),
)  # fmt: skip
_KETTLE = _of(
  "kettle", ((0.2, 0.25), (0.15, 0.19), (0.19, 0.25)), "top",
  cone(-.4, .3, -.5, .5, 0, .72, top=.7), ball(-.1, 0, -.07, .07, .7, .8, m="dark"),
  block(.1, .5, -.08, .08, .46, .6), block(-.46, -.4, -.05, .05, .5, .98, m="dark"),
  block(-.46, .06, -.05, .05, .92, 1, m="dark"), block(0, .06, -.05, .05, .66, .98, m="dark"),
)  # fmt: skip
_CLOCK = _of(
  "clock", ((0.04, 0.06), (0.24, 0.42), (0.24, 0.42)), "wall",
  tube(-.5, .3, -.5, .5, 0, 1, axis="x"), tube(.25, .4, -.43, .43, .07, .93, axis="x", m="white"),
  block(.4, .5, -.03, .03, .48, .86, m="dark"), block(.4, .5, -.28, .02, .47, .53, m="dark"), hung=(1.2, 2.1),
)  # fmt: skip
_PAINTING = _of(
  "painting", ((0.03, 0.05), (0.5, 1.2), (0.4, 0.9)), "wall",
  block(-.5, .4, -.5, .5, 0, 1), block(.3, .42, -.44, .44, .07, .93, m="cream"),
  block(.42, .46, -.44, .44, .07, .4, m="grass"), tube(.42, .47, -.05, .25, .5, .8, axis="x", m="clay"),
  block(.42, .48, -.34, -.12, .2, .62, m="cloth"), hung=(0.9, 1.6), share=1.5,
)  # fmt: skip
_WINDOW = _of(
  "window", ((0.05, 0.08), (0.8, 1.5), (0.9, 1.3)), "wall",
  block(-.5, .3, -.5, .5, 0, 1, m="white"), block(.2, .34, -.45, -.02, .06, .94, m="glass"),
  block(.2, .34, .02, .45, .06, .94, m="glass"), block(.3, .42, -.5, .5, .49, .53, m="white"),
  block(-.5, 1.2, -.54, .54, -.03, .02, m="white"), hung=(0.75, 1.0),
)  # fmt: skip
_DOOR = _of(
  "door", ((0.05, 0.07), (0.8, 1.0), (1.95, 2.15)), "wall",
  block(-.5, .1, -.56, .56, 0, 1.03, m="white"), block(.1, .3, -.5, .5, 0, 1),
  block(.3, .36, -.36, .36, .55, .92, m="shade"), block(.3, .36, -.36, .36, .08, .45, m="shade"),
  ball(.3, 1.2, -.45, -.38, .46, .50, m="metal"), share=0.8,
)  # fmt: skip
_SHELF = _of(
  "shelf", ((0.2, 0.3), (0.7, 1.3), (0.14, 0.2)), "wall",
  block(-.5, .5, -.5, .5, .84, 1), block(-.5, .2, -.4, -.36, 0, .84, m="metal"),
  block(-.5, .2, .36, .4, 0, .84, m="metal"), hung=(0.9, 1.55), top=(1.0, 0.9), share=2,
)  # fmt: skip
_BALLOON = _of(
  "balloon", ((0.24, 0.38), (0.24, 0.38), (0.6, 0.95)), "air outdoors_air",
  ball(-.5, .5, -.5, .5, .5, 1), cone(-.08, .08, -.08, .08, .47, .51),
  tube(-.012, .012, -.012, .012, 0, .48, m="dark"),
  hung=(0.3, 1.9), share=2,
)  # fmt: skip
_WHEELS = [
  tube(x, x + 0.15, y, y + 0.12, 0, 0.42, m="rubber", axis="y") for x in (-0.40, 0.24) for y in (-0.5, 0.38)
]
_CAR = _of(
  "car", ((3.8, 4.7), (1.65, 1.85), (1.35, 1.6)), "outdoors", *_WHEELS,
  block(-.5, .5, -.48, .48, .14, .58), block(-.32, .18, -.44, .44, .58, 1),
  block(-.34, .20, -.40, .40, .62, .92, m="glass"),
  block(.49, .505, -.42, -.24, .36, .48, m="lit"), block(.49, .505, .24, .42, .36, .48, m="lit"),
  block(-.505, -.49, -.42, .42, .38, .48, m="red"), front=True, share=4, top=(1.0, 0.3),
)  # fmt: skip
_TRUCK = _of(
  "truck", ((5.5, 7.5), (2.1, 2.4), (2.5, 3.2)), "outdoors",
  *[tube(x, x + .13, y, y + .14, 0, .28, m="rubber", axis="y") for x in (-.40, .26) for y in (-.5, .36)],
  block(-.5, .18, -.5, .5, .2, 1, m="white"), block(.2, .5, -.47, .47, .14, .78),
  block(.38, .505, -.42, .42, .48, .72, m="glass"),
  block(.495, .508, -.4, -.22, .22, .32, m="lit"), block(.495, .508, .22, .4, .22, .32, m="lit"), front=True,
)  # fmt: skip
_BUS = _of(
  "bus", ((8.0, 11.0), (2.4, 2.55), (2.7, 3.1)), "outdoors",
  *[tube(x, x + .09, y, y + .12, 0, .3, m="rubber", axis="y") for x in (-.36, .26) for y in (-.5, .38)],
  block(-.5, .5, -.49, .49, .1, 1), block(-.47, .46, -.497, .497, .5, .84, m="glass"),
  block(.49, .503, -.44, .44, .42, .86, m="glass"), block(.495, .505, -.42, .42, .18, .26, m="lit"),
  block(-.505, -.49, -.42, .42, .2, .28, m="red"), front=True, share=0.8,
)  # fmt: skip
_TREE = _of(
  "tree", ((1.8, 3.6), (1.8, 3.6), (3.0, 7.0)), "outdoors",
  tube(-.06, .06, -.06, .06, 0, .5, m="bark"), ball(-.5, .3, -.4, .35, .34, .78, m="leaf"),
  ball(-.25, .5, -.35, .45, .38, .82, m="grass"), ball(-.35, .35, -.5, .3, .45, .88, m="leaf"),
  ball(-.35, .35, -.3, .4, .6, 1, m="grass"), alike="green", share=3,
)  # fmt: skip
_BUSH = _of(
  "bush", ((0.7, 1.6), (0.7, 1.6), (0.6, 1.2)), "outdoors",
  ball(-.5, .2, -.4, .3, 0, .85, m="leaf"), ball(-.2, .5, -.3, .5, 0, .9, m="grass"),
  ball(-.3, .3, -.5, .2, 0, 1, m="leaf"), alike="green", plural="bushes",
)  # fmt: skip
_HOUSE = _of(
  "house", ((6.0, 9.0), (7.0, 10.0), (4.5, 6.5)), "outdoors",
  block(-.5, .5, -.5, .5, 0, .62), block(-.54, .54, -.54, .54, .62, .68, m="stone"),
  cone(-.72, .72, -.72, .72, .68, 1, m="brick"),
  block(.5, .505, -.1, .1, 0, .36, m="wood"), block(.5, .505, -.4, -.2, .2, .42, m="glass"),
  block(.5, .505, .2, .4, .2, .42, m="glass"), block(-.2, .2, .5, .505, .2, .42, m="glass"), front=True,
  share=0.8,
)  # fmt: skip
_BENCH = _of(
  "bench", ((0.5, 0.65), (1.3, 1.8), (0.78, 0.92)), "outdoors floor",
  block(-.4, .5, -.5, .5, .46, .53), block(-.5, -.42, -.5, .5, .66, 1),
  block(-.46, .46, -.46, -.42, 0, .46, m="dark"),
  block(-.46, .46, .42, .46, 0, .46, m="dark"), block(-.5, -.42, -.46, -.42, .5, .7, m="dark"),
  block(-.5, -.42, .42, .46, .5, .7, m="dark"), plural="benches", top=(0.53, 0.8), front=True,
)  # fmt: skip
_STREET_LAMP = _of(
  "street lamp", ((0.5, 0.7), (0.3, 0.4), (3.4, 5.0)), "outdoors",
  tube(-.12, .12, -.18, .18, 0, .9, m="dark"), cone(-.5, .5, -.5, .5, .88, .97, top=.6, axis="-z", m="lit"),
  cone(-.5, .5, -.5, .5, .97, 1, m="dark"), tube(-.25, .25, -.36, .36, 0, .05, m="dark"), alike="lamp",
)  # fmt: skip
_CONE = _of(
  "traffic cone", ((0.3, 0.42), (0.3, 0.42), (0.45, 0.8)), "outdoors",
  cone(-.4, .4, -.4, .4, .05, 1, top=.12), block(-.5, .5, -.5, .5, 0, .06),
  cone(-.29, .29, -.29, .29, .4, .62, top=.66, m="white"),
  share=1.5,
)  # fmt: skip
_BARREL = _of(
  "barrel", ((0.5, 0.65), (0.5, 0.65), (0.75, 1.0)), "outdoors floor",
  belly(-.5, .5, -.5, .5, 0, 1), tube(-.47, .47, -.47, .47, .26, .31, m="dark"),
  tube(-.47, .47, -.47, .47, .69, .74, m="dark"),
  top=(1.0, 0.5), share=0.7,
)  # fmt: skip
_MAILBOX = _of(
  "mailbox", ((0.4, 0.5), (0.24, 0.32), (1.0, 1.25)), "outdoors",
  block(-.1, .1, -.14, .14, 0, .7, m="wood"), block(-.5, .5, -.5, .5, .68, .86),
  tube(-.5, .5, -.5, .5, .72, 1, axis="x"),
  block(-.1, .1, -.62, -.5, .84, 1.05, m="red"),
)  # fmt: skip
_HYDRANT = _of(
  "fire hydrant", ((0.3, 0.36), (0.4, 0.48), (0.7, 0.85)), "outdoors",
  tube(-.35, .35, -.25, .25, 0, .75), dome(-.4, .4, -.3, .3, .75, 1),
  tube(-.5, .5, -.5, .5, .5, .66, axis="y", m="shade"),
  tube(-.5, .5, -.36, .36, 0, .08, m="shade"),
)  # fmt: skip
_SIGN = _of(
  "sign", ((0.06, 0.09), (0.6, 0.75), (1.9, 2.4)), "outdoors",
  tube(-.5, .5, -.06, .06, 0, .98, m="metal"), block(.3, .6, -.5, .5, .7, 1),
  block(.6, .64, -.4, .4, .82, .88, m="white"), front=True,
)  # fmt: skip
_ROCK = _of(
  "rock", ((0.4, 1.4), (0.4, 1.4), (0.3, 0.9)), "outdoors",
  ball(-.5, .3, -.4, .4, -.1, .9, m="stone"), ball(-.3, .5, -.5, .3, -.2, .7, m="stone"),
  ball(-.2, .3, -.2, .5, .1, 1, m="stone"),
)  # fmt: skip

CLASSES: tuple[Class, ...] = (
  _TABLE, _DESK, _CHAIR, _SOFA, _BED, _CABINET, _BOOKCASE, _STOOL, _LAMP, _TABLE_LAMP, _CEILING_LAMP, _PLANT,
  _TELEVISION, _FRIDGE, _BIN, _BASKET, _SUITCASE, _PERSON, _DOG, _MUG, _BOTTLE, _BOOK, _BALL, _BOX, _VASE,
  _BOWL,
  _LAPTOP, _PILLOW, _TEDDY, _APPLE, _CANDLE, _TOASTER, _KETTLE, _CLOCK, _PAINTING, _WINDOW, _DOOR, _SHELF,
  _BALLOON,
  _CAR, _TRUCK, _BUS, _TREE, _BUSH, _HOUSE, _BENCH, _STREET_LAMP, _CONE, _BARREL, _MAILBOX, _HYDRANT, _SIGN,
  _ROCK,
)  # fmt: skip
NUMBER = {of.name: index for index, of in enumerate(CLASSES)}
# The group of classes that could be called by each other's name, as a number.
_GROUPS = list(dict.fromkeys(of.alike or of.name for of in CLASSES))
ALIKE = tuple(_GROUPS.index(of.alike or of.name) for of in CLASSES)


def placed(place: str) -> tuple[int, ...]:
  """Numbers of the classes that stand at a place."""
  return tuple(index for index, of in enumerate(CLASSES) if place in of.places)
