"""The typed configuration of a radiance field."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SceneViewsConfig:
  """Views of one rendered scene from cameras around it, whose depth is known.

  Attributes:
    kind: the tag of this class.
    seed: of the rendered world.
    number: of the scene in it.
    views: number of cameras, the held-out ones counted.
    size: pixels of the square pictures.
    angle: field of view in degrees.
  """

  kind: Literal["scene"] = "scene"
  seed: int = 1_000_000
  number: int = 0
  views: int = 50
  size: int = 96
  angle: float = 50.0


@dataclasses.dataclass(frozen=True)
class FolderViewsConfig:
  """Pictures in a folder, with their cameras, and depth where it is known.

  Attributes:
    kind: the tag of this class.
    path: a folder or file in a layout of `fields.posed.folder.LAYOUTS`: transforms.json (NeRF-synthetic,
      instant-ngp), or COLMAP's cameras.txt and images.txt.
    images: COLMAP's folder of pictures; empty for `images` beside the model, else the folder itself.
    scale: pictures are made smaller by this whole factor.
    metres: how many metres one unit of the poses is. COLMAP's own unit means nothing.
  """

  kind: Literal["folder"] = "folder"
  path: str = ""
  images: str = ""
  scale: int = 1
  metres: float = 1.0


@dataclasses.dataclass(frozen=True)
class FieldConfig:
  """A radiance field of one scene (`launch/field.py`): fitted to posed views, then asked for others.

  Attributes:
    name: of the field; the default workdir is named after it.
    source: where the views come from.
    heldout: every so many-th view is not fitted but measured; 0 for none. Views that files name as those of a
      test are held out in place of these.
    measured: most held-out views that are measured, taken evenly.
    steps: of the fit.
    rays: of one step.
    coarse, fine: intervals along a ray: of the proposal, and of the field.
    planes: resolutions of the three planes' levels.
    features: channels of each level.
    proposal: resolution of the grid of densities that proposes where to look.
    width: of the two small networks.
    background: what is seen where nothing is: "white", "black", or "learned" (a colour for each direction).
      Pictures with transparency are laid on white, with "black" on black.
    center: (x, y, z) of the scene in metres; empty for the place that the cameras look at.
    radius: in metres; half the edge of the cube that gets half of the planes along each axis, the world
      outside is drawn together into the rest. 0: half of the cameras' usual distance from the centre.
    near, far: metres along the optical axis between which rays are looked at; 0: an eighth and twenty times
      the cameras' usual distance.
    learning_rate: at its highest; falls to a thirtieth.
    distortion: weight of what keeps a ray's weights together (Barron et al. 2022).
    smoothness: weight of the planes' total variation.
    depth_weight: weight of the fitted views' own depth; 0: it is not looked at.
    depth: "median" or "expected", which depth is written.
    new_views: number of cameras between the given ones that are rendered.
    given: render the given views as well, so that each has depth.
    checkpoint_every: steps between states that an interrupted fit goes on from.
    seed: of the field's start, the rays and the new cameras.
  """

  name: str = "field"
  source: SceneViewsConfig | FolderViewsConfig = SceneViewsConfig()
  heldout: int = 5
  measured: int = 20
  steps: int = 1200
  rays: int = 1024
  coarse: int = 64
  fine: int = 32
  planes: tuple[int, ...] = (64, 128, 256)
  features: int = 8
  proposal: int = 64
  width: int = 64
  background: Literal["white", "black", "learned"] = "learned"
  center: tuple[float, ...] = ()
  radius: float = 0.0
  near: float = 0.0
  far: float = 0.0
  learning_rate: float = 0.03
  distortion: float = 0.003
  smoothness: float = 0.0
  depth_weight: float = 0.0
  depth: Literal["median", "expected"] = "median"
  new_views: int = 24
  given: bool = True
  checkpoint_every: int = 500
  seed: int = 0
