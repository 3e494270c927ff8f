"""A small vision-language model from a language model and encoders, in two stages and one command.

`--config=configs/assemble.py:text=HuggingFaceTB/SmolLM2-360M-Instruct,encoder=siglip2+dinov2-base` builds one
in the published way (SigLIP before SmolLM2, as SmolVLM and nanoVLM), here with DINOv2 beside it: the language
model gets SmolVLM's prompts and special tokens, and a fresh connector joins what the encoders see to its
words. Stage `1-connector` trains the connector alone: each image token says in the decoder's own words what
it shows, and conversations are about it. Stage `2-lora` trains LoRA on the decoder beside it, on
conversations and questions alike.

  text=      hub id, folder or GGUF file of a language model by itself: Llama, SmolLM2, Qwen2, Gemma, Gemma 2
  encoder=   short names (spatialvlm/config/names.py), hub ids or folders, joined by +
  connector= mlp (default), linear, or smolvlm, with which one SigLIP makes a SmolVLM that transformers reads
  factor=    patches along a side that become one image token; by itself about 8 x 8 tokens a tile
  size=      side of a tile in pixels; by itself the first encoder's own
  words=false         image tokens need not say what they show
  lora_encoder=true   adapters in stage 2 on the encoders as well
  tiny       small pictures, few steps, float32: minutes on two cores where the parts are small

They are separated by commas: `assemble.py:text=/models/lm,encoder=dinov2-small,size=224,factor=4`.
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
from spatialvlm.worlds.vocabulary import spoken_losses

# Image tokens and a conversation of five questions, or one question; only what occurs is compiled.
LENGTHS = (128, 192, 256, 320, 384, 448, 512, 768, 1024)
KNOWN = {
  "text": bool,
  "encoder": bool,
  "connector": lambda value: value in ("mlp", "linear", "smolvlm"),
  "factor": lambda value: value.isdecimal() and int(value) > 0,
  "size": lambda value: value.isdecimal() and int(value) > 0,
  "words": lambda value: value in ("true", "false"),
  "lora_encoder": lambda value: value in ("true", "false"),
  "tiny": lambda value: not value,
}


def get_config(arg: str = "") -> RunConfig:
  said = _read(arg)
  for key, example in (("text", "HuggingFaceTB/SmolLM2-360M-Instruct"), ("encoder", "siglip2+dinov2-base")):
    if key not in said:
      raise UserError(f"configs/assemble.py: {key}= is missing; e.g. assemble.py:{key}={example}")
  names = said["encoder"].split("+")
  if not all(names):
    raise UserError(f"configs/assemble.py: encoder={said['encoder']}: an empty name beside a +")
  last = lambda name: name.rstrip("/").rpartition("/")[2]
  model = ModelConfig(
    path=said["text"],
    text_only=True,
    dtype="float32" if "tiny" in said else "bfloat16",
    max_tiles=1,  # the scenes are small
    encoders=tuple(SHORT.get(name, name) for name in names),
    encoder_size=int(said.get("size", 0)),
    connector=said.get("connector", "mlp"),
    connector_factor=int(said.get("factor", 0)),
  )
  target = f"{DECODER}|{TOWER}" if said.get("lora_encoder") == "true" else DECODER
  make = _tiny if "tiny" in said else _small
  config = make(model, target, said.get("words") != "false")
  name = "+".join(map(last, (said["text"], *names)))
  return dataclasses.replace(config, name=f"{config.name}-{name}")


def _read(arg: str) -> dict[str, str]:
  said = {}
  for part in filter(None, arg.split(",")):
    key, _, value = part.partition("=")
    if key not in KNOWN or not KNOWN[key](value):
      raise UserError(
        f"configs/assemble.py: cannot read {part!r}; known: text=PATH, encoder=NAME[+NAME],"
        " connector=mlp|linear|smolvlm, factor=NUMBER, size=PIXELS, words=false, lora_encoder=true, tiny"
      )
    said[key] = value
  return said


def _small(model: ModelConfig, target: str, words: bool) -> RunConfig:
  """bfloat16; for one GPU."""
  return _stages(
    "assembled",
    model,
    target,
    words,
    pixels=384,
    questions=2000,
    train=TrainConfig(steps=4000, batch_size=32, log_every=20, validate_every=500, checkpoint_every=500),
    steps=8000,
  )


def _tiny(model: ModelConfig, target: str, words: bool) -> RunConfig:
  return _stages(
    "assembled-tiny",
    model,
    target,
    words,
    pixels=96,
    questions=1200,
    train=TrainConfig(steps=400, batch_size=8, log_every=20, validate_every=200, checkpoint_every=100),
    steps=600,
  )


def _stages(
  name: str,
  model: ModelConfig,
  target: str,
  words: bool,
  *,
  pixels: int,
  questions: int,
  train: TrainConfig,
  steps: int,
) -> RunConfig:
  """The two stages; `steps`: of the second."""
  muon = dict(consistent_rms=0.2, adam_b2=0.98)
  warmup = train.steps // 20
  skills = SkillsConfig(seed=1, turns=5, image_size=pixels)
  scenes = ScenesConfig(seed=11, image_size=pixels)
  shown = spoken_losses(objects=True, color=0.7, shape=1.5, row=0.3, column=0.3, depth_step=0.3)
  asked = {"answer": LossConfig()}
  lora = PeftConfig("lora", target=target, full=CONNECTOR, options=dict(rank=16, alpha=32.0, dropout=0.05))
  return RunConfig(
    name=name,
    model=model,
    eval=EvalConfig(source=dataclasses.replace(scenes, seed=1_000_000, size=questions), tiles=(1,)),
    log=LogConfig(tensorboard=False),
    stages={
      "1-connector": StageConfig(
        peft=PeftConfig("none", target="", full=CONNECTOR),
        data=_data({"skills": skills}, targets=64),
        losses=asked | (shown if words else {}),
        optim=OptimConfig("muon", learning_rate=2e-3, warmup_steps=warmup, kwargs=muon),
        train=train,
      ),
      "2-lora": StageConfig(
        peft=lora,
        data=_data({"skills": dataclasses.replace(skills, seed=3), "scenes": scenes}, targets=64),
        optim=OptimConfig("adamw", learning_rate=2e-4, warmup_steps=warmup, weight_decay=0.01),
        train=dataclasses.replace(train, steps=steps),
      ),
    },
  )


def _data(sources: dict[str, ScenesConfig | SkillsConfig], targets: int) -> DataConfig:
  """Endless sources; worlds of another seed are held out."""
  return DataConfig(
    sources=sources,
    validation={name: dataclasses.replace(source, seed=2) for name, source in sources.items()},
    validation_size=256,
    lengths=LENGTHS,
    tiles=(1,),
    targets=targets,
  )
