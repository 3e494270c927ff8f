"""LoRA for spatial questions, on SmolVLM or, by `--config.model.path`, InternVL or PaliGemma; of text alone.

`--config=configs/lora.py:tiny` puts adapters on the small model that ships with the project and trains them
on the embedded world, on two cores in minutes; `--config=configs/lora.py` is the same on SmolVLM-500M,
for one GPU. Both score held-out questions before and after. `--config=configs/lora.py:text` trains a language
model by itself, SmolLM2 where no path is given, on conversations of yours.

`--config=configs/lora.py:500m,data=sat+vsr+tallyqa,folder=/data` mixes open data sets with the scenes, each
in a folder of its name (`configs/mixtures.py` lists them); without `folder=` they go by their hub ids.
`--config.data.sources.sat.path=` moves one, `.weight=` sets its share. docs/open_data.md says how a
benchmark's pictures are left out.
"""

import dataclasses

from spatialvlm.config import (
  DataConfig,
  EvalConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  ScenesConfig,
  TrainConfig,
)
from spatialvlm.configs import mixtures
from spatialvlm.types import UserError

# Of the decoder, as SmolVLM, InternVL and PaliGemma call it; a language model by itself answers to it too.
EVERY_LINEAR = r".*(text_model|language_model).*\.(q|k|v|o|gate|up|down)_proj"
# Of one image and its question: 64 image tokens of SmolVLM to 4,096 of PaliGemma at 896 pixels. Only those
# that occur are compiled.
LENGTHS = (128, 192, 256, 384, 512, 1152, 4224)


def get_config(arg: str = "500m") -> RunConfig:
  recipes = {"500m": _smolvlm_500m, "tiny": _tiny, "tiny-distance": _tiny_distance, "text": _text}
  name, *parts = arg.split(",")
  if name not in recipes:
    raise UserError(f"configs/lora.py: no recipe {name!r}; there are {', '.join(recipes)}")
  said = dict(part.partition("=")[::2] for part in parts)
  if said and (name != "500m" or not said.keys() <= {"data", "folder"} or not all(map(said.get, said))):
    raise UserError(
      f"configs/lora.py: cannot read {arg!r}; 500m alone takes more: 500m,data=sat+vsr,folder=PATH"
    )
  if "folder" in said and "data" not in said:
    raise UserError("configs/lora.py: folder= says where data sets lie, and data= which: data=sat+vsr")
  return _real(said["data"].split("+"), said.get("folder", "")) if "data" in said else recipes[name]()


def _smolvlm_500m() -> RunConfig:
  """bfloat16 base, float32 adapters; one tile of 512 pixels an image, since the scenes are small."""
  scenes = ScenesConfig(image_size=384)
  return RunConfig(
    name="lora-500m",
    model=ModelConfig(path="HuggingFaceTB/SmolVLM-500M-Instruct", dtype="bfloat16", max_tiles=1),
    peft=PeftConfig("lora", target=EVERY_LINEAR, options=dict(rank=16, alpha=32.0, dropout=0.05)),
    data=_data(scenes, LENGTHS),
    optim=OptimConfig("adamw", learning_rate=2e-4, warmup_steps=100, weight_decay=0.01),
    train=TrainConfig(steps=4000, batch_size=32, log_every=20, validate_every=500, checkpoint_every=500),
    eval=EvalConfig(source=dataclasses.replace(scenes, seed=1_000_000, size=2000), tiles=(1,)),
  )


def _real(names: list[str], folder: str) -> RunConfig:
  """Photographs in up to five tiles, beside the scenes; rows that do not fit are left out and named."""
  config = _smolvlm_500m()
  sources = dict(config.data.sources) | mixtures.sources(names, folder)
  sources["scenes"] = dataclasses.replace(sources["scenes"], weight=mixtures.SCENES)
  return dataclasses.replace(
    config,
    name="lora-500m-real",
    model=dataclasses.replace(config.model, max_tiles=5),
    data=dataclasses.replace(
      config.data,
      sources=sources,
      lengths=(128, 256, 384, 512, 768, 1152, 2048),
      tiles=(1, 2, 5, 10),  # SAT shows two pictures
      targets=32,
      bad_rows="skip",
    ),
    eval=dataclasses.replace(config.eval, tiles=(1, 5)),
  )


def _tiny() -> RunConfig:
  """Two kinds; `tiny-distance` goes on with a third.

  With Distance among them from the start a model this small learned none of the four, and with Count among
  them it learned no Count, and less of the others in the same minutes.
  """
  scenes = ScenesConfig(image_size=96)
  mixed = dataclasses.replace(scenes, tasks=dict(Relation=0.36, Depth=0.64))
  muon = dict(consistent_rms=0.2, adam_b2=0.98)
  return RunConfig(
    name="lora-tiny",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    peft=PeftConfig(
      "lora", target=EVERY_LINEAR, full=r"model\.connector\..*", options=dict(rank=16, alpha=32.0)
    ),
    data=_data(mixed, (136, 144, 152)),
    optim=OptimConfig("muon", learning_rate=4e-3, warmup_steps=30, kwargs=muon),
    train=TrainConfig(steps=1000, batch_size=16, log_every=50, validate_every=500, checkpoint_every=250),
    mesh=MeshConfig(cpu_devices=2),
    eval=EvalConfig(source=dataclasses.replace(scenes, seed=1_000_000, size=1200), tiles=(1,)),
  )


def _text() -> RunConfig:
  """A language model by itself; `data.sources` is yours to name: conversations without images."""
  return RunConfig(
    name="lora-text",
    model=ModelConfig(path="HuggingFaceTB/SmolLM2-135M-Instruct"),
    peft=PeftConfig("lora", target=EVERY_LINEAR, options=dict(rank=16, alpha=32.0)),
    data=DataConfig(lengths=(128, 256, 512, 1024, 2048), tiles=(1,), targets=32),
    optim=OptimConfig("adamw", learning_rate=2e-4, warmup_steps=20, weight_decay=0.01),
    train=TrainConfig(steps=500, batch_size=8, log_every=10, checkpoint_every=100),
  )


def _tiny_distance() -> RunConfig:
  """Distance, on the model that `tiny` left in runs/tiny; the others go on, a little."""
  first = _tiny()
  mixed = ScenesConfig(seed=11, image_size=96, tasks=dict(Distance=0.6, Depth=0.25, Relation=0.15))
  return dataclasses.replace(
    first,
    name="lora-tiny-distance",
    model=ModelConfig(path="runs/tiny/model"),
    data=dataclasses.replace(first.data, sources={"scenes": mixed}),
    train=dataclasses.replace(first.train, steps=550),
    eval=dataclasses.replace(first.eval, before=False),  # runs/tiny has asked it
  )


def _data(scenes: ScenesConfig, lengths: tuple[int, ...]) -> DataConfig:
  """Endless questions, one to a sample; worlds of other seeds are held out."""
  return DataConfig(
    sources={"scenes": dataclasses.replace(scenes, seed=1)},
    validation={"scenes": dataclasses.replace(scenes, seed=2)},
    validation_size=256,
    lengths=lengths,
    tiles=(1,),
    targets=2,
  )
