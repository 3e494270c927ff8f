"""Methods other than LoRA, and exports, as a user types them."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli, peft
from spatialvlm.config import RunConfig, from_stored
from spatialvlm.peft import surgery
from spatialvlm.peft.variables import AdapterParam
from tests.launch import command

ADAPTER, MODEL = "adapter/adapter_model.safetensors", "model/model.safetensors"


@pytest.fixture(scope="module")
def run(world, tmp_path_factory, capfd_module):
  """A finished run of (IA)^3, from a recipe that says LoRA's rank."""
  workdir = tmp_path_factory.mktemp("ia3") / "run"
  arguments = [f"--config={world}/train.py", "--config.peft.method=ia3", "--config.optim.learning_rate=0.05"]
  done = command.run(capfd_module, "train", *arguments, f"--workdir={workdir}")
  assert done.code == 0, done
  return workdir, arguments


@pytest.fixture(scope="module")
def capfd_module(request):
  """pytest's capfd for fixtures that live longer than one test."""
  from _pytest.capture import CaptureFixture, FDCapture

  manager = request.config.pluginmanager.getplugin("capturemanager")
  fixture = CaptureFixture(FDCapture, request, _ispytest=True)
  with manager.global_and_fixture_disabled():
    fixture._start()
    yield fixture
    fixture.close()


def same(one, other):
  one, other = load_file(one), load_file(other)
  assert set(one) == set(other) and all(np.array_equal(one[key], other[key]) for key in one)


def test_a_run_of_another_method_than_the_recipes(run):
  workdir, _ = run
  said = json.loads((workdir / "config.json").read_text())["peft"]
  assert said["method"] == "ia3" and "rank" not in said
  assert said["target"] == peft.METHODS["ia3"].target and said["feedforward"]
  assert json.loads((workdir / "adapter/adapter_config.json").read_text())["peft_type"] == "IA3"
  vectors = load_file(workdir / ADAPTER).values()
  assert vectors and all(np.abs(vector - 1).max() > 1e-3 for vector in vectors)


def test_it_goes_on_to_the_same_bits(run, tmp_path, capfd):
  workdir, arguments = run
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "summary.json").unlink()
  for name in ("checkpoints/3", "adapter", "model"):
    shutil.rmtree(copy / name)
  assert command.run(capfd, "train", *arguments, f"--workdir={copy}").code == 0
  same(copy / ADAPTER, workdir / ADAPTER)
  same(copy / MODEL, workdir / MODEL)


def test_its_adapter_is_evaluated_and_asked(run, world, typed, capfd):
  adapter = run[0] / "adapter"
  done = typed("evaluate", f"--config.adapter={adapter}")
  assert done.code == 0, done
  question = [f"--model={world}/model", "--max_new_tokens=3", "Which is closer?"]
  done = command.run(capfd, "chat", f"--adapter={adapter}", *question)
  assert done.code == 0 and done.err == "", done


def test_exports(run, world, tmp_path, capfd):
  """Of a run and of a model with an adapter beside it: the same files as at the end of the run."""
  workdir, _ = run
  export = lambda *arguments: command.run(capfd, "export", *arguments)
  done = export(f"--model={workdir}", "--to=merged", f"--out={tmp_path}/a")
  assert done.code == 0 and str(tmp_path / "a") in done.out, done
  same(tmp_path / "a/model.safetensors", workdir / MODEL)
  assert {f.name for f in (tmp_path / "a").iterdir()} == {f.name for f in (workdir / "model").iterdir()}
  done = export(
    f"--model={world}/model", f"--adapter={workdir}/adapter", "--to=merged", f"--out={tmp_path}/b"
  )
  assert done.code == 0, done
  same(tmp_path / "b/model.safetensors", workdir / MODEL)
  assert export(f"--model={workdir}", "--to=adapter", f"--out={tmp_path}/c").code == 0
  same(tmp_path / "c/adapter_model.safetensors", workdir / ADAPTER)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--to=merged", "--out=x"], "--model is missing"),
    (["--model={run}", "--out=x"], "--to is missing"),
    (["--model={run}", "--to=mergd", "--out={new}"], "--to=mergd: no such form; did you mean 'merged'?"),
    (["--model={run}", "--to=zip", "--out={new}"], "known: adapter, "),
    (["--model={run}", "--to=merged", "--numbers=q8_0", "--out={new}"], "belongs to --to=gguf"),
    (["--model={run}", "--to=plain-lora", "--out={new}"], "the adapter is one of method 'ia3', not LoRA"),
    (
      ["--model={model}", "--adapter=a", "--adapter=b", "--weight=1", "--to=adapter", "--out={new}"],
      "--weight: 1 of them for 2 adapters",
    ),
    (["--model={run}", "--to=merged", "--out={run}"], "already holds something; name a new folder"),
    (["--model={model}", "--to=adapter", "--out={new}"], "carries no adapter; --to=merged"),
    (["--model=/nowhere", "--to=merged", "--out={new}"], "/nowhere: no such folder"),
    (["--model={run}", "--to=merged", "--out={new}", "x"], "unexpected argument 'x'"),
  ],
)
def test_exports_that_cannot_be(run, world, tmp_path, capfd, arguments, message):
  places = {"run": run[0], "model": world / "model", "new": tmp_path / "new"}
  done = command.run(capfd, "export", *(a.format(**places) for a in arguments))
  assert done.code == 2 and done.err.count("\n") == 1 and message in done.err, done
  assert not (tmp_path / "new").exists()


