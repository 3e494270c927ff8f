"""Compares vision encoders on rendered scenes: `--config.encoders.NAME=PATH_OR_HUB_ID`, as often as wanted.

`:tiny` takes the tower of the model that ships with the project, and scenes of the size that it was trained
on; further encoders may be named beside it.
"""

from ml_collections import ConfigDict

from spatialvlm.types import UserError


def get_config(arg: str = "") -> ConfigDict:
  config = ConfigDict()
  config.name = "encoders"
  config.encoders = ConfigDict()
  if arg == "tiny":
    config.name = "encoders-tiny"
    config.encoders.tiny = "checkpoints/smolvlm-tiny"
    config.render_size = 96
    config.image_size = 96
  elif arg:
    raise UserError(f"configs/probe.py: unknown argument {arg!r}; known: tiny")
  return config
