"""Base training of the tiny SmolVLM from drawn weights, on skills of rendered scenes.

`python launch/make_tiny.py --out=checkpoints/smolvlm-tiny` writes what this reads: sizes and tokenizer. Each
stage is a run of its own that starts from the model of the one before:

  python launch/train.py --config=configs/base.py:tiny,stage=N --workdir=runs/base-tiny-N

1. Everything at once, until the decoder finds what a box holds (colours, not yet shapes).
2. Vision tower and connector alone, by the words that image tokens are to say: the decoder and with it those
   words stand still, and a picture costs a third.
3. Everything again, so that the decoder reads shapes too.
4. Everything at half the rate; image tokens also say where their object is.
5. Vision tower and connector again. 6. Decoder and connector. 7. Vision tower and connector.
8. Decoder and connector. 9. The same, mostly searching for what one word names.
10. Vision tower and connector; image tokens without an object say "none".
11. The same, mostly shapes; floor and furniture say how far they are.
12. Decoder and connector, searching.
13. The same, mostly what is hardest: by shape, by both words, letters.
14. The decoder's layers, on letters in text alone. 15. Everything once more.

The model card in checkpoints/smolvlm-tiny says what each stage gave, and where the
weights that ship went another way.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from spatialvlm.config import (
  DataConfig,
  LogConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  SourceConfig,
  TrainConfig,
  to_dict,
)
from spatialvlm.types import UserError
from spatialvlm.worlds.skills import DEFAULT_TASKS
from spatialvlm.worlds.vocabulary import dense_losses

# What the first stages asked: questions by one word came in with the last one.
FIRST_TASKS = {name: weight for name, weight in DEFAULT_TASKS.items() if name not in ("color_of", "shape_of")}
JOINT_TASKS = {**FIRST_TASKS, "letters": 1.0, "choose": 1.0}
PLACE_TASKS = {**JOINT_TASKS, "describe": 0.3}
BOX_TASKS = {**PLACE_TASKS, "name": 2.0, "which_box": 2.0, "box_where": 1.0, "where": 2.5}
SEARCH_TASKS = {
  "name": 0.7,
  "color": 0.2,
  "shape": 0.2,
  "color_of": 2.0,
  "shape_of": 2.0,
  "which_box": 2.5,
  "box_where": 1.5,
  "where": 3.0,
  "present": 1.5,
  "describe": 0.1,
  "choose": 0.7,
  "letters": 1.0,
}
NAME_TASKS = {**SEARCH_TASKS, "name": 1.5, "choose": 1.5}
HARD_TASKS = {
  "name": 0.6,
  "shape_of": 0.4,
  "color_of": 2.0,
  "which_box": 2.5,
  "box_where": 0.5,
  "where": 3.0,
  "present": 2.0,
  "choose": 2.0,
  "letters": 1.0,
}
LAST_TASKS = {**HARD_TASKS, "name": 2.5, "color": 0.4, "shape": 0.7, "describe": 0.3}


def get_config(arg: str = "tiny") -> ConfigDict:
  """`tiny,stage=1` .. `tiny,stage=15`; `tiny` is the last."""
  stages = {f"tiny,stage={i}": stage for i, stage in enumerate(STAGES, 1)}
  stages["tiny"] = STAGES[-1]
  if arg not in stages:
    raise UserError(f"configs/base.py: unknown argument {arg!r}; known: tiny, tiny,stage=1 .. {len(STAGES)}")
  return ConfigDict(to_dict(stages[arg]()), convert_dict=False)


def _start() -> RunConfig:
  return RunConfig(
    name="base-tiny-1",
    model=ModelConfig(path="checkpoints/smolvlm-tiny", from_scratch=True),
    peft=PeftConfig(method="none", target="", full=".*"),
    data=_data(seed=1, turns=5),
    optim=_muon(4e-3, schedule="constant", warmup_steps=300),
    losses={"answer": LossConfig("answer"), **dense_losses(color=0.5, shape=0.5, box=1.0, depth_step=0.2)},
    train=_train(steps=1100, batch_size=16),
    log=LogConfig(tensorboard=False),
  )


def _joint() -> RunConfig:
  return _after(
    3,
    data=_data(seed=5, turns=5, tasks=JOINT_TASKS, text=0.08),
    optim=_muon(4e-3, warmup_steps=100, schedule_steps=3600),
    losses={"answer": LossConfig("answer"), **dense_losses(color=0.3, shape=0.5, box=0.5, depth_step=0.2)},
    train=_train(steps=700, batch_size=16),
  )


def _places() -> RunConfig:
  places = dense_losses(color=0.3, shape=1.0, box=0.5, depth_step=0.1, row=0.3, column=0.3)
  return _after(
    4,
    data=_data(seed=7, turns=5, tasks=PLACE_TASKS, text=0.08),
    optim=_muon(2e-3, warmup_steps=50, schedule_steps=3200),
    losses={"answer": LossConfig("answer"), **places},
    train=_train(steps=750, batch_size=16),
  )


def _vision(stage: int, seed: int, steps: int, rate: float, dense: dict, cosine: int = 0) -> RunConfig:
  """Vision tower and connector alone; `cosine` is the schedule's length where the run ends before it."""
  return _after(
    stage,
    peft=PeftConfig(method="none", target="", full=r"model\.(vision_model|connector)\..*"),
    data=_data(seed=seed, turns=1),
    optim=_muon(rate, warmup_steps=30, final_fraction=0.1, schedule_steps=cosine),
    losses=dense,
    train=_train(steps=steps, batch_size=32),
  )


