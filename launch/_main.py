"""The one wrapper around flags: what the user gets wrong becomes one line on stderr and exit code 2."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from spatialvlm import config as config_lib
from spatialvlm.launch import _compiled, _processes
from spatialvlm.types import UserError

RECIPES = pathlib.Path(__file__).resolve().parent.parent / "configs"
_CONFIG = "--config"


def run(main: Callable[..., int | None], config_class: type | None = None, recipe: str | None = None) -> None:
  """Parses the command line and calls `main`; does not return.

  Args:
    main: `main(config, workdir, arguments)` of a command with a config, else `main(arguments)`, where
      `arguments` are those that are no flags. Returns the exit code, None for 0.
    config_class: what `--config` is read into; None for a command that has only flags of its own.
    recipe: the default of `--config`, None where the user must give one.

  `--config` is the path of a Python file with `get_config(arg) -> ConfigDict`, or the bare name of a recipe
  of ours; `:arg` may follow. `--config.any.key=value` overrides one setting; later ones win.
  """
  if config_class is not None:
    flags.DEFINE_string("workdir", None, "folder of the run; an interrupted run in it is continued")
    flags.DEFINE_string(
      "config", recipe, "recipe: path or name, with `:argument`; --config.key=value overrides"
    )
  # Orbax logs the traceback of a failed save from its own threads, and raises it as well.
  logging.set_verbosity(logging.FATAL)
  # Without a network its client would tell of every retry, before the one line that matters.
  os.environ.setdefault("HF_HUB_VERBOSITY", "error")
  # Pillow refuses images of twice this size, which is an error of ours; up to there they are read.
  warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
  overrides: list[tuple[str, str]] = []

  def parse(argv: Sequence[str]) -> list[str]:
    argv = list(argv)
    try:
      if config_class is not None:
        argv, found = _take_overrides(argv)
        overrides.extend(found)
      return flags.FLAGS(argv)
    except (flags.Error, UserError) as e:
      _fail(e)

  def wrapped(argv: list[str]) -> int:
    try:
      _compiled.keep()
      if config_class is None:
        return main(argv[1:]) or 0
      config = load_config(flags.FLAGS.config, overrides, config_class)
      _processes.join()
      return main(config, flags.FLAGS.workdir, argv[1:]) or 0
    except UserError as e:
      _fail(e)
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr, flush=True)
      return 130

  app.run(wrapped, flags_parser=parse)


def load_config(recipe: str | None, overrides: Sequence[tuple[str, str]], config_class: type) -> Any:
  """The typed config of a recipe with its overrides.

  Args:
    recipe: `path.py`, `path.py:arg`, `name` or `name:arg`.
    overrides: pairs (dotted key, value as text).

  Raises:
    UserError: no such recipe, an unknown key, or a value of the wrong type.
  """
  if not recipe:
    raise UserError(f"{_CONFIG} is missing; name a recipe, e.g. one of {', '.join(_recipes())}")
  path, _, argument = recipe.partition(":")
  values = _get_config(_find(path), argument)
  for key, text in overrides:
    config_lib.override(values, key, text, config_class)
  return config_lib.from_config_dict(values, config_class)


def _take_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Splits `--config.key=value` and `--config.key value` from the other arguments."""
  rest, found, i = [], [], 0
  while i < len(argv):
    argument = argv[i]
    i += 1
    if argument == "--":
      return rest + argv[i - 1 :], found
    bare = argument.replace(_CONFIG[1:], _CONFIG, 1) if argument.startswith("-config.") else argument
    if not bare.startswith(_CONFIG + "."):
      rest.append(argument)
      continue
    key, equals, value = bare[len(_CONFIG) + 1 :].partition("=")
    if not equals:
      if i == len(argv):
        raise UserError(f"{argument}: a value is missing; write {argument}=value")
      value, i = argv[i], i + 1
    found.append((key, value))
  return rest, found


def _find(name: str) -> pathlib.Path:
  path = pathlib.Path(name).expanduser()
  if path.suffix == ".py":
    # An installed command finds our recipes from any folder by the path they have in a checkout.
    ours = RECIPES / path.name
    if path.is_file():
      return path
    if path.parent.name == "configs" and not path.is_absolute() and ours.is_file():
      return ours
    raise UserError(f"{_CONFIG}={name}: no such file; recipes of ours are {', '.join(_recipes())}")
  if name in _recipes():
    return RECIPES / f"{name}.py"
  raise UserError(f"{_CONFIG}={name}: no such recipe; {config_lib.nearest(name, _recipes())}")


def _recipes() -> list[str]:
  return sorted(p.stem for p in RECIPES.glob("*.py") if not p.stem.startswith("_"))


def _get_config(path: pathlib.Path, argument: str) -> dict[str, Any]:
  spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (SyntaxError, ImportError) as e:
    raise UserError(f"{path}: cannot be read as a config: {e}") from e
  function = getattr(module, "get_config", None)
  if function is None:
    raise UserError(f"{path}: defines no get_config(); a config is a function that returns a ConfigDict")
  if argument and not inspect.signature(function).parameters:
    raise UserError(f"{path}: takes no argument, got {argument!r}")
  values = function(argument) if argument else function()
  values = values.to_dict() if hasattr(values, "to_dict") else values
  if not isinstance(values, Mapping):
    raise UserError(f"{path}: get_config() returns {type(values).__name__}, where a ConfigDict is wanted")
  return dict(values)


def _fail(error: Exception) -> NoReturn:
  print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
  sys.exit(2)
