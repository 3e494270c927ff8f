"""Recipes of ours: what they name exists in every family."""

import dataclasses
import pathlib
import re

import pytest

from spatialvlm import cli, hub, priors
from spatialvlm.config import EvaluateConfig, PeftConfig, RunConfig
from spatialvlm.configs import encoders, grpo, lora
from spatialvlm.configs import peft as peft_recipe
from spatialvlm.configs import priors as priors_recipe
from spatialvlm.hub import rules
from spatialvlm.models.families import ENCODERS, FAMILIES
from spatialvlm.peft import METHODS
from spatialvlm.peft.lora import LoraOptions
from spatialvlm.training import one_run, phases, stages
from spatialvlm.types import UserError

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("family", ["smolvlm", "internvl", "paligemma", "paligemma2"])
def test_linear_layers_of_every_decoder(family):
  vlm = hub.load_model(FIXTURES / family)
  plan = lambda config: METHODS["lora"].plan(vlm, config, LoraOptions())
  plans = [plan(PeftConfig(target=t)) for t in (lora.EVERY_LINEAR, encoders.DECODER)]
  layers = {name.rpartition(".")[2] for name in plans[0]}
  assert plans[0] == plans[1] and len(plans[0]) == 7 * 2 and not any("vision" in name for name in plans[0])
  assert layers == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
  assert len(plan(PeftConfig())) == 4 * 2  # what a config that says nothing adapts


def test_linear_layers_of_every_encoder():
  parts = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj")
  for encoder in (*ENCODERS, *(f"{family}/vision" for family, spec in FAMILIES.items() if spec.vision)):
    for part in parts:
      path = f"vision.encoders.1.stack.layers.3.{part}.kernel"
      name = rules.to_module(path, f"smolvlm+dinov2+{encoder}").removesuffix(".weight")
      fused = name.endswith("weights_in")  # gate and value in one tensor: no layer that PEFT could adapt here
      assert name.startswith("encoders.1.") and bool(re.fullmatch(encoders.TOWER, name)) != fused, name
      assert not re.fullmatch(encoders.DECODER, name), name


def test_encoders_by_short_names_hub_ids_and_folders():
  read = lambda arg: cli.load(f"encoders:{arg}", [], RunConfig)
  config = read("encoder=own+dinov2-small+/models/my-vit,lora_encoder=true,base=OpenGVLab/InternVL3-1B-hf")
  assert config.model.encoders == ("own", "facebook/dinov2-small", "/models/my-vit")
  assert (
    config.model.path == "OpenGVLab/InternVL3-1B-hf" and config.name == "eyes-500m-own+dinov2-small+my-vit"
  )
  assert list(config.stages) == ["1-connector", "2-lora"]
  assert config.stages["2-lora"].peft.target == f"{encoders.DECODER}|{encoders.TOWER}"
  assert config.stages["1-connector"].peft.method == "none"
  tiny = read("tiny,encoder=siglip")
  assert tiny.model.encoders == ("google/siglip-base-patch16-224",)
  assert (
    tiny.stages["2-lora"].peft.target == encoders.DECODER and "shape" in tiny.stages["1-connector"].losses
  )
  for arg, message in (
    ("tiny", "name the encoder, e.g. .*known: siglip, .*own"),
    ("encoder=a++b", "an empty name beside a +"),
    ("encoder=own,size=3", "cannot read 'size=3'; known: encoder=NAME"),
    ("encoder=own,lora_encoder=yes", "cannot read 'lora_encoder=yes'"),
  ):
    with pytest.raises(UserError, match=message):
      read(arg)


@pytest.mark.parametrize("name", ["tiny", "500m"])
def test_priors_by_name_or_none(name):
  read = lambda said: cli.load(f"priors:{name},prior={said}", [], RunConfig)
  both, none = read("rays+depth_map"), read("none")
  assert {k: p.kind for k, p in both.priors.items()} == {"rays": "rays", "depth_map": "depth_map"}
  assert both.eval.controls == priors_recipe.CONTROLS and not none.priors and not none.eval.controls
  assert dataclasses.replace(both, priors={}, eval=none.eval) == none  # an ablation by one setting
  priors.make_priors(both.priors)
  assert set(priors_recipe.KINDS) == set(priors.PRIORS)
  for said in ("ray", "", "rays+none"):
    with pytest.raises(UserError, match="cannot read"):
      read(said)


@pytest.mark.parametrize("arg", ["tiny", "500m"])
def test_rewards_come_after_answers(arg, tmp_path):
  run = cli.load(f"grpo:{arg}", [], RunConfig)
  (_, first), (_, second) = stages.split(stages.completed(run), tmp_path)
  for stage in (first, second):
    one_run.check(stage)
  assert [*first.losses] == ["answer"] and not first.phases and [*second.losses] == ["grpo"]
  read = phases.examples_read(phases.make_phases(second.phases), second.train.batch_size)
  assert read == second.train.batch_size // 8 and second.model.path == str(tmp_path / "1-answers" / "model")
  seeds = {stage.data.sources["scenes"].seed for stage in (first, second)} | {run.eval.source.seed}
  assert len(seeds) == 3
  with pytest.raises(UserError, match="no recipe 'small'; there are 500m, tiny"):
    grpo.get_config("small")


