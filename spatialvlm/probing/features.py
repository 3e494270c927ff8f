"""Features of scenes by one encoder, averaged to cells, kept on disk; and what they cost."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from spatialvlm import workdir
from spatialvlm.config import ProbeConfig
from spatialvlm.encoder import LoadedEncoder
from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.probing import cost
from spatialvlm.probing.worlds import Worlds
from spatialvlm.types import UserError

# Pixels along the edge of a cell that the raw-pixel control reads.
PIXELS = 12
_REPEATS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """Scenes as one encoder sees them.

  Attributes:
    layers: (N, C, D) float32 by layer.
    shown: (K, rows, columns, D) of the scenes that are shown, on the encoder's own grid, first layer.
    facts: sizes and costs, ready for JSON.
    photos: as `layers`, of photographs.
  """

  layers: dict[int, np.ndarray]
  shown: np.ndarray
  facts: dict[str, Any]
  photos: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def see(
  encoder: LoadedEncoder,
  worlds: Worlds,
  config: ProbeConfig,
  on_progress: Callable[[int, int], None],
  photos: Sequence[np.ndarray] = (),
) -> Seen:
  """Runs the encoder over all scenes, and over photographs (H, W, 3).

  Raises:
    UserError: a layer that it does not have; no preprocessor_config.json.
  """
  vision = encoder.config.vision
  size = config.image_size or vision.image_size
  grid = (size // vision.patch_size,) * 2
  cells_CP = averages(grid, size / vision.patch_size, config.grid)
  total, scenes, batch = len(worlds.images) + len(photos), len(worlds.images), config.batch_size
  keep = shown(worlds, config.pictures)
  layers: dict[int, list] = {layer: [] for layer in config.layers}
  pictures, pixels, compile_s = {}, None, 0.0
  for start in range(0, total, batch):
    stop = min(start + batch, total)
    images = [worlds.images[i] if i < scenes else photos[i - scenes] for i in range(start, stop)]
    # The last batch is filled up, so that one compiled program serves all.
    pixels = encoder.preprocess(images + images[:1] * (batch - len(images)), (size, size))
    begin = time.perf_counter()
    patches_NPD = _patches(encoder, pixels, config)
    compile_s = compile_s or time.perf_counter() - begin
    parts = np.split(patches_NPD[: len(images)], len(config.layers), axis=-1)
    for layer, part_NPD in zip(config.layers, parts, strict=True):
      layers[layer].append(np.einsum("CP,NPD->NCD", cells_CP, part_NPD, optimize=True))
    pictures |= {start + i: parts[0][i] for i in range(len(images)) if start + i in keep}
    on_progress(stop, total)
  facts = _facts(encoder, size) | _speed(encoder, pixels, config, compile_s)
  stacked = np.stack([pictures[i] for i in keep]) if keep else np.zeros((0, grid[0] * grid[1], 1), np.float32)
  whole = {layer: np.concatenate(parts) for layer, parts in layers.items()}
  return Seen(
    {layer: cells_NCD[:scenes] for layer, cells_NCD in whole.items()},
    stacked.reshape(len(keep), *grid, stacked.shape[-1]),
    facts,
    {layer: cells_NCD[scenes:] for layer, cells_NCD in whole.items()},
  )


def drawn(encoder: LoadedEncoder, seed: int) -> LoadedEncoder:
  """An encoder of this shape with weights drawn from `seed`: what its shape alone gives."""
  config = encoder.config
  model = VisionEncoder(config.vision, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(seed))
  return LoadedEncoder(model, config, encoder.folder)


def shown(worlds: Worlds, count: int) -> list[int]:
  """The first scenes of the test."""
  return [int(i) for i in np.flatnonzero(worlds.part_N == 2)[:count]]


def averages(grid: tuple[int, int], across: float, cells: int) -> np.ndarray:
  """(C, P) float32: each cell as an average of patches, by the area that they share.

  Args:
    across: patches that would fit along an edge of the image, not rounded: pixels beyond the last whole patch
      are seen by none, and cells that lie there wholly read the nearest patch.
  """
  rows, columns = (_overlaps(count, across, cells) for count in grid)
  return np.einsum("ar,bc->abrc", rows, columns).reshape(cells * cells, -1).astype(np.float32)


def _overlaps(count: int, across: float, cells: int) -> np.ndarray:
  """(cells, count): the shares of one axis."""
  low, high = np.arange(cells)[:, None] / cells, np.arange(1, cells + 1)[:, None] / cells
  starts = np.arange(count)[None] / across
  shared = np.clip(np.minimum(high, starts + 1 / across) - np.maximum(low, starts), 0, None)
  shared[shared.sum(1) < 1e-9, -1] = 1.0
  return shared / shared.sum(1, keepdims=True)


def pixel_cells(images: Iterable[np.ndarray], grid: int) -> np.ndarray:
  """(N, C, D) float32 of images (H, W, 3): the control that sees raw pixels.

  They are PIXELS x PIXELS of each cell, from 0 to 1.
  """
  edge = grid * PIXELS
  found = [np.zeros((0, grid * grid, PIXELS * PIXELS * 3), np.float32)]
  for image in images:
    small = np.asarray(Image.fromarray(image).resize((edge, edge), Image.Resampling.BOX), np.float32) / 255
    found.append(small.reshape(grid, PIXELS, grid, PIXELS, 3).swapaxes(1, 2).reshape(1, grid * grid, -1))
  return np.concatenate(found)


def place_cells(count: int, cells: int) -> np.ndarray:
  """(N, C, C) float32: the control that knows where a cell lies, and nothing of what is in it."""
  return np.broadcast_to(np.eye(cells, dtype=np.float32), (count, cells, cells))


def _patches(encoder: LoadedEncoder, pixels: np.ndarray, config: ProbeConfig) -> np.ndarray:
  found = encoder.features(pixels, layer=config.layers, norm=config.norm)
  return np.asarray(found.patches_NPD.astype(jnp.float32))


def _facts(encoder: LoadedEncoder, size: int) -> dict[str, Any]:
  vision = encoder.config.vision
  return {
    "family": encoder.config.family,
    "dtype": encoder.config.dtype,
    "width": vision.block.width,
    "depth": vision.depth,
    "patch_size": vision.patch_size,
    "image_size": size,
    "patches": (size // vision.patch_size) ** 2,
    "tokens": cost.tokens(vision, size, size),
    "parameters": cost.parameters(encoder.model),
    "flops": cost.flops(vision, size, size),
  }


def _speed(
  encoder: LoadedEncoder, pixels: np.ndarray, config: ProbeConfig, first_s: float
) -> dict[str, float]:
  """Images in a second through the layers that are probed, the best of a few batches; compiling apart."""
  times = []
  for _ in range(_REPEATS):
    begin = time.perf_counter()
    encoder.features(pixels, layer=config.layers, norm=config.norm).patches_NPD.block_until_ready()
    times.append(time.perf_counter() - begin)
  return {"compile_s": max(first_s - min(times), 0.0), "images_per_s": len(pixels) / min(times)}


def save(path: pathlib.Path, seen: Seen) -> None:
  """Writes what was seen, whole or not at all.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  arrays = {f"layer{layer}": cells for layer, cells in seen.layers.items()}
  arrays |= {f"photo{layer}": cells for layer, cells in seen.photos.items()}
  temporary = path.with_name(path.name + ".tmp")
  with workdir.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, "wb") as stream:
        np.savez(stream, shown=seen.shown, facts=np.array(json.dumps(seen.facts)), **arrays)
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def read(path: pathlib.Path) -> Seen | None:
  """What `save` wrote, None where there is no file.

  Raises:
    UserError: the file is broken.
  """
  if not path.is_file():
    return None
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
      layers, photos = (
        {int(name.removeprefix(kind)): found[name] for name in found if name.startswith(kind)}
        for kind in ("layer", "photo")
      )
      return Seen(layers, found["shown"], json.loads(str(found["facts"])), photos)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: cannot be read ({error}); delete it and run the same command again") from None
