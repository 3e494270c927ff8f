"""Every parameter-efficient method (docs/methods.md) on spatial questions, each at a rate that suits it.

  python launch/train.py --config=configs/peft.py:method=prompt
  python launch/train.py --config=configs/peft.py:tiny,method=pfeiffer

trains SmolVLM-500M, or with `tiny` the small model that ships with the project, on rendered scenes, and
scores held-out questions before and after: `configs/lora.py` with another method. Methods:

  method=      a key of `peft.METHODS`: lora, dora, rslora, eva, ia3, ln_tuning, loha, lokr, vera, prompt,
               prefix, p_tuning, houlsby, pfeiffer, parallel

Where layers are meant, those of the decoder are adapted that the method takes by itself; LoRA, LoHa, LoKr
and VeRA take every linear layer. `--config.peft.options.NAME=` and `--config.optim.learning_rate=` change one
setting more; docs/methods.md lists a method's.
"""

import dataclasses

from spatialvlm.config import (
  DataConfig,
  EvalConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  ScenesConfig,
  TrainConfig,
)
from spatialvlm.types import UserError

EVERY_LINEAR = r".*(text_model|language_model).*\.(q|k|v|o|gate|up|down)_proj"
_LOW_RANK = dict(rank=16, alpha=32.0)
# Method -> its AdamW rate, and what it is given. Few parameters want a high rate: PEFT's own comparison
# (method_comparison in github.com/huggingface/peft) has 1e-4 for LoRA, 1e-3 to 5e-3 for (IA)^3, prefixes and
# prompts. The small model takes ten times as much (`TINY`).
METHODS = {
  "lora": (2e-4, PeftConfig("lora", target=EVERY_LINEAR, options=_LOW_RANK)),
  "rslora": (1e-4, PeftConfig("lora", target=EVERY_LINEAR, options=_LOW_RANK | {"rslora": True})),
  "dora": (2e-4, PeftConfig("lora", target=EVERY_LINEAR, options=_LOW_RANK | {"dora": True})),
  "eva": (2e-4, PeftConfig("lora", target=EVERY_LINEAR, options=_LOW_RANK | {"init": "eva"})),
  "loha": (2e-4, PeftConfig("loha", target=EVERY_LINEAR, options=_LOW_RANK)),
  "lokr": (2e-4, PeftConfig("lokr", target=EVERY_LINEAR, options=_LOW_RANK)),
  # ten times LoRA's: its vectors scale random products
  "vera": (2e-3, PeftConfig("vera", target=EVERY_LINEAR)),
  "ia3": (5e-3, PeftConfig("ia3", target=None)),
  "ln_tuning": (1e-3, PeftConfig("ln_tuning", target=None)),
  "prompt": (1e-3, PeftConfig("prompt", target=None)),
  "p_tuning": (1e-3, PeftConfig("p_tuning", target=None)),
  "prefix": (5e-3, PeftConfig("prefix", target=None)),
  "houlsby": (2e-4, PeftConfig("houlsby", target=None)),
  "pfeiffer": (2e-4, PeftConfig("pfeiffer", target=None)),
  "parallel": (2e-4, PeftConfig("parallel", target=None)),
}
TINY = 10.0


def get_config(arg: str = "method=lora") -> RunConfig:
  tiny, method = _read(arg)
  rate, peft = METHODS[method]
  return (_tiny if tiny else _smolvlm_500m)(method, rate, peft)


def _read(arg: str) -> tuple[bool, str]:
  tiny, method = False, ""
  for part in arg.split(","):
    key, _, value = part.partition("=")
    if part == "tiny":
      tiny = True
    elif key == "method" and value:
      method = value
    else:
      raise UserError(f"configs/peft.py: cannot read {part!r}; known: tiny, method=NAME")
  if method not in METHODS:
    what = f"no method {method!r}" if method else "name the method, as method=prompt"
    raise UserError(f"configs/peft.py: {what}; there are {', '.join(METHODS)}")
  return tiny, method


def _smolvlm_500m(method: str, rate: float, peft: PeftConfig) -> RunConfig:
  scenes = ScenesConfig(image_size=384)
  return RunConfig(
    name=f"peft-500m-{method}",
    model=ModelConfig(path="HuggingFaceTB/SmolVLM-500M-Instruct", dtype="bfloat16", max_tiles=1),
    peft=peft,
    # One image and its question, and a soft prompt before them.
    data=_data(scenes, (128, 192, 256, 384)),
    optim=OptimConfig("adamw", learning_rate=rate, warmup_steps=100),
    train=TrainConfig(steps=4000, batch_size=32, log_every=20, validate_every=500, checkpoint_every=500),
    eval=EvalConfig(source=dataclasses.replace(scenes, seed=1_000_000, size=2000), tiles=(1,)),
  )


def _tiny(method: str, rate: float, peft: PeftConfig) -> RunConfig:
  scenes = ScenesConfig(image_size=96, tasks=dict(Count=0.3, Relation=0.25, Depth=0.45))
  asked = ScenesConfig(seed=1_000_000, image_size=96, size=600)
  return RunConfig(
    name=f"peft-tiny-{method}",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    peft=peft,
    data=_data(scenes, (136, 152)),
    optim=OptimConfig("adamw", learning_rate=rate * TINY, warmup_steps=30),
    train=TrainConfig(steps=600, batch_size=16, log_every=50, validate_every=300, checkpoint_every=200),
    eval=EvalConfig(source=asked, tiles=(1,)),
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
