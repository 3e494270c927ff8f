"""The commands on a small world of files, each program compiled once."""

import re

import pytest

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from spatialvlm.data.sources.cvbench import write_cvbench
from tests.evaluation.support import questions
from tests.launch import bad_files, command
from tests.tiny_model import write_checkpoint

TRAIN = """
def get_config():
  source = dict(kind="llava", path="{folder}/talk.jsonl")
  return dict(
    name="train",
    model=dict(path="{folder}/model"),
    peft=dict(rank=2),
    data=dict(sources=dict(own=source), lengths=(96,), tiles=(1,), workers=1),
    train=dict(steps=3, batch_size=2, log_every=1, checkpoint_every=1),
    log=dict(tensorboard=False),
  )
"""
EVALUATE = """
def get_config():
  return dict(
    name="evaluate",
    model=dict(path="{folder}/model"),
    data=dict(kind="cvbench", path="{folder}/table.parquet", split="test"),
    score=dict(batch_size=4, lengths=(160,), tiles=(1,), pool_tiles=8, bootstrap=20),
  )
"""


@pytest.fixture(scope="session", autouse=True)
def few_programs(compiled_once):
  """Of all tests of commands."""


@pytest.fixture(scope="module", autouse=True)
def few_devices(one_device_unless_asked):
  """Of all tests of commands."""


@pytest.fixture(scope="session")
def world(tmp_path_factory):
  """A checkpoint, an adapter for it, conversations, questions, images, and a recipe for each command."""
  folder = tmp_path_factory.mktemp("world")
  write_checkpoint(folder / "model", longest_edge=16, split=False)
  peft.save_adapter(
    peft.apply(hub.load_model(folder / "model"), PeftConfig(options={"rank": 2})), folder / "adapter"
  )
  write_cvbench(folder / "table.parquet", questions(count=12, images=4))
  bad_files.write_talk(folder / "talk.jsonl", 4)
  bad_files.write_readable_images(folder / "good")
  bad_files.write_unreadable_images(folder / "bad")
  (folder / "train.py").write_text(TRAIN.replace("{folder}", str(folder)))
  (folder / "evaluate.py").write_text(EVALUATE.replace("{folder}", str(folder)))
  return folder


@pytest.fixture
def typed(world, tmp_path, capfd):
  """Runs a command on the world, its workdir below `tmp_path`."""

  def run(name, *arguments):
    recipe = {"train": "train", "inspect_data": "train", "evaluate": "evaluate"}.get(name)
    common = [f"--config={world}/{recipe}.py", f"--workdir={tmp_path}/run"] if recipe else []
    return command.run(capfd, name, *common, *arguments)

  return run


@pytest.fixture
def refused(world, tmp_path, typed):
  """Runs a command that must end in one line that matches; nothing may be written anywhere."""

  def run(message, name, *arguments, writes=False):
    before = command.files(world), command.files(tmp_path)
    done = typed(name, *arguments)
    assert done.code == 2, done
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert re.search(message, done.err), done.err
    if not writes:
      assert (command.files(world), command.files(tmp_path)) == before and done.out == ""

  return run
