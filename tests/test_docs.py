"""What the README tells people to type exists: targets, scripts, recipes, settings, links, commands."""

import ast
import contextlib
import pathlib
import re
import shlex
import tomllib

import pytest

from spatialvlm import cli, config
from spatialvlm.config import (
  EvaluateConfig,
  ExplainConfig,
  FieldConfig,
  ProbeConfig,
  RoomFilesConfig,
  RunConfig,
  StudyConfig,
)
from spatialvlm.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG_OF = {
  "train": RunConfig,
  "evaluate": EvaluateConfig,
  "shifts": EvaluateConfig,
  "edge": EvaluateConfig,
  "inspect_data": RunConfig,
  "plan": RunConfig,
  "encoders": ProbeConfig,
  "field": FieldConfig,
  "scenes": RoomFilesConfig,
  "study": StudyConfig,
  "explain": ExplainConfig,
}
# Commands that take a config, or flags of their own.
EITHER = ["explain"]
# Flags of commands with a config, beside its settings.
OTHERS = ["workdir", "output", "scan", "show", "shifts", "report", "out", "model", "to", "numbers"]
OTHERS += ["lease", "topology", "programs", "tiles", "length", "json", "dump"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands() -> list[list[str]]:
  """The words of every command in the pages' shell blocks and of every one that begins an inline code."""
  found = []
  for page in PAGES:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S):
      lines = block.replace("\\\n", " ").splitlines()
      found += [shlex.split(line, comments=True) for line in lines]
    rest = re.sub(r"```.*?```", "", text, flags=re.S)
    codes = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", rest)]
    found += [shlex.split(c) for c in codes if re.match(r"(python |make |spatialvlm-|\.venv/)", c)]
  return [words for words in found if words]


def script_and_flags(words: list[str]) -> tuple[str, list[str]] | None:
  words = [w for w in words if not re.fullmatch(r"[A-Z_]+=\S*", w)]
  if re.fullmatch(r"(.*/)?python3?", words[0]) and words[1].endswith(".py"):
    return words[1], words[2:]
  if words[0] in PROJECT["scripts"]:
    module = PROJECT["scripts"][words[0]].split(":")[0]
    return module.removeprefix("spatialvlm.").replace(".", "/") + ".py", words[1:]
  return None


SCRIPTS = [found for words in commands() if (found := script_and_flags(words))]


def test_the_pages_hold_commands():
  assert len(SCRIPTS) > 8
  assert any("lora.py:tiny" in " ".join(flags) for _, flags in SCRIPTS)


@pytest.mark.parametrize(("script", "flags"), SCRIPTS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_command_can_be_typed(script, flags):
  assert (ROOT / script).is_file()
  name = pathlib.Path(script).stem
  if name not in CONFIG_OF or "[" in " ".join(flags):
    return
  if name in EITHER and not any(flag.startswith("--config") for flag in flags):
    return
  recipe, overrides = None, []
  for flag in flags:
    key, _, value = flag.removeprefix("--").partition("=")
    if key == "config":
      recipe = value
    elif key.startswith("config."):
      overrides.append((key.removeprefix("config."), value))
    else:
      assert key in OTHERS, flag
  if recipe is not None:
    recipe = str(ROOT / recipe) if recipe.startswith("configs/") else recipe
    assert isinstance(cli.load(recipe, overrides, CONFIG_OF[name]), CONFIG_OF[name])


def test_the_recipe_in_the_documentation_can_be_read(tmp_path):
  (code,) = re.findall(
    r"```python\n([^`]*def get_config[^`]*)```", (ROOT / "docs" / "training.md").read_text()
  )
  (tmp_path / "mine.py").write_text(code)
  read = cli.load(f"{tmp_path}/mine.py:32", [("train.steps", "2000")], RunConfig)
  assert read.peft.options["rank"] == 32 and read.train.steps == 2000 and read.name == "mine-32"
  assert read.data.sources["mine"].kind == "llava"


def test_make_targets_exist():
  known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
  used = {word for words in commands() if words[0] == "make" for word in words[1:2]}
  assert {"train", "test", "oracle"} <= used <= known


def test_single_settings_exist():
  """Those named on their own in the text: `--config.some.key=value`."""
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  single = re.findall(r"`--config\.([a-z_.]+)=([^\s`]+)`", text)
  assert len(single) > 3
  for key, value in single:
    fits = []
    for recipe, cls in (("lora:tiny", RunConfig), ("cvbench:tiny", EvaluateConfig)):
      with contextlib.suppress(UserError):
        fits.append(cli.load(recipe, [(key, value)], cls))
    assert fits, f"--config.{key}={value} is no setting of training or evaluation"


def test_links_lead_somewhere():
  for page in PAGES:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
      if not target.startswith("http"):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_installed_by_its_name():
  files = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"__init__"}
  names = {f"spatialvlm-{file.replace('_', '-')}": f"spatialvlm.launch.{file}:run" for file in files}
  assert PROJECT["scripts"] == names


def test_recipes_that_commands_take_by_default_can_be_read():
  code = "".join(path.read_text() for path in (ROOT / "launch").glob("*.py"))
  found = re.findall(r"cli\.run\(main, (\w+), \"([^\"]+)\"\)", code)
  assert ("RunConfig", "lora:tiny") in found and len(found) > 3
  for name, recipe in found:
    assert cli.load(recipe, [], getattr(config, name)).name


@pytest.mark.parametrize("entry", PROJECT["scripts"].values())
def test_installed_commands_exist(entry):
  """Looked up without an import: two commands in one process would define their flags twice."""
  module, function = entry.split(":")
  tree = ast.parse((ROOT / "launch" / f"{module.split('.')[-1]}.py").read_text())
  assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_package_is_installed():
  """pyproject.toml lists packages and folders of data by name, as they are installed."""
  setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
  found = (p.parent for p in (ROOT / "spatialvlm").rglob("*") if p.is_file() and p.suffix != ".pyc")
  inside = {".".join(folder.relative_to(ROOT).parts) for folder in found}
  beside = {f"spatialvlm.{name}": name for name in ("launch", "configs", "checkpoints")}
  assert set(setup["packages"]) == inside | set(beside)
  assert setup["package-dir"] == {"spatialvlm": "spatialvlm"} | beside
