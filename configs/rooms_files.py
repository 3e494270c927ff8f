"""A data set of questions about rooms, rendered into files by `launch/scenes.py --out=FOLDER`.

train   ten thousand questions to train on, seed 1
test    CV-Bench's number of questions of a held-out seed, as test files
"""

from spatialvlm.config import RoomFilesConfig, RoomsConfig
from spatialvlm.types import UserError


def get_config(arg: str = "train") -> RoomFilesConfig:
  if arg == "train":
    return RoomFilesConfig(name="rooms", source=RoomsConfig(seed=1, size=10_000))
  if arg == "test":
    return RoomFilesConfig(name="rooms-test", source=RoomsConfig(seed=2_000_000, size=2638), split="test")
  raise UserError(f"configs/rooms_files.py: no recipe {arg!r}; there are train, test")
