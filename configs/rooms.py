"""Adapters trained on rooms (docs/rooms.md): `python launch/train.py --config=configs/rooms.py:500m`.

  500m          SmolVLM-500M, for one GPU: all kinds, answered by letters, in words and with reasons in turn
  tiny          the small model that ships with the project, on two cores: rooms of 96 pixels
  500m,easy and tiny,easy   are the same with few things and clear answers; hard the other way

The small model's tokenizer spells the rooms' words out in pieces, so `tiny` tries the way, and teaches
little.
"""

import dataclasses

from spatialvlm.config import EvalConfig, RoomsConfig, RunConfig
from spatialvlm.configs import lora
from spatialvlm.types import UserError

DIFFICULTY = {"": 0.5, "easy": 0.15, "hard": 0.9}


def get_config(arg: str = "500m") -> RunConfig:
  name, _, how = arg.partition(",")
  if name not in ("500m", "tiny") or how not in DIFFICULTY:
    raise UserError(f"configs/rooms.py: cannot read {arg!r}; known: 500m, tiny, with ,easy or ,hard behind")
  run, size = lora.get_config(name), 384 if name == "500m" else 96
  rooms = RoomsConfig(seed=1, image_size=size, difficulty=DIFFICULTY[how])
  lengths = run.data.lengths if name == "500m" else (192, 288, 384)
  data = dataclasses.replace(
    run.data,
    sources={"rooms": dataclasses.replace(rooms, answers="mixed")},
    validation={"rooms": dataclasses.replace(rooms, seed=2)},
    lengths=lengths,
    targets=64 if name == "500m" else 128,
  )
  asked = dataclasses.replace(rooms, seed=1_000_000, size=1200 if name == "500m" else 600)
  return dataclasses.replace(
    run,
    name=f"rooms-{name}" + (f"-{how}" if how else ""),
    data=data,
    eval=EvalConfig(source=asked, tiles=(1,))
    if name == "tiny"
    else dataclasses.replace(run.eval, source=asked),
  )
