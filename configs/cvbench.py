"""Scores a model on CV-Bench; `:tiny` scores the model that ships with the project on held-out scenes."""

from ml_collections import ConfigDict

from spatialvlm.types import UserError


def get_config(arg: str = "") -> ConfigDict:
  config = ConfigDict()
  config.name = "cvbench"
  # A local folder, or a hub id.
  config.model = ConfigDict({"path": "HuggingFaceTB/SmolVLM-500M-Instruct", "dtype": "float32"})
  # Empty for nyu-visionx/CV-Bench on the hub, at a pinned revision; else a folder of its parquet files.
  config.data = ConfigDict({"kind": "cvbench", "path": "", "split": "test"})
  config.score = ConfigDict({"batch_size": 8})
  if arg == "tiny":
    config.name = "cvbench-tiny"
    config.model.path = "checkpoints/smolvlm-tiny"
    # Worlds of another seed than those that any recipe trains on.
    config.data = ConfigDict({"kind": "scenes", "split": "test", "seed": 1_000_000, "size": 1200})
    config.score = ConfigDict({"batch_size": 32, "tiles": (1,)})
  elif arg:
    raise UserError(f"configs/cvbench.py: unknown argument {arg!r}; known: tiny")
  return config
