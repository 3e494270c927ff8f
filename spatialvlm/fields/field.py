"""A fitted field: what `field.safetensors` holds, and its views from any camera."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from spatialvlm import workdir
from spatialvlm.config import FieldConfig, from_stored, to_dict
from spatialvlm.fields import fit, grid, render
from spatialvlm.fields.posed.cameras import Camera, directions
from spatialvlm.types import UserError

# Rays that are followed at once, so that memory does not grow with the picture.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
  """A radiance field that can be looked at.

  Attributes:
    params: its planes and networks. config: of its fit. space: where it lies.
  """

  params: grid.Params
  config: FieldConfig
  space: grid.Space

  def render(self, camera: Camera) -> Rendered:
    """What a camera sees."""
    rays = directions(camera)
    origin = camera.pose[:3, 3].astype(np.float32)
    parts = []
    for start in range(0, len(rays), _CHUNK):
      some = rays[start : start + _CHUNK]
      block = np.concatenate([some, np.repeat(some[-1:], _CHUNK - len(some), 0)])
      seen = _follower(self.config, self.space)(self.params, np.broadcast_to(origin, block.shape), block)
      parts.append([np.asarray(a)[: len(some)] for a in seen])
    colour, expected, median, opacity = (np.concatenate(p) for p in zip(*parts, strict=True))
    shape = camera.size[::-1]
    return Rendered(
      image=np.rint(255 * np.clip(colour, 0, 1)).astype(np.uint8).reshape(*shape, 3),
      expected=expected.reshape(shape),
      median=median.reshape(shape),
      opacity=opacity.reshape(shape),
      written=self.config.depth,
    )

  def described(self, camera: Camera, depth: np.ndarray, side: int) -> np.ndarray:
    """What the field says of the surface that a camera sees: float32 (side, side, `grid.DESCRIPTORS`).

    Each cell of an even grid over the picture has the descriptor (`grid.descriptors`) of the point that the
    pixel in its middle shows, NaN where no depth is known there. Of one point it is the same from every
    camera.

    Args:
      depth: (H, W) metres along the optical axis, as the camera sees it, 0 for none.
    """
    rows, columns = (
      np.minimum(((np.arange(side) + 0.5) * n / side).astype(int), n - 1) for n in camera.size[::-1]
    )
    at = (rows[:, None] * camera.size[0] + columns).ravel()
    z = depth.ravel()[at]
    points = camera.pose[:3, 3].astype(np.float32) + directions(camera)[at] * z[:, None]
    found = np.asarray(_describer(self.space)(self.params, points))
    return np.where(z[:, None] > 0, found, np.nan).reshape(side, side, -1).astype(np.float32)

  def save(self, path: pathlib.Path) -> None:
    """Writes one safetensors file that `load` reads; errors as `workdir.write_bytes`."""
    about = {"config": json.dumps(to_dict(self.config)), "space": json.dumps(dataclasses.asdict(self.space))}
    workdir.write_bytes(path, safetensors.numpy.save(fit.named(self.params), about))


@dataclasses.dataclass(frozen=True, eq=False)
class Rendered:
  """A rendered view.

  Attributes:
    image: (H, W, 3) uint8. opacity: (H, W) float32.
    expected, median: (H, W) float32, metres along the optical axis, 0 where nothing is met.
    written: which of the two is `depth`.
  """

  image: np.ndarray
  expected: np.ndarray
  median: np.ndarray
  opacity: np.ndarray
  written: str

  @property
  def depth(self) -> np.ndarray:
    return getattr(self, self.written)


@functools.lru_cache(maxsize=4)
def _follower(config: FieldConfig, space: grid.Space):
  @jax.jit
  def follow(params, origins, directions):
    seen = render.rays(params, config, space, origins, directions)
    return seen.colour, seen.expected, seen.median, seen.opacity

  return follow


@functools.lru_cache(maxsize=4)
def _describer(space: grid.Space):
  return jax.jit(lambda params, points: grid.descriptors(params, grid.drawn_together(points, space)))


def load(path: pathlib.Path | str) -> Field:
  """Reads a `field.safetensors`.

  Raises:
    UserError: the file is none, damaged, or of another version.
  """
  path = pathlib.Path(path)
  tensors = fit.read_tensors(path)
  with safetensors.safe_open(path, "numpy") as file:
    about = file.metadata() or {}
  try:
    config = from_stored(json.loads(about["config"]), FieldConfig)
    space = json.loads(about["space"])
    space = grid.Space(**{**space, "center": tuple(space["center"])})
  except (KeyError, TypeError, ValueError):
    raise UserError(f"{path}: says nothing of a field; name a field.safetensors of launch/field.py") from None
  like = jax.eval_shape(lambda: grid.init(jax.random.key(0), config))
  places = jax.tree_util.tree_flatten_with_path(like)[0]
  names = [jax.tree_util.keystr(place, simple=True, separator=".") for place, _ in places]
  shapes = {name: leaf.shape for name, (_, leaf) in zip(names, places, strict=True)}
  if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
    raise UserError(f"{path}: its tensors are not those of its config; fit it anew")
  leaves = [jnp.asarray(tensors[name]) for name in names]
  return Field(jax.tree.unflatten(jax.tree.structure(like), leaves), config, space)
