"""A config for each kind of source: read, overridden, refused, and read again from runs of before."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from spatialvlm import workdir
from spatialvlm.config import (
  CVBenchConfig,
  EvalConfig,
  EvaluateConfig,
  HFConfig,
  LlavaConfig,
  RunConfig,
  ScenesConfig,
  SkillsConfig,
  from_config_dict,
  from_stored,
  override,
  to_dict,
)
from spatialvlm.types import UserError

# config.json of runs from before each kind had a config of its own.
RECORDED = pathlib.Path(__file__).parent / "recorded"


def read(**sources):
  return from_config_dict({"data": {"sources": sources}}).data.sources


def flags(*settings, cls=RunConfig, **values):
  for setting in settings:
    override(values, *setting.split("=", 1), cls)
  return from_config_dict(values, cls)


def test_the_kind_says_which_class_a_group_is():
  found = read(
    a=dict(kind="scenes", seed=3), b=dict(kind="llava", path="x"), c=dict(kind="hf", answers="letter")
  )
  assert found == {"a": ScenesConfig(seed=3), "b": LlavaConfig(path="x"), "c": HFConfig(answers="letter")}
  config = RunConfig(eval=EvalConfig(source=CVBenchConfig(partial=True)))
  assert from_config_dict(to_dict(config)) == config


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (
      dict(kind="scenes", path="/nowhere", partial=True),
      r"sources\.x\.path: a group of kind 'scenes' reads no path; kinds that do: cvbench, hf, llava, posed",
    ),
    (dict(kind="cvbench", turns=2), r"x\.turns: .*'cvbench' reads no turns; kinds that do: scenes, skills"),
    (dict(kind="cvbench", columns={}), r"x\.columns: .* reads no columns; kinds that do: hf, stream"),
    (
      dict(kind="llava", tasks={}),
      r"x\.tasks: .* reads no tasks; kinds that do: rgbd, rooms, scenes, skills, views",
    ),
    (dict(kind="llava", pth="a"), r"x\.pth: unknown key; did you mean 'path'"),
    (dict(kind="lava"), r"x\.kind: unknown kind 'lava'; did you mean 'llava'"),
    (
      dict(path="a"),
      r"x\.kind: is missing; known: cvbench, hf, llava, posed, rgbd, rooms, scenes, skills, stream, views",
    ),
    (dict(kind="scenes", seed="1"), r"x\.seed: expected int, got '1'"),
    (3, r"sources\.x: expected a group of settings, got 3"),
  ],
)
def test_what_a_kind_does_not_read_is_refused_by_name(source, message):
  with pytest.raises(UserError, match=message):
    read(x=source)


@pytest.mark.parametrize("turned", [False, True])
def test_flags_may_come_in_any_order(turned):
  settings = ["data.sources.mine.kind=llava", "data.sources.mine.path=/x", "data.sources.mine.size=3"]
  config = flags(*(reversed(settings) if turned else settings))
  assert config.data.sources == {"mine": LlavaConfig(path="/x", size=3)}
  settings = ["data.columns.image=picture", "data.kind=hf", "data.choices=('a', 'b')"]
  config = flags(*(reversed(settings) if turned else settings), cls=EvaluateConfig)
  assert config.data == HFConfig(columns={"image": "picture"}, choices=("a", "b"))


def test_another_kind_by_flag_drops_nothing_that_says_something():
  recipe = lambda **source: {"eval": {"source": to_dict(ScenesConfig(**source))}}
  to_llava = ("eval.source.kind=cvbench", "eval.source.path=/x")
  assert flags(*to_llava, **recipe(size=7)).eval.source == CVBenchConfig(path="/x", size=7)
  message = (
    r"eval\.source\.seed: .*'cvbench' reads no seed.*replaced by --config\.eval\.source=\"\{'kind': 'cvbench'"
  )
  with pytest.raises(UserError, match=message):
    flags(*to_llava, **recipe(seed=7))
  whole = "eval.source={'kind': 'cvbench', 'path': '/x'}"
  assert flags(whole, **recipe(seed=7)).eval.source == CVBenchConfig(path="/x")


def test_a_group_that_a_recipe_leaves_out_begins_with_the_default_of_its_place():
  assert flags("eval.source.size=5").eval.source == dataclasses.replace(EvalConfig().source, size=5)
  assert flags("data.path=/x", cls=EvaluateConfig).data == CVBenchConfig(path="/x", split="test")
  assert flags("data.kind=cvbench", cls=EvaluateConfig).data == CVBenchConfig(split="test")
  assert flags("data.kind=scenes", cls=EvaluateConfig).data == ScenesConfig()
  with pytest.raises(UserError, match=r"data\.pth: unknown key; did you mean 'path'"):
    flags("data.pth=/x", cls=EvaluateConfig)


@pytest.mark.parametrize(
  ("name", "cls"), [("lora", RunConfig), ("encoders", RunConfig), ("cvbench", EvaluateConfig)]
)
def test_runs_of_before_are_continued(tmp_path, name, cls):
  shutil.copy(RECORDED / f"{name}.json", tmp_path / workdir.CONFIG_FILE)
  stored = json.loads((tmp_path / workdir.CONFIG_FILE).read_text())
  with pytest.raises(UserError, match=r"'\w+' reads no (path|split|columns)"):
    from_config_dict(stored, cls)
  config = from_stored(stored, cls)
  assert workdir.check(tmp_path, config) is True
  assert from_config_dict(to_dict(config), cls) == config
  if name == "cvbench":
    assert config.data == ScenesConfig(seed=1_000_000, size=1200)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=5))
    reason = r"other settings \(data.seed: 1000000, now 5\)"
  else:
    assert config.eval.source == ScenesConfig(seed=1_000_000, size=1200)
    other, reason = dataclasses.replace(config, seed=5), r"other settings \(seed: 0, now 5\)"
  with pytest.raises(UserError, match=reason):
    workdir.check(tmp_path, other)
  if name == "encoders":
    sources = [stage.data.sources["scenes"] for stage in config.stages.values()]
    assert sources == [SkillsConfig(seed=1, turns=5), ScenesConfig(seed=11, tasks=sources[1].tasks)]


def test_a_setting_that_no_kind_knows_is_told_of_a_run_of_before(tmp_path):
  stored = json.loads((RECORDED / "cvbench.json").read_text())
  stored["data"]["pth"] = "x"
  with pytest.raises(UserError, match=r"config\.data\.pth: unknown key"):
    from_stored(stored, EvaluateConfig)
