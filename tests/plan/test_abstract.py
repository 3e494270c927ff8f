"""What a plan describes is what a run has: the same arrays of the same shapes in the same places."""

import dataclasses

import jax
import pytest
from PIL import Image

from spatialvlm import loading, peft
from spatialvlm.config import (
  DataConfig,
  LlavaConfig,
  LossConfig,
  MeshConfig,
  ModelConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  TrainConfig,
)
from spatialvlm.core import axes
from spatialvlm.plan import abstract, programs
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import frozen_vision, objectives, one_run, optim, start
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.types import UserError
from tests.launch import bad_files
from tests.tiny_model import TILE, write_checkpoint

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("plan")
  write_checkpoint(folder / "model", longest_edge=16, split=False)
  Image.new("RGB", (TILE, TILE), "red").save(folder / "one.png")
  bad_files.write_talk(folder / "talk.jsonl", 8, image="one.png")
  return folder


def config_of(folder, **more) -> RunConfig:
  data = DataConfig(
    sources={"own": LlavaConfig(path=str(folder / "talk.jsonl"))}, lengths=(96,), tiles=(1,), workers=0
  )
  model = ModelConfig(path=str(folder / "model"), dtype="bfloat16")
  given = dict(model=model, peft=PeftConfig(options={"rank": 2, "dora": True}), data=data, mesh=MESH)
  return RunConfig(**given | dict(train=TrainConfig(batch_size=8)) | more)


def said(tree):
  """Every array's name, shape, type and place."""
  found = jax.tree_util.tree_leaves_with_path(tree)
  place = lambda x: tuple(x.sharding.shard_shape(x.shape))
  return {jax.tree_util.keystr(path): (x.shape, str(x.dtype), place(x)) for path, x in found}


@pytest.mark.parametrize(
  "more",
  [
    {},
    {"peft": PeftConfig(method="none", full=r".*")},
    {"model": dict(quantize="nf4", quantize_block=32, quantize_target=r".*mlp\.down_proj")},
    {"mesh": dataclasses.replace(MESH, whole=("vision",))},
  ],
  ids=["lora", "full", "qlora", "whole"],
)
def test_a_run_has_what_is_described(folder, tmp_path, more):
  config = config_of(folder)
  model = dataclasses.replace(config.model, **more.get("model", {}))
  config = dataclasses.replace(config, **more | {"model": model})
  mesh = axes.make_mesh(config.mesh)
  run = abstract.describe(config, mesh)
  config = dataclasses.replace(config, peft=peft.completed(config.peft))
  vlm = start.build_model(config, mesh, tmp_path, loading.load_base(config.model, mesh))
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config.peft), mesh)
  tx = optim.make_optimizer(
    config.optim, optim.schedule(config.optim, optim.span(config.optim, 10)), split.params
  )
  state = state_lib.init_state(split.params, tx, ema=False, mesh=mesh)
  assert said(run.split.frozen) == said(split.frozen)
  assert said(run.state) == said(state)
  processor = load_processor(folder / "model", **config.model.tiling)
  stream, _ = one_run.open_streams(config, processor, print, 4)
  batch, info = next(stream)
  terms = objectives.make_objectives(config.losses)
  if frozen_vision.apart(config.train, split.params, terms):
    batch, _, _ = frozen_vision.FrozenVision(split, terms, None)(state, split.frozen, batch)
  wanted = step_lib.to_devices(dataclasses.replace(batch, extra={}), mesh)
  shapes = programs.Shapes(info.bucket.tiles, info.bucket.length, info.bucket.targets, 8, 8)
  made = programs.train(run, shapes)
  assert said(made.groups["batch"]) == said(wanted)
  for name in ("vision", "encode", "prefix", "read", "decode"):
    other = programs.PROGRAMS[name](run, shapes)
    assert (other is None) == (name == "vision" and "peft" in more)


def test_sizes_follow_from_the_settings(folder):
  config = config_of(folder)
  run = abstract.describe(config, axes.make_mesh(MESH))
  found = programs.shapes_of(run)
  assert (found.tiles, found.tokens, found.batch, found.asked) == (1, 96, 8, 32)
  assert programs.shapes_of(run, tiles=0, tokens=40).tokens == 40
  for given, message in (
    (dict(tiles=9), r"config\.data\.lengths: none of \(96,\) holds 9 tiles of 4 tokens"),
    (dict(tiles=9, tokens=30), "--length=30: 9 tiles take 36 tokens"),
    (dict(tokens=9999), "--length=9999: .*context is 512"),
    (dict(tiles=-1), "--tiles=-1"),
  ):
    with pytest.raises(UserError, match=message):
      programs.shapes_of(run, **given)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (dict(phases={"hard": PhaseConfig(kind="hard_examples")}), r"config\.phases"),
    (dict(losses={"deep": LossConfig(kind="dense_depth")}), r"config\.losses\.deep: needs more"),
    (dict(peft=PeftConfig(options={"init": "eva"})), "follow from the run's data"),
    (dict(peft=PeftConfig(resume_from="x")), r"config\.peft\.resume_from"),
    (dict(train=TrainConfig(batch_size=6)), r"config\.train\.batch_size: 6 is not divided by 4 shards"),
    (dict(model=ModelConfig(path="someone/else")), "someone/else: no such folder, and no shape"),
    (dict(model=ModelConfig(path="smolvlm-tiny", attention="cudnn")), "cudnn"),
  ],
)
def test_what_a_plan_cannot_say_is_refused_by_name(folder, more, message):
  with pytest.raises(UserError, match=message):
    abstract.describe(config_of(folder, **more), axes.make_mesh(MESH))


def test_published_shapes_are_whole():
  """Numbers of parameters as transformers counts them (tests/oracle/test_sizes.py)."""
  from flax import nnx

  from spatialvlm import hub
  from spatialvlm.hub.published import PUBLISHED
  from spatialvlm.models.vlm import Vlm
  from spatialvlm.probing import cost

  counts = dict(zip(PUBLISHED, (256_484_928, 507_482_304, 2_246_272_880), strict=True))
  for name, wanted in counts.items():
    config = hub.read_shape(name)
    parts = {"vision": config.vision.depth, "text": config.text.depth}

    def with_depth(vision, text, config=config):
      small = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=vision),
        text=dataclasses.replace(config.text, depth=text),
      )
      return cost.parameters(nnx.eval_shape(lambda: Vlm(small, rngs=nnx.Rngs(0))))

    one = with_depth(1, 1)
    per = {"vision": with_depth(2, 1) - one, "text": with_depth(1, 2) - one}
    assert one + sum((parts[part] - 1) * per[part] for part in parts) == wanted, name
