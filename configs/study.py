"""Ways of training side by side (`launch/study.py`), on the small model that ships with the project.

  python launch/study.py --config=configs/study.py:tiny-methods --workdir=runs/study-methods

trains every method of `configs/peft.py`, and some beside it, with three seeds, at equal steps, and asks all
of them 600 questions. In its place (docs/study.md has what came of them):

  tiny-objectives   LoRA with losses beside the answers' own, which is the control
  tiny-rewards      rewards after what they go on from
  tiny-data         how many questions, of which quality: distinct questions on a logarithmic axis, answers
                    made wrong on purpose, wordings, and how often each question is seen
  tiny-encoders     a fresh connector before the model's own tower; `tiny-encoders,encoder=FOLDER` another
                    encoder as well, alone and beside it
  real-data         how many conversations about Relation, and how many of their answers may be wrong, on the
                    model of real parts (`configs/real.py`)
  real-ways         methods, losses, rewards and replay, on the model of real parts put together
                    (runs/real/merged; `real-ways,model=FOLDER` another folder)
  500m-methods, 500m-data   the same of SmolVLM-500M, for one GPU; not run here
  smoke             two methods for a few steps, to see that all goes

More or fewer seeds: `--config.seeds="(0,)"`; more steps for all: `--config.settings.train.steps=600`; one
cell's rate: `--config.cells.ia3.settings.optim.learning_rate=0.02`.
"""

import dataclasses

from spatialvlm.config import CellConfig, EvalConfig, ScenesConfig, StudyConfig, crossed
from spatialvlm.config.names import DECODER, TOWER
from spatialvlm.configs import peft
from spatialvlm.types import UserError

# A study keeps checkpoints and answers; `launch/export.py --model=RUN` writes what it would have exported.
LEAN = {"train.export": False, "train.validate_every": 0, "train.keep": 1, "log.tensorboard": False}
LEAN |= {"mesh.cpu_devices": 2}  # of a computer without an accelerator
QUESTIONS = EvalConfig(source=ScenesConfig(seed=1_000_000, image_size=96, size=600), tiles=(1,))
# What `lora.py:tiny` teaches: with Count and Distance among them it learns neither, and less of these.
TAUGHT = {"Relation": 1.0, "Depth": 1.0}

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


# Scenes are rendered in blocks, so that questions out of their order cost a block each; by their index they
# are as good as drawn at random.
IN_ORDER = {"data.shuffle": False}
# What the answers and their texts are like, by the names of the lines (docs/study.md).
QUALITY = {
  "right": {},
  "wrong-30": {"data.noise.share": 0.3},
  "wrong-10": {"data.noise.share": 0.1},
  "worded-4": {"data.sources.scenes.wordings": 4},
}
# Three quarters of the questions, and beside them what the model could do before.
REPLAY = {
  "data.sources.scenes.weight": 0.75,
  "data.sources.talk": {"kind": "skills", "seed": 21, "weight": 0.25, "tasks": {"name": 1.0, "where": 1.0}},
}
BATCH = 16
# What the model of real parts loses most of when it learns one kind.
REAL_SKILLS = ("name", "choose", "where")
# Recipes that take a folder, and how it is called.
TAKES = {"tiny-encoders": "encoder", "real-ways": "model"}


def get_config(arg: str = "tiny-methods") -> StudyConfig:
  recipes = {
    "tiny-methods": _tiny_methods,
    "tiny-objectives": _tiny_objectives,
    "tiny-rewards": _tiny_rewards,
    "tiny-data": _tiny_data,
    "tiny-encoders": _tiny_encoders,
    "real-data": _real_data,
    "real-ways": _real_ways,
    "500m-methods": _500m_methods,
    "500m-data": _500m_data,
    "smoke": _smoke,
  }
  name, _, more = arg.partition(",")
  key, _, value = more.partition("=")
  if name not in recipes:
    raise UserError(f"configs/study.py: no recipe {name!r}; there are {', '.join(recipes)}")
  if more and (key != TAKES.get(name) or not value):
    raise UserError(
      f"configs/study.py: cannot read {arg!r}; tiny-encoders takes encoder=FOLDER, real-ways model=FOLDER,"
      " the others nothing"
    )
  return recipes[name](value) if more else recipes[name]()


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


