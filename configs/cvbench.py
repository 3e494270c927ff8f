"""Scores a model on CV-Bench.

`:full` asks it in every pass that there is, and fits the text forest; `:reproduce` sets a published number
beside every protocol; `:tiny` scores the model that ships with the project on held-out scenes.
"""

import dataclasses

from spatialvlm.config import CVBenchConfig, EvaluateConfig, ModelConfig, ScenesConfig, ScoreConfig
from spatialvlm.types import UserError

PROTOCOLS = ("native", "native-prefill", "options", "lmms_eval", "vlmevalkit", "cambrian", "vsi")
CONTROLS = ("circular", "grey", "no_image", "other_image", "flip")
# SmolVLM-500M's only published CV-Bench number, of a blog post that names neither prompt nor aggregation.
PUBLISHED = {"SmolVLM-500M (zingnex_cn, protocol not stated)": 43.18}


def get_config(arg: str = "") -> EvaluateConfig:
  config = EvaluateConfig(
    name=f"cvbench-{arg}" if arg else "cvbench",
    # A local folder, or a hub id.
    model=ModelConfig(path="HuggingFaceTB/SmolVLM-500M-Instruct"),
    # An empty path for nyu-visionx/CV-Bench on the hub, at a pinned revision; else a folder of parquet files.
    data=CVBenchConfig(path="", split="test"),
    score=ScoreConfig(batch_size=8),
  )
  every = dataclasses.replace(config.score, protocols=PROTOCOLS)
  if arg == "tiny":
    return dataclasses.replace(
      config,
      model=ModelConfig(path="checkpoints/smolvlm-tiny"),
      # Worlds of another seed than those that any recipe trains on.
      data=ScenesConfig(seed=1_000_000, size=1200),
      score=ScoreConfig(batch_size=32, tiles=(1,)),
    )
  if arg == "full":
    return dataclasses.replace(config, score=dataclasses.replace(every, controls=CONTROLS, text_forest=100))
  if arg == "reproduce":
    return dataclasses.replace(config, score=every, published=PUBLISHED)
  if arg:
    raise UserError(f"configs/cvbench.py: unknown argument {arg!r}; known: full, reproduce, tiny")
  return config
