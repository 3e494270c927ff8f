"""Scores a model on CV-Bench.

`:full` asks it in every pass that there is, and fits the text forest; `:reproduce` sets a published number
beside every protocol; `:tiny` scores the model that ships with the project on held-out scenes.
"""

from ml_collections import ConfigDict

from spatialvlm.types import UserError

PROTOCOLS = ("native", "native-prefill", "options", "lmms_eval", "vlmevalkit", "cambrian", "vsi")
CONTROLS = ("circular", "grey", "no_image", "other_image", "flip")


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
    config.data = ConfigDict({"kind": "scenes", "seed": 1_000_000, "size": 1200})
    config.score = ConfigDict({"batch_size": 32, "tiles": (1,)})
  elif arg == "full":
    config.name = "cvbench-full"
    config.score.protocols = PROTOCOLS
    config.score.controls = CONTROLS
    config.score.text_forest = 100
  elif arg == "reproduce":
    config.name = "cvbench-reproduce"
    config.score.protocols = PROTOCOLS
    # SmolVLM-500M's only published CV-Bench number, of a blog post that names neither prompt nor aggregation.
    config.published = ConfigDict({"SmolVLM-500M (zingnex_cn, protocol not stated)": 43.18})
  elif arg:
    raise UserError(f"configs/cvbench.py: unknown argument {arg!r}; known: full, reproduce, tiny")
  return config