def test_a_weighted_sum_of_adapters(world, typed, tmp_path, capfd):
  """Of one with itself, which is known: its change of the weights, times the sum of the weights."""
  done = typed("train", "--config.optim.learning_rate=0.05")
  assert done.code == 0, done
  adapter = tmp_path / "run/adapter"
  twice = [f"--adapter={adapter}", "--weight=0.75", f"--adapter={adapter}", "--weight=-0.25"]
  export = lambda *arguments: command.run(capfd, "export", f"--model={world}/model", *arguments)
  done = export(*twice, "--to=merged", f"--out={tmp_path}/half")
  assert done.code == 0, done
  base, half, full = (
    load_file(folder / "model.safetensors")
    for folder in (world / "model", tmp_path / "half", tmp_path / "run/model")
  )
  moved = 0.0
  for name, value in base.items():
    np.testing.assert_allclose(half[name] - value, 0.5 * (full[name] - value), atol=2e-6)
    moved = max(moved, np.abs(full[name] - value).max())
  assert moved > 1e-3
  assert export(*twice, "--to=plain-lora", f"--out={tmp_path}/plain").code == 0
  said = json.loads((tmp_path / "plain/adapter_config.json").read_text())
  assert (said["peft_type"], said["r"]) == ("LORA", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
  "settings",
  [
    ["method=pfeiffer", "reduction_factor=2"],
    ["method=lora", "rank=2", "target=all-linear", "init=pissa", "bias=all", "embedding=false"],
  ],
  ids=["pfeiffer", "pissa"],
)
def test_runs_go_on_to_the_same_bits_and_are_evaluated(settings, world, typed, tmp_path, capfd):
  arguments = [f"--config={world}/train.py", *(f"--config.peft.{setting}" for setting in settings)]
  arguments += ["--config.optim.learning_rate=0.05", "--config.optim.groups={'.*': 0.5}"]
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  done = command.run(capfd, "train", *arguments, f"--workdir={whole}")
  assert done.code == 0, done
  mergeable = "method=lora" in settings
  assert (whole / "model").exists() == mergeable
  shutil.copytree(whole, parts)
  (parts / "summary.json").unlink()
  for name in ("checkpoints/3", "adapter", "model"):
    shutil.rmtree(parts / name, ignore_errors=True)
  assert command.run(capfd, "train", *arguments, f"--workdir={parts}").code == 0
  same(parts / ADAPTER, whole / ADAPTER)
  done = typed("evaluate", f"--config.adapter={whole}/adapter")
  assert done.code == 0, done
  if not mergeable:
    done = command.run(capfd, "export", f"--model={whole}", "--to=merged", f"--out={tmp_path}/x")
    assert done.code == 2 and "method 'pfeiffer' cannot be merged; --to=adapter" in done.err, done


@pytest.mark.slow
def test_a_start_that_was_made_of_the_data_is_kept(world, typed, tmp_path, capfd):
  """EVA: what goes on, or is read from a checkpoint, begins from `start`, and is refused without it."""
  arguments = [f"--config={world}/train.py", "--config.peft.init=eva", "--config.peft.eva_batches=2"]
  arguments += ["--config.optim.learning_rate=0.05"]
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  done = command.run(capfd, "train", *arguments, f"--workdir={whole}")
  assert done.code == 0, done
  said = json.loads((whole / "start/adapter_config.json").read_text())
  assert said["init_lora_weights"] == "eva"
  start = load_file(whole / "start/adapter_model.safetensors")
  assert all(not value.any() for name, value in start.items() if "lora_B" in name)
  shutil.copytree(whole, parts)
  (parts / "summary.json").unlink()
  for name in ("checkpoints/3", "adapter", "model"):
    shutil.rmtree(parts / name)
  assert command.run(capfd, "train", *arguments, f"--workdir={parts}").code == 0
  same(parts / ADAPTER, whole / ADAPTER)
  export = ["export", f"--model={whole}/checkpoints/3", "--to=adapter"]
  assert command.run(capfd, *export, f"--out={tmp_path}/a").code == 0
  same(tmp_path / "a/adapter_model.safetensors", whole / ADAPTER)
  shutil.rmtree(whole / "start")
  done = command.run(capfd, *export, f"--out={tmp_path}/b")
  assert done.code == 2 and "start: missing; the run began with the adapter there" in done.err, done


