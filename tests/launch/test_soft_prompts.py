"""Prompt tuning and its kin as a user types them: trained, resumed, asked, exported."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.launch import command
from tests.launch.test_methods import ADAPTER, capfd_module, same

pytestmark = pytest.mark.slow  # `make oracle` runs them

__all__ = ["capfd_module"]
SETTINGS = {
  "prompt": ["--config.peft.place=after_image", "--config.optim.ema=0.9", "--config.train.accumulation=2"],
  "prefix": ["--config.data.packing=true"],
  "p_tuning": ["--config.peft.hidden=8"],
}


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, world, tmp_path_factory, capfd_module):
  """(Method, workdir of a finished run, its arguments, what it printed)."""
  workdir = tmp_path_factory.mktemp(request.param) / "run"
  arguments = [
    f"--config={world}/train.py",
    f"--config.peft.method={request.param}",
    "--config.peft.tokens=4",
    "--config.peft.text=Which box is red?",
    "--config.optim.learning_rate=0.05",
    *SETTINGS[request.param],
  ]
  done = command.run(capfd_module, "train", *arguments, f"--workdir={workdir}")
  assert done.code == 0, done
  return request.param, workdir, arguments, done


def test_a_run_leaves_its_adapter_and_no_model(run):
  name, workdir, _, done = run
  said = json.loads((workdir / "adapter/adapter_config.json").read_text())
  kinds = {"prompt": "SPATIALVLM_PROMPT_AFTER_IMAGE", "prefix": "PREFIX_TUNING", "p_tuning": "PROMPT_TUNING"}
  assert (said["peft_type"], said["num_virtual_tokens"]) == (kinds[name], 4)
  assert not (workdir / "model").exists()
  (rows,) = load_file(workdir / ADAPTER).values()
  assert rows.shape[0] == 4 and np.isfinite(rows).all()
  assert ("note: peft knows no soft tokens behind the image" in done.err) == (name == "prompt")
  losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert losses


def test_it_goes_on_to_the_same_bits(run, tmp_path, capfd):
  _, workdir, arguments, _ = run
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "summary.json").unlink()
  for name in ("checkpoints/3", "adapter"):
    shutil.rmtree(copy / name)
  assert command.run(capfd, "train", *arguments, f"--workdir={copy}").code == 0
  same(copy / ADAPTER, workdir / ADAPTER)


def test_it_is_evaluated_and_exported_and_not_merged(run, world, typed, tmp_path, capfd):
  name, workdir, _, _ = run
  done = typed("evaluate", f"--config.adapter={workdir}/adapter")
  assert done.code == 0, done
  export = lambda *arguments: command.run(capfd, "export", f"--model={workdir}", *arguments)
  assert export("--to=adapter", f"--out={tmp_path}/a").code == 0
  same(tmp_path / "a/adapter_model.safetensors", workdir / ADAPTER)
  done = export("--to=merged", f"--out={tmp_path}/b")
  assert done.code == 2 and done.err.count("\n") == 1, done
  assert f"method {name!r} cannot be merged; --to=adapter writes it" in done.err


def test_what_cannot_be_is_refused(refused):
  method = "--config.peft.method=prompt"
  refused(
    "a soft prompt of 512 leaves no room in .* context of 512", "train", method, "--config.peft.tokens=512"
  )
  refused(
    r"data\.packing: a soft prompt of method 'prompt' is read once a row",
    "train",
    method,
    "--config.data.packing=true",
  )
  refused("changes no layers", "train", method, "--config.peft.target=.*q_proj")
  refused(
    r"exceed the model's context of 12 \(beside a soft prompt of 500\)|longest sequence of 12",
    "train",
    method,
    "--config.peft.tokens=500",
    writes=True,
  )
