"""A workdir is continued if it matches, refused if not, and never half-made."""

import dataclasses
import errno
import json
import os

import pytest

from spatialvlm import workdir
from spatialvlm.config import (
  EvaluateConfig,
  LogConfig,
  MeshConfig,
  ModelConfig,
  RunConfig,
  StageConfig,
  fingerprint,
  read_json,
)
from spatialvlm.types import UserError

CONFIG = EvaluateConfig(name="bench", model=ModelConfig(path="a"))


def test_default_folder_names_the_config():
  path = workdir.choose(None, CONFIG)
  assert str(path) == f"runs/bench-{fingerprint(CONFIG)}"
  other = dataclasses.replace(CONFIG, model=ModelConfig(path="b"))
  assert workdir.choose(None, other) != path
  assert str(workdir.choose("elsewhere", CONFIG)) == "elsewhere"


def test_a_new_folder_says_what_it_is(tmp_path):
  path = tmp_path / "deep" / "run"
  assert workdir.check(path, CONFIG) is False and not path.exists()
  assert workdir.claim(path, CONFIG, {"weights": "abc"}) is False
  assert json.loads((path / "config.json").read_text())["model"]["path"] == "a"
  environment = json.loads((path / "environment.json").read_text())
  assert environment["packages"]["jax"] and environment["devices"]["count"] >= 1 and "git" in environment
  assert json.loads((path / "identity.json").read_text()) == {"weights": "abc"}


def test_the_same_run_is_continued_and_not_touched(tmp_path):
  workdir.claim(tmp_path, CONFIG, {"weights": ("abc", 1)})
  before = {f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
  assert workdir.claim(tmp_path, CONFIG, {"weights": ("abc", 1)}) is True
  assert {f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir()} == before


def test_a_run_goes_on_with_other_devices_and_trackers(tmp_path):
  run = RunConfig()
  workdir.claim(tmp_path, run)
  train = dataclasses.replace(run.train, cache_vision="off", cache_vision_mib=1)
  model = dataclasses.replace(run.model, scan_layers=True)
  elsewhere = dataclasses.replace(
    run, mesh=MeshConfig(fsdp=8), log=LogConfig(wandb=True), train=train, model=model
  )
  assert workdir.check(tmp_path, elsewhere) is True
  with pytest.raises(UserError, match=r"other settings \(seed: 0, now 1\)"):
    workdir.check(tmp_path, dataclasses.replace(elsewhere, seed=1))
  staged = RunConfig(stages={"a": StageConfig(train=run.train)})
  workdir.claim(tmp_path / "s", staged)
  assert workdir.check(tmp_path / "s", RunConfig(stages={"a": StageConfig(train=train)})) is True
  with pytest.raises(UserError, match=r"stages\.a\.train\.steps"):
    steps = dataclasses.replace(train, steps=7)
    workdir.check(tmp_path / "s", RunConfig(stages={"a": StageConfig(train=steps)}))


def test_another_config_is_refused_and_named(tmp_path):
  workdir.claim(tmp_path, CONFIG)
  other = dataclasses.replace(CONFIG, model=ModelConfig(path="b"))
  with pytest.raises(UserError, match=r'other settings \(model.path: "a", now "b"\)'):
    workdir.check(tmp_path, other)
  score = dataclasses.replace(CONFIG.score, batch_size=1, limit=2, seed=3)
  with pytest.raises(UserError, match=r"other settings .* and 1 more"):
    workdir.claim(tmp_path, dataclasses.replace(other, score=score))
  assert json.loads((tmp_path / "config.json").read_text())["model"]["path"] == "a"


def test_other_weights_under_the_same_name_are_refused(tmp_path):
  workdir.claim(tmp_path, CONFIG, {"weights": "abc"})
  with pytest.raises(UserError, match='weights: "abc", now "xyz"'):
    workdir.claim(tmp_path, CONFIG, {"weights": "xyz"})


def test_a_folder_of_other_things_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(UserError, match="not empty"):
    workdir.claim(tmp_path, CONFIG)
  with pytest.raises(UserError, match="is a file"):
    workdir.claim(tmp_path / "thesis.tex", CONFIG)
  assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_config_is_refused(tmp_path):
  workdir.claim(tmp_path, CONFIG)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="cannot be read as JSON"):
    workdir.check(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    workdir.claim(tmp_path / "file" / "run", CONFIG)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  workdir.write_json(tmp_path / "x.json", {"a": 1})

  def full(fd):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="no space left"):
    workdir.write_json(tmp_path / "x.json", {"a": 2})
  assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
  assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_the_way_out_depends_on_whether_there_is_anything_to_lose(tmp_path):
  other = dataclasses.replace(CONFIG, name="other")
  (tmp_path / "inspect.html").write_text("a page that inspect_data left here is no reason to refuse")
  workdir.claim(tmp_path, CONFIG)
  (tmp_path / "metrics.jsonl").touch()
  with pytest.raises(UserError, match=r"delete it \(no results yet\)"):
    workdir.check(tmp_path, other)
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  with pytest.raises(UserError, match=r"now \"other\"\); name another --workdir"):
    workdir.check(tmp_path, other)


def test_a_run_of_another_command_is_called_that(tmp_path):
  workdir.claim(tmp_path, CONFIG)
  with pytest.raises(UserError, match="holds a run of another command or version"):
    workdir.check(tmp_path, RunConfig())


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_file_of_settings_that_is_none_is_one_line(tmp_path, text):
  file = tmp_path / "some.json"
  file.write_bytes(text.encode("utf-8", "surrogateescape"))
  with pytest.raises(UserError, match=r"some\.json: .*JSON.*; mend it") as error:
    read_json(file, damaged="mend it")
  assert "\n" not in str(error.value)


def test_a_file_of_settings_that_is_not_there(tmp_path):
  assert read_json(tmp_path / "none" / "some.json") == {}
  with pytest.raises(UserError, match=r"some\.json: missing; it is needed"):
    read_json(tmp_path / "some.json", missing="it is needed")
  (tmp_path / "some.json").write_text('{"a": [1]}')
  assert read_json(tmp_path / "some.json", missing="it is needed") == {"a": [1]}