def _tiny_data() -> StudyConfig:
  """At equal steps, so that what differs is the data and not how long was trained.

  400 steps of 16 show 6,400 questions once, 100 of them 64 times. More questions need more steps to be seen
  at all: `long` is four times as many steps, on 1,600 questions too, so that more data and more steps can be
  told apart, and `once` as many as show each question once. `replay` asks a quarter of what was asked before.
  """
  size = lambda count: {"data.sources.scenes.size": count}
  cells = crossed(
    "lora:tiny",
    {
      "data": {name: QUALITY[name] for name in ("right", "wrong-30")},
      "questions": {count: size(count) for count in (100, 400, 1600, 6400)},
    },
  )
  cells |= crossed("lora:tiny", {"data": {"replay": REPLAY}, "questions": {6400: size(6400)}})
  more = {name: QUALITY[name] for name in ("wrong-10", "worded-4")}
  cells |= crossed("lora:tiny", {"data": more, "questions": {count: size(count) for count in (1600, 6400)}})
  long = {"long": {"train.steps": 1600}}
  cells |= crossed("lora:tiny", {"data": long, "questions": {c: size(c) for c in (1600, 25_600)}})
  once = {count: size(count) | {"train.steps": count // BATCH} for count in (1600, 102_400)}
  cells |= crossed("lora:tiny", {"data": {"once": {}}, "questions": once})
  scenes = dataclasses.replace(QUESTIONS.source, tasks=TAUGHT, size=400)
  return StudyConfig(
    name="data",
    cells=cells,
    control="right_6400",
    settings={
      **LEAN,
      **IN_ORDER,
      "train.steps": 400,
      "train.batch_size": BATCH,
      "train.checkpoint_every": 200,
    },
    questions=dataclasses.replace(QUESTIONS, source=scenes, controls=("no_image",)),
    axis="questions",
    beside={
      name: dataclasses.replace(scenes, seed=1_000_000, size=200, shift=name) for name in ("roll", "low")
    },
    skills=("name", "where"),
    skill_count=100,
  )


def _tiny_encoders(encoder: str = "") -> StudyConfig:
  """Each encoder behind a fresh connector, in the two stages of `configs/encoders.py`."""
  last = encoder.rstrip("/").rpartition("/")[2].replace(".", "p")
  eyes = {"own": "own"} | ({last: encoder, f"own+{last}": f"own+{encoder}"} if encoder else {})
  cells = {name: CellConfig(f"encoders:tiny,encoder={of}", {}, {"eyes": name}) for name, of in eyes.items()}
  return dataclasses.replace(
    _tiny_methods(),
    name="encoders",
    cells=cells,
    settings={"log.tensorboard": False, "mesh.cpu_devices": 2},
    seeds=(0,),
  )


def _real_data() -> StudyConfig:
  """Relation alone, from what comes with the project on; what was gained is counted from there.

  160 steps of 4 show 640 conversations of four questions once, and 40 of them 16 times; `long` is three
  times as many steps and conversations.
  """
  size = lambda count: {"data.sources.scenes.size": count}
  cells = crossed(
    "real:stage=relation",
    {"data": {"right": {}}, "questions": {count: size(count) for count in (40, 160, 640)}},
  )
  cells |= crossed(
    "real:stage=relation", {"data": {"wrong-30": QUALITY["wrong-30"]}, "questions": {640: size(640)}}
  )
  long = {"long": {"train.steps": 480}}
  cells |= crossed("real:stage=relation", {"data": long, "questions": {1920: size(1920)}})
  scenes = ScenesConfig(seed=1_000_000, size=200, image_size=224, tasks={"Relation": 1.0})
  return StudyConfig(
    name="real-data",
    cells=cells,
    control="right_640",
    settings={**LEAN, **IN_ORDER},
    seeds=(0,),
    questions=EvalConfig(source=scenes, tiles=(1,), batch_size=16, controls=("no_image",)),
    axis="questions",
    beside={name: dataclasses.replace(scenes, size=100, shift=name) for name in ("roll", "low")},
    skills=REAL_SKILLS,
    skill_count=100,
  )


def _real_ways(model: str = "runs/real/merged") -> StudyConfig:
  """Equal steps, the data of `real-data`'s 640 conversations; `answers` is its recipe and the control."""
  recipe = f"real:stage=relation,model={model}"
  keep = {"kind": "skills", "seed": 121, "image_size": 224, "turns": 5, "weight": 0.25}
  keep["tasks"] = dict.fromkeys(REAL_SKILLS, 1.0)
  depth = {"kind": "depth_probe", "weight": 0.1, "kwargs": {"read": "decoder", "layer": 16, "detach": False}}
  heat = {"detach": False, "upsample": 2, "decoder_layers": (16,)}
  ways = {
    "answers": {},
    "replay": {"data.sources.scenes.weight": 0.75, "data.sources.talk": keep},
    "base": {"losses.base": {"kind": "distil", "weight": 0.5, "kwargs": {"teacher": "base"}}},
    "depth": {"losses.depth": depth},
    "map": {"losses.map": {"kind": "dense_depth", "weight": 0.1, "kwargs": heat}},
    "tower": {"peft.target": f"{DECODER}|{TOWER}"},
  }
  cells = {name: CellConfig(recipe, settings) for name, settings in ways.items()}
  cells["rewards"] = CellConfig(recipe.replace("relation", "rewards"))
  for name in ("lora", "ia3", "pfeiffer", "prefix", "ln_tuning", "rslora", "dora"):
    cells[name] = CellConfig(f"{recipe},method={name}")
  cells["nf4"] = CellConfig(f"{recipe},method=lora", {"model.quantize": "nf4"})
  whole = _real_data()
  return dataclasses.replace(
    whole,
    name="real-ways",
    cells=cells,
    control="answers",
    settings=LEAN | {"data.sources.scenes.size": 640},
    axis="",
    beside={},
  )


def _500m_methods() -> StudyConfig:
  cells = {name: CellConfig(f"peft:method={name}") for name in peft.METHODS}
  return dataclasses.replace(_500m_data(), name="500m-methods", cells=cells, axis="", control="lora")


def _500m_data() -> StudyConfig:
  """4,000 steps of 32 show 128,000 questions once."""
  sizes = {count: {"data.sources.scenes.size": count} for count in (100, 1000, 10_000, 100_000)}
  scenes = ScenesConfig(seed=1_000_000, size=2000, image_size=384)
  return StudyConfig(
    name="500m-data",
    cells=crossed("lora:500m", {"data": QUALITY, "questions": sizes}),
    control="right_100000",
    settings={name: value for name, value in (LEAN | IN_ORDER).items() if name != "mesh.cpu_devices"},
    questions=EvalConfig(source=scenes, tiles=(1,), controls=("no_image",)),
    axis="questions",
    beside={name: dataclasses.replace(scenes, size=1000, shift=name) for name in ("roll", "low", "shapes")},
  )


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
