import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli
from spatialvlm.config import RunConfig
from spatialvlm.training import one_run
from spatialvlm.types import UserError
from tests.launch import tiny

SHARDED = [("mesh.data", "2"), ("mesh.fsdp", "2"), ("mesh.tensor", "2"), ("train.batch_size", "8")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  recipe = tiny.write_all(folder)
  config = cli.load(str(recipe), SHARDED, RunConfig)
  return recipe, config, folder / "w", one_run.train(config, folder / "w")


def test_a_run_leaves_what_it_promises(trained):
  _, _, workdir, summary = trained
  assert summary["finished"] and summary["step"] == 6
  files = {"config.json", "environment.json", "identity.json", "metrics.jsonl", "loss.png", "summary.json"}
  assert files <= {f.name for f in workdir.iterdir()}
  assert json.loads((workdir / "config.json").read_text())["peft"]["rank"] == 2
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = [row["loss"] for row in rows if "loss" in row]
  assert len(losses) == 3 and losses[-1] < losses[0]
  assert any("validation/loss" in row for row in rows)
  assert all(row["flops_per_second"] > 0 for row in rows if "loss" in row)
  # One program for the steps' bucket, one for validation.
  assert summary["compilations"] == 2
  # LoRA of rank 2 on q, k, v and o of two layers, 16 wide.
  assert summary["parameters"]["trained"] == 2 * 4 * 2 * (16 + 16) < summary["parameters"]["all"]
  assert summary["memory"]["step"] > 0 and summary["memory"]["process"] > 2**20
  assert list((workdir / "tensorboard").iterdir())


def test_the_merged_checkpoint_is_the_base_plus_the_adapter(trained):
  _, config, workdir, _ = trained
  adapter = load_file(workdir / "adapter" / "adapter_model.safetensors")
  merged = load_file(workdir / "model" / "model.safetensors")
  base = one_run.hub.load_model(config.model.path, from_scratch=True, seed=config.model.seed)
  name = "model.text_model.layers.1.self_attn.q_proj"
  (a,) = [v for k, v in adapter.items() if f"{name}.lora_A" in k]
  (b,) = [v for k, v in adapter.items() if f"{name}.lora_B" in k]
  assert np.abs(b).max() > 0
  kernel = np.asarray(base.decoder.stack.layers[1].attn.q_proj.kernel[...]).T
  np.testing.assert_allclose(merged[f"{name}.weight"], kernel + 16.0 / 2 * b @ a, rtol=1e-5, atol=1e-6)


def test_a_tower_on_every_device_changes_nothing(trained, tmp_path):
  recipe, _, workdir, _ = trained
  config = cli.load(str(recipe), [*SHARDED, ("mesh.whole", "('vision',)")], RunConfig)
  one_run.train(config, tmp_path / "w")
  file = "adapter/adapter_model.safetensors"
  found, wanted = load_file(tmp_path / "w" / file), load_file(workdir / file)
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_finished_run_is_not_run_again_and_another_is_refused(trained):
  recipe, config, workdir, summary = trained
  before = (workdir / "metrics.jsonl").read_bytes()
  other = cli.load(str(recipe), [*SHARDED, ("optim.learning_rate", "0.5")], RunConfig)
  with pytest.raises(UserError, match=r"other settings.*learning_rate"):
    one_run.train(other, workdir)
  assert (workdir / "metrics.jsonl").read_bytes() == before
  again = one_run.train(config, workdir)
  assert again == json.loads(json.dumps(summary))
  assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ([("model.dtype", "float16")], "float16.*too small.*use float32 or bfloat16"),
    ([("mesh.data", "8"), ("train.batch_size", "6")], "batch_size: 6 is not divided by 8 shards"),
    ([("mesh.data", "3")], "does not fit 8 device"),
    (
      [*SHARDED, ("train.patience", "2"), ("train.validate_every", "0")],
      "patience: needs train.validate_every",
    ),
    ([("data.sources", "{}")], "data.sources: empty"),
  ],
)
def test_settings_that_cannot_work_leave_nothing_behind(tmp_path, overrides, message):
  recipe = tiny.write_all(tmp_path)
  config = cli.load(str(recipe), overrides, RunConfig)
  with pytest.raises(UserError, match=message):
    one_run.train(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()
