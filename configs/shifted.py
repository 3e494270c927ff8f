"""Scores a model on plain scenes and on each shifted world (`launch/shifts.py`).

The small model that ships with the project; `configs/real.py:shifts` is the same for that of real parts. Any
other by `--config.model.path=`; more questions a world by `--config.data.size=`.
"""

from spatialvlm.config import EvaluateConfig, ModelConfig, ScenesConfig, ScoreConfig
from spatialvlm.types import UserError

# Worlds of another seed than those that any recipe trains on.
SEED = 1_000_000


def get_config(arg: str = "") -> EvaluateConfig:
  if arg:
    raise UserError(
      f"configs/shifted.py: takes no argument, got {arg!r}; the model of configs/real.py: real.py:shifts"
    )
  return EvaluateConfig(
    name="shifted",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    data=ScenesConfig(seed=SEED, size=400),
    score=ScoreConfig(batch_size=32, tiles=(1,)),
  )
