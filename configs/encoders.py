"""A vision-language model with other eyes, in two stages and one command.

`--config=configs/encoders.py:encoder=dinov2-base` takes SmolVLM-500M's tower out and puts DINOv2 in;
`encoder=siglip+dinov2` joins two by channels, `encoder=own+dinov2` keeps the tower and adds one. Stage
`1-connector` trains the fresh connector alone, on conversations about what pictures show; stage `2-lora`
LoRA on the decoder beside it, on the questions.

  encoder=   short names (below), hub ids or folders, joined by +; `own` is the model's own tower
  base=      hub id or folder of the model, by default SmolVLM-500M's
  lora_encoder=true   adapters in stage 2 on the encoders as well
  tiny       the small model that ships with the project, on scenes it knows: minutes on one core

They are separated by commas: `encoders.py:tiny,encoder=own+dinov2-small`.
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
  StageConfig,
  TrainConfig,
)
from spatialvlm.config.names import CONNECTOR, DECODER, SHORT, TOWER
from spatialvlm.types import UserError
from spatialvlm.worlds.vocabulary import dense_losses

CONNECTOR_ALONE = PeftConfig("none", target="", full=CONNECTOR)


def get_config(arg: str = "") -> RunConfig:
  said = _read(arg)
  if "encoder" not in said:
    raise UserError(
      "configs/encoders.py: name the encoder, e.g. encoders.py:encoder=dinov2-base; known:"
      f" {', '.join(SHORT)}, own; any hub id or folder"
    )
  names = said["encoder"].split("+")
  if not all(names):
    raise UserError(f"configs/encoders.py: encoder={said['encoder']}: an empty name beside a +")
  target = f"{DECODER}|{TOWER}" if said.get("lora_encoder") == "true" else DECODER
  # Beside the model's own encoder the grid of tokens is its; alone others have 6, 7, 8 or 12 cells a side.
  config = _tiny(target, 96 if "own" in names else 168) if "tiny" in said else _smolvlm_500m(target)
  encoders = tuple(SHORT.get(name, name) for name in names)
  model = dataclasses.replace(config.model, encoders=encoders, path=said.get("base", config.model.path))
  name = f"{config.name}-{'+'.join(name.rstrip('/').rpartition('/')[2] for name in names)}"
  return dataclasses.replace(config, name=name, model=model)


def _read(arg: str) -> dict[str, str]:
  said = {}
  for part in filter(None, arg.split(",")):
    key, _, value = part.partition("=")
    good = {"tiny": value == "", "lora_encoder": value in ("true", "false"), "encoder": value, "base": value}
    if not good.get(key):
      raise UserError(
        f"configs/encoders.py: cannot read {part!r}; known: encoder=NAME[+NAME], base=PATH,"
        " lora_encoder=true, tiny"
      )
    said[key] = value
  return said


def _smolvlm_500m(target: str) -> RunConfig:
  """bfloat16 base; one tile an image, since the scenes are small. For one GPU."""
  optim = OptimConfig("adamw", learning_rate=1e-3, warmup_steps=100, weight_decay=0.01)
  train = TrainConfig(steps=2000, batch_size=32, log_every=20, validate_every=500, checkpoint_every=500)
  lengths = (128, 192, 256, 384, 512, 1024, 2048, 4608)
  return RunConfig(
    name="eyes-500m",
    model=ModelConfig(path="HuggingFaceTB/SmolVLM-500M-Instruct", dtype="bfloat16", max_tiles=1),
    eval=EvalConfig(source=ScenesConfig(seed=1_000_000, size=2000, image_size=384), tiles=(1,)),
    stages={
      "1-connector": StageConfig(
        peft=CONNECTOR_ALONE,
        data=_data(SkillsConfig(seed=1, turns=5, image_size=384), lengths, targets=64),
        optim=optim,
        train=train,
      ),
      "2-lora": StageConfig(
        peft=_lora(target),
        data=_data(ScenesConfig(seed=11, image_size=384), lengths, targets=2),
        optim=dataclasses.replace(optim, learning_rate=2e-4),
        train=dataclasses.replace(train, steps=4000),
      ),
    },
  )


def _tiny(target: str, size: int) -> RunConfig:
  """Image tokens first say what they show, in words of the model; then mostly Relation, as in lora.py.

  Args:
    size: edge of the pictures in pixels, which the grid of image tokens divides.
  """
  kwargs = dict(consistent_rms=0.2, adam_b2=0.98)
  muon = OptimConfig("muon", learning_rate=4e-3, warmup_steps=30, kwargs=kwargs)
  train = TrainConfig(steps=400, batch_size=16, log_every=20, validate_every=300, checkpoint_every=100)
  words = dense_losses(objects=True, color=0.7, column=0.3, row=0.3, shape=1.5)
  kinds = dict(Relation=0.75, Count=0.25)
  return RunConfig(
    name="eyes-tiny",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    eval=EvalConfig(source=ScenesConfig(seed=1_000_000, size=1200, image_size=size), tiles=(1,)),
    log=LogConfig(tensorboard=False),
    stages={
      "1-connector": StageConfig(
        peft=CONNECTOR_ALONE,
        data=_data(SkillsConfig(seed=1, turns=5, image_size=size), (160, 208), targets=32),
        losses={"answer": LossConfig()} | words,
        optim=muon,
        train=train,
      ),
      "2-lora": StageConfig(
        peft=_lora(target),
        data=_data(ScenesConfig(seed=11, tasks=kinds, image_size=size), (136, 152, 208), targets=2),
        optim=muon,
        train=dataclasses.replace(train, steps=600),
      ),
    },
  )


def _lora(target: str) -> PeftConfig:
  """Adapters beside the connector, which is trained on."""
  return PeftConfig("lora", target=target, full=CONNECTOR, options=dict(rank=16, alpha=32.0, dropout=0.05))


def _data(source: ScenesConfig | SkillsConfig, lengths: tuple[int, ...], targets: int) -> DataConfig:
  """An endless source; worlds of another seed are held out."""
  return DataConfig(
    sources={"scenes": source},
    validation={"scenes": dataclasses.replace(source, seed=2)},
    validation_size=256,
    lengths=lengths,
    tiles=(1,),
    targets=targets,
  )
