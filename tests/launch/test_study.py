"""A study as a user types it: what is refused, and a small one from the first run to the last."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from spatialvlm import cli
from spatialvlm.config import RunConfig, StudyConfig
from spatialvlm.study import study as study_lib
from tests import joined
from tests.launch import command

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = """
def get_config():
  run = "{folder}/train.py"
  return dict(
    name="small",
    cells=dict(lora=dict(recipe=run), ia3=dict(recipe=run, settings={"peft.method": "ia3"})),
    seeds=(0,),
    settings={"train.export": False, "optim.learning_rate": 0.05, "mesh.cpu_devices": 2},
    questions=dict(
      source=dict(kind="cvbench", path="{folder}/table.parquet", split="test"),
      batch_size=4, lengths=(160,), tiles=(1,), pool_tiles=8, bootstrap=20,
    ),
  )
"""


@pytest.fixture
def study(world, tmp_path, capfd):
  (tmp_path / "study.py").write_text(RECIPE.replace("{folder}", str(world)))

  def run(*arguments):
    common = [f"--config={tmp_path}/study.py", f"--workdir={tmp_path}/study"]
    return command.run(capfd, "study", *common, *arguments)

  return run


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.cells.lora.settings.peft.rnak=4"], "config.cells.lora: config.peft.rnak: unknown key"),
    (["--config.cells.ia3.settings.peft.method=ia4"], "config.cells.ia3: config.peft.method: there is no"),
    (["--config.cells.ia3.recipe=pft"], "config.cells.ia3: --config=pft: no such recipe"),
    (["--config.seeds=(3, 3)"], "config.seeds: 3 stands twice"),
    (["--config.cels={}"], "config.cels: unknown key; did you mean 'cells'"),
    (["--report"], "the untrained model was not scored yet"),
    (["more"], "unexpected argument 'more'"),
  ],
)
def test_bad_input_ends_before_anything_runs(study, tmp_path, arguments, message):
  done = study(*arguments)
  assert done.code == 2 and done.out == "" and done.err.count("\n") == 1, done
  assert message in done.err and not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_small_study(study, world, tmp_path, monkeypatch):
  """Two cells and one that breaks, in processes of their own; continued, and held against the answers."""
  monkeypatch.setenv("XLA_FLAGS", "")  # of those processes: as many devices as the settings say
  folder = tmp_path / "study"
  missing = ("recipe", f"{world}/train.py"), ("settings.data.sources.own.path", "no.jsonl")
  done = study(*(f"--config.cells.bad.{key}={value}" for key, value in missing))
  assert done.code == 1, done
  assert "run 3 of 3: bad, seed 0" in done.out and "failed: bad, seed 0: " in done.out, done
  found = json.loads((folder / "study.json").read_text())
  assert "no.jsonl" in found["failed"]["bad, seed 0"] and "scores" not in found["cells"]["bad"]
  assert found["cells"]["bad"]["missing"] == [0]
  base = read(folder / "untrained")
  assert len(base) == 12
  for name in ("lora", "ia3"):
    workdir, cell = folder / "runs" / name / "seed-0", found["cells"][name]
    own = read(workdir / "evaluation" / "after")
    assert cell["changes"]["plain"]["difference"] == pytest.approx(right(own) - right(base))
    assert cell["scores"]["plain"]["score"] == pytest.approx(right(own)) and own.keys() == base.keys()
    assert not (workdir / "evaluation" / "before").exists() and not (workdir / "model").exists()
    assert cell["parameters"] == json.loads((workdir / "summary.json").read_text())["parameters"]
    devices = json.loads((workdir / "environment.json").read_text())["devices"]
    assert devices["count"] == 2
    (run,) = cell["runs"]
    assert run["steps"] == 3 and run["seconds_per_step"] > 0
    assert run["memory"]["step"] > 0 and run["memory"]["process"] > 2**20
  trained = [found["cells"][name]["parameters"]["trained"] for name in ("lora", "ia3")]
  assert trained[0] > trained[1] > 0

  # What is finished stays; what is not goes on from its checkpoint; the numbers are the same.
  kept, broken = (folder / "runs" / name / "seed-0" for name in ("lora", "ia3"))
  before = command.files(kept)
  (broken / "summary.json").unlink()
  for name in ("evaluation", "checkpoints/3"):
    shutil.rmtree(broken / name)
  done = study()
  assert done.code == 0 and "1 of 2 runs are finished already" in done.out, done
  assert "continues at step 2" in done.out and command.files(kept) == before
  again = json.loads((folder / "study.json").read_text())
  assert all(again["cells"][n]["changes"] == found["cells"][n]["changes"] for n in again["cells"])
  done = study("--report", "--config.cells.lora.settings.peft.rank=4")
  assert done.code == 2 and "config.cells.lora, seed 0: " in done.err, done
  assert "other settings (peft.rank: 2, now 4)" in done.err


def read(folder):
  return {p["idx"]: p for p in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())}


def right(rows):
  return np.mean([row["choice"] == row["gold"] for row in rows.values()])


# Cells that stand for the others, which take minutes: a start made of the data, a soft prompt, few bits, rows
# of the table, biases; a head within the decoder, a teacher, false answers.
SOME = {
  "tiny-methods": ("lora", "eva", "prompt", "nf4", "tokens", "bitfit"),
  "tiny-objectives": ("answers", "map", "told", "contrast"),
  "tiny-rewards": ("answers", "rewards"),
}


@pytest.mark.slow
@pytest.mark.parametrize("arg", SOME)
def test_cells_of_ours_can_be_trained(arg, tmp_path):
  train_cells(arg, tmp_path, SOME[arg])


@pytest.mark.large
@pytest.mark.parametrize("arg", ["tiny-methods", "tiny-objectives"])
def test_every_cell_of_ours_can_be_trained(arg, tmp_path):
  train_cells(arg, tmp_path, cli.load(f"study:{arg}", [], StudyConfig).cells)


def train_cells(arg, tmp_path, names):
  """Two steps of each, in this process: a study of hours is not to end at a cell that never could."""
  steps = {"train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "optim.warmup_steps": 1}
  changed = [*((f"settings.{name}", str(value)) for name, value in steps.items()), ("seeds", "(1,)")]
  changed += [("settings.mesh.cpu_devices", "0")]
  changed += [("questions.source.size", "8"), ("questions.bootstrap", "20")]
  if arg == "tiny-rewards":
    stages = {"stages.1-answers.train.steps": 2, "stages.2-rewards.train.steps": 2}
    changed.append(("cells.rewards.settings", repr(stages | {"stages.2-rewards.train.batch_size": 16})))
  config = cli.load(f"study:{arg}", changed, StudyConfig)
  config = dataclasses.replace(config, cells={name: config.cells[name] for name in names})
  read = lambda recipe, settings: cli.load(recipe, settings, RunConfig)
  here = lambda function, config, folder, **_: function(config, folder)
  assert study_lib.run(config, tmp_path / "study", read, do=here) == 0
  found = json.loads((tmp_path / "study" / "study.json").read_text())
  assert list(found["cells"]) == list(config.cells) and not found["failed"]
  for cell in found["cells"].values():
    (run,) = cell["runs"]
    assert not cell["missing"] and run["steps"] in (2, 4) and cell["parameters"]["trained"] > 0
    assert cell["changes"]["plain"]["n"] == 8


@pytest.mark.slow
def test_stopped_half_way(world, tmp_path):
  """SIGTERM to the study alone ends the run at work after its step; the same command goes on from there."""
  recipe = tmp_path / "study.py"
  recipe.write_text(RECIPE.replace("{folder}", str(world)))
  environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
  start = [sys.executable, f"{ROOT}/launch/study.py", f"--config={recipe}", f"--workdir={tmp_path}/study"]
  steps = ["--config.settings.train.steps=400", "--config.settings.train.checkpoint_every=0"]
  with subprocess.Popen([*start, *steps], stdout=subprocess.PIPE, text=True, env=environment) as process:
    for line in process.stdout:
      if line.startswith("step 3/400"):
        process.send_signal(signal.SIGTERM)
        break
    said = process.stdout.read()
  assert process.returncode == 128 + signal.SIGTERM, said
  assert "stopped by signal 15 in lora, seed 0; the same command continues" in said
  (kept,) = (tmp_path / "study/runs/lora/seed-0/checkpoints").glob("[0-9]*")
  assert 3 <= int(kept.name) < 400 and not (tmp_path / "study/runs/ia3").exists()
  assert not (tmp_path / "study/runs/lora/seed-0/.lock").exists()
  assert "lora: seed 0 not finished." in (tmp_path / "study/tables.md").read_text()


@pytest.mark.slow
def test_two_workers_share_a_study_and_one_dies(world, tmp_path):
  """Each run is of one of them; what the dead one had goes on from its checkpoint when its lease is out."""
  recipe, folder = tmp_path / "study.py", tmp_path / "study"
  recipe.write_text(RECIPE.replace("{folder}", str(world)))
  environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
  start = [
    sys.executable,
    f"{ROOT}/launch/study.py",
    f"--config={recipe}",
    f"--workdir={folder}",
    "--lease=10",
  ]
  start += [f"--config.settings.train.{key}" for key in ("steps=100", "checkpoint_every=10", "log_every=10")]
  begin = lambda: subprocess.Popen(
    start,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=environment,
    start_new_session=True,
  )
  with begin() as first:
    try:
      for line in first.stdout:
        if line.startswith("step 30/100"):
          break
      # Held there with two checkpoints, however quick this computer is; its worker lives on, and its lease.
      for process in joined.children(first.pid):
        os.kill(int(process.name), signal.SIGSTOP)
      with begin() as second:
        said = []
        for line in second.stdout:
          said.append(line)
          if line.startswith("step 10/100"):
            break
        os.killpg(first.pid, signal.SIGKILL)  # with its run, as a machine that is switched off
        said += second.stdout
    finally:
      if first.poll() is None:
        os.killpg(first.pid, signal.SIGKILL)
  said = "".join(said)
  assert second.returncode == 0, said
  assert "run 1 of 2: lora, seed 0: process" in said and "run 2 of 2: ia3, seed 0\n" in said
  assert said.index("run 2 of 2: ia3, seed 0\n") < said.index("run 1 of 2: lora, seed 0, about")
  assert "continues at step " in said.partition("run 1 of 2: lora, seed 0, about")[2]
  found = json.loads((folder / "study.json").read_text())
  assert not found["failed"] and not any(cell["missing"] for cell in found["cells"].values())
  assert len([*(folder / "claims").glob("lora.seed-0.*")]) == 2