def test_stages_of_two_methods(world, typed, tmp_path):
  stages = [
    f"--config.stages.{name}.{setting}"
    for name, method in (("1-norms", "ln_tuning"), ("2-vectors", "ia3"))
    for setting in (f"peft.method={method}", "optim.learning_rate=0.01")
  ]
  done = typed("train", *stages)
  assert done.code == 0, done
  first = load_file(tmp_path / "run/1-norms" / MODEL)
  assert set(first) == set(load_file(tmp_path / "run/2-vectors" / MODEL))
  said = json.loads((tmp_path / "run/2-vectors/adapter/adapter_config.json").read_text())
  assert said["peft_type"] == "IA3" and said["base_model_name_or_path"] == str(tmp_path / "run/1-norms/model")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.peft.method=ia"], r"config\.peft\.method: there is no 'ia'; did you mean 'ia3'\?"),
    (["--config.peft.rnk=4"], r"config\.peft\.rnk: unknown key; did you mean 'rank'\?"),
    (["--config.peft.rank=many"], r"config\.peft\.rank: expected int, got 'many'"),
    (
      ["--config.peft.method=ia3", "--config.peft.rank=4"],
      r"peft\.rank: .*belongs to method 'lora', not 'ia3'",
    ),
    (["--config.stages.1-a.peft.methd=ia3"], r"config\.stages\.1-a\.peft\.methd: .*did you mean 'method'"),
  ],
)
def test_settings_of_methods_that_cannot_be(refused, arguments, message):
  refused(message, "train", *arguments)


def test_a_run_that_trains_nothing_is_refused(typed, tmp_path):
  done = typed("train", "--config.peft.method=none")
  assert done.code == 2 and "nothing is trained with method 'none'" in done.err, done
  assert done.err.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_what_nothing_would_export_is_refused_before_anything_is_written(typed, tmp_path, monkeypatch):
  """As a soft prompt without an exporter: it would be trained, and missing from all that the run leaves."""
  before = surgery.apply

  def planted(vlm, *settings):
    vlm = before(vlm, *settings)
    vlm.decoder.prompt = AdapterParam(np.zeros((2, 8), np.float32))
    return vlm

  monkeypatch.setattr(peft, "apply", planted)
  done = typed("train")
  message = "error: trained, but nothing would export it: decoder.prompt\n"
  assert (done.code, done.err) == (2, message), done
  assert not (tmp_path / "run").exists()


def test_another_method_drops_what_the_recipe_says_of_its_own_alone():
  load = lambda *pairs: cli.load("lora:tiny", [p.split("=", 1) for p in pairs], RunConfig).peft
  recipe = load()
  assert (recipe.method, recipe.options) == ("lora", {"rank": 16, "alpha": 32.0})
  ia3 = load("peft.feedforward=.*fc2", "peft.method=ia3")
  assert (ia3.method, ia3.target, ia3.options) == ("ia3", None, {"feedforward": ".*fc2"})
  assert ia3.full == recipe.full
  assert load("peft.target=.*fc1", "peft.method=ia3").target == ".*fc1"
  assert load("peft.method=lora", "peft.rank=4").options == {"rank": 4, "alpha": 32.0}


def test_a_config_of_an_earlier_version_is_read(run):
  """LoRA's settings stood in PeftConfig itself then, all of them, under the same names."""
  said = json.loads((run[0] / "config.json").read_text())
  own = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "rslora": False, "dora": False}
  own |= {"rank_pattern": {}, "alpha_pattern": {}}
  shared = {"method": "lora", "target": ".*q_proj", "full": "", "resume_from": None, "seed": 0}
  said["peft"] = {**shared, **own}
  config = from_stored(said, RunConfig).peft
  assert config.options == own
  later = {"bias": "none", "lora_bias": False, "embedding": False, "init": "default"}
  later |= {"token_indices": [], "eva_rho": 2.0, "eva_batches": 8}
  later |= {"exclude_modules": "", "layers_to_transform": [], "layers_pattern": ""}
  assert peft.completed(config).options == own | later


def test_what_cannot_be_merged_leaves_its_adapter_and_no_stage_begins_from_it(
  run, refused, tmp_path, monkeypatch
):
  monkeypatch.setattr(type(peft.METHODS["ia3"]), "mergeable", False)
  model = f"--model={run[0]}"
  refused(
    "method 'ia3' cannot be merged; --to=adapter", "export", model, "--to=merged", f"--out={tmp_path}/x"
  )
  stages = [f"--config.stages.{name}.peft.method=ia3" for name in ("1-a", "2-b")]
  refused(r"config\.stages\.1-a\.peft\.method: .*'ia3' cannot be merged", "train", *stages)
