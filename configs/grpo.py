"""Reward in place of right answers: GRPO on spatial questions, after a cold start with answers.

`--config=configs/grpo.py:tiny` trains the small model that ships with the project, on two cores: adapters
learn from answers first, then from rewards of what the model itself says. `--config=configs/grpo.py` is the
same on SmolVLM-500M, for one GPU. Both score held-out questions before and after each stage. Settings of the
second stage: docs/objectives.md.
"""

import dataclasses

from spatialvlm.config import (
  LossConfig,
  OptimConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  ScenesConfig,
  StageConfig,
  TrainConfig,
)
from spatialvlm.configs import lora
from spatialvlm.types import UserError


def get_config(arg: str = "500m") -> RunConfig:
  recipes = {"500m": _smolvlm_500m, "tiny": _tiny}
  if arg not in recipes:
    raise UserError(f"configs/grpo.py: no recipe {arg!r}; there are {', '.join(recipes)}")
  return recipes[arg]()


def _tiny() -> RunConfig:
  """Fewer answers than in `lora.py:tiny`; the rewards' questions are of worlds that no answer was seen of."""
  run = lora.get_config("tiny")
  train = dataclasses.replace(run.train, validate_every=0, checkpoint_every=100, log_every=20)
  return dataclasses.replace(
    run,
    name="grpo-tiny",
    train=train,
    eval=dataclasses.replace(run.eval, source=dataclasses.replace(run.eval.source, size=600)),
    stages={
      "1-answers": StageConfig(train=dataclasses.replace(train, steps=400)),
      "2-rewards": rewards(
        run,
        peft=PeftConfig("lora", target=lora.EVERY_LINEAR, options=dict(rank=16, alpha=32.0)),
        optim=OptimConfig("adamw", learning_rate=3e-4, schedule="constant", warmup_steps=10),
        train=dataclasses.replace(train, steps=200, batch_size=128),
        kl=0.01,
        new_tokens=4,
      ),
    },
  )


def _smolvlm_500m() -> RunConfig:
  """Rates and sizes as others used them on models of this size; not measured here."""
  run = lora.get_config("500m")
  train = dataclasses.replace(run.train, validate_every=0)
  return dataclasses.replace(
    run,
    name="grpo-500m",
    train=train,
    stages={
      "1-answers": StageConfig(train=dataclasses.replace(train, steps=1000)),
      "2-rewards": rewards(
        run,
        peft=PeftConfig("lora", target=lora.EVERY_LINEAR, options=dict(rank=16, alpha=32.0)),
        optim=OptimConfig("adamw", learning_rate=1e-5, schedule="constant", warmup_steps=20),
        train=dataclasses.replace(train, steps=500, batch_size=256, accumulation=8, checkpoint_every=100),
        kl=0.04,
        new_tokens=16,
      ),
    },
  )


def rewards(
  run: RunConfig, *, peft: PeftConfig, optim: OptimConfig, train: TrainConfig, kl: float, new_tokens: int
) -> StageConfig:
  """Groups of eight; the right answer counts most, a near number some, the form a little."""
  scenes = run.data.sources["scenes"]
  assert isinstance(scenes, ScenesConfig)
  weights = dict(exact=dict(weight=1.0), count=dict(weight=0.2), format=dict(weight=0.1))
  sampled = dict(group=8, new_tokens=new_tokens, rewards=weights)
  return StageConfig(
    peft=peft,
    data=dataclasses.replace(run.data, sources={"scenes": dataclasses.replace(scenes, seed=21)}),
    optim=optim,
    losses={"grpo": LossConfig("grpo", kwargs=dict(kl=kl, clip_high=0.28))},
    phases={"rollouts": PhaseConfig("rollouts", sampled)},
    train=train,
  )
