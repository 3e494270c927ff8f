"""LoRA for spatial questions, on SmolVLM or, by `--config.model.path`, InternVL or PaliGemma.

`--config=configs/lora.py:tiny` puts adapters on the small model that ships with the project and trains them
on the embedded world, on two cores in minutes; `--config=configs/lora.py` is the same on SmolVLM-500M,
for one GPU. Both score held-out questions before and after.
"""

from ml_collections import ConfigDict

# Of the decoder, as SmolVLM, InternVL and PaliGemma call it.
EVERY_LINEAR = r".*(text_model|language_model).*\.(q|k|v|o|gate|up|down)_proj"
# Of one image and its question: 64 image tokens of SmolVLM to 4,096 of PaliGemma at 896 pixels. Only those
# that occur are compiled.
LENGTHS = (128, 192, 256, 384, 512, 1152, 4224)


def get_config(arg: str = "500m") -> ConfigDict:
  from spatialvlm.types import UserError

  recipes = {"500m": _smolvlm_500m, "tiny": _tiny}
  if arg not in recipes:
    raise UserError(f"configs/lora.py: no recipe {arg!r}; there are {', '.join(recipes)}")
  return recipes[arg]()


def _smolvlm_500m() -> ConfigDict:
  """bfloat16 base, float32 adapters; one tile of 512 pixels an image, since the scenes are small."""
  return ConfigDict(
    dict(
      name="lora-500m",
      model=dict(path="HuggingFaceTB/SmolVLM-500M-Instruct", dtype="bfloat16", max_tiles=1),
      peft=dict(method="lora", target=EVERY_LINEAR, rank=16, alpha=32.0, dropout=0.05),
      data=_scenes(image_size=384, lengths=LENGTHS, tiles=(1,)),
      optim=dict(name="adamw", learning_rate=2e-4, schedule="cosine", warmup_steps=100, weight_decay=0.01),
      train=dict(
        steps=4000, batch_size=32, log_every=20, validate_every=500, checkpoint_every=500, remat=False
      ),
      eval=dict(
        source=dict(kind="scenes", seed=1_000_000, size=2000, image_size=384),
        tiles=(1,),
      ),
    )
  )


def _tiny() -> ConfigDict:
  """Mostly Relation: a model this small learns one kind at a time, and four at once not in minutes."""
  kinds = dict(Relation=0.75, Count=0.25)
  data = _scenes(image_size=96, lengths=(136, 152), tiles=(1,))
  for part in ("sources", "validation"):
    data[part]["scenes"]["tasks"] = kinds
  return ConfigDict(
    dict(
      name="lora-tiny",
      model=dict(path="checkpoints/smolvlm-tiny"),
      peft=dict(method="lora", target=EVERY_LINEAR, rank=16, alpha=32.0, full=r"model\.connector\..*"),
      data=data,
      optim=dict(
        name="muon",
        learning_rate=4e-3,
        schedule="cosine",
        warmup_steps=30,
        kwargs=dict(consistent_rms=0.2, adam_b2=0.98),
      ),
      train=dict(steps=900, batch_size=16, log_every=20, validate_every=300, checkpoint_every=300),
      eval=dict(
        source=dict(kind="scenes", seed=1_000_000, size=1200, image_size=96),
        tiles=(1,),
      ),
    )
  )


def _scenes(image_size: int, lengths: tuple[int, ...], tiles: tuple[int, ...]) -> dict:
  """Endless questions of all four kinds; worlds of other seeds are held out."""
  return dict(
    sources=dict(scenes=dict(kind="scenes", seed=1, image_size=image_size)),
    validation=dict(scenes=dict(kind="scenes", seed=2, image_size=image_size)),
    validation_size=256,
    lengths=lengths,
    tiles=tiles,
    targets=2,
  )
