"""A language model and an encoder to a trained model, by the recipe."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli
from spatialvlm.config import ModelConfig, RunConfig, names
from spatialvlm.training import one_run, runs, stages
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


def test_both_stages_train_and_the_run_is_a_model(tmp_path, monkeypatch):
  """A SigLIP and a Llama with SmolVLM's connector: the run exports a SmolVLM like those on the hub."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  write_text(tmp_path / "lm", scenes=True)
  write_encoder(tmp_path / "eye", "siglip_vision_model", patch=16, image=96)
  config = read(
    f"tiny,text={tmp_path}/lm,encoder={tmp_path}/eye,connector=smolvlm,lora_encoder=true",
    [("eval", "None"), ("data.workers", "1")]
    + [
      (f"stages.{stage}.{key}", value)
      for stage in ("1-connector", "2-lora")
      for key, value in (("train.steps", "1"), ("train.batch_size", "2"), ("data.validation_size", "2"))
    ],
  )
  assert stages.train(config, tmp_path / "run")["finished"]
  start = load_file(f"{one_run.assembled(config.model).path}/model.safetensors")
  ends = [load_file(tmp_path / "run" / stage / "model" / "model.safetensors") for stage in config.stages]
  changed = [
    {name for name in a if not np.array_equal(a[name], b[name])}
    for a, b in zip((start, ends[0]), ends, strict=True)
  ]
  assert changed[0] == {"model.connector.modality_projection.proj.weight"}
  assert {name.split(".")[1] for name in changed[1]} == {"connector", "text_model", "vision_model"}
  said = json.loads((tmp_path / "run" / "2-lora" / "model" / "config.json").read_text())
  assert said["model_type"] == "smolvlm" and said["architectures"] == ["SmolVLMForConditionalGeneration"]
  assert runs.find(ModelConfig(str(tmp_path / "run"))).name.endswith("2-lora, step 1")
