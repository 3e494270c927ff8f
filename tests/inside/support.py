"""A tiny model with a question about one picture, and the same question as the model alone reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import spatialvlm
from spatialvlm.inside import asked as asked_lib
from spatialvlm.types import Batch
from tests import tiny_model

QUESTION, OPTIONS = "Which object is closer to the camera?", ("the red box", "the blue box")


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
  """Noise in blocks: at tiles of 16 pixels and a longest edge of 64 a grid of 3 x 4."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
  return small.repeat(4, axis=0).repeat(4, axis=1)


def load(folder: Path, depth: int = 2, **options) -> spatialvlm.api.LoadedVlm:
  """The model of `tests.tiny_model` with its processor."""
  return spatialvlm.load_vlm(tiny_model.write_checkpoint(folder, depth=depth), **options)


def ask(vlm, **changes) -> asked_lib.Asked:
  """A question with two options about one picture."""
  return asked_lib.ask(vlm.processor, [picture()], QUESTION, OPTIONS, **changes)


def batch_of(asked: asked_lib.Asked) -> Batch:
  """The question as pixels and tokens, without any padding."""
  encoded = asked.encoded
  return Batch(
    tokens_BT=encoded.tokens[None],
    valid_BT=np.ones((1, len(encoded.tokens)), bool),
    pixels_NHWC=encoded.tiles,
    normal=encoded.normal,
    image_slot_BT=encoded.image_slot[None],
    target_index_BK=np.array([[len(encoded.tokens)]], np.int32),
  )
