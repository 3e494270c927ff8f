"""The typed configuration of a data set that is rendered once and kept in files."""

from __future__ import annotations

import dataclasses

from spatialvlm.config.sources import RoomsConfig


@dataclasses.dataclass(frozen=True)
class RoomFilesConfig:
  """Questions about rooms in CV-Bench's schema (`launch/scenes.py`), with depth and cameras.

  Attributes:
    name: of the data set, as its card says it.
    source: which questions; its `size` is how many.
    split: "train" or "test", in the files' names.
    shard: questions to a file. An interrupted command goes on with the first file that is not there.
    sheet: pictures on the contact sheet.
  """

  name: str = "rooms"
  source: RoomsConfig = RoomsConfig(seed=1, size=10_000)
  split: str = "train"
  shard: int = 1000
  sheet: int = 24
