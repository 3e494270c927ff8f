"""Right answers set against wrong ones: which of several sentences about a picture is true.

  python launch/train.py --config=configs/contrast.py:tiny
  python launch/train.py --config=configs/contrast.py:tiny --config.losses.contrast.weight=1e-9
  python launch/train.py --config=configs/contrast.py:tiny,pictures

trains the adapters of `configs/lora.py` on its questions and, beside them, on sentences about rendered
scenes, of which wrong twins turn a word round (docs/objectives.md). The second line is the control: the same
pictures and sentences, the contrast looked at and not learned. With `pictures`, a true sentence is also set
against the same scene rearranged. `configs/contrast.py` and `configs/contrast.py:500m,pictures` are the same
on SmolVLM-500M, for one GPU.
"""

import dataclasses

from spatialvlm.config import LossConfig, RunConfig, ScenesConfig, SkillsConfig
from spatialvlm.configs import lora
from spatialvlm.types import UserError

# Wrong sentences beside each true one, and wrong letters beside each right one.
SENTENCES, LETTERS = 4, 3
# Rearranged pictures beside each true one.
PICTURES = 2


def get_config(arg: str = "500m") -> RunConfig:
  size, *more = arg.split(",")
  if size not in ("500m", "tiny") or more not in ([], ["pictures"]):
    raise UserError(
      f"configs/contrast.py: no recipe {arg!r}; there are 500m, tiny, 500m,pictures and tiny,pictures"
    )
  if size == "tiny":
    run = _contrast(
      lora.get_config("tiny"), image_size=96, lengths=(136, 200, 256, 320), steps=400, warmup=30
    )
  else:
    run = _contrast(lora.get_config("500m"), image_size=384, lengths=(512, 1024, 2048), steps=1000, warmup=20)
  return _against_pictures(run, (384, 448, 512) if size == "tiny" else (3072,)) if more else run


def _against_pictures(run: RunConfig, longer: tuple[int, ...]) -> RunConfig:
  """Rows hold the tiles of the rearranged pictures too, each with the first sentence behind it."""
  data = run.data
  add = lambda source: dataclasses.replace(source, false_pictures=PICTURES)
  return dataclasses.replace(
    run,
    name=f"{run.name}-pictures",
    data=dataclasses.replace(
      data,
      sources=dict(data.sources) | {"statements": add(data.sources["statements"])},
      validation={name: add(source) for name, source in data.validation.items()},
      lengths=(*data.lengths, *longer),
      tiles=tuple(sorted({*data.tiles, *((1 + PICTURES) * n for n in data.tiles)})),
    ),
  )


def _contrast(
  run: RunConfig, *, image_size: int, lengths: tuple[int, ...], steps: int, warmup: int
) -> RunConfig:
  (scenes,) = run.data.sources.values()
  assert isinstance(scenes, ScenesConfig)
  asked = dataclasses.replace(scenes, false_answers=LETTERS, weight=0.5)
  said = SkillsConfig(
    seed=31, image_size=image_size, turns=3, tasks=dict(statement=1.0), false_answers=SENTENCES, weight=0.5
  )
  held_out = {"statements": dataclasses.replace(said, seed=2, turns=1)}
  return dataclasses.replace(
    run,
    name=run.name.replace("lora", "contrast"),
    data=dataclasses.replace(
      run.data,
      sources={"scenes": asked, "statements": said},
      validation=held_out,
      lengths=lengths,
      targets=32,
    ),
    losses={"answer": LossConfig(), "contrast": LossConfig("contrast", weight=0.5)},
    optim=dataclasses.replace(run.optim, warmup_steps=warmup),
    train=dataclasses.replace(run.train, steps=steps, validate_every=steps // 2),
  )
