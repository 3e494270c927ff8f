import dataclasses
import subprocess
import sys

import pytest

from spatialvlm import cli
from spatialvlm.cli import processes, recipes
from spatialvlm.config import EvalConfig, EvaluateConfig, LlavaConfig, LossConfig, RunConfig, TrainConfig
from spatialvlm.types import UserError
from tests.launch import tiny


def load(recipe, *overrides, cls=RunConfig):
  return cli.load(recipe, [tuple(o.split("=", 1)) for o in overrides], cls)


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text(tiny.RECIPE)
  return str(path)


def test_our_recipes_by_path_and_by_name(tmp_path, monkeypatch):
  assert load("configs/lora.py:tiny") == load("lora:tiny") != load("lora")
  monkeypatch.chdir(tmp_path)  # an installed command, far from any checkout
  assert load("configs/lora.py:tiny") == load("lora:tiny")
  assert load("cvbench", cls=EvaluateConfig).data.kind == "cvbench"


def test_overrides_have_the_types_of_the_config(recipe):
  config = load(
    recipe,
    "train.steps=7",
    "optim.learning_rate=1",
    "train.remat=true",
    "data.lengths=(32, 64)",
    "model.revision=abc",
    "model.max_tiles=None",
    "name=7",
    "peft.method=none",
    "optim.kwargs.b2=0.95",
    "losses.answer.weight=2",
    "losses.answer.weight=0.5",
    "data.sources.own.weight=2",
    "eval.limit=3",
  )
  assert config.train.steps == 7 and config.train.remat is True and config.data.lengths == (32, 64)
  assert config.optim.learning_rate == 1.0 and config.optim.kwargs == {"b2": 0.95}
  assert config.model.revision == "abc" and config.model.max_tiles is None and config.name == "7"
  assert config.peft.method == "none"
  assert config.losses["answer"].weight == 0.5 and config.data.sources["own"].weight == 2.0
  assert config.eval.limit == 3 and config.eval.batch_size == 32
  assert load(recipe).eval is None


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("train.stps=3", r"config\.train\.stps: unknown key; did you mean 'steps'"),
    ("trian.steps=3", r"config\.trian: unknown key; did you mean 'train'"),
    ("train.steps=many", r"config\.train\.steps: expected int, got 'many'"),
    ("train.steps=1.5", r"config\.train\.steps: expected int, got 1\.5"),
    ("train.steps=None", r"config\.train\.steps: expected int, got None"),
    ("train.steps.more=1", r"config\.train\.steps\.more: unknown key"),
    ("train=3", r"config\.train: expected a group of settings"),
    ("data.sources.own.wieght=3", r"config\.data\.sources\.own\.wieght: unknown key; did you mean 'weight'"),
    ("data.lengths=(1, 'a')", r"config\.data\.lengths\[1\]: expected int"),
  ],
)
def test_bad_overrides_name_the_place_and_the_nearest_key(recipe, override, message):
  with pytest.raises(UserError, match=message):
    load(recipe, override)


def test_a_recipe_may_return_a_typed_config(tmp_path):
  path = tmp_path / "typed.py"
  path.write_text("""
import dataclasses
from spatialvlm.config import EvalConfig, LossConfig, RunConfig, TrainConfig

@dataclasses.dataclass(frozen=True)
class Own:
  steps: int = 3

def get_config() -> RunConfig:
  train, losses = TrainConfig(steps=Own().steps), {"a": LossConfig(weight=2.0)}
  return RunConfig(train=train, eval=EvalConfig(), losses=losses)
""")
  assert load(str(path)) == RunConfig(
    train=TrainConfig(steps=3), eval=EvalConfig(), losses={"a": LossConfig(weight=2.0)}
  )
  changed = load(str(path), "train.steps=5", "eval.source.size=7", "losses.a.kind=words", "eval.tiles=(1,)")
  assert changed.train.steps == 5 and changed.eval.source.size == 7 and changed.eval.tiles == (1,)
  assert changed.eval.source.seed == 1_000_000 and changed.losses["a"] == LossConfig("words", weight=2.0)
  with pytest.raises(UserError, match="returns RunConfig, where EvaluateConfig or ConfigDict is wanted"):
    load(str(path), cls=EvaluateConfig)


def test_a_group_that_a_recipe_leaves_out_begins_with_its_defaults(recipe):
  config = load(recipe, "eval.source.size=7", "losses.dense.kind=words")
  assert config.eval == EvalConfig(source=dataclasses.replace(EvalConfig().source, size=7))
  assert config.losses == {"answer": LossConfig(), "dense": LossConfig("words")}
  other = load(recipe, "data.sources.other.weight=2", "data.sources.other.kind=llava").data.sources["other"]
  assert other == LlavaConfig(weight=2.0)
  with pytest.raises(UserError, match=r"data\.sources\.other\.kind: is missing; known: cvbench, hf"):
    load(recipe, "data.sources.other.weight=2")


def test_recipes_that_are_none(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    load("configs/nothing.py")
  with pytest.raises(UserError, match="did you mean 'lora'"):
    load("lroa:tiny")
  with pytest.raises(UserError, match="is missing"):
    load(None)
  broken = tmp_path / "broken.py"
  broken.write_text("def get_config(:\n")
  with pytest.raises(UserError, match=r"broken\.py: cannot be read as a config"):
    load(str(broken))
  broken.write_text("x = 1\n")
  with pytest.raises(UserError, match="defines no get_config"):
    load(str(broken))
  broken.write_text("def get_config():\n  return dict(optim=dict(lr=1))\n")
  with pytest.raises(UserError, match=r"config\.optim\.lr: unknown key"):
    load(str(broken))
  with pytest.raises(UserError, match="takes no argument"):
    load(f"{broken}:tiny")


def test_overrides_are_taken_out_of_the_command_line():
  argv = ["x", "--config=a.py", "--config.b.c=1", "-config.d", "2", "--workdir=w", "--", "--config.e=3"]
  rest, found = recipes.take_overrides(argv)
  assert rest == ["x", "--config=a.py", "--workdir=w", "--", "--config.e=3"]
  assert found == [("b.c", "1"), ("d", "2")]
  with pytest.raises(UserError, match="a value is missing"):
    recipes.take_overrides(["x", "--config.b"])


def test_processes_are_described_in_full_or_not_at_all(monkeypatch):
  for name in (processes.ADDRESS, processes.COUNT, processes.INDEX, "SLURM_NTASKS"):
    monkeypatch.delenv(name, raising=False)
  processes.join()
  monkeypatch.setenv(processes.ADDRESS, "localhost:1")
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID is not set"):
    processes.join()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
  command = [sys.executable, "launch/train.py", "--config=lora:tiny", "--config.optim.lr=1"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 2
  assert done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: config.optim.lr: unknown key; ") and "learning_rate" in line
