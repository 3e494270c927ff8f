"""Rendered scenes on the host: scene number i of seed s is always the same scene.

There is no state: a scene's key is `fold_in(fold_in(key(0), s), i)`, and scenes are rendered in blocks of one
fixed size, so that the same compiled program makes them whatever is asked for together. Thread-safe.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from spatialvlm.types import Shot, UserError
from spatialvlm.worlds import grain, layout, render
from spatialvlm.worlds.shifts import PLAIN, Look

BLOCK = 16
# An object may be named when this many of its pixels show (at 96 x 96, scaled with the area) and this share.
MIN_PIXELS, MIN_FRACTION = 60, 0.6
# Of the plain look, which alone is trained on.
COLORS, SHAPES = PLAIN.color_words, PLAIN.shape_words
PLURALS = {form.word: form.plural for form in PLAIN.forms}
BOX_COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}


@dataclasses.dataclass(frozen=True, eq=False)
class SceneObject:
  """One object as it is seen.

  Attributes:
    index: its number in `Frame.instance`.
    shape, color: words of the look, by default of SHAPES and COLORS; name: both, e.g. "yellow cone".
    center: (3,) metres, world. size: (3,) full sizes in metres along its own axes.
    center_camera: (3,) metres, OpenCV axes; the third is its depth.
    box: (x0, y0, x1, y1) pixels, half-open, around the visible mask.
    visible_pixels: of its mask; visible_fraction: of what it would cover if nothing stood before it.
    clear: large and free enough to be named (MIN_PIXELS, MIN_FRACTION).
  """

  index: int
  shape: str
  color: str
  center: np.ndarray
  size: np.ndarray
  center_camera: np.ndarray
  box: tuple[int, int, int, int]
  visible_pixels: int
  visible_fraction: float
  clear: bool

  @property
  def name(self) -> str:
    return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
  """One rendered scene.

  Attributes:
    image: (H, W, 3) uint8 RGB. depth: (H, W) float32, metres along the optical axis, 0 for sky.
    instance: (H, W) int32 indices of objects, -1 for floor, furniture and sky.
    objects: those with at least one visible pixel.
    intrinsics: (3, 3) pixels. pose: (4, 4) camera to world.
  """

  image: np.ndarray
  depth: np.ndarray
  instance: np.ndarray
  objects: tuple[SceneObject, ...]
  intrinsics: np.ndarray
  pose: np.ndarray

  def named(self) -> tuple[SceneObject, ...]:
    """The objects that can be asked about: clear, and alone with their name in this picture."""
    names = [o.name for o in self.objects]
    return tuple(o for o in self.objects if o.clear and names.count(o.name) == 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
  """Many scenes as arrays, B first: `layout` and `rendering` as numpy pytrees, and what is derived from them.

  Attributes:
    clear: (B, MAX_OBJECTS) bool. center_camera: (B, MAX_OBJECTS, 3) metres.
    size: in pixels.
    look: that the scenes were drawn in.
  """

  layout: layout.Layout
  rendering: render.Rendering
  clear: np.ndarray
  center_camera: np.ndarray
  size: int
  look: Look = PLAIN


@functools.partial(jax.jit, static_argnames="look")
def _sample_block(seed, indices, look):
  base = jax.random.fold_in(jax.random.key(0), seed)
  return jax.vmap(lambda i: layout.sample(jax.random.fold_in(base, i), look))(indices)


def check(seed: int, size: int) -> None:
  """Raises UserError where a seed is outside 32 bits, or a size outside 16 .. 4096 pixels."""
  _key_part(seed, "seed")
  if not 16 <= size <= 4096:
    raise UserError(f"scenes: image size {size} is outside 16 .. 4096 pixels; choose another")


def _key_part(value: int, what: str) -> int:
  if not 0 <= int(value) < 2**32:
    raise UserError(f"scenes: {what} {value} is outside 0 .. 2^32 - 1; choose another")
  return int(value)


def pool(seed: int, indices: Sequence[int], size: int = 96, look: Look = PLAIN) -> Pool:
  """Renders scenes as one block of arrays (see `frames` for the arguments)."""
  check(seed, size)
  numbers = np.array([_key_part(i, "scene number") for i in indices], np.uint32)
  seed = np.uint32(seed)
  parts = []
  for start in range(0, len(numbers), BLOCK):
    block = np.resize(numbers[start : start + BLOCK], BLOCK)
    layouts = _sample_block(seed, block, look.drawn)
    parts.append((layouts, render.render_batch(layouts.scene, layouts.camera, size)))
  keep = len(numbers)
  lay, out = jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[:keep], *parts)
  return _measured(lay, out, size, look)


def rendered(layouts: Sequence[layout.Layout], size: int = 96, look: Look = PLAIN) -> Pool:
  """Scenes that somebody else laid out, of numpy arrays, as one block of arrays; at least one of them."""
  parts = []
  for start in range(0, len(layouts), BLOCK):
    some = layouts[start : start + BLOCK]
    block = jax.tree.map(lambda *x: np.stack(x), *some, *[some[-1]] * (BLOCK - len(some)))
    parts.append((block, render.render_batch(block.scene, block.camera, size)))
  lay, out = jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[: len(layouts)], *parts)
  return _measured(lay, out, size, look)


def _measured(lay: layout.Layout, out: render.Rendering, size: int, look: Look) -> Pool:
  offset = lay.scene.center[:, : render.MAX_OBJECTS] - lay.camera.position[:, None]
  local = np.einsum("bnk,bkj->bnj", offset, lay.camera.rotation)
  clear = (out.visible >= MIN_PIXELS * (size / 96) ** 2) & (out.visible >= MIN_FRACTION * out.covered)
  return Pool(lay, out, clear & lay.present, local, size, look)


def zoom(pool_: Pool, b: int, size: int) -> Pool:
  """Scene `b` of a pool alone, rendered anew at another size."""
  one = jax.tree.map(lambda a: a[b : b + 1], pool_.layout)
  out = jax.tree.map(np.asarray, render.render_batch(one.scene, one.camera, size))
  return _measured(one, out, size, pool_.look)


def paint(pool_: Pool, b: int, colors: np.ndarray | None = None) -> np.ndarray:
  """The picture of scene `b`, (H, W, 3) uint8; `colors` (MAX_OBJECTS,) gives other colours to its objects."""
  look, colors = pool_.look, pool_.layout.color[b] if colors is None else colors
  rest = [layout.FURNITURE_ALBEDO, pool_.layout.floor_albedo[b], layout.SKY_ALBEDO]
  painted = np.asarray([color.albedo for color in look.colors], np.float32)[colors]
  albedo = 255.0 * np.concatenate([painted, np.asarray(rest, np.float32)])
  if look.lamp != PLAIN.lamp:
    albedo *= np.asarray(look.lamp, np.float32)
  rgb = np.take(albedo, pool_.rendering.surface[b], axis=0)
  rgb *= pool_.rendering.shade[b][..., None]
  if look.speckled or look.tiled:
    one = lambda tree: jax.tree.map(lambda a: a[b], tree)
    rgb *= grain.factor(look, one(pool_.layout), one(pool_.rendering), pool_.size)[..., None]
  return np.minimum(rgb + 0.5, 255.0, out=rgb).astype(np.uint8)


def frame(pool_: Pool, b: int) -> Frame:
  """Scene `b` of a pool with all that is known of it."""
  lay, out, size = pool_.layout, pool_.rendering, pool_.size
  objects = []
  for k in np.flatnonzero(out.visible[b]):
    objects.append(
      SceneObject(
        index=int(k),
        shape=pool_.look.shape_words[lay.shape[b, k]],
        color=pool_.look.color_words[lay.color[b, k]],
        center=lay.scene.center[b, k],
        size=2 * lay.scene.half[b, k],
        center_camera=pool_.center_camera[b, k],
        box=tuple(map(int, out.box[b, k])),
        visible_pixels=int(out.visible[b, k]),
        visible_fraction=float(out.visible[b, k] / out.covered[b, k]),
        clear=bool(pool_.clear[b, k]),
      )
    )
  surface = out.surface[b].astype(np.int32)
  focal = float(lay.camera.focal[b]) * size
  intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)
  pose = np.eye(4, dtype=np.float32)
  pose[:3, :3], pose[:3, 3] = lay.camera.rotation[b], lay.camera.position[b]
  instance = np.where(surface < render.MAX_OBJECTS, surface, -1)
  return Frame(paint(pool_, b), out.depth[b], instance, tuple(objects), intrinsics, pose)


def shot(camera: render.Camera, b: int, depth: Callable[[], np.ndarray] | None) -> Shot:
  """How the picture of scene `b` was taken: all is known exactly. `depth` as of `types.Shot`."""
  pose = np.eye(4)
  pose[:3, :3], pose[:3, 3] = camera.rotation[b], camera.position[b]
  focal = float(camera.focal[b])  # pictures are square
  return Shot(focal=(focal, focal), pose=pose, depth=depth)


def shot_of(frame_: Frame, depth: Callable[[], np.ndarray] | None = None) -> Shot:
  """How a frame was taken; `depth` gives its map, where the frame has none (`targets.without_pixels`)."""
  focal = float(frame_.intrinsics[0, 0]) / len(frame_.image)
  return Shot(focal=(focal, focal), pose=frame_.pose, depth=depth or (lambda: frame_.depth))


def frames(seed: int, indices: Iterable[int], size: int = 96, look: Look = PLAIN) -> list[Frame]:
  """Scenes number `indices` of world `seed` at size x size pixels.

  Raises:
    UserError: a seed or number outside 32 bits, or a size outside 16 .. 4096.
  """
  indices = list(indices)
  if not indices:
    return []
  rendered = pool(seed, indices, size, look)
  return [frame(rendered, b) for b in range(len(indices))]


def seen_from(
  seed: int, number: int, poses: Sequence[np.ndarray], focal: float, size: int = 96, look: Look = PLAIN
) -> list[Frame]:
  """One scene from cameras of one's own.

  Args:
    seed, number: of the scene, as `frames` counts them.
    poses: (4, 4) camera to world in metres, OpenCV axes: orthonormal.
    focal: focal length as a share of the width; the principal point is the picture's middle.
    size: pixels along a side.

  Raises:
    UserError: as `frames`.
  """
  poses = np.asarray(poses, np.float32).reshape(-1, 4, 4)
  if not len(poses):
    return []
  one = drawn(seed, number, size, look)
  lay = jax.tree.map(lambda a: np.repeat(a[None], len(poses), 0), one)
  camera = render.Camera(poses[:, :3, :3], poses[:, :3, 3], np.full(len(poses), focal, np.float32))
  rendered = seen_by(lay, camera, size, look)
  return [frame(rendered, b) for b in range(len(poses))]


def seen_by(
  lay: layout.Layout, camera: render.Camera, size: int, look: Look = PLAIN, block: int = BLOCK
) -> Pool:
  """Drawn scenes (B, ...), each from a camera (B, ...) in place of its own, as one block of arrays.

  Args:
    block: scenes that one call of the renderer takes.
  """
  lay = dataclasses.replace(lay, camera=camera)
  count, parts = len(camera.focal), []
  for start in range(0, count, block):
    rows = np.minimum(np.arange(start, start + block), count - 1)
    some = jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], lay)
    parts.append(render.render_batch(some.scene, some.camera, size))
  out = jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[:count], *parts)
  return _measured(lay, out, size, look)


def drawn(seed: int, number: int, size: int = 96, look: Look = PLAIN) -> layout.Layout:
  """The layout of one scene, not rendered, of numpy arrays; errors as `frames`."""
  return jax.tree.map(lambda a: a[0], layouts(seed, [number], size, look))


def layouts(seed: int, numbers: Sequence[int], size: int = 96, look: Look = PLAIN) -> layout.Layout:
  """The layouts (B, ...) of scenes, not rendered, of numpy arrays; errors as `frames`."""
  check(seed, size)
  keys = np.array([_key_part(n, "scene number") for n in numbers], np.uint32)
  blocks = [np.resize(keys[start : start + BLOCK], BLOCK) for start in range(0, len(keys), BLOCK)]
  parts = [_sample_block(np.uint32(seed), block, look.drawn) for block in blocks]
  return jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x])[: len(keys)], *parts)


def thickness(size: int) -> int:
  """Pixels of the lines of a box that is drawn into a picture of this size."""
  return max(1, round(size / 128))


def draw_box(image: np.ndarray, box: Sequence[float], color: str) -> None:
  """Draws the outline of `box` (x0, y0, x1, y1), half-open, into `image` in place.

  One pixel wide at 96, wider in larger images; it lies just outside the box where there is room. `color` is
  "red", "blue" or "green", as CV-Bench draws them.
  """
  height, width = image.shape[:2]
  thick = thickness(min(height, width))
  x0, y0, x1, y1 = (round(float(v)) for v in box)
  x0, y0 = max(x0 - thick, 0), max(y0 - thick, 0)
  x1, y1 = min(x1 + thick, width), min(y1 + thick, height)
  rgb = BOX_COLORS[color]
  image[y0 : y0 + thick, x0:x1] = rgb
  image[y1 - thick : y1, x0:x1] = rgb
  image[y0:y1, x0 : x0 + thick] = rgb
  image[y0:y1, x1 - thick : x1] = rgb
