"""Commands of several real processes: eight at work, one that dies, four that go on, one as the measure."""

import json
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import joined
from tests.launch import command

COUNT, STEPS = 8, 40
LEFT = (
  "error: another process of this run has ended; the same command, on any number of processes, goes on from"
)


def training(world, folder):
  settings = {"steps": STEPS, "batch_size": COUNT, "checkpoint_every": 2, "log_every": 1}
  told = [f"--config.train.{name}={value}" for name, value in settings.items()]
  return [f"--config={world}/train.py", *told, "--config.optim.learning_rate=0.01", f"--workdir={folder}"]


def rows(folder):
  file = folder / "metrics.jsonl"
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def until(what, seconds=240):
  begun = time.monotonic()
  while not what():
    assert time.monotonic() < begun + seconds, "it did not come to that"
    time.sleep(0.05)


@pytest.mark.slow
def test_a_run_whose_process_dies_goes_on_with_fewer_to_the_same_end(world, tmp_path, capfd):
  eight = joined.begin(["launch/train.py", *training(world, tmp_path / "run")], COUNT)
  try:
    until(lambda: len(rows(tmp_path / "run")) >= 5)
    eight[5].send_signal(signal.SIGKILL)
    died = time.monotonic()
    done = joined.wait(eight, 60)
    assert time.monotonic() < died + 60
  finally:
    for process in eight:
      process.kill()
  assert [code for code, _, _ in done] == [3, 3, 3, 3, 3, -signal.SIGKILL, 3, 3], done
  for number, (_, _, said) in enumerate(done):
    assert number == 5 or (said.startswith(LEFT) and said.count("\n") == 1), said
  before = len(rows(tmp_path / "run"))
  assert not (tmp_path / "run" / "summary.json").exists() and before < STEPS

  done = joined.wait(joined.begin(["launch/train.py", *training(world, tmp_path / "run")], COUNT // 2))
  assert [code for code, _, _ in done] == [0] * (COUNT // 2), done
  assert "continues" in done[0][1] and not any(said for _, said, _ in done[1:])
  one = command.run(capfd, "train", *training(world, tmp_path / "one"))
  assert one.code == 0, one
  found, wanted = rows(tmp_path / "run"), rows(tmp_path / "one")
  assert [row["step"] for row in found] == [row["step"] for row in wanted] == list(range(1, STEPS + 1))
  for mine, other in zip(found, wanted, strict=True):
    assert mine["answer/loss"] == pytest.approx(other["answer/loss"], rel=1e-3), mine["step"]
  kept, expected = (load_file(tmp_path / n / "adapter/adapter_model.safetensors") for n in ("run", "one"))
  assert kept.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(kept[name], value, atol=2e-2 * max(1e-3, np.abs(value).max()), err_msg=name)
  assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_eight_processes_part_the_questions_and_write_one_summary(world, tmp_path, capfd):
  told = lambda folder: [f"--config={world}/evaluate.py", f"--workdir={tmp_path / folder}"]
  more = [f"--config.score.batch_size={COUNT}"]
  done = joined.wait(joined.begin(["launch/evaluate.py", *told("eight"), *more], COUNT))
  assert [code for code, _, _ in done] == [0] * COUNT, done
  assert "questions" in done[0][1] and not any(said for _, said, _ in done[1:])
  one = command.run(capfd, "evaluate", *told("one"), *more)
  assert one.code == 0, one
  read = lambda folder: [json.loads(line) for line in (tmp_path / folder / "predictions.jsonl").open()]
  found, wanted = (
    {(r["protocol"], r["condition"], r["idx"], r["shift"]): r for r in read(f)} for f in ("eight", "one")
  )
  assert found.keys() == wanted.keys() and len(found) == len(read("eight")) >= 12
  assert all(found[key]["choice"] == row["choice"] for key, row in wanted.items())
  mine, other = (json.loads((tmp_path / f / "summary.json").read_text()) for f in ("eight", "one"))
  assert mine["protocols"].keys() == other["protocols"].keys()
