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

from ml_collections import ConfigDict

from spatialvlm.config import LossConfig, to_dict
from spatialvlm.types import UserError
from spatialvlm.worlds.vocabulary import dense_losses

SHORT = {
  "siglip": "google/siglip-base-patch16-224",
  "siglip-384": "google/siglip-base-patch16-384",
  "siglip-512": "google/siglip-base-patch16-512",
  "siglip-so400m": "google/siglip-so400m-patch14-384",
  "siglip2": "google/siglip2-base-patch16-256",
  "siglip2-so400m": "google/siglip2-so400m-patch14-384",
  "clip-b16": "openai/clip-vit-base-patch16",
  "clip-l14": "openai/clip-vit-large-patch14",
  "clip-l14-336": "openai/clip-vit-large-patch14-336",
  "dinov2-small": "facebook/dinov2-small",
  "dinov2-base": "facebook/dinov2-base",
  "dinov2-large": "facebook/dinov2-large",
  "dinov2-giant": "facebook/dinov2-giant",
  "dinov2-reg-small": "facebook/dinov2-with-registers-small",
  "dinov2-reg-base": "facebook/dinov2-with-registers-base",
  "dinov2-reg-large": "facebook/dinov2-with-registers-large",
  "dinov3-small": "facebook/dinov3-vits16-pretrain-lvd1689m",
  "dinov3-base": "facebook/dinov3-vitb16-pretrain-lvd1689m",
  "dinov3-large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
  "internvit": "OpenGVLab/InternVL3-1B-hf",
}
# Names without a size; of CLIP the one that has long had safetensors (pickles are never read).
SHORT |= {"clip": SHORT["clip-l14"], "dinov2": SHORT["dinov2-base"], "dinov2-reg": SHORT["dinov2-reg-base"]}
SHORT |= {"dinov3": SHORT["dinov3-base"]}

CONNECTOR = r"model\.connector\..*"
DECODER = r".*(text_model|language_model)\..*\.(q|k|v|o|gate|up|down)_proj"
# Linear layers of every encoder's blocks, as their own checkpoints call them.
TOWER = (
  r"encoders\..*\.(query|key|value|dense|(q|k|v|o|out|gate|up|down)_proj|projection_layer|fc[12]|weights_out)"
)


def get_config(arg: str = "") -> ConfigDict:
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
  config = _tiny(target) if "tiny" in said else _smolvlm_500m(target)
  config.model["encoders"] = tuple(SHORT.get(name, name) for name in names)
  config.model["path"] = said.get("base", config.model["path"])
  config.name = f"{config.name}-{'+'.join(name.rstrip('/').rpartition('/')[2] for name in names)}"
  return config


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


def _smolvlm_500m(target: str) -> ConfigDict:
  """bfloat16 base; one tile an image, since the scenes are small. For one GPU."""
  optim = dict(name="adamw", schedule="cosine", warmup_steps=100, weight_decay=0.01)
  train = dict(batch_size=32, log_every=20, validate_every=500, checkpoint_every=500)
  shape = dict(lengths=(128, 192, 256, 384, 512, 1024, 2048, 4608), tiles=(1,))
  return ConfigDict(
    dict(
      name="eyes-500m",
      model=dict(path="HuggingFaceTB/SmolVLM-500M-Instruct", dtype="bfloat16", max_tiles=1),
      eval=dict(source=dict(kind="scenes", seed=1_000_000, size=2000, image_size=384), tiles=(1,)),
      stages=_stages(
        target,
        dict(
          data=_scenes(1, kind="skills", turns=5, image_size=384) | shape | dict(targets=64),
          optim=optim | dict(learning_rate=1e-3),
          train=train | dict(steps=2000),
        ),
        dict(
          data=_scenes(11, kind="scenes", image_size=384) | shape | dict(targets=2),
          optim=optim | dict(learning_rate=2e-4),
          train=train | dict(steps=4000),
        ),
      ),
    )
  )


def _tiny(target: str) -> ConfigDict:
  """Image tokens first say what they show, in words of the model; then mostly Relation, as in lora.py."""
  muon = dict(name="muon", schedule="cosine", warmup_steps=30, kwargs=dict(consistent_rms=0.2, adam_b2=0.98))
  train = dict(log_every=20, validate_every=300, checkpoint_every=100)
  dense = dense_losses(objects=True, color=0.7, shape=1.5, row=0.3, column=0.3)
  kinds = dict(Relation=0.75, Count=0.25)
  return ConfigDict(
    dict(
      name="eyes-tiny",
      model=dict(path="checkpoints/smolvlm-tiny"),
      eval=dict(source=dict(kind="scenes", seed=1_000_000, size=1200, image_size=96), tiles=(1,)),
      log=dict(tensorboard=False),
      stages=_stages(
        target,
        dict(
          data=_scenes(1, kind="skills", turns=5) | dict(lengths=(160, 208), tiles=(1,), targets=32),
          losses={name: to_dict(term) for name, term in {"answer": LossConfig(), **dense}.items()},
          optim=muon | dict(learning_rate=4e-3),
          train=train | dict(steps=400, batch_size=16),
        ),
        dict(
          data=_scenes(11, kind="scenes", image_size=96, tasks=kinds)
          | dict(lengths=(136, 152, 208), tiles=(1,), targets=2),
          optim=muon | dict(learning_rate=4e-3),
          train=train | dict(steps=600, batch_size=16),
        ),
      ),
    )
  )


def _stages(target: str, first: dict, second: dict) -> dict:
  """The connector alone, then adapters with it; the second sees other worlds than the first."""
  alone = dict(method="none", target="", full=CONNECTOR)
  lora = dict(method="lora", target=target, rank=16, alpha=32.0, dropout=0.05, full=CONNECTOR)
  return {"1-connector": dict(peft=alone) | first, "2-lora": dict(peft=lora) | second}


def _scenes(seed: int, **source) -> dict:
  """Endless rendered scenes; worlds of other seeds are held out."""
  sources = {name: dict(scenes=dict(source, seed=s)) for name, s in (("sources", seed), ("validation", 2))}
  return sources | dict(validation_size=256)
