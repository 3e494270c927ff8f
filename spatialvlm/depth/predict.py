"""The depth of one picture."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from PIL import Image

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.processing.images import ImageSource, open_image
from spatialvlm.processing.processor import Processor
from spatialvlm.training.objectives import DenseDepth
from spatialvlm.training.objectives.heads import load_head
from spatialvlm.types import Batch, Shot, UserError


def depth_map(
  model: Vlm,
  processor: Processor,
  image: ImageSource,
  head: str | os.PathLike,
  context: contextlib.AbstractContextManager | None = None,
  shots: Sequence[Shot] = (),
) -> np.ndarray:
  """Float32 (H, W) of the picture's own size: metres along the optical axis, or, of a head that was trained
  with `metric=False`, metres up to a factor.

  Args:
    head: `heads/NAME.json` of a run, on this model or its base.
    context: of the mesh that the model is sharded over.
    shots: how the one picture was taken, for a model with priors.

  Raises:
    UserError: no such head, or one of another kind or for another model; no picture.
  """
  found = load_head(head, model.config)
  if not isinstance(found.objective, DenseDepth):
    raise UserError(f"{head}: says no depth of whole pictures; train one by a loss of kind dense_depth")
  pixels = open_image(image, "image")
  encoded = processor.encode_prompt([pixels], "", shots=shots)
  batch = Batch(
    tokens_BT=encoded.tokens[None],
    valid_BT=np.ones((1, len(encoded.tokens)), bool),
    image_slot_BT=encoded.image_slot[None],
    pixels_NHWC=encoded.tiles,
    normal=encoded.normal,
    extra=encoded.extra,
  )
  graphdef, state = nnx.split(model)
  with context or contextlib.nullcontext():
    outputs = _read(graphdef, state, batch, found.objective.wants)
    depth_Nhw = found.objective.predict(outputs, found.module, batch)
  # The last of a picture's tiles shows all of it.
  return resized(np.asarray(depth_Nhw[encoded.images[0] - 1]), pixels.shape[:2])


def check_metric(head: str | os.PathLike, model: VlmConfig) -> None:
  """Raises a UserError for a head whose depths are no metres, where metres are measured and drawn."""
  found = load_head(head, model)
  if isinstance(found.objective, DenseDepth) and not found.objective.settings.metric:
    raise UserError(
      f"{head}: was trained with metric=false, so that its depths are metres up to a factor of each picture;"
      " train one with metric=true, or call LoadedVlm.depth and scale what it gives"
    )


def resized(depth_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A map of depth, float32 (h, w), at the size (H, W) of a picture, bilinear."""
  height, width = size
  found = Image.fromarray(np.asarray(depth_hw, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(found)


@functools.partial(jax.jit, static_argnames=("graphdef", "wants"))
def _read(graphdef, state, batch: Batch, wants: Wants) -> Outputs:
  return nnx.merge(graphdef, state).read(batch, wants)
