"""Vision encoders on their own: `load_encoder`, in the words of transformers."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm import hub
from spatialvlm.core.axes import make_mesh
from spatialvlm.models.encoders import EncoderConfig, VisionEncoder
from spatialvlm.models.execution import Execution, apply
from spatialvlm.processing.images import ImageSource, open_image
from spatialvlm.processing.resize import Resizer, resizer_from_config
from spatialvlm.types import Features, UserError


def load_encoder(
  path_or_hub_id: str | os.PathLike,
  dtype: str = "float32",
  mesh: Mesh | Mapping[str, int] | None = None,
  *,
  revision: str | None = None,
  attention: str = "xla",
) -> LoadedEncoder:
  """Loads a vision encoder from a local folder or the hub, in Hugging Face's format.

  SigLIP, SigLIP 2 of fixed resolution, CLIP (also from files that hold their text tower), DINOv2 with and
  without registers, DINOv3's ViT, InternViT; of a vision-language model its vision tower.

  Args:
    dtype: "float32" or "bfloat16".
    mesh: devices to shard the encoder over: a mesh, or its sizes such as `{"fsdp": 4}`.
    attention: how the product is computed, as of `models.execution.Execution`.

  Raises:
    UserError: the encoder cannot be found or read, or does not fit its config.
  """
  if mesh is not None and not isinstance(mesh, Mesh):
    mesh = make_mesh(mesh)
  execution = Execution(attention=attention)
  execution.check(dtype)
  folder = hub.resolve(path_or_hub_id, revision)
  model, config = hub.load_encoder(folder, dtype=dtype, mesh=mesh)
  return LoadedEncoder(apply(model, execution), config, folder)


class LoadedEncoder:
  """An encoder from a checkpoint. Pixels are (N, 3, H, W), normalised, of any size of at least one patch.

  Positions of other grids than the trained one follow as the encoder's own code in transformers does it
  (`interpolate_pos_encoding=True` where there is such a choice).

  Attributes:
    model: the `models.encoders.VisionEncoder`.
    config: sizes and parts, under `config.vision`.
    folder: local folder that it came from.
  """

  def __init__(self, model: VisionEncoder, config: EncoderConfig, folder: Path):
    self.model, self.config, self.folder = model, config, folder
    self._graphdef, self._state = nnx.split(model)

  def __call__(self, pixel_values: Any) -> jax.Array:
    """(N, T, D), transformers' `last_hidden_state`: class and register tokens first, then the patches."""
    return _tokens(self._graphdef, self._state, self._pixels(pixel_values))

  def preprocess(
    self, images: ImageSource | Sequence[ImageSource], size: int | tuple[int, int] | None = None
  ) -> np.ndarray:
    """float32 (N, 3, H, W) as the folder's preprocessor_config.json says, ready for the encoder.

    Args:
      images: one, or several: paths, bytes, PIL images or arrays (`processing.images.open_image`).
        Where the file belongs to a vision-language model, each is squeezed into one tile.
      size: None for the file's; one number for a square of this edge, cut out as the file says; (height,
        width): every image is stretched to it, with nothing cut off.

    Raises:
      UserError: there is no such file, or it cannot be honoured; an image cannot be read; images come out in
        different sizes.
    """
    images = images if isinstance(images, (list, tuple)) else [images]
    resizer = self.resizer if size is None else self.resizer.at(size)
    resized = [resizer(open_image(image, f"image {i}")) for i, image in enumerate(images)]
    if len({image.shape for image in resized}) != 1:
      shapes = sorted({image.shape[:2] for image in resized})
      raise UserError(
        f"{self.folder}: images come out in different sizes ({shapes}); pass size=(height, width)"
        if resized
        else "images: there are none"
      )
    return np.ascontiguousarray(resizer.normalise(np.stack(resized)).transpose(0, 3, 1, 2))

  @functools.cached_property
  def resizer(self) -> Resizer:
    """What `preprocess` does to one image; errors as there."""
    file = self.folder / "preprocessor_config.json"
    nested = self.folder / "processor_config.json"
    if file.is_file():
      return resizer_from_config(hub.read_json(file), str(file))
    if nested.is_file() and isinstance(found := hub.read_json(nested).get("image_processor"), Mapping):
      return resizer_from_config(found, f"{nested}: image_processor")
    raise UserError(f"{self.folder}: no preprocessor_config.json; copy it beside the weights")

  def features(
    self, pixel_values: Any, layer: int | Sequence[int] = -2, *, class_token: bool = False, norm: bool = False
  ) -> Features:
    """Features of the patches at one layer, or at several, joined by channels.

    Args:
      layer: as an index of transformers' `hidden_states`: 0 is what the first block reads, -1 what the last
        one gives, before any final norm.
      class_token: join the class token's features to every patch's (depth heads on DINOv2 do so).
      norm: apply the checkpoint's final norm.

    Returns:
      `patches` (N, rows * columns, D, or more by what is joined) and the grid (rows, columns).

    Raises:
      UserError: there is no such layer, class token or norm; pixels of another shape.
    """
    config = self.config.vision
    layers = (layer,) if isinstance(layer, int) else tuple(layer)
    if class_token and not config.class_token:
      raise UserError(f"class_token: an encoder of family {self.config.family!r} has none")
    if norm and config.final_norm == "none":
      raise UserError(f"norm: an encoder of family {self.config.family!r} has no final norm")
    pixels = self._pixels(pixel_values)
    patches = _features(self._graphdef, self._state, pixels, layers, class_token, norm)
    return Features(patches, (pixels.shape[1] // config.patch_size, pixels.shape[2] // config.patch_size))

  def save(self, folder: str | os.PathLike) -> Path:
    """Writes a folder that transformers loads: the vision part alone, without a pooling head.

    Raises:
      UserError: the encoder is the tower of a vision-language model; the disk is full or not writable.
    """
    if self.config.family.endswith("/vision"):
      raise UserError(
        f"{self.folder}: a vision-language model's tower is saved with its model, by `load_vlm`"
      )
    return hub.save_encoder(self.model, self.config, folder, self.folder)

  def _pixels(self, pixel_values: Any) -> jax.Array:
    pixels = np.asarray(pixel_values)
    config = self.config.vision
    if pixels.ndim != 4 or pixels.shape[1] != config.channels or min(pixels.shape[2:]) < config.patch_size:
      raise UserError(
        f"pixel_values: shape {pixels.shape}; expected (N, {config.channels}, H, W) with sides of at least"
        f" {config.patch_size}"
      )
    return jnp.asarray(pixels.transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnums=0)
def _tokens(graphdef, state, pixels_NHWC):
  return nnx.merge(graphdef, state).read(pixels_NHWC, features=False, tokens=True).tokens_NTD


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _features(graphdef, state, pixels_NHWC, layers, class_token, norm):
  encoder = nnx.merge(graphdef, state)
  hidden = encoder.read(pixels_NHWC, layers=layers, features=False).layers
  parts = []
  for layer in layers:
    x_NTD = encoder.norm(hidden[layer]) if norm else hidden[layer]
    patches_NPD = x_NTD[:, encoder.config.prefix :]
    parts.append(patches_NPD)
    if class_token:
      parts.append(jnp.broadcast_to(x_NTD[:, :1], patches_NPD.shape))
  return jnp.concatenate(parts, axis=-1)
