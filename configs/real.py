"""SmolLM2-135M behind DINOv2-small, two real models out of Python packages: no model hub is needed.

  python launch/real_parts.py --out=runs/real/parts
  python launch/train.py --config=configs/real.py:stage=1 --workdir=runs/real/1
  python launch/train.py --config=configs/real.py:stage=2 --workdir=runs/real/2
  python launch/train.py --config=configs/real.py:stage=3 --workdir=runs/real/3
  python launch/train.py --config=configs/real.py:stage=4 --workdir=runs/real/4
  python launch/train.py --config=configs/real.py:stage=5 --workdir=runs/real/5
  python launch/train.py --config=configs/real.py:stage=6 --workdir=runs/real/6
  python launch/train.py --config=configs/real.py:stage=7 --workdir=runs/real/7

Stage 1 trains the fresh connector alone: image tokens say in the language model's own words what they show.
Stage 2 adds LoRA on the decoder, and teaches in a few steps what answers look like; stage 3 goes on with
conversations, CV-Bench's four kinds of question among them; in stage 4 answers describe the whole picture.
Stage 5 shows no picture and teaches letters alone, since the four kinds are answered by them; half of stage 6
asks these. Stage 7 puts together what it knows apart: the name of what is in a box, and the letter before a
name. The encoder stays as it is, so that what it makes of a picture is made once.

  text=        another language model: folder, hub id or GGUF file
  encoder=     another encoder: folder or hub id
  adapter=     from stage 3 on: what it goes on from, by default the adapter of the stage before
  connector=   of later stages: where the trained connector is, by default the one that comes with the
               project; with other parts that of your stage 1, runs/real/1/model
  model=       of stages relation and rewards: a whole model in place of parts, connector and adapter, such as
               what comes with the project, by launch/real_parts.py --merged=runs/real/merged
  method=      of stage relation, with model=: a method of configs/peft.py in place of LoRA and connector

They are separated by commas: `real.py:stage=1,text=HuggingFaceTB/SmolLM2-135M-Instruct`. What came of stages
2 to 7 comes with the project; it is scored, and trained further on other pictures, by

  python launch/evaluate.py --config=configs/real.py:score    # scenes and controls
  python launch/evaluate.py --config=configs/real.py:photos   # of launch/real_parts.py --photos
  python launch/shifts.py --config=configs/real.py:shifts     # worlds whose looks training never showed
  python launch/train.py --config=configs/real.py:stage=more      # all four kinds
  python launch/train.py --config=configs/real.py:stage=relation  # one of them, in minutes
  python launch/train.py --config=configs/real.py:stage=rewards   # the same, then GRPO on top
"""

import dataclasses
from collections.abc import Callable

from spatialvlm.config import (
  DataConfig,
  EvalConfig,
  EvaluateConfig,
  HFConfig,
  LogConfig,
  LossConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  ScenesConfig,
  ScoreConfig,
  SkillsConfig,
  StageConfig,
  TrainConfig,
)
from spatialvlm.config.names import CONNECTOR, DECODER
from spatialvlm.configs import grpo, peft
from spatialvlm.types import UserError
from spatialvlm.worlds.vocabulary import spoken_losses

TEXT, ENCODER = "runs/real/parts/SmolLM2-135M-Instruct.Q4_1.gguf", "runs/real/parts/dinov2-small"
TRAINED = "checkpoints/smolvlm-135m-dinov2s/connector.safetensors"
PHOTOS = "runs/real/photos"
SCORED = ("score", "shifts", "photos")
KEYS = ("stage", "text", "encoder", "connector", "adapter", "model", "method")
ADAPTER = "checkpoints/smolvlm-135m-dinov2s/adapter"
# Stages that take a whole model, and by how much methods are hotter there than at 4,000 steps of a 500M.
WHOLE, RATE = ("relation", "rewards"), 5.0
# 16 x 16 patches of 14 pixels, 2 x 2 of them to a token: 64 image tokens.
SIZE, FACTOR = 224, 2
PICTURES = 4000
# Later stages see others: those of stage 1 the connector knows by heart, and reads them better than any.
OTHERS = 12000
# What is in the box comes first: of all that is asked it is what the four kinds rest on.
TALK = dict(name=3.0, color=1.0, shape=1.0, color_of=0.5, shape_of=0.5, which_box=1.5, box_where=0.5)
TALK |= dict(where=1.0, present=0.5, choose=1.5, far=0.7, near_to_far=1.0, how_many=1.0)
# Then answers that say everything: 2.6 times the tokens a step that must be read off the picture. And what
# the four kinds are asked in: a letter, found by the name of what is seen.
FULL = dict(boxes=4.0, scene=4.0, name=1.5, choose=2.5, which_box=1.0, near_to_far=1.0, how_many=1.5, far=0.5)
# Then one thing at a time again, letters and orders above all.
SHORT = dict(name=2.0, choose=4.0, which_box=1.0, near_to_far=2.0, how_many=2.0, far=0.7, where=0.7)
SHORT |= dict(color=0.5, shape=0.5)
MUON = dict(consistent_rms=0.2, adam_b2=0.98)
WORDS = dict(color=0.7, shape=1.5, box=1.0, row=0.3, column=0.3, depth_step=0.7)


