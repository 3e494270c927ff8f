"""A conversation as a model reads it, before it is put into a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from spatialvlm.types import Extra, PixelTable


@dataclasses.dataclass(frozen=True)
class Branch:
  """One answer to one question of a row, behind the row's own tokens.

  Attributes:
    start: where it begins, with a copy of the question's last token.
    count: its tokens that count, the last ones.
    fork: the last position of the row that it sees.
    group: the number of the question (`types.Branches`).
    lead: tokens between the first one and those that count: of a picture of its own, and the question.
  """

  start: int
  count: int
  fork: int
  group: int
  lead: int = 0

  @property
  def stop(self) -> int:
    """Behind its last token."""
    return self.start + 1 + self.lead + self.count


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
  """One conversation, ready to be put into a batch.

  Attributes:
    tokens: int32 (T,).
    loss_mask: bool (T,), true at the tokens that are to be predicted: each answer and the token that ends
      it, such as `<end_of_utterance>`.
    image_slot: int32 (T,), for an image token its place among the example's I * P image tokens, else -1.
    tiles: uint8 (I, S, S, 3), of all images in order; I is 0 without images.
    normal: what the model takes for the tiles' values; None where they are normalised float32 already.
    pixel_mask: bool (I, S, S), true at real pixels; None, as always here, where all are.
    images: how many tiles each image became.
    extra: arrays that go into `Batch.extra` by their names; the example's dense targets among them.
    views: what other models read of the same example, by their names (`data.views`).
    prefix: how many leading tokens all see each other; 0 for a causal model.
    branches: answers that stand behind the conversation, each read in the place of the right one.
    parts: of several conversations in one row (`data.packing`) the tokens and the `prefix` of each, in order;
      empty for one conversation.
  """

  tokens: np.ndarray
  loss_mask: np.ndarray
  image_slot: np.ndarray
  tiles: np.ndarray
  pixel_mask: np.ndarray | None = None
  images: tuple[int, ...] = ()
  id: str = ""
  task: str = ""
  source: str = ""
  extra: Mapping[str, Extra] = dataclasses.field(default_factory=dict)
  views: Mapping[str, Encoded] = dataclasses.field(default_factory=dict)
  prefix: int = 0
  branches: tuple[Branch, ...] = ()
  parts: tuple[tuple[int, int], ...] = ()
  normal: PixelTable | None = None

  @property
  def pixels(self) -> np.ndarray:
    """The tiles as the model reads them, float32 (I, S, S, 3), normalised."""
    return self.tiles if self.normal is None else self.normal(self.tiles)
