"""A processor and sources small enough to check by hand."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from spatialvlm.processing.tiling import dense_tiles
from spatialvlm.types import Example, Extra, ImageLayout, PixelTable, Turn

IMAGE = 1
PAD = 0


@dataclasses.dataclass
class FakeEncoded:
  tokens: np.ndarray
  loss_mask: np.ndarray
  image_slot: np.ndarray
  tiles: np.ndarray
  pixel_mask: np.ndarray | None = None
  images: tuple[int, ...] = (1,)
  extra: Mapping[str, Extra] = dataclasses.field(default_factory=dict)
  prefix: int = 0
  parts: tuple[tuple[int, int], ...] = ()
  branches: tuple = ()
  normal: PixelTable | None = None
  views: Mapping[str, "FakeEncoded"] = dataclasses.field(default_factory=dict)


class FakeProcessor:
  """One tile of 2x2 pixels and two image tokens an image; one token a character."""

  layout = ImageLayout(tile_size=2, tokens_per_tile=2, max_tiles=1, image_token_id=IMAGE, max_length=64)
  pad_id = PAD
  normal = None
  tiler = "as it is"

  bidirectional = False

  def encode(self, example: Example) -> FakeEncoded:
    image = [IMAGE, IMAGE] * len(example.images)
    prompt = [ord(c) for turn in example.turns for c in turn.prompt]
    answer = [ord(c) for turn in example.turns for c in turn.answer]
    tokens = np.array(image + prompt + answer, np.int32)
    loss = np.arange(len(tokens)) >= len(image) + len(prompt)
    slot = np.where(tokens == IMAGE, np.arange(len(tokens)), -1).astype(np.int32)
    tiles = np.zeros((len(example.images), 2, 2, 3), np.float32)
    for i, picture in enumerate(example.images):
      tiles[i] = picture[:2, :2] / 255.0
    images = (1,) * len(example.images)
    return FakeEncoded(tokens, loss, slot, tiles, images=images, extra=dense_tiles(example.dense, images))


class FakeSource:
  """Example i says "q" and answers with i in decimal; every third has no image."""

  def __init__(self, length, name="s"):
    self.length, self.name, self.reads = length, name, []

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    self.reads.append(index)
    images = () if index % 3 == 2 else (np.full((2, 2, 3), index % 256, np.uint8),)
    return Example(images=images, turns=(Turn("q", str(index)),), id=f"{self.name}{index}", task="t")


def answer_of(batch, row):
  """The index that `FakeSource` wrote as the answer of a row."""
  places = batch.target_index_BK[row]
  return int("".join(chr(batch.tokens_BT[row, t]) for t in places[places >= 0]))


def config(**kwargs):
  from spatialvlm.config import DataConfig

  return DataConfig(
    **{"lengths": (8, 16), "tiles": (1, 2), "targets": 2, "workers": 0, "prefetch": 0, **kwargs}
  )
