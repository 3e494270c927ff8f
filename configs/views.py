"""Questions across several pictures of one scene, from cameras at several places (docs/geometry.md).

  python launch/train.py --config=configs/views.py:tiny --workdir=runs/views
  python launch/train.py --config=configs/views.py:tiny,only=1 --workdir=runs/views-one

trains the adapters of `configs/lora.py` on the small model that ships with the project; two pictures a
question. The second line is the control: all pictures but the first are grey, in training as in its
evaluation, so that what it scores is what one picture gives. Both are scored before and after, with the
control "first_image" among others. `configs/views.py` is the same on SmolVLM-500M, for one GPU, with two to
four pictures a question. What a model scores is also asked by itself:

  python launch/evaluate.py --config=configs/views.py:score --config.model.path=runs/views
"""

import dataclasses

from spatialvlm.config import EvalConfig, EvaluateConfig, ModelConfig, RunConfig, ScoreConfig, ViewsConfig
from spatialvlm.configs import lora
from spatialvlm.types import UserError

CONTROLS = ("first_image", "no_image", "other_image", "circular", "flip")


def get_config(arg: str = "500m") -> RunConfig | EvaluateConfig:
  name, *parts = arg.split(",")
  said = dict(part.partition("=")[::2] for part in parts)
  known = {"500m": _smolvlm_500m, "tiny": _tiny, "score": _score}
  if name not in known:
    raise UserError(f"configs/views.py: no recipe {name!r}; there are {', '.join(known)}")
  only = said.get("only", "0")
  if not said.keys() <= {"only"} or not only.isdigit():
    raise UserError(f"configs/views.py: cannot read {arg!r}; after the recipe's name known: only=1")
  return known[name](int(only))


def _smolvlm_500m(only: int) -> RunConfig:
  """One tile of 512 pixels a picture, 64 image tokens each."""
  views = ViewsConfig(image_size=384, views=(2, 3, 4), only=only)
  return _views(lora.get_config("500m"), views, lengths=(256, 384, 512), tiles=(2, 3, 4))


def _tiny(only: int) -> RunConfig:
  views = ViewsConfig(views=(2,), only=only)
  run = _views(lora.get_config("tiny"), views, lengths=(232, 264), tiles=(2,))
  return dataclasses.replace(run, train=dataclasses.replace(run.train, steps=600, validate_every=300))


def _views(
  run: RunConfig, views: ViewsConfig, *, lengths: tuple[int, ...], tiles: tuple[int, ...]
) -> RunConfig:
  held_out = dataclasses.replace(views, seed=1_000_000, size=1000)
  return dataclasses.replace(
    run,
    name=run.name.replace("lora", "views") + (f"-only-{views.only}" if views.only else ""),
    data=dataclasses.replace(
      run.data,
      sources={"views": dataclasses.replace(views, seed=1)},
      validation={"views": dataclasses.replace(views, seed=2)},
      lengths=lengths,
      tiles=tiles,
    ),
    eval=EvalConfig(source=held_out, tiles=tiles, controls=CONTROLS[:2]),
  )


def _score(only: int) -> EvaluateConfig:
  """Held-out questions, under every control that they can be asked under."""
  return EvaluateConfig(
    name="views-score",
    model=ModelConfig(path="checkpoints/smolvlm-tiny"),
    data=ViewsConfig(seed=1_000_000, size=1000, views=(2,), only=only),
    score=ScoreConfig(tiles=(2, 3, 4), controls=CONTROLS),
  )
