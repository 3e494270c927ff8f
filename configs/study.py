"""Ways of training side by side (`launch/study.py`), on the small model that ships with the project.

  python launch/study.py --config=configs/study.py:tiny-methods --workdir=runs/study-methods

trains every method of `configs/peft.py`, and some beside it, with three seeds, at equal steps, and asks all
of them 600 questions; `tiny-objectives` is LoRA with losses beside the answers' own, which is the control,
`tiny-rewards` rewards after what they go on from. `smoke` is two methods for a few steps, to see that all
goes. More or fewer seeds: `--config.seeds="(0,)"`; more steps for all: `--config.settings.train.steps=600`;
one cell's rate: `--config.cells.ia3.settings.optim.learning_rate=0.02`.
"""

import dataclasses

from spatialvlm.config import CellConfig, EvalConfig, ScenesConfig, StudyConfig
from spatialvlm.configs import peft
from spatialvlm.types import UserError

# A study keeps checkpoints and answers; `launch/export.py --model=RUN` writes what it would have exported.
LEAN = {"train.export": False, "train.validate_every": 0, "train.keep": 1, "log.tensorboard": False}
LEAN |= {"mesh.cpu_devices": 2}  # of a computer without an accelerator
QUESTIONS = EvalConfig(source=ScenesConfig(seed=1_000_000, image_size=96, size=600), tiles=(1,))

# Ways of training beside `peft.METHODS`, as what is other than LoRA there.
BESIDE_METHODS = {
  "nf4": {"model.quantize": "nf4"},
  "int8": {"model.quantize": "int8"},
  # Rows of "(", ")", ":" and the letters A to F, in which questions of several options are asked.
  "tokens": {"peft.method": "trainable_tokens", "peft.token_indices": (10, 11, 28, *range(35, 41))}
  | {"optim.learning_rate": 1e-2},
  # BitFit; only the vision model has biases.
  "bitfit": {"peft.method": "none", "peft.full": ".*bias", "optim.learning_rate": 1e-2},
}

# What is other than the answers' own loss alone, by the names of the cells (docs/objectives.md).
OBJECTIVES = {
  "answers": {},
  "smoothed": {"losses.answer.kwargs.label_smoothing": 0.1},
  "hard": {"phases.hard.kind": "hard_examples", "phases.hard.kwargs.keep": 0.5},
  "depth": {
    "losses.depth.kind": "depth_probe",
    "losses.depth.weight": 0.1,
    "losses.depth.kwargs": {"read": "decoder", "layer": 2, "detach": False},
  },
  # The right letter against those of other options, which stand behind each row.
  "contrast": {
    "losses.contrast": {"kind": "contrast", "weight": 0.5},
    "data.sources.scenes.false_answers": 5,
    "data.lengths": (152, 176, 192),
  },
  # Read within the decoder: what only reads tokens before it teaches its adapters nothing.
  "map": {
    "losses.map.kind": "dense_depth",
    "losses.map.weight": 0.1,
    "losses.map.kwargs": {"detach": False, "upsample": 2, "decoder_layers": (2,)},
  },
  "base": {"losses.base": {"kind": "distil", "weight": 0.5, "kwargs": {"teacher": "base"}}},
  "hidden": {"losses.hidden": {"kind": "distil_hidden", "weight": 0.5, "kwargs": {"teacher": "base"}}},
  "relations": {"losses.rel": {"kind": "distil_relations", "weight": 0.5, "kwargs": {"teacher": "base"}}},
  # The base is told the scene in words, and teaches what it makes of that.
  "told": {
    "losses.told": {"kind": "distil", "kwargs": {"teacher": "told"}},
    "teachers.told": {"path": "base", "prompt": "{facts} {prompt}"},
    "data.lengths": (136, 152, 256, 384, 512),
  },
}


def get_config(arg: str = "tiny-methods") -> StudyConfig:
  recipes = {
    "tiny-methods": _tiny_methods,
    "tiny-objectives": _tiny_objectives,
    "tiny-rewards": _tiny_rewards,
    "smoke": _smoke,
  }
  if arg not in recipes:
    raise UserError(f"configs/study.py: no recipe {arg!r}; there are {', '.join(recipes)}")
  return recipes[arg]()


def _tiny_methods() -> StudyConfig:
  """Each at its own rate of `configs/peft.py`, which was not tuned on this model."""
  cells = {name: CellConfig(f"peft:tiny,method={name}") for name in peft.METHODS}
  cells |= {name: CellConfig("peft:tiny,method=lora", settings) for name, settings in BESIDE_METHODS.items()}
  return StudyConfig(
    name="methods",
    cells=cells,
    settings=LEAN | {"train.steps": 400},
    questions=QUESTIONS,
  )


def _tiny_objectives() -> StudyConfig:
  """LoRA on all linear layers of the decoder."""
  cells = {name: CellConfig("peft:tiny,method=lora", settings) for name, settings in OBJECTIVES.items()}
  return dataclasses.replace(_tiny_methods(), name="objectives", cells=cells, control="answers")


def _tiny_rewards() -> StudyConfig:
  """The steps are those of `configs/grpo.py`; its first stage is the control."""
  cells = {"answers": CellConfig("lora:tiny"), "rewards": CellConfig("grpo:tiny")}
  return dataclasses.replace(_tiny_methods(), name="rewards", cells=cells, control="answers")


def _smoke() -> StudyConfig:
  whole = _tiny_methods()
  short = {"train.steps": 2, "train.batch_size": 2, "train.log_every": 1, "optim.warmup_steps": 1}
  return dataclasses.replace(
    whole,
    name="smoke",
    cells={name: whole.cells[name] for name in ("lora", "ia3")},
    seeds=(0,),
    settings=whole.settings | short,
    questions=dataclasses.replace(
      QUESTIONS, source=dataclasses.replace(QUESTIONS.source, size=12), batch_size=8, bootstrap=100
    ),
  )
