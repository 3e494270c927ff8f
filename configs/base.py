"""Base training of the tiny SmolVLM from drawn weights, on skills of rendered scenes.

`python launch/make_tiny.py --out=checkpoints/smolvlm-tiny` writes what this reads: sizes and tokenizer. Six
stages, each a run of its own that starts from the model of the one before; N is 1 to 6:

  python launch/train.py --config=configs/base.py:tiny,stage=N --workdir=runs/base-tiny-N

1. Everything at once, until the decoder finds what a box holds (colours, not yet shapes).
2. Vision tower and connector alone, by the words that image tokens are to say: the decoder and with it those
   words stand still, and a picture costs a third.
3. Everything again, so that the decoder reads shapes too.
4. Everything at half the rate; image tokens also say where their object is.
5. Vision tower and connector again.
6. Everything, to the end of the schedule.
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
from spatialvlm.data.scenes.skills import DEFAULT_TASKS
from spatialvlm.types import UserError

# First vocabulary id and number of the words of each dense target (`data.scenes.vocabulary.DENSE_WORDS`).
WORDS = {
  "color": (259, 6),
  "shape": (265, 4),
  "box": (269, 3),
  "depth": (273, 8),
  "row": (281, 3),
  "column": (284, 3),
}
NONE = 272
# What the first stages asked: questions by one word came in with the last one.
FIRST_TASKS = {name: weight for name, weight in DEFAULT_TASKS.items() if name not in ("color_of", "shape_of")}
LATER_TASKS = {**FIRST_TASKS, "letters": 1.0, "choose": 1.0, "describe": 0.3}
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
LAST_TASKS = {**LATER_TASKS, "name": 2.0, "which_box": 2.0, "box_where": 1.0, "where": 2.5}


def get_config(arg: str = "tiny") -> ConfigDict:
  """`tiny`, `tiny,stage=1` .. `tiny,stage=6`; `tiny` is the last."""
  stages = {f"tiny,stage={i}": stage for i, stage in enumerate(STAGES, 1)}
  stages["tiny"] = STAGES[-1]
  if arg not in stages:
    raise UserError(f"configs/base.py: unknown argument {arg!r}; known: {', '.join(stages)}")
  return ConfigDict(to_dict(stages[arg]()), convert_dict=False)


def _start() -> RunConfig:
  return RunConfig(
    name="base-tiny-1",
    model=ModelConfig(path="checkpoints/smolvlm-tiny", from_scratch=True),
    peft=PeftConfig(method="none", target="", full=".*"),
    data=_data(seed=1, turns=5),
    optim=_muon(schedule="constant", warmup_steps=300),
    losses={"answer": LossConfig("answer"), **_words(color=0.5, shape=0.5, box=1.0, depth=0.2)},
    train=_train(steps=1100, batch_size=16),
    log=LogConfig(tensorboard=False),
  )


def _vision() -> RunConfig:
  return dataclasses.replace(
    _start(),
    name="base-tiny-2",
    model=ModelConfig(path="runs/base-tiny-1/model"),
    peft=PeftConfig(method="none", target="", full=r"model\.(vision_model|connector)\..*"),
    data=_data(seed=3, turns=1),
    optim=_muon(schedule="cosine", warmup_steps=50, final_fraction=0.3),
    losses=_words(color=0.5, shape=1.5, box=1.0, depth=0.3),
    train=_train(steps=1000, batch_size=32),
  )


def _joint() -> RunConfig:
  return dataclasses.replace(
    _start(),
    name="base-tiny-3",
    model=ModelConfig(path="runs/base-tiny-2/model"),
    data=_data(seed=5, turns=5, tasks={**FIRST_TASKS, "letters": 1.0, "choose": 1.0}, text=0.08),
    optim=_muon(schedule="constant", warmup_steps=100),
    losses={"answer": LossConfig("answer"), **_words(color=0.3, shape=0.5, box=0.5, depth=0.2)},
    train=_train(steps=700, batch_size=16),
  )


def _places() -> RunConfig:
  return dataclasses.replace(
    _joint(),
    name="base-tiny-4",
    model=ModelConfig(path="runs/base-tiny-3/model"),
    data=_data(seed=7, turns=5, tasks=LATER_TASKS, text=0.08),
    optim=_muon(rate=2e-3, schedule="constant", warmup_steps=50),
    losses={
      "answer": LossConfig("answer"),
      **_words(color=0.3, shape=1.0, box=0.5, depth=0.1, row=0.3, column=0.3),
    },
    train=_train(steps=750, batch_size=16),
  )


def _vision_again() -> RunConfig:
  return dataclasses.replace(
    _vision(),
    name="base-tiny-5",
    model=ModelConfig(path="runs/base-tiny-4/model"),
    data=_data(seed=9, turns=1),
    optim=_muon(rate=3e-3, schedule="cosine", warmup_steps=30, final_fraction=0.1),
    losses=_words(color=0.5, shape=1.5, box=1.0, depth=0.1, row=0.3, column=0.3),
    train=_train(steps=1300, batch_size=32),
  )


def _decoder() -> RunConfig:
  return dataclasses.replace(
    _places(),
    name="base-tiny-6",
    model=ModelConfig(path="runs/base-tiny-5/model"),
    peft=PeftConfig(method="none", target="", full=r"model\.(text_model|connector)\..*"),
    data=_data(seed=11, turns=5, tasks=LAST_TASKS, text=0.15),
    optim=_muon(rate=2e-3, schedule="cosine", warmup_steps=50),
    losses={
      "answer": LossConfig("answer"),
      **_words(color=0.1, shape=0.3, box=0.2, row=0.1, column=0.1),
    },
    train=_train(steps=250, batch_size=16),
  )


def _finer() -> RunConfig:
  return dataclasses.replace(
    _vision_again(),
    name="base-tiny-7",
    model=ModelConfig(path="runs/base-tiny-6/model-64"),
    data=_data(seed=15, turns=1),
    train=_train(steps=1200, batch_size=32),
  )


def _objects() -> RunConfig:
  return dataclasses.replace(
    _finer(),
    name="base-tiny-8",
    model=ModelConfig(path="runs/base-tiny-7b/model"),
    data=_data(seed=21, turns=1),
    optim=_muon(rate=2.5e-3, schedule="cosine", warmup_steps=30, final_fraction=0.1),
    losses=_words(objects=True, color=0.7, shape=2.0, box=1.0, depth=0.1, row=0.3, column=0.3),
    train=_train(steps=1200, batch_size=32),
  )


def _search() -> RunConfig:
  return dataclasses.replace(
    _decoder(),
    name="base-tiny-9",
    model=ModelConfig(path="runs/base-tiny-8/model"),
    data=_data(seed=23, turns=5, tasks=SEARCH_TASKS, text=0.1),
    optim=_muon(rate=3e-3, schedule="cosine", warmup_steps=50),
    losses={
      "answer": LossConfig("answer"),
      **_words(objects=True, color=0.1, shape=0.3, box=0.2, row=0.1, column=0.1),
    },
    train=_train(steps=1500, batch_size=16),
  )


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


def _muon(rate: float = 4e-3, **settings) -> OptimConfig:
  return OptimConfig(
    name="muon",
    learning_rate=rate,
    weight_decay=0.01,
    clip_norm=1.0,
    kwargs={"consistent_rms": 0.2, "adam_b2": 0.98},
    **settings,
  )


def _words(objects: bool = False, **weights: float) -> dict[str, LossConfig]:
  """A dense term for each target: image tokens say the word of what they show.

  Without a drawn box they say "none"; with `objects`, without an object too.
  """
  terms = {}
  for target, weight in weights.items():
    first, classes = WORDS[target]
    kwargs = {"first": first, "classes": classes}
    if target == "box" or objects:
      kwargs["none"] = NONE
    terms[target] = LossConfig("words", target=target, weight=weight, kwargs=kwargs)
  return terms


def _train(steps: int, batch_size: int) -> TrainConfig:
  return TrainConfig(
    steps=steps, batch_size=batch_size, log_every=50, validate_every=500, checkpoint_every=250
  )


STAGES = (_start, _vision, _joint, _places, _vision_again, _decoder, _finer, _objects, _search)