def get_config(arg: str = "stage=7") -> RunConfig | EvaluateConfig:
  if arg in SCORED:
    return _scored(arg)
  said = _read(arg)
  stage = said.get("stage", "4")
  made = {"1": _words, "2": _answers, "3": _talk, "4": _full, "5": _letters, "6": _kinds, "7": _choose}
  made |= {"more": _more, "relation": _relation, "rewards": _rewards}
  if stage not in made:
    raise UserError(f"configs/real.py: no stage {stage!r}; there are {', '.join(made)}")
  if stage == "1" and "connector" in said:
    raise UserError("configs/real.py: stage 1 trains the connector; name one in later stages")
  if stage in "12" and "adapter" in said:
    raise UserError(f"configs/real.py: stage {stage} begins with a fresh adapter; name one in later stages")
  if "model" in said:
    return _of_a_whole_model(made[stage], stage, said)
  if "method" in said:
    raise UserError("configs/real.py: method= goes on from a whole model; name it, as model=FOLDER")
  config = made[stage](_model(said, trained=stage != "1"))
  if "adapter" not in said:
    return config
  return dataclasses.replace(config, peft=dataclasses.replace(config.peft, resume_from=said["adapter"]))


def _read(arg: str) -> dict[str, str]:
  said = {}
  for part in filter(None, arg.split(",")):
    key, _, value = part.partition("=")
    if key not in KEYS or not value:
      raise UserError(
        f"configs/real.py: cannot read {part!r}; known: score, shifts or photos alone, or "
        "stage=1|2|3|4|5|6|7|more|relation|rewards, text=PATH, encoder=PATH, connector=PATH, adapter=PATH,"
        " model=PATH, method=NAME"
      )
    said[key] = value
  return said


def _of_a_whole_model(
  make: Callable[[ModelConfig], RunConfig], stage: str, said: dict[str, str]
) -> RunConfig:
  """The adapter is a fresh one; a method's rate suits a model of this size and few steps."""
  beside = sorted(set(said) - {"stage", "model", "method"})
  if beside or stage not in WHOLE:
    what = f"{beside[0]}= names a part of it" if beside else f"stage {stage} does not"
    raise UserError(f"configs/real.py: stages {' and '.join(WHOLE)} alone take a whole model; {what}")
  config = make(ModelConfig(path=said["model"], max_tiles=1, dtype="bfloat16"))
  config = dataclasses.replace(config, peft=dataclasses.replace(config.peft, resume_from=None))
  if "method" not in said:
    return config
  if said["method"] not in peft.METHODS or stage != "relation":
    what = f"no method {said['method']!r}; there are {', '.join(peft.METHODS)}"
    what = what if stage == "relation" else f"stage {stage} takes no method="
    raise UserError(f"configs/real.py: {what}")
  rate, method = peft.METHODS[said["method"]]
  optim = OptimConfig("adamw", learning_rate=rate * RATE, warmup_steps=20)
  return dataclasses.replace(config, name=f"real-relation-{said['method']}", peft=method, optim=optim)


def _model(said: dict[str, str], trained: bool) -> ModelConfig:
  """`trained`: with a connector that was trained before."""
  if trained and "connector" not in said and {"text", "encoder"} & set(said):
    raise UserError(
      "configs/real.py: the connector that comes with the project was trained between its own parts; with"
      " others name theirs, as connector=runs/real/1/model"
    )
  return ModelConfig(
    path=said.get("text", TEXT),
    text_only=True,
    encoders=(said.get("encoder", ENCODER),),
    encoder_size=SIZE,
    connector_factor=FACTOR,
    connector_from=said.get("connector", TRAINED) if trained else None,
    max_tiles=1,
    dtype="bfloat16",
  )


