"""Scores a model on plain scenes and on each shifted world (`launch/shifts.py`).

Without an argument the small model that ships with the project; `:real` the model of `configs/real.py`, after
its last stage. Any other by `--config.model.path=`; more questions a world by `--config.data.size=`.
"""

from spatialvlm.config import EvaluateConfig, ModelConfig, ScenesConfig, ScoreConfig
from spatialvlm.types import UserError

# Worlds of another seed than those that any recipe trains on.
SEED = 1_000_000


def get_config(arg: str = "") -> EvaluateConfig:
  if arg == "real":
    return EvaluateConfig(
      name="shifted-real",
      model=ModelConfig(path="runs/real/3", max_tiles=1, dtype="bfloat16"),
      data=ScenesConfig(seed=SEED, size=400, image_size=224),
      score=ScoreConfig(batch_size=16, tiles=(1,)),
    )
  if arg:
    raise UserError(f"configs/shifted.py: unknown argument {arg!r}; known: real")
  return EvaluateConfig(
    name="shifted",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    data=ScenesConfig(seed=SEED, size=400),
    score=ScoreConfig(batch_size=32, tiles=(1,)),
  )
