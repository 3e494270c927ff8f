"""Folders of other runs, full disks, interruptions, and numbers that are none: one line, nothing lost."""

import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest
from flax import nnx

import spatialvlm
from spatialvlm import hub
from spatialvlm.evaluation import records
from spatialvlm.types import UserError
from tests.launch import command


def test_workdirs(world, tmp_path, refused, capfd):
  evaluated = tmp_path / "evaluated"
  recipe = f"--config={world}/evaluate.py"
  assert command.run(capfd, "evaluate", recipe, f"--workdir={evaluated}").code == 0
  refused("a run with other settings .score.seed: 0, now 1.; name another --workdir", "evaluate",
          f"--workdir={evaluated}", "--config.score.seed=1")  # fmt: skip
  refused("holds a run of another command or version", "train", f"--workdir={evaluated}")
  refused("not empty, and it holds no run", "train", f"--workdir={world}")
  refused("is a file; name a folder", "train", f"--workdir={world}/train.py")
  refused("cannot be written .Not a directory.", "evaluate", f"--workdir={world}/train.py/run")


def test_a_folder_that_may_only_be_read(world, tmp_path, refused):
  closed = tmp_path / "closed"
  closed.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(closed)]
  try:
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
  except FileNotFoundError:
    mounted = False
  closed.chmod(0o555) if not mounted else None
  try:
    if not mounted and (closed / "probe").mkdir() is None:  # root may write anywhere
      pytest.skip("neither a read-only mount nor a user without privileges")
  except PermissionError:
    pass
  try:
    for name in ("train", "evaluate", "inspect_data"):
      refused("cannot be written .*name another folder", name, f"--workdir={closed}/run")
    with pytest.raises(UserError, match="could not be saved"):
      spatialvlm.load_vlm(world / "model").save(closed / "model")
  finally:
    if mounted:
      subprocess.run(["umount", "-l", str(closed)], check=True)


class small_files:
  """No file may grow beyond `size` bytes: what a full disk is, without a disk."""

  def __init__(self, size):
    self.size = size

  def __enter__(self):
    self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
    self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

  def __exit__(self, *error):
    resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
    signal.signal(signal.SIGXFSZ, self.handler)


def test_a_save_that_finds_no_room_leaves_nothing(world, tmp_path):
  vlm = spatialvlm.load_vlm(world / "model").load_adapter(world / "adapter")
  vlm.save(tmp_path / "old"), vlm.save_adapter(tmp_path / "old_adapter")
  before = command.files(tmp_path)
  with small_files(1000):
    for target in ("new", "old"):
      with pytest.raises(UserError, match=f"{target}: could not be saved"):
        vlm.save(tmp_path / target)
      with pytest.raises(UserError, match=f"{target}_adapter: the adapter could not be saved"):
        vlm.save_adapter(tmp_path / f"{target}_adapter")
  assert command.files(tmp_path) == before


def test_an_evaluation_without_room_or_interrupted_goes_on_where_it_was(
  tmp_path, refused, typed, monkeypatch
):
  assert typed("evaluate", f"--workdir={tmp_path}/whole").code == 0
  wanted = (tmp_path / "whole" / records.FILE).read_bytes()
  with small_files(len(wanted) // 2):
    refused(r"predictions\.jsonl: too large for a file there", "evaluate", writes=True)
  assert not (tmp_path / "run" / "summary.json").exists()
  write = records.Writer.write

  def interrupted(writer, rows):
    write(writer, rows)
    raise KeyboardInterrupt

  monkeypatch.setattr(records.Writer, "write", interrupted)
  done = typed("evaluate")
  assert done.code == 130 and done.err == "interrupted\n"
  monkeypatch.undo()
  assert 0 < (tmp_path / "run" / records.FILE).stat().st_size < len(wanted)
  assert typed("evaluate").code == 0
  assert (tmp_path / "run" / records.FILE).read_bytes() == wanted


def test_a_training_without_room_loses_nothing(tmp_path, refused, typed, monkeypatch):
  steps = ["--config.train.steps=12", "--config.train.checkpoint_every=0"]
  done = typed("train", f"--workdir={tmp_path}/whole", *steps)
  assert done.code == 0, done
  real = shutil.disk_usage
  monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=0))
  full = "checkpoints: no space left on the disk for a checkpoint; earlier ones are whole: free some"
  refused(full, "train", *steps, writes=True)
  monkeypatch.undo()
  with small_files(3000):
    refused(r"metrics\.jsonl: too large for a file there", "train", *steps, writes=True)
  assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "summary.json").exists()
  assert typed("train", *steps).code == 0
  for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
  rows = [(tmp_path / run / "metrics.jsonl").read_text().count("\n") for run in ("run", "whole")]
  assert rows[0] == rows[1]


# Numbers.


def test_numbers_that_are_none(world, tmp_path, refused):
  sick = hub.load_model(world / "model")
  sick.decoder.norm.scale = nnx.Param(sick.decoder.norm.scale[...] * np.nan)
  hub.save_model(sick, tmp_path / "sick", world / "model")
  refused("logits are not finite", "chat", f"--model={tmp_path}/sick", "hello", writes=True)
  path = f"--config.model.path={tmp_path}/sick"
  refused(r"question 100: the logits are not finite.*check its weights", "evaluate", path, writes=True)
  assert (tmp_path / "run" / records.FILE).read_bytes() == b""
  run = f"--workdir={tmp_path}/trained"
  refused(r"step 1: loss nan.*examples own\[.*no checkpoint was written yet", "train", path, run, writes=True)