def test_stages_of_the_real_parts():
  read = lambda arg: cli.load(f"real:{arg}", [], RunConfig)
  first = read("stage=1,text=/models/lm")
  assert first.model.path == "/models/lm" and first.model.text_only and len(first.model.encoders) == 1
  assert first.peft.full == encoders.CONNECTOR and all(one.kind == "words" for one in first.losses.values())
  last = read("stage=4,connector=runs/real/1/model")
  assert first.model.connector_from is None and last.model.connector_from == "runs/real/1/model"
  assert last.peft.resume_from == "runs/real/3/adapter" and read("stage=more").eval is not None
  seen = set()
  for stage in ("1", "2", "3", "4", "5", "6", "7", "more", "relation"):
    config = read(f"stage={stage}")
    now = {(name, source.seed) for name, source in config.data.sources.items()}
    assert not now & seen  # each stage sees pictures that none before it saw
    seen |= now
    assert not {source.seed for source in config.data.validation.values()} & {seed for _, seed in seen}
  score = cli.load("real:score", [], EvaluateConfig)
  assert score.data.seed not in {seed for _, seed in seen} and score.adapter.startswith("checkpoints/")
  assert score.model == read("stage=4").model
  assert read("stage=4,adapter=mine").peft.resume_from == "mine"
  assert read("stage=more").peft.resume_from == read("stage=relation").peft.resume_from == score.adapter
  one = read("stage=relation")
  assert (
    {name for c in one.data.sources.values() for name in c.tasks} == {*one.eval.source.tasks} == {"Relation"}
  )
  whole = read("stage=relation,model=/models/mine,method=ia3")
  assert whole.model.path == "/models/mine" and not whole.model.encoders and whole.peft.method == "ia3"
  assert whole.data == one.data and whole.optim.learning_rate == pytest.approx(2.5e-2)
  other = read("stage=relation,model=/models/mine")
  assert other.peft == dataclasses.replace(one.peft, resume_from=None) and other.optim == one.optim
  twice = read("stage=rewards")
  assert twice.peft.resume_from == score.adapter and not twice.stages["2-rewards"].peft.resume_from
  (asked,) = twice.stages["2-rewards"].data.sources.values()
  assert asked.turns == 1 and asked.seed not in {seed for _, seed in seen}
  for arg, message in (
    ("stage=8", "no stage '8'"),
    ("stage=7,model=a", "stages relation and rewards alone take a whole model; stage 7 does not"),
    ("stage=relation,model=a,text=b", "text= names a part of it"),
    ("stage=relation,method=ia3", "goes on from a whole model"),
    ("stage=relation,model=a,method=ia4", "no method 'ia4'; there are lora"),
    ("stage=rewards,model=a,method=ia3", "stage rewards takes no method="),
    ("stage=score,text=/models/lm", "no stage 'score'"),
    ("score,text=/models/lm", "cannot read 'score'; known: score, shifts or photos alone"),
    ("stage=2,adapter=mine", "begins with a fresh adapter"),
    ("stage=1,connector=a", "stage 1 trains the connector"),
    ("stage=2,encoder=/models/other", "was trained between its own parts"),
    ("stag=2", "cannot read 'stag=2'"),
  ):
    with pytest.raises(UserError, match=message):
      read(arg)


def test_every_method_has_a_recipe():
  read = lambda arg: cli.load(f"peft:{arg}", [], RunConfig)
  # trainable_tokens needs ids of the user's own, none adapts nothing
  assert {read(f"method={name}").peft.method for name in peft_recipe.METHODS} == set(METHODS) - {
    "trainable_tokens",
    "none",
  }
  tiny, large = read("tiny,method=prefix"), read("method=prefix")
  assert tiny.model.path.endswith("smolvlm-tiny") and large.model.dtype == "bfloat16"
  assert tiny.optim.learning_rate > large.optim.learning_rate
  for arg, message in (
    ("method=adapter", "no method 'adapter'; there are lora"),
    ("tiny", "name the method, as method=prompt"),
    ("method=lora,size=3", "cannot read 'size=3'"),
  ):
    with pytest.raises(UserError, match=message):
      read(arg)


@pytest.mark.parametrize(
  ("encoder", "cells"), [("own", 8), ("own+dinov2-small", 8), ("dinov2-small", 7), ("siglip", 6)]
)
def test_pictures_that_image_tokens_are_to_describe_divide_into_them(encoder, cells):
  """By tiles of 96 pixels, or the nearest that patches of 14 divide."""
  stages = encoders.get_config(f"tiny,encoder={encoder}").stages
  assert all(stage.data.sources["scenes"].image_size % cells == 0 for stage in stages.values())