def _scored(asked: str) -> EvaluateConfig:
  """What comes with the project, asked what it never saw; scenes also under controls."""
  scenes = ScenesConfig(seed=1_000_000, size=400, image_size=SIZE)
  score = ScoreConfig(batch_size=16, tiles=(1,))
  controls = dataclasses.replace(score, controls=("circular", "no_image", "other_image", "flip"))
  photos = HFConfig(
    path=PHOTOS, files="questions.jsonl", templates=dict(source="Photographs"), answers="letter"
  )
  data, score = {
    "score": (scenes, controls),
    "shifts": (dataclasses.replace(scenes, size=100), score),
    "photos": (photos, score),
  }[asked]
  return EvaluateConfig(f"real-{asked}", _model({}, trained=True), ADAPTER, data, score)


def _words(model: ModelConfig) -> RunConfig:
  skills = SkillsConfig(seed=101, image_size=SIZE, pictures=PICTURES)
  return RunConfig(
    name="real-1",
    model=model,
    peft=PeftConfig("none", target="", full=CONNECTOR),
    data=_data({"skills": skills}, targets=8),
    losses=spoken_losses(objects=True, **WORDS),
    optim=OptimConfig("muon", learning_rate=2e-3, warmup_steps=50, kwargs=MUON),
    train=_train(steps=1500, batch_size=16),
    log=LogConfig(tensorboard=False),
  )


def _answers(model: ModelConfig) -> RunConfig:
  skills = SkillsConfig(seed=102, image_size=SIZE, pictures=OTHERS, turns=10, tasks=TALK)
  return RunConfig(
    name="real-2",
    model=model,
    peft=_lora(),
    data=_data({"skills": skills}, targets=64, lengths=(256, 320)),
    losses={"answer": LossConfig()} | spoken_losses(objects=True, **{k: w / 4 for k, w in WORDS.items()}),
    optim=OptimConfig("muon", learning_rate=2e-3, schedule_steps=900, warmup_steps=50, kwargs=MUON),
    train=_train(steps=100, batch_size=8),
    log=LogConfig(tensorboard=False),
  )


def _talk(model: ModelConfig, stage: int = 3, steps: int = 400, kinds: float = 0.3) -> RunConfig:
  """`kinds`: share of conversations that ask CV-Bench's four kinds of question."""
  scenes = ScenesConfig(seed=10 + stage, image_size=SIZE, pictures=OTHERS, turns=2, weight=kinds)
  talk = SkillsConfig(
    seed=100 + stage, image_size=SIZE, pictures=OTHERS, turns=10, tasks=TALK, weight=1 - kinds
  )
  losses = {"answer": LossConfig()} | spoken_losses(objects=True, **{k: w / 2 for k, w in WORDS.items()})
  return RunConfig(
    name=f"real-{stage}",
    model=model,
    peft=_lora(f"runs/real/{stage - 1}/adapter"),
    data=_data({"scenes": scenes, "talk": talk}, targets=64, lengths=(256, 320)),
    losses=losses,
    optim=OptimConfig("muon", learning_rate=1e-3, warmup_steps=20, kwargs=MUON),
    train=_train(steps=steps, batch_size=8),
    mesh=MeshConfig(cpu_devices=2),
    log=LogConfig(tensorboard=False),
  )


def _full(model: ModelConfig, stage: int = 4, steps: int = 480, kinds: float = 0.25) -> RunConfig:
  """A tenth nothing but letters: no picture is needed to find those."""
  config = _talk(model, stage, steps, kinds)
  sources = dict(config.data.sources)
  sources["talk"] = dataclasses.replace(sources["talk"], tasks=FULL, turns=9, weight=0.9 - kinds)
  letters = dict(turns=4, tasks=dict(letters=1.0), weight=0.1)
  sources["letters"] = SkillsConfig(seed=100 + stage, image_size=SIZE, **letters)
  data = dataclasses.replace(config.data, sources=sources, targets=128)
  return dataclasses.replace(config, data=data, optim=dataclasses.replace(config.optim, learning_rate=1.2e-3))


def _letters(model: ModelConfig) -> RunConfig:
  """Nothing but which letter stands before a given text: no picture, about seven questions a conversation."""
  config = _talk(model, stage=5)
  letters = SkillsConfig(seed=105, image_size=SIZE, turns=11, tasks=dict(letters=1.0))
  return dataclasses.replace(
    config,
    data=_data({"letters": letters}, targets=32, lengths=(256, 320)),
    losses={"answer": LossConfig()},
    optim=dataclasses.replace(config.optim, learning_rate=1.2e-3, schedule_steps=400),
    train=_train(steps=153, batch_size=4),
  )