def _decoder(
  stage: int, seed: int, steps: int, cosine: int, rate: float, tasks: dict, text: float, objects: bool = False
) -> RunConfig:
  """Decoder and connector, on conversations."""
  dense = dense_losses(objects, color=0.1, shape=0.3, box=0.2, row=0.1, column=0.1)
  return _after(
    stage,
    peft=PeftConfig(method="none", target="", full=r"model\.(text_model|connector)\..*"),
    data=_data(seed=seed, turns=5, tasks=tasks, text=text),
    optim=_muon(rate, warmup_steps=50, schedule_steps=cosine),
    losses={"answer": LossConfig("answer"), **dense},
    train=_train(steps=steps, batch_size=16),
  )


def _letters(stage: int, seed: int, steps: int, rate: float) -> RunConfig:
  """The decoder's layers, on text alone: which letter stands before an option. It pays to learn it apart.

  The embedding stands still, and with it what image tokens say.
  """
  tasks = {"letters": 1.0}
  data = _data(seed=seed, turns=5, tasks=tasks)
  held_out = dataclasses.replace(data.validation["skills"], tasks=tasks)
  return _after(
    stage,
    peft=PeftConfig(method="none", target="", full=r"model\.text_model\.(layers\..*|norm\..*)"),
    data=dataclasses.replace(data, lengths=(96, 160), validation={"skills": held_out}),
    optim=_muon(rate, warmup_steps=50),
    losses={"answer": LossConfig("answer")},
    train=_train(steps=steps, batch_size=32),
  )


def _after(stage: int, **settings) -> RunConfig:
  """A stage that starts from the model of the one before."""
  path = f"runs/base-tiny-{stage - 1}/model"
  return dataclasses.replace(_start(), name=f"base-tiny-{stage}", model=ModelConfig(path=path), **settings)


def _data(seed: int, turns: int, tasks: dict[str, float] | None = None, text: float = 0.0) -> DataConfig:
  """Conversations about pictures, and a share `text` of letter questions without any."""
  pictures = SourceConfig(kind="skills", seed=seed, turns=turns, tasks=tasks or FIRST_TASKS)
  sources = {"skills": pictures}
  if text:
    letters = dataclasses.replace(pictures, tasks={"letters": 1.0}, weight=text)
    sources = {"skills": dataclasses.replace(pictures, weight=1 - text), "letters": letters}
  return DataConfig(
    sources=sources,
    validation={"skills": dataclasses.replace(pictures, seed=2)},
    validation_size=128,
    lengths=(160, 208),
    tiles=(1,),
    targets=32,
    workers=1,
    prefetch=4,
  )


def _muon(rate: float, **settings) -> OptimConfig:
  return OptimConfig(
    name="muon",
    learning_rate=rate,
    weight_decay=0.01,
    clip_norm=1.0,
    kwargs={"consistent_rms": 0.2, "adam_b2": 0.98},
    **settings,
  )


def _train(steps: int, batch_size: int) -> TrainConfig:
  return TrainConfig(
    steps=steps, batch_size=batch_size, log_every=50, validate_every=500, checkpoint_every=250
  )


PLACES = dense_losses(color=0.5, shape=1.5, box=1.0, depth_step=0.1, row=0.3, column=0.3)
OBJECTS = dense_losses(objects=True, color=0.7, shape=2.0, box=1.0, depth_step=0.1, row=0.3, column=0.3)
SHAPES = dense_losses(objects=True, color=0.4, shape=3.0, box=0.7, depth_step=0.5, row=0.15, column=0.15)
STAGES = (
  _start,
  lambda: _vision(2, 3, 1000, 4e-3, dense_losses(color=0.5, shape=1.5, box=1.0, depth_step=0.3), cosine=1500),
  _joint,
  _places,
  lambda: _vision(5, 9, 1300, 3e-3, PLACES),
  lambda: _decoder(6, 11, 350, 2100, 2e-3, BOX_TASKS, text=0.15),
  lambda: _vision(7, 15, 1200, 3e-3, PLACES),
  lambda: _decoder(8, 17, 350, 1500, 2e-3, BOX_TASKS, text=0.15),
  lambda: _decoder(9, 19, 450, 1500, 3e-3, SEARCH_TASKS, text=0.1),
  lambda: _vision(10, 21, 1200, 2.5e-3, OBJECTS),
  lambda: _vision(11, 25, 2400, 2.5e-3, SHAPES),
  lambda: _decoder(12, 27, 1500, 0, 3e-3, NAME_TASKS, text=0.1, objects=True),
  lambda: _decoder(13, 29, 2300, 0, 3e-3, HARD_TASKS, text=0.1, objects=True),
  lambda: _letters(14, 33, 1200, 3e-3),
  lambda: _decoder(15, 31, 500, 0, 1.5e-3, LAST_TASKS, text=0.15, objects=True),
)
