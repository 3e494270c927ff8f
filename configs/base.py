"""Base training of smolvlm-tiny from drawn weights, on skills of rendered scenes, in sixteen stages.

  python launch/make_tiny.py --out=checkpoints/smolvlm-tiny
  python launch/train.py --config=configs/base.py:tiny,stage=N --workdir=runs/base-tiny-N

The first command writes sizes and tokenizer. Each stage is a run of its own and starts from the model of the
one before. What each was for, and what it gave: checkpoints/smolvlm-tiny/README.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from spatialvlm.config import (
  DataConfig,
  LogConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  SkillsConfig,
  TrainConfig,
)
from spatialvlm.types import UserError
from spatialvlm.worlds.skills import DEFAULT_TASKS
from spatialvlm.worlds.vocabulary import dense_losses

ALL = ".*"
VISION = r"model\.(vision_model|connector)\..*"
DECODER = r"model\.(text_model|connector)\..*"
LAYERS = r"model\.text_model\.(layers\..*|norm\..*)"
# Skills that a stage asks for, with weights.
FIRST = {name: weight for name, weight in DEFAULT_TASKS.items() if name not in ("color_of", "shape_of")}
JOINT = FIRST | dict(letters=1.0, choose=1.0)
PLACES = JOINT | dict(describe=0.3)
BOXES = PLACES | dict(name=2.0, which_box=2.0, box_where=1.0, where=2.5)
SEARCH = dict(name=0.7, color=0.2, shape=0.2, color_of=2.0, shape_of=2.0, which_box=2.5)
SEARCH |= dict(box_where=1.5, where=3.0, present=1.5, describe=0.1, choose=0.7, letters=1.0)
NAME = SEARCH | dict(name=1.5, choose=1.5)
HARD = dict(name=0.6, shape_of=0.4, color_of=2.0, which_box=2.5, box_where=0.5)
HARD |= dict(where=3.0, present=2.0, choose=2.0, letters=1.0)
LAST = HARD | dict(name=2.5, color=0.4, shape=0.7, describe=0.3)
SPACE = dict(far=3.0, near_to_far=2.5, how_many=3.0, any=1.0, choose=1.2, letters=1.0, name=0.4, color=0.2)
SPACE |= dict(shape=0.2, color_of=0.4, shape_of=0.2, which_box=0.7, box_where=0.3, where=0.8, present=0.3)
LETTERS = dict(letters=1.0)
# Weights of the words that image tokens are to say.
START_WORDS = dict(color=0.5, shape=0.5, box=1.0, depth_step=0.2)
FIRST_WORDS = dict(color=0.5, shape=1.5, box=1.0, depth_step=0.3)
JOINT_WORDS = dict(color=0.3, shape=0.5, box=0.5, depth_step=0.2)
PLACE_WORDS = dict(color=0.3, shape=1.0, box=0.5, depth_step=0.1, row=0.3, column=0.3)
SHOWN_WORDS = dict(color=0.5, shape=1.5, box=1.0, depth_step=0.1, row=0.3, column=0.3)
OBJECT_WORDS = dict(color=0.7, shape=2.0, box=1.0, depth_step=0.1, row=0.3, column=0.3)
SHAPE_WORDS = dict(color=0.4, shape=3.0, box=0.7, depth_step=0.5, row=0.15, column=0.15)
KEPT_WORDS = dict(color=0.1, shape=0.3, box=0.2, row=0.1, column=0.1)
SPACE_WORDS = dict(color=0.1, shape=0.5, box=0.2, depth_step=0.7, row=0.1, column=0.1)


@dataclasses.dataclass(frozen=True)
class Stage:
  """What one stage has of its own.

  Attributes:
    full: parameters that are trained.
    seed: of the rendered worlds.
    steps: after which the stage ends.
    rate: highest learning rate.
    words: dense target -> weight.
    asked: skill -> weight; None: no answers are trained, image tokens' words alone.
    text: share of letter questions without a picture.
    objects: image tokens without an object say "none" for every target.
    warmup: steps to the highest rate.
    planned: length of the schedule where the stage ends before it, else 0.
    schedule: "cosine" or "constant".
  """

  full: str
  seed: int
  steps: int
  rate: float
  words: Mapping[str, float]
  asked: Mapping[str, float] | None = None
  text: float = 0.0
  objects: bool = False
  warmup: int = 50
  planned: int = 0
  schedule: str = "cosine"


STAGES = (
  Stage(ALL, 1, 1100, 4e-3, START_WORDS, FIRST, warmup=300, schedule="constant"),
  Stage(VISION, 3, 1000, 4e-3, FIRST_WORDS, planned=1500),
  Stage(ALL, 5, 700, 4e-3, JOINT_WORDS, JOINT, text=0.08, warmup=100, planned=3600),
  Stage(ALL, 7, 750, 2e-3, PLACE_WORDS, PLACES, text=0.08, planned=3200),
  Stage(VISION, 9, 1300, 3e-3, SHOWN_WORDS),
  Stage(DECODER, 11, 350, 2e-3, KEPT_WORDS, BOXES, text=0.15, planned=2100),
  Stage(VISION, 15, 1200, 3e-3, SHOWN_WORDS),
  Stage(DECODER, 17, 350, 2e-3, KEPT_WORDS, BOXES, text=0.15, planned=1500),
  Stage(DECODER, 19, 450, 3e-3, KEPT_WORDS, SEARCH, text=0.1, planned=1500),
  Stage(VISION, 21, 1200, 2.5e-3, OBJECT_WORDS, objects=True),
  Stage(VISION, 25, 2400, 2.5e-3, SHAPE_WORDS, objects=True),
  Stage(DECODER, 27, 1500, 3e-3, KEPT_WORDS, NAME, text=0.1, objects=True),
  Stage(DECODER, 29, 2300, 3e-3, KEPT_WORDS, HARD, text=0.1, objects=True),
  Stage(LAYERS, 33, 1200, 3e-3, {}, LETTERS),
  Stage(DECODER, 31, 500, 1.5e-3, KEPT_WORDS, LAST, text=0.15, objects=True),
  Stage(DECODER, 35, 900, 3e-3, SPACE_WORDS, SPACE, text=0.1, objects=True),
)


def get_config(arg: str = "tiny") -> RunConfig:
  """`tiny,stage=1` .. `tiny,stage=16`; `tiny` is the last."""
  numbers = {f"tiny,stage={i}": i for i in range(1, len(STAGES) + 1)} | {"tiny": len(STAGES)}
  if arg not in numbers:
    raise UserError(f"configs/base.py: unknown argument {arg!r}; known: tiny, tiny,stage=1 .. {len(STAGES)}")
  number = numbers[arg]
  stage = STAGES[number - 1]
  before = ModelConfig(path=f"runs/base-tiny-{number - 1}/model")
  answers = {"answer": LossConfig("answer")} if stage.asked else {}
  return RunConfig(
    name=f"base-tiny-{number}",
    model=before if number > 1 else ModelConfig(path="checkpoints/smolvlm-tiny", from_scratch=True),
    peft=PeftConfig(method="none", target="", full=stage.full),
    data=_data(stage),
    optim=_muon(stage),
    losses=answers | dense_losses(stage.objects, **stage.words),
    train=TrainConfig(
      steps=stage.steps,
      batch_size=32 if stage.full in (VISION, LAYERS) else 16,
      log_every=50,
      validate_every=500,
      checkpoint_every=250,
    ),
    log=LogConfig(tensorboard=False),
  )


def _data(stage: Stage) -> DataConfig:
  """Conversations about pictures, and a share of letter questions without any."""
  turns, asked = (5, stage.asked) if stage.asked else (1, FIRST)
  skills = SkillsConfig(seed=stage.seed, turns=turns, tasks=asked)
  sources = {"skills": skills}
  if stage.text:
    letters = dataclasses.replace(skills, tasks=LETTERS, weight=stage.text)
    sources = {"skills": dataclasses.replace(skills, weight=1 - stage.text), "letters": letters}
  return DataConfig(
    sources=sources,
    validation={"skills": dataclasses.replace(skills, seed=2)},
    validation_size=128,
    lengths=(96, 160) if stage.full == LAYERS else (160, 208),  # of text alone: short
    tiles=(1,),
    targets=32,
    workers=1,
    prefetch=4,
  )


def _muon(stage: Stage) -> OptimConfig:
  return OptimConfig(
    name="muon",
    learning_rate=stage.rate,
    schedule=stage.schedule,
    schedule_steps=stage.planned,
    warmup_steps=30 if stage.full == VISION else stage.warmup,
    final_fraction=0.1 if stage.full == VISION else 0.0,
    weight_decay=0.01,
    clip_norm=1.0,
    kwargs={"consistent_rms": 0.2, "adam_b2": 0.98},
  )
