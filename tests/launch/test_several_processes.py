"""Commands of several real processes: eight at work, one that dies, three that go on, one as the measure."""

import json
import os
import pathlib
import signal
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm.cli import watch
from tests import joined
from tests.launch import command

COUNT, FEWER, STEPS = 8, 3, 30
# Seconds in which the others have ended where a whole computer vanishes (docs/scale.md).
LIMIT = 100


@pytest.fixture
def begin():
  """Starts processes of a command, which share the programs that the tests of commands have compiled."""
  kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
  kept |= {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  started = []

  def begin(name, arguments, count=COUNT):
    started.extend(new := joined.begin([f"launch/{name}.py", *arguments], count, **kept))
    return new

  yield begin
  for process in started:
    process.kill()


def training(world, folder):
  settings = {"steps": STEPS, "batch_size": COUNT * FEWER, "checkpoint_every": 2, "log_every": 1}
  told = [f"--config.train.{name}={value}" for name, value in settings.items()]
  return [f"--config={world}/train.py", *told, "--config.optim.learning_rate=0.01", f"--workdir={folder}"]


def rows(folder, name="metrics.jsonl"):
  file = folder / name
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
def test_a_run_whose_process_dies_goes_on_with_fewer_to_the_same_end(world, tmp_path, capfd, begin):
  run = tmp_path / "run"
  eight = begin("train", training(world, run))
  joined.until(lambda: len(rows(run)) >= 5 or any(process.poll() is not None for process in eight))
  eight[5].send_signal(signal.SIGKILL)
  died = time.monotonic()
  done = joined.wait(eight, LIMIT)
  assert time.monotonic() < died + LIMIT
  assert [code for code, _, _ in done] == [3, 3, 3, 3, 3, -signal.SIGKILL, 3, 3], done
  assert [said for _, _, said in done] == [f"error: {watch.SAID}\n" if n != 5 else "" for n in range(COUNT)]
  before = len(rows(run))
  assert not (run / "summary.json").exists() and 5 <= before < STEPS

  done = joined.wait(begin("train", training(world, run), FEWER))
  assert [code for code, _, _ in done] == [0] * FEWER, done
  assert "continues" in done[0][1] and not any(said for _, _, said in done)
  one = command.run(capfd, "train", *training(world, tmp_path / "one"))
  assert one.code == 0, one
  found, wanted = rows(run), rows(tmp_path / "one")
  assert [row["step"] for row in found] == [row["step"] for row in wanted] == list(range(1, STEPS + 1))
  for mine, other in zip(found, wanted, strict=True):
    assert mine["answer/loss"] == pytest.approx(other["answer/loss"], rel=1e-5), mine["step"]
  kept, expected = (load_file(tmp_path / n / "adapter/adapter_model.safetensors") for n in ("run", "one"))
  assert kept.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(kept[name], value, atol=1e-3 * np.abs(value).max(), err_msg=name)
  assert (run / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_eight_processes_part_the_questions_and_write_one_summary(world, tmp_path, capfd, begin):
  told = lambda folder: [f"--config={world}/evaluate.py", f"--workdir={tmp_path / folder}"]
  more = [f"--config.score.batch_size={COUNT}"]
  done = joined.wait(begin("evaluate", [*told("eight"), *more]))
  assert [code for code, _, _ in done] == [0] * COUNT, done
  assert "questions" in done[0][1] and not any(said for _, _, said in done)
  one = command.run(capfd, "evaluate", *told("one"), *more)
  assert one.code == 0, one
  found, wanted = (rows(tmp_path / folder, "predictions.jsonl") for folder in ("eight", "one"))
  assert len(found) == len(wanted) >= 12
  for mine, other in zip(found, wanted, strict=True):
    alike(mine, other, f"question {other['idx']}")
  alike(*(json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("eight", "one")), "")


def alike(mine, other, where):
  """Whether JSON is the same, numbers to rounding."""
  if isinstance(other, dict):
    assert mine.keys() == other.keys(), where
    for key in other:
      alike(mine[key], other[key], f"{where} {key}")
  elif isinstance(other, list):
    assert len(mine) == len(other), where
    for number, (a, b) in enumerate(zip(mine, other, strict=True)):
      alike(a, b, f"{where} {number}")
  elif isinstance(other, float):
    assert mine == pytest.approx(other, rel=1e-4, abs=1e-6), where
  else:
    assert mine == other, where


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
@pytest.mark.slow
def test_a_run_whose_maker_of_batches_is_killed_goes_on_without_any(world, tmp_path, capfd, begin):
  settings = {"steps": 200, "batch_size": 2, "checkpoint_every": 5, "log_every": 1}
  told = [f"--config={world}/train.py", *(f"--config.train.{key}={value}" for key, value in settings.items())]
  (run,) = begin("train", [*told, f"--workdir={tmp_path}/run", "--config.data.processes=1"], 1)
  joined.until(lambda: len(rows(tmp_path / "run")) >= 7 or run.poll() is not None)
  (maker,) = (p for p in joined.children(run.pid) if b"spawn_main" in (p / "cmdline").read_bytes())
  os.kill(int(maker.name), signal.SIGKILL)
  ((code, _, said),) = joined.wait([run])
  assert code == 2 and said.count("\n") == 1, said
  assert said.startswith("error: config.data.processes: a process that makes batches was killed"), said
  for name in ("run", "one"):  # by threads
    done = command.run(capfd, "train", *told, f"--workdir={tmp_path}/{name}")
    assert done.code == 0, done
  found, wanted = rows(tmp_path / "run"), rows(tmp_path / "one")
  assert [row["step"] for row in found] == [row["step"] for row in wanted]
  assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-5)
