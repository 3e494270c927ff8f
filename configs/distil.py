"""Distillation on the embedded world: docs/distillation.md.

`--config=configs/distil.py:tiny` teaches the small model CV-Bench's questions, and holds what it says to what
its base says. `--config=configs/distil.py:tiny-run` teaches it what another run knows: runs/tiny, or
`--config.teachers.teacher.path=...`, is its teacher; `:tiny-on-policy` does so on answers that the student
draws itself. `:tiny-light` teaches it to answer in any light as its own average does in the plain one,
`:tiny-told` what its base says that is told depth in words. These take two cores some minutes.
`--config=configs/distil.py:on-policy` is `tiny-on-policy` for one GPU: SmolVLM-500M, or a run of yours,
teaches SmolVLM-256M.
"""

import dataclasses

from spatialvlm.config import (
  AugmentConfig,
  DataConfig,
  EvalConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  ScenesConfig,
  SkillsConfig,
  TeacherConfig,
  TrainConfig,
)
from spatialvlm.configs import lora
from spatialvlm.types import UserError

EVERY_LINEAR = r".*text_model.*\.(q|k|v|o|gate|up|down)_proj"
SCENES = ScenesConfig(image_size=96, tasks=dict(Count=0.3, Relation=0.25, Depth=0.45))


def get_config(arg: str = "tiny") -> RunConfig:
  recipes = {
    "tiny": _tiny,
    "tiny-run": _tiny_run,
    "tiny-on-policy": _tiny_on_policy,
    "tiny-light": _tiny_light,
    "tiny-told": _tiny_told,
    "on-policy": _on_policy,
  }
  if arg not in recipes:
    raise UserError(f"configs/distil.py: no recipe {arg!r}; there are {', '.join(recipes)}")
  return recipes[arg]()


def _tiny() -> RunConfig:
  """The base teaches on every answer; half of them are of skills that it has already."""
  skills = SkillsConfig(seed=1, weight=0.5)
  scenes = dataclasses.replace(SCENES, seed=1, weight=0.5)
  held_out = {
    "skills": dataclasses.replace(skills, seed=2),
    "scenes": dataclasses.replace(scenes, seed=2),
  }
  return RunConfig(
    name="distil-tiny",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    peft=PeftConfig("lora", target=EVERY_LINEAR, options=dict(rank=16, alpha=32.0)),
    data=DataConfig(
      sources={"skills": skills, "scenes": scenes},
      validation=held_out,
      validation_size=256,
      lengths=(136, 208),
      tiles=(1,),
      targets=32,
    ),
    optim=OptimConfig(
      "muon", learning_rate=2e-3, warmup_steps=30, kwargs=dict(consistent_rms=0.2, adam_b2=0.98)
    ),
    losses={
      "answer": LossConfig("answer"),
      "base": LossConfig("distil", weight=0.5, kwargs=dict(teacher="base")),
    },
    train=TrainConfig(steps=400, batch_size=16, log_every=50, validate_every=200, checkpoint_every=200),
    eval=EvalConfig(source=dataclasses.replace(SCENES, seed=1_000_000, size=1200), tiles=(1,)),
  )


def _tiny_run() -> RunConfig:
  """A student with few parameters; no answer is shown to it, only what its teacher makes of the questions."""
  first = _tiny()
  scenes = dataclasses.replace(SCENES, seed=1)
  return dataclasses.replace(
    first,
    name="distil-tiny-run",
    peft=PeftConfig("lora", target=r".*text_model.*\.(q|v)_proj", options=dict(rank=8, alpha=16.0)),
    data=dataclasses.replace(
      first.data, sources={"scenes": scenes}, validation={"scenes": dataclasses.replace(scenes, seed=2)}
    ),
    losses={"distil": LossConfig("distil")},
    teachers={"teacher": TeacherConfig(path="runs/tiny")},
  )


def _tiny_on_policy() -> RunConfig:
  """As `tiny-run`; in half of the steps the student answers, and hears what its teacher makes of that."""
  first = _tiny_run()
  return dataclasses.replace(
    first,
    name="distil-tiny-on-policy",
    losses={"distil": LossConfig("distil", kwargs=dict(beta=0.5))},
    phases={"on_policy": PhaseConfig("on_policy", dict(share=0.5, new_tokens=4))},
    optim=OptimConfig("adamw", learning_rate=1e-3, warmup_steps=30),
  )


def _tiny_light() -> RunConfig:
  """Self-distillation over augmented views: the mean teacher sees plain pictures, the student others."""
  first = _tiny_run()
  light = AugmentConfig(brightness=0.4, contrast=0.4, blur=1.0, noise=8.0, jpeg=40)
  return dataclasses.replace(
    first,
    name="distil-tiny-light",
    data=dataclasses.replace(first.data, augment=light),
    optim=dataclasses.replace(first.optim, ema=0.99),
    losses={
      "answer": LossConfig("answer"),
      "steady": LossConfig("distil", weight=0.5, kwargs=dict(teacher="average")),
    },
    teachers={"average": TeacherConfig(path="ema", plain=True)},
  )


def _tiny_told() -> RunConfig:
  """The teacher reads the depth of the picture's parts in words, which the tiny base was never taught to use.

  With the scene in words as well its prompt would be longer than the 512 tokens that this model takes.
  """
  first = _tiny_run()
  return dataclasses.replace(
    first,
    name="distil-tiny-told",
    data=dataclasses.replace(first.data, lengths=(136, 208, 320)),
    losses={
      "answer": LossConfig("answer"),
      "told": LossConfig("distil", weight=0.5, kwargs=dict(teacher="told")),
    },
    teachers={"told": TeacherConfig(path="base", prompt="{depth} {prompt}")},
  )


def _on_policy() -> RunConfig:
  """GKD with TRL's beta, lambda and temperature; rates as others used them, not measured here."""
  run = lora.get_config("500m")
  return dataclasses.replace(
    run,
    name="distil-on-policy",
    model=dataclasses.replace(run.model, path="HuggingFaceTB/SmolVLM-256M-Instruct"),
    losses={"distil": LossConfig("distil", kwargs=dict(beta=0.5, temperature=0.9))},
    teachers={"teacher": TeacherConfig(path="HuggingFaceTB/SmolVLM-500M-Instruct")},
    phases={"on_policy": PhaseConfig("on_policy", dict(share=0.5, new_tokens=16, temperature=0.9))},
    optim=dataclasses.replace(run.optim, learning_rate=2e-5),
    train=dataclasses.replace(run.train, steps=1000),
  )
