"""SmolLM2-135M behind DINOv2-small, two real models out of Python packages: no model hub is needed.

  python launch/real_parts.py --out=runs/real/parts
  python launch/train.py --config=configs/real.py:stage=1 --workdir=runs/real/1
  python launch/train.py --config=configs/real.py:stage=2 --workdir=runs/real/2
  python launch/train.py --config=configs/real.py:stage=3 --workdir=runs/real/3

Stage 1 trains the fresh connector alone: image tokens say in the language model's own words what they show.
Stage 2 adds LoRA on the decoder, and conversations; stage 3 CV-Bench's four kinds of question, the
conversations going on beside them. The encoder stays as it is, so that what it makes of each of the
`PICTURES` is made once.

  text=        another language model: folder, hub id or GGUF file
  encoder=     another encoder: folder or hub id
  connector=   of stages 2 and 3: where the trained connector is, by default the one that comes with the
               project; with other parts that of your stage 1, runs/real/1/model

They are separated by commas: `real.py:stage=1,text=HuggingFaceTB/SmolLM2-135M-Instruct`.
"""

import dataclasses

from spatialvlm.config import (
  DataConfig,
  EvalConfig,
  LogConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  ScenesConfig,
  SkillsConfig,
  TrainConfig,
)
from spatialvlm.config.names import CONNECTOR, DECODER
from spatialvlm.types import UserError
from spatialvlm.worlds.vocabulary import spoken_losses

TEXT, ENCODER = "runs/real/parts/SmolLM2-135M-Instruct.Q4_1.gguf", "runs/real/parts/dinov2-small"
TRAINED = "checkpoints/smolvlm-135m-dinov2s/connector.safetensors"
# 16 x 16 patches of 14 pixels, 2 x 2 of them to a token: 64 image tokens.
SIZE, FACTOR = 224, 2
PICTURES = 4000
# Later stages see others: those of stage 1 the connector knows by heart, and reads them better than any.
OTHERS = 12000
# What is in the box comes first: of all that is asked it is what the four kinds rest on.
TALK = dict(name=3.0, color=1.0, shape=1.0, color_of=0.5, shape_of=0.5, which_box=1.5, box_where=0.5)
TALK |= dict(where=1.0, present=0.5, choose=1.5, far=0.7, near_to_far=1.0, how_many=1.0)
MUON = dict(consistent_rms=0.2, adam_b2=0.98)
WORDS = dict(color=0.7, shape=1.5, box=1.0, row=0.3, column=0.3, depth_step=0.7)


def get_config(arg: str = "stage=3") -> RunConfig:
  said = _read(arg)
  stage = said.get("stage", "3")
  make = {"1": _words, "2": _talk, "3": _kinds}.get(stage)
  if make is None:
    raise UserError(f"configs/real.py: no stage {stage!r}; there are 1, 2, 3")
  if stage == "1" and "connector" in said:
    raise UserError("configs/real.py: stage 1 trains the connector; name one in stages 2 and 3")
  if stage != "1" and "connector" not in said and {"text", "encoder"} & set(said):
    raise UserError(
      "configs/real.py: the connector that comes with the project was trained between its own parts; with"
      " others name theirs, as connector=runs/real/1/model"
    )
  model = ModelConfig(
    path=said.get("text", TEXT),
    text_only=True,
    encoders=(said.get("encoder", ENCODER),),
    encoder_size=SIZE,
    connector_factor=FACTOR,
    connector_from=None if stage == "1" else said.get("connector", TRAINED),
    max_tiles=1,
    dtype="bfloat16",
  )
  return make(model)


def _read(arg: str) -> dict[str, str]:
  said = {}
  for part in filter(None, arg.split(",")):
    key, _, value = part.partition("=")
    if key not in ("stage", "text", "encoder", "connector") or not value:
      raise UserError(
        f"configs/real.py: cannot read {part!r}; known: stage=1|2|3, text=PATH, encoder=PATH, connector=PATH"
      )
    said[key] = value
  return said


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


def _talk(model: ModelConfig) -> RunConfig:
  skills = SkillsConfig(seed=102, image_size=SIZE, pictures=OTHERS, turns=10, tasks=TALK)
  return RunConfig(
    name="real-2",
    model=model,
    peft=_lora(),
    data=_data({"skills": skills}, targets=64, lengths=(256, 320)),
    losses={"answer": LossConfig()} | spoken_losses(objects=True, **{k: w / 4 for k, w in WORDS.items()}),
    optim=OptimConfig("muon", learning_rate=2e-3, warmup_steps=50, kwargs=MUON),
    train=_train(steps=900, batch_size=8),
    log=LogConfig(tensorboard=False),
  )


def _kinds(model: ModelConfig) -> RunConfig:
  scenes = ScenesConfig(seed=11, image_size=SIZE, pictures=PICTURES, turns=4)
  talk = SkillsConfig(seed=101, image_size=SIZE, pictures=PICTURES, turns=6, tasks=TALK, weight=0.3)
  return RunConfig(
    name="real-3",
    model=model,
    peft=_lora("runs/real/2/adapter"),
    data=_data({"scenes": scenes, "talk": talk}, targets=64),
    optim=OptimConfig("muon", learning_rate=2e-3, warmup_steps=50, kwargs=MUON),
    train=_train(steps=3000, batch_size=16),
    eval=EvalConfig(source=ScenesConfig(seed=1_000_000, size=1200, image_size=SIZE), tiles=(1,)),
    log=LogConfig(tensorboard=False),
  )


def _lora(before: str | None = None) -> PeftConfig:
  options = dict(rank=8, alpha=16.0)
  return PeftConfig("lora", target=DECODER, full=CONNECTOR, options=options, resume_from=before)


def _train(steps: int, batch_size: int) -> TrainConfig:
  return TrainConfig(
    steps=steps,
    batch_size=batch_size,
    log_every=10,
    validate_every=250,
    checkpoint_every=50,
    cache_vision_mib=6144,
  )


def _data(sources: dict[str, ScenesConfig | SkillsConfig], targets: int, lengths=(96,)) -> DataConfig:
  """Held out: worlds of another seed."""
  held_out = {name: dataclasses.replace(source, seed=2, pictures=0) for name, source in sources.items()}
  return DataConfig(
    sources=sources,
    validation=held_out,
    validation_size=64,
    lengths=lengths,
    tiles=(1,),
    targets=targets,
  )
