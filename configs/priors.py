"""What is known beside pixels, added to image tokens: rays, maps of depth and normals, places in space.

  python launch/train.py --config=configs/priors.py:tiny,prior=depth_map --workdir=runs/depth_map
  python launch/train.py --config=configs/priors.py:tiny,prior=none --workdir=runs/plain

train the adapters of `configs/lora.py` on its questions with one of `spatialvlm.priors.PRIORS`, several
joined by +, or none (docs/priors.md). Afterwards the questions are asked again with the prior taken away,
with that of another picture, and with the prior alone. `configs/priors.py:500m,prior=rays` is
the same on SmolVLM-500M, for one GPU.
"""

import dataclasses

from spatialvlm.config import PriorConfig, RunConfig
from spatialvlm.configs import lora
from spatialvlm.types import UserError

KINDS = ("rays", "depth_map", "normal_map", "positions")
CONTROLS = ("no_prior", "other_prior", "prior_alone")
STEPS = {"tiny": 400, "500m": 2000}


def get_config(arg: str = "500m,prior=rays") -> RunConfig:
  """`tiny,prior=NAME` or `500m,prior=NAME`; NAME is "none" or kinds joined by +."""
  name, _, said = arg.partition(",prior=")
  kinds = said.split("+") if said != "none" else []
  if name not in STEPS or not said or not set(kinds) <= set(KINDS):
    raise UserError(
      f"configs/priors.py: cannot read {arg!r}; write {' or '.join(STEPS)} and what is known:"
      f" tiny,prior=none, or of {', '.join(KINDS)} one, or several joined by +"
    )
  run = lora.get_config(name)
  return dataclasses.replace(
    run,
    name=run.name.replace("lora", "priors"),
    priors={kind: PriorConfig(kind) for kind in kinds},
    train=dataclasses.replace(run.train, steps=STEPS[name], validate_every=STEPS[name] // 2),
    eval=dataclasses.replace(run.eval, controls=CONTROLS if kinds else ()),
  )
