"""A language model and an encoder to a trained model, by the recipe."""

import json
import pathlib

import pytest

from spatialvlm import cli, hub, load_processor
from spatialvlm.config import ModelConfig, RunConfig, names
from spatialvlm.data import pipeline
from spatialvlm.peft import METHODS
from spatialvlm.peft.lora import LoraOptions
from spatialvlm.training import one_run, stages
from spatialvlm.types import UserError
from tests.tiny_encoder import write_encoder
from tests.tiny_text import write_text


def read(arg, overrides=()):
  return cli.load(f"assemble:{arg}", overrides, RunConfig)


def test_parts_by_short_names_hub_ids_and_folders():
  config = read("text=HuggingFaceTB/SmolLM2-360M-Instruct,encoder=siglip2+dinov2-base")
  assert config.model == ModelConfig(
    path="HuggingFaceTB/SmolLM2-360M-Instruct",
    encoders=("google/siglip2-base-patch16-256", "facebook/dinov2-base"),
    text_only=True,
    dtype="bfloat16",
    max_tiles=1,
  )
  assert config.name == "assembled-SmolLM2-360M-Instruct+siglip2+dinov2-base"
  first, second = config.stages["1-connector"], config.stages["2-lora"]
  assert first.peft.full == second.peft.full == names.CONNECTOR and second.peft.target == names.DECODER
  assert set(first.losses) > {"answer", "shape"} and set(second.losses or {}) <= {"answer"}
  said = "tiny,text=/m/lm,encoder=/m/vit/,connector=smolvlm,factor=4,size=224,words=false,lora_encoder=true"
  tiny = read(said)
  assert (tiny.model.connector, tiny.model.connector_factor, tiny.model.encoder_size) == ("smolvlm", 4, 224)
  assert tiny.model.dtype == "float32" and set(tiny.stages["1-connector"].losses) == {"answer"}
  assert tiny.stages["2-lora"].peft.target == f"{names.DECODER}|{names.TOWER}"


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("encoder=siglip", r"configs/assemble\.py: text= is missing; e\.g\. assemble\.py:text=Hugging"),
    ("text=a/b", "encoder= is missing"),
    ("text=a/b,encoder=siglip+", r"encoder=siglip\+: an empty name"),
    ("text=a/b,encoder=siglip,factor=0", "cannot read 'factor=0'; known: text=PATH"),
    ("text=a/b,encoder=siglip,connector=cross", "cannot read 'connector=cross'"),
    ("base=a/b,encoder=siglip", "cannot read 'base=a/b'"),
  ],
)
def test_arguments_that_are_none(arg, message):
  with pytest.raises(UserError, match=message):
    read(arg)


def test_both_stages_fit_the_model_and_its_tokenizer(tmp_path, monkeypatch):
  """What a run checks before its first step, and an example of each source: words, lengths, layers."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  write_text(tmp_path / "lm", scenes=True)
  write_encoder(tmp_path / "eye", "siglip_vision_model", patch=16, image=96)
  arg = f"tiny,text={tmp_path}/lm,encoder={tmp_path}/eye,connector=smolvlm,lora_encoder=true"
  config = read(arg)
  folder = hub.assembled(config.model).path
  assert json.loads(pathlib.Path(folder, "config.json").read_text())["model_type"] == "smolvlm"
  processor = load_processor(folder, **config.model.tiling)
  planned = stages.split(config, tmp_path / "run")
  assert [name for name, _ in planned] == ["1-connector", "2-lora"]
  for name, stage in planned:
    one_run.check(stage)
    stages._check_model(stage, config.model, name)
    for source in stage.data.sources.values():
      tokens = processor.encode(pipeline.read(pipeline.open_source(source), [0])[0]).tokens
      assert (tokens == processor.image_id).sum() == 36 and len(tokens) <= max(stage.data.lengths)
  plan = METHODS["lora"].plan(hub.load_model(folder), planned[1][1].peft, LoraOptions())
  parts = [name for name in plan if "vision_model" in name]
  assert len(plan) == 7 * 2 + 6 and len(parts) == 6
