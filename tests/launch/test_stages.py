"""Other eyes trained in two stages by one config: interrupted in each, continued, found and evaluated."""

import json
import os
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli
from spatialvlm.config import ModelConfig, RunConfig
from spatialvlm.training import one_run, runs, stages
from spatialvlm.types import UserError
from tests import tiny_model
from tests.launch import tiny
from tests.tiny_encoder import write_encoder

RECIPE = """
from ml_collections import ConfigDict

def get_config(arg=""):
  config = ConfigDict()
  config.name = "eyes"
  config.model = dict(path="{folder}/model", encoders=("{folder}/dino",))
  connector = r"model\\.connector\\..*"
  source = dict(kind="llava", path="{folder}/data.jsonl")
  config.data = dict(sources=dict(own=source), lengths=(96,), tiles=(1,), workers=1)
  config.train = dict(steps=2, batch_size=2, log_every=1, checkpoint_every=1)
  config.optim = dict(learning_rate=1e-2, warmup_steps=0)
  config.log = dict(tensorboard=False)
  lora = dict(target=r"(.*text_model|encoders\\.0).*\\.(q_proj|query)", rank=2, full=connector)
  config.stages = {"1-connector": dict(peft=dict(method="none", full=connector)), "2-lora": dict(peft=lora)}
  return config
"""


def write_all(folder):
  tiny_model.write_checkpoint(folder / "model", longest_edge=16, split=False)
  write_encoder(folder / "dino")
  tiny.write_data(folder, count=5)
  recipe = folder / "recipe.py"
  recipe.write_text(RECIPE.replace("{folder}", str(folder)))
  return recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("stages")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    config = cli.load(str(write_all(folder)), [], RunConfig)
    yield config, folder / "w", stages.train(config, folder / "w")


def weights(folder):
  return load_file(folder / "model" / "model.safetensors")


def changed(a, b):
  return {name for name in a if not np.array_equal(a[name], b[name])}


def test_each_stage_trains_its_own_part_of_the_one_before(trained):
  config, workdir, summary = trained
  assert summary["finished"] and list(summary["stages"]) == ["1-connector", "2-lora"]
  start = load_file(f"{one_run.assembled(config.model).path}/model.safetensors")
  first, second = weights(workdir / "1-connector"), weights(workdir / "2-lora")
  connector = {name for name in start if name.startswith("model.connector.")}
  assert len(connector) == 6 and changed(start, first) == connector
  moved = changed(first, second) - connector
  assert moved == {
    "model.text_model.layers.0.self_attn.q_proj.weight",
    "encoders.0.encoder.layer.0.attention.attention.query.weight",
  }
  identity = json.loads((workdir / "1-connector" / "identity.json").read_text())["model"]
  assert identity["id"] == " + ".join([config.model.path, *config.model.encoders])


def test_interrupted_in_each_stage_it_ends_the_same(trained, tmp_path, monkeypatch):
  config, workdir, _ = trained
  opened = one_run.open_streams
  asked = []

  def stopping(*arguments):
    """The second batch of this process's first stream comes with a signal."""
    stream, validation = opened(*arguments)
    asked.append(stream)
    if len(asked) in (1, 3):
      read = type(stream).__next__

      class Stream(type(stream)):
        def __next__(self):
          batch = read(self)
          os.kill(os.getpid(), signal.SIGTERM)
          return batch

      stream.__class__ = Stream
    return stream, validation

  monkeypatch.setattr(one_run, "open_streams", stopping)
  stopped = [stages.train(config, tmp_path / "w") for _ in range(2)]
  assert [(s["finished"], s["step"], list(s["stages"])[-1]) for s in stopped] == [
    (False, 1, "1-connector"),
    (False, 1, "2-lora"),
  ]
  assert not (tmp_path / "w" / "summary.json").exists()
  assert stages.train(config, tmp_path / "w")["finished"]
  for stage in ("1-connector", "2-lora"):
    assert not changed(weights(workdir / stage), weights(tmp_path / "w" / stage))


def test_a_finished_run_is_found_as_a_model(trained):
  config, workdir, summary = trained
  again = stages.train(config, workdir)
  assert again == json.loads(json.dumps(summary))
  found = runs.find(ModelConfig(str(workdir)))
  assert found.name == f"{workdir / '2-lora'}, step 2" and found.folder == workdir / "1-connector" / "model"
  first = runs.find(ModelConfig(str(workdir / "1-connector")))
  kernel = first.load(None).connector.proj.kernel[...]
  np.testing.assert_array_equal(kernel.T, weights(workdir / "1-connector")["model.connector.proj.weight"])


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (
      [("stages.2-lora.peft.target", ".*nothing")],
      r"config\.stages\.2-lora: peft\.target: '\.\*nothing' matches no",
    ),
    (
      [("stages.2-lora.losses.depth.kind", "depth_probe")],
      r"config\.stages\.2-lora: config\.losses\.depth: no data source gives the dense target 'depth'",
    ),
    ([("stages.2-lora.phases.x.kind", "hardest")], r"config\.phases\.x\.kind: unknown 'hardest'"),
    ([("stages.1-connector.train.export", "false")], r"stages\.1-connector\.train\.export: the next stage"),
    ([("stages.a/b.peft.rank", "2")], r"config\.stages\.a/b: the name becomes a folder's"),
    ([("model.encoder_size", "20")], r"encoder_size 20: .*multiple of 8; near it are 16, 24"),
    ([("model.encoders", "('nothing',)")], "nothing: no such folder"),
  ],
)
def test_mistakes_are_told_before_the_first_stage(trained, tmp_path, overrides, message):
  config, workdir, _ = trained
  config = cli.load(str(workdir.parent / "recipe.py"), overrides, RunConfig)
  with pytest.raises(UserError, match=message):
    stages.train(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()
