"""Base training of the tiny SmolVLM from drawn weights, on skills of rendered scenes.

`python launch/make_tiny.py --out=checkpoints/smolvlm-tiny` writes what this reads: sizes and tokenizer.
"""

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
from spatialvlm.types import UserError

# First vocabulary id and number of the words of each dense target (`data.scenes.vocabulary.DENSE_WORDS`).
WORDS = {"color": (259, 6), "shape": (265, 4), "box": (269, 4), "depth": (273, 8)}
NO_BOX = 3


def _words(name: str, weight: float) -> LossConfig:
  first, classes = WORDS[name]
  kwargs = {"first": first, "classes": classes}
  if name == "box":
    kwargs["background"] = NO_BOX
  return LossConfig("words", target=name, weight=weight, kwargs=kwargs)


def get_config(arg: str = "tiny") -> ConfigDict:
  """`tiny` is the only model here."""
  if arg != "tiny":
    raise UserError(f"configs/base.py: unknown argument {arg!r}; known: tiny")
  run = RunConfig(
    name="base-tiny",
    model=ModelConfig(path="checkpoints/smolvlm-tiny", from_scratch=True),
    peft=PeftConfig(method="none", target="", full=".*"),
    data=DataConfig(
      sources={"skills": SourceConfig(kind="skills", seed=1, turns=5)},
      validation={"skills": SourceConfig(kind="skills", seed=2, turns=5)},
      validation_size=128,
      lengths=(112, 160),
      tiles=(1,),
      targets=32,
      workers=1,
      prefetch=4,
    ),
    optim=OptimConfig(
      name="muon",
      learning_rate=4e-3,
      schedule="cosine",
      warmup_steps=300,
      weight_decay=0.01,
      clip_norm=1.0,
      kwargs={"consistent_rms": 0.2, "adam_b2": 0.98},
    ),
    losses={
      "answer": LossConfig("answer"),
      "color": _words("color", 0.5),
      "shape": _words("shape", 0.5),
      "box": _words("box", 1.0),
      "depth": _words("depth", 0.2),
    },
    train=TrainConfig(steps=6200, batch_size=16, log_every=50, validate_every=500, checkpoint_every=250),
    log=LogConfig(tensorboard=False),
  )
  return ConfigDict(to_dict(run), convert_dict=False)
