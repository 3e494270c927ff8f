"""Compares vision encoders on rendered scenes: `--config.encoders.NAME=PATH_OR_HUB_ID`, as often as wanted.

`:tiny` takes the tower of the model that ships with the project, and scenes of the size that it was trained
on; further encoders may be named beside it.
"""

from spatialvlm.config import ProbeConfig
from spatialvlm.types import UserError


def get_config(arg: str = "") -> ProbeConfig:
  if arg == "tiny":
    tower = {"tiny": "checkpoints/smolvlm-tiny"}
    return ProbeConfig(name="encoders-tiny", encoders=tower, render_size=96, image_size=96)
  if arg:
    raise UserError(f"configs/probe.py: unknown argument {arg!r}; known: tiny")
  return ProbeConfig(name="encoders")
