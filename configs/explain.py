"""What models' answers hang on, over rendered scenes: `--config.models.NAME=PATH`, as often as wanted.

`:tiny` takes the model that ships with the project, and beside it what `--config.models.after=runs/mine`
names; `:quick` asks it few questions.
"""

import dataclasses

from spatialvlm.config import ExplainConfig
from spatialvlm.types import UserError


def get_config(arg: str = "") -> ExplainConfig:
  config = ExplainConfig()
  tiny = dataclasses.replace(config, name="explain-tiny", models={"before": "checkpoints/smolvlm-tiny"})
  if arg == "tiny":
    return tiny
  if arg == "quick":
    return dataclasses.replace(
      tiny,
      name="explain-quick",
      drawn=False,
      questions=20,
      edge_questions=64,
      map_questions=8,
      layer_questions=8,
      head_questions=32,
      answer_questions=96,
      scenes=96,
      validation=32,
      test=64,
      bootstrap=200,
    )
  if arg:
    raise UserError(f"configs/explain.py: unknown argument {arg!r}; known: tiny, quick")
  # Pictures of one tile for models that cut: each part reads a question hundreds of times.
  return dataclasses.replace(config, max_tiles=1, image_size=384)
