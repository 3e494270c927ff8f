"""A depth probe by the command line: trained beside adapters, interrupted, exported, and read back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli
from spatialvlm.config import ModelConfig, RgbdConfig, RunConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.registry import open_source
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import objectives, one_run, runs
from spatialvlm.training.objectives import Models, heads
from spatialvlm.types import UserError
from spatialvlm.worlds import world
from tests.data.test_rgbd import write_pairs
from tests.launch import tiny
from tests.training import interrupted

pytestmark = pytest.mark.slow  # `make oracle` runs them

RECIPE = """
def get_config():
  source = dict(kind="scenes", seed=1, image_size=48, tasks=dict(Relation=1.0))
  return dict(
    name="probe",
    model=dict(path="{folder}/model", from_scratch=True),
    data=dict(
      sources=dict(own=source), validation=dict(own=source | dict(seed=2)), validation_size=4,
      lengths=(1024,), tiles=(1,), workers=1,
    ),
    peft=dict(method="lora", rank=2),
    train=dict(steps=4, batch_size=4, log_every=1, validate_every=4, checkpoint_every=2),
    optim=dict(learning_rate=1e-2, warmup_steps=0),
    losses=dict(answer=dict(kind="answer")),
    log=dict(tensorboard=False),
  )
"""
PROBE = [("losses.depth.kind", "depth_probe"), ("losses.depth.weight", "0.1")]


def settings(folder, *more):
  recipe = folder / "recipe.py"
  recipe.write_text(RECIPE.replace("{folder}", str(folder)))
  return cli.load(str(recipe), [*PROBE, *more], RunConfig)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("probe")
  tiny.write_model(folder / "model")
  config = settings(folder)
  return config, folder / "w", one_run.train(config, folder / "w")


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_its_figures_are_written_beside_the_losses(trained):
  _, workdir, _ = trained
  training = [row for row in metrics(workdir) if "loss" in row]
  assert all({"depth/loss", "depth/abs_rel", "depth/rmse", "depth/delta1"} <= set(row) for row in training)
  assert training[-1]["depth/loss"] < training[0]["depth/loss"]
  (validation,) = [row for row in metrics(workdir) if "validation/loss" in row]
  assert 0 < validation["validation/depth/abs_rel"] < 1 < validation["validation/depth/rmse"]


def test_the_head_lies_beside_the_adapter_and_not_in_the_model(trained):
  config, workdir, summary = trained
  assert set(summary["exported"]) == {"adapter", "heads", "model"}
  assert {f.name for f in (workdir / "heads").iterdir()} == {"depth.json", "depth.safetensors"}
  about = json.loads((workdir / "heads" / "depth.json").read_text())
  assert about["base"] == config.model.path and about["settings"]["target"] == "depth"
  for folder in ("adapter", "model"):
    for file in (workdir / folder).glob("*.safetensors"):
      assert not any("head" in name and "depth" in name for name in load_file(file))


def test_what_is_read_back_says_what_validation_said(trained):
  """Model and head from disk, over the validation batches, give the row's own figures."""
  config, workdir, _ = trained
  vlm = runs.find(ModelConfig(str(workdir))).load(None)
  head = heads.load_head(workdir / "heads" / "depth.json", vlm.config)
  processor = load_processor(config.model.path)
  sums = np.zeros((2, 2))
  for batch, _ in pipeline.validation_batches(config.data, processor, config.train.batch_size):
    outputs = vlm.read(batch, head.objective.wants)
    total, weight, found = head.objective(outputs, Models(vlm, head.module), batch, jax.random.key(0))
    sums += np.array([[total, weight], found["rmse"]], np.float64)
    assert head.objective.predict(outputs, head.module).shape == (4, 4)
  row = metrics(workdir)[-1]
  assert row["validation/depth/loss"] == pytest.approx(sums[0, 0] / sums[0, 1], rel=1e-4)
  assert row["validation/depth/rmse"] == pytest.approx(np.sqrt(sums[1, 0] / sums[1, 1]), rel=1e-4)


def test_interrupted_it_ends_with_the_same_head(trained, tmp_path, monkeypatch):
  config, workdir, _ = trained
  with interrupted.at_each_batch(monkeypatch):
    assert not one_run.train(config, tmp_path / "w")["finished"]
  assert one_run.train(config, tmp_path / "w")["finished"]
  for name in ("heads/depth.safetensors", "adapter/adapter_model.safetensors"):
    first, second = load_file(workdir / name), load_file(tmp_path / "w" / name)
    assert all(np.array_equal(first[k], second[k]) for k in first)


def test_what_it_cannot_have_is_told_before_anything_is_written(trained, tmp_path):
  _, workdir, _ = trained
  folder = workdir.parent
  for more, message in (
    ([("losses.depth.kwargs.layer", "7"), ("losses.depth.kwargs.read", "decoder")], "has 2 blocks; 7 is out"),
    ([("losses.depth.target", "metres")], r"losses\.depth: no data source gives .*'metres'; there are depth"),
    ([("losses.depth.kwargs.detach", "maybe")], r"kwargs\.detach: expected bool, got 'maybe'"),
    ([("phases.hard.kind", "hardest")], r"phases\.hard\.kind: unknown 'hardest'"),
  ):
    with pytest.raises(UserError, match=message):
      one_run.train(settings(folder, *more), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_hard_examples_by_the_command_line(trained, tmp_path):
  _, workdir, _ = trained
  hard = [("phases.hard.kind", "hard_examples"), ("phases.hard.kwargs.keep", "0.5"), ("train.steps", "2")]
  config = settings(workdir.parent, *hard)
  assert one_run.train(config, tmp_path / "w")["finished"]
  rows = [row for row in metrics(tmp_path / "w") if "loss" in row]
  assert [row["samples"] for row in rows] == [4, 8]


def test_depth_belongs_to_the_pictures(trained):
  config, _, _ = trained
  example = open_source(config.data.sources["own"])[0]
  assert example.dense["depth"].shape == example.images[0].shape[:2] == (48, 48)


@pytest.mark.slow
def test_photographs_with_depth_teach_it_beside_scenes(trained, tmp_path):
  """In one batch with scenes; a broken picture is left out, also where arrays are looked for first."""
  _, workdir, _ = trained
  frames = world.frames(5, range(6), 48)
  folder = write_pairs(tmp_path / "rgbd", frames)
  (folder / "depth" / "000.png").write_bytes(b"")
  config = settings(workdir.parent, ("data.bad_rows", "skip"), ("train.steps", "2"))
  mine = RgbdConfig(path=str(folder), depth_size=48, per_image=3)
  sources = dict(config.data.sources) | {"mine": mine}
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
  summary = one_run.train(config, tmp_path / "w")
  assert summary["finished"] and all(
    "depth/abs_rel" in row for row in metrics(tmp_path / "w") if "loss" in row
  )
  alone = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"mine": mine}))
  one_run.check_data(alone, objectives.make_objectives(alone.losses))
  strict = dataclasses.replace(alone, data=dataclasses.replace(alone.data, bad_rows="refuse"))
  with pytest.raises(UserError, match=r"000\.png: cannot be read as a map"):
    one_run.check_data(strict, objectives.make_objectives(strict.losses))