def _kinds(model: ModelConfig, stage: int = 6, steps: int = 640) -> RunConfig:
  """Half of it the four kinds; descriptions stand apart from the questions that they would answer."""
  config = _talk(model, stage)
  skills = SkillsConfig(seed=100 + stage, image_size=SIZE, pictures=OTHERS)
  sources = {
    "scenes": ScenesConfig(seed=10 + stage, image_size=SIZE, pictures=OTHERS, turns=3, weight=0.5),
    "short": dataclasses.replace(skills, turns=10, tasks=SHORT, weight=0.27),
    "full": dataclasses.replace(skills, turns=9, tasks=dict(boxes=1.0, scene=1.0), weight=0.2),
    "letters": dataclasses.replace(skills, pictures=0, turns=4, tasks=dict(letters=1.0), weight=0.03),
  }
  return dataclasses.replace(
    config,
    data=_data(sources, targets=64, lengths=(256, 320, 384)),
    optim=dataclasses.replace(config.optim, learning_rate=1.2e-3),
    train=_train(steps=steps, batch_size=4),
  )


def _choose(model: ModelConfig) -> RunConfig:
  """Eight tenths of it naming by letter."""
  config = _kinds(model, stage=7, steps=362)
  skills = config.data.sources["short"]
  sources = {
    "choose": dataclasses.replace(skills, turns=13, tasks=dict(choose=1.0), weight=0.8),
    "short": dataclasses.replace(skills, tasks=SHORT | dict(name=4.0), weight=0.15),
    "letters": dataclasses.replace(config.data.sources["letters"], weight=0.05),
  }
  optim = dataclasses.replace(config.optim, schedule_steps=500)
  return dataclasses.replace(config, data=_data(sources, targets=64, lengths=(256, 320, 384)), optim=optim)


def _more(model: ModelConfig) -> RunConfig:
  """Goes on from what comes with the project, on other pictures. Scored before and after: 400 questions."""
  source = ScenesConfig(seed=1_000_000, size=400, image_size=SIZE)
  config = _kinds(model, stage=8, steps=600)
  return dataclasses.replace(
    config,
    name="real-more",
    peft=dataclasses.replace(config.peft, resume_from=ADAPTER),
    eval=EvalConfig(source=source, tiles=(1,)),
  )


def _relation(model: ModelConfig) -> RunConfig:
  """One of the four kinds alone, four questions a picture. Scored before and after: 400 questions."""
  config = _more(model)
  relation = dict(Relation=1.0)
  scenes = ScenesConfig(seed=31, image_size=SIZE, pictures=OTHERS, turns=4, tasks=relation)
  asked = dataclasses.replace(config.eval.source, tasks=relation)
  return dataclasses.replace(
    config,
    name="real-relation",
    data=_data({"scenes": scenes}, targets=32, lengths=(320, 384)),
    losses={"answer": LossConfig()},
    train=dataclasses.replace(config.train, steps=160, validate_every=80),
    eval=dataclasses.replace(config.eval, source=asked),
  )


def _rewards(model: ModelConfig) -> RunConfig:
  """Relation from answers, then from rewards of what the model itself says of other worlds."""
  config = _relation(model)
  scenes = dataclasses.replace(config.data.sources["scenes"], turns=1)
  alone = dataclasses.replace(config.data, sources={"scenes": scenes}, lengths=(160, 192, 256), targets=4)
  train = dataclasses.replace(config.train, validate_every=0)
  rewards = grpo.rewards(
    dataclasses.replace(config, data=alone),
    peft=_lora(),
    optim=OptimConfig("adamw", learning_rate=3e-4, schedule="constant", warmup_steps=5),
    train=dataclasses.replace(train, steps=20, batch_size=64),
    kl=0.01,
    new_tokens=4,
  )
  stages = {"1-answers": StageConfig(train=train), "2-rewards": rewards}
  return dataclasses.replace(config, name="real-rewards", stages=stages)


def _lora(before: str | None = None) -> PeftConfig:
  options = dict(rank=8, alpha=16.0)
  return PeftConfig("lora", target=DECODER, full=CONNECTOR, options=options, resume_from=before)


def _train(steps: int, batch_size: int) -> TrainConfig:
  return TrainConfig(
    steps=steps,
    batch_size=batch_size,
    log_every=10,
    validate_every=200,
    checkpoint_every=50,
    cache_vision_mib=6144,
  )


def _data(sources: dict[str, ScenesConfig | SkillsConfig], targets: int, lengths=(96,)) -> DataConfig:
  """Held out: worlds of another seed."""
  held_out = {
    name: dataclasses.replace(source, seed=2, pictures=0, turns=1) for name, source in sources.items()
  }
  return DataConfig(
    sources=sources,
    validation=held_out,
    validation_size=64,
    lengths=lengths,
    tiles=(1,),
    targets=targets,
  )
