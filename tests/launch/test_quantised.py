"""A base in few bits, as a user has it: trained over, continued, asked, evaluated, exported, refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import spatialvlm
from spatialvlm.config import ModelConfig
from spatialvlm.core.quantised import formats
from spatialvlm.training import runs
from tests.launch import command
from tests.quantise.support import write_model

ADAPTER, MODEL = "adapter/adapter_model.safetensors", "model/model.safetensors"
FEW = [
  "--config.model.quantize=nf4",
  "--config.model.quantize_block=32",
  "--config.model.quantize_double=true",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp("quantised") / "model")


def settings(world, model):
  return [f"--config={world}/train.py", f"--config.model.path={model}", *FEW, "--config.peft.dora=true"]


def test_a_run_from_its_first_line_to_its_exports(world, model, tmp_path, capfd):
  workdir, arguments = tmp_path / "run", settings(world, model)
  done = command.run(capfd, "train", *arguments, f"--workdir={workdir}")
  assert done.code == 0, done
  begins = next(line for line in done.out.splitlines() if line.startswith("begins"))
  assert "parameters are trained" in begins and " MB (nf4; " in begins and " MB in float32)" in begins
  assert "its decoded weights, in float32, and the adapter merged into these" in done.err

  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "summary.json").unlink()
  for name in ("checkpoints/3", "adapter", "model"):
    shutil.rmtree(copy / name)
  assert command.run(capfd, "train", *arguments, f"--workdir={copy}").code == 0
  for name in (ADAPTER, MODEL):
    one, other = load_file(copy / name), load_file(workdir / name)
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)

  # The run brings its base back as it was trained over, and its adapter over that base computes the same.
  loaded = runs.find(ModelConfig(path=str(workdir))).load(None)
  assert formats(loaded) == ("nf4",)
  over = [f"--config.model.path={model}", f"--config.adapter={workdir}/adapter", *FEW]
  evaluate = lambda name, *a: command.run(
    capfd, "evaluate", f"--config={world}/evaluate.py", f"--workdir={tmp_path}/of-{name}", *a
  )
  answers = {}
  for name, of in (
    ("run", [f"--config.model.path={workdir}"]),
    ("adapter", over),
  ):
    done = evaluate(name, *of)
    assert done.code == 0, done
    lines = (tmp_path / f"of-{name}" / "predictions.jsonl").read_text().splitlines()
    answers[name] = np.array([p for line in lines for p in json.loads(line)["logprobs"].values()])
  assert np.array_equal(answers["run"], answers["adapter"])
  done = evaluate("other", f"--config.model.path={workdir}", "--config.model.quantize=int8")
  assert done.code == 2 and "is a training run, whose base is kept in nf4; leave it out" in done.err


def test_chat_over_few_bits(model, capfd):
  vlm = spatialvlm.load_vlm(model, quantize="int8")
  assert formats(vlm.model) == ("int8",)
  done = command.run(
    capfd, "chat", f"--model={model}", "--quantize=int8", "--max_new_tokens=3", "Which is closer?"
  )
  assert (done.code, done.err) == (0, "")
  assert done.out.strip() == vlm.chat(None, "Which is closer?", max_new_tokens=3)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--config.model.quantize=nf4"],
      "cannot be kept in nf4: its 24 inputs are no multiple of a block of 64",
    ),
    (["--config.model.quantize=nf8"], r"config\.model\.quantize: there is no 'nf8'; did you mean 'nf4'"),
    (["--config.model.quantize_double=true"], r"quantize_double: nothing is quantised"),
    (
      ["--config.model.quantize=int8", "--config.peft.full=.*down_proj"],
      r"peft\.full: .*down_proj\.weight is kept in int8, in which nothing is trained",
    ),
    (
      [*FEW, "--config.stages.1-a.train.steps=1", "--config.stages.2-b.train.steps=1"],
      r"config\.stages\.2-b: begins from the merged model .* model\.quantize would round",
    ),
  ],
)
def test_what_cannot_be(refused, arguments, message):
  refused(message, "train", *arguments)
