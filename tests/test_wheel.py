"""What is built is whole: a wheel, made from the source distribution, works without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What a build reads; copied, so that none leaves anything behind in the checkout or takes up what one left.
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "requirements.txt")
FOLDERS = ("spatialvlm", "launch", "configs", "checkpoints")
BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_{}(sys.argv[1]))"


def python(code: str, *arguments: object, cwd: pathlib.Path, path: list[str] | None = None, code_is: int = 0):
  """Runs Python on some code; with `path`, on the packages there alone: no editable install is active."""
  alone = [] if path is None else ["-S"]
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or [])}
  command = [sys.executable, *alone, "-c", code, *map(str, arguments)]
  done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == code_is, done.stdout + done.stderr
  return done


def files(folder: str) -> list[pathlib.Path]:
  """Every file below a folder of the checkout, by its path from there."""
  found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
  return sorted(path.relative_to(ROOT) for path in found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel's file. The source distribution is unpacked to build it, so it must be whole too."""
  folder = tmp_path_factory.mktemp("build")
  source = folder / "source"
  source.mkdir()
  for name in SOURCES:
    shutil.copy(ROOT / name, source)
  for name in FOLDERS:
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  python(BUILD.format("sdist"), folder, cwd=source)
  (archive,) = folder.glob("*.tar.gz")
  shutil.unpack_archive(archive, folder / "unpacked")
  (unpacked,) = (folder / "unpacked").iterdir()
  python(BUILD.format("wheel"), folder, cwd=unpacked)
  (file,) = folder.glob("*.whl")
  return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """Where to look for packages: the wheel's own, then what this environment has of others."""
  folder = tmp_path_factory.mktemp("installed")
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
  subprocess.run([*pip, "--no-index", f"--target={folder}", str(wheel)], check=True, timeout=120)
  others = [p for p in sys.path if p and pathlib.Path(p).resolve() != ROOT]
  return [str(folder), *others]


def test_a_wheel_holds_all_files(wheel):
  wanted = {str(path) for path in files("spatialvlm")}
  wanted |= {f"spatialvlm/{path}" for path in (*files("launch"), *files("configs"))}
  wanted |= {f"spatialvlm/{path}" for path in files("checkpoints") if path.parent.name != "training"}
  assert {"spatialvlm/py.typed", "spatialvlm/checkpoints/smolvlm-tiny/model.safetensors"} <= wanted
  with zipfile.ZipFile(wheel) as file:
    assert {name for name in file.namelist() if ".dist-info/" not in name} == wanted


def test_recipes_and_the_model_lie_inside(installed, tmp_path):
  code = """
import pathlib, sys, spatialvlm
from spatialvlm import cli, config, hub, shipped
package = pathlib.Path(spatialvlm.__file__).parent
assert package.parent == pathlib.Path(sys.argv[1]), package
assert shipped.folder("configs") == package / "configs"
model = hub.resolve("smolvlm-tiny")
assert model == package / "checkpoints" / "smolvlm-tiny" and (model / "model.safetensors").is_file()
for recipe in ("lora:tiny", "configs/encoders.py:tiny,encoder=own"):
  assert hub.resolve(cli.load(recipe, [], config.RunConfig).model.path) == model
assert hub.resolve(cli.load("cvbench:tiny", [], config.EvaluateConfig).model.path) == model
assert isinstance(cli.load("base", [], config.RunConfig), config.RunConfig)
from spatialvlm.launch import train
assert pathlib.Path(train.__file__).parent == package / "launch"
"""
  python(code, installed[0], cwd=tmp_path, path=installed)


def test_a_command_asks_the_model_from_any_folder(installed, tmp_path):
  ask = "from spatialvlm.launch.chat import run; run()"
  arguments = ["--model=smolvlm-tiny", "--max_new_tokens=2", "What can you see?"]
  assert python(ask, *arguments, cwd=tmp_path, path=installed).stdout.strip()
  refused = python(ask, "hello", cwd=tmp_path, path=installed, code_is=2)
  assert "smolvlm-tiny, which comes with us" in refused.stderr


@pytest.mark.parametrize("script", ["train", "chat"])
def test_a_checkout_needs_no_install(installed, tmp_path, script):
  """By its path, and from another folder, a command takes the library that it lies beside."""
  command = [sys.executable, "-S", ROOT / "launch" / f"{script}.py", "--nonsense"]
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(installed[1:])}
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2 and done.stderr == "error: Unknown command line flag 'nonsense'\n", done.stderr


def test_every_command_looks_for_its_checkout():
  head = "sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))\n"
  commands = [path for path in files("launch") if path.name != "__init__.py"]
  assert len(commands) > 8
  for path in commands:
    before, found, after = (ROOT / path).read_text().partition(head)
    assert found and "spatialvlm import" not in before and "import cli" in after, path
