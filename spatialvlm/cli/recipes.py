"""Recipes: from `--config=path.py:arg` and `--config.key=value` to a typed config."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm import config as config_lib
from spatialvlm import shipped
from spatialvlm.types import UserError

FLAG = "--config"


def load(recipe: str | None, overrides: Sequence[tuple[str, str]], config_class: type) -> Any:
  """The typed config of a recipe with its overrides.

  Args:
    recipe: `path.py`, `path.py:arg`, or the bare name of a recipe of ours, `name` or `name:arg`.
    overrides: pairs (dotted key, value as text); later ones win.
    config_class: what it is read into, e.g. `RunConfig`.

  Raises:
    UserError: no such recipe, an unknown key, or a value of the wrong type.
  """
  if not recipe:
    raise UserError(f"{FLAG} is missing; name a recipe, e.g. one of {', '.join(shipped.recipes())}")
  path, _, argument = recipe.partition(":")
  values = _get_config(_find(path), argument, config_class)
  config_lib.overrides(values, overrides, config_class)
  return config_lib.from_config_dict(values, config_class)


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Splits `--config.key=value` and `--config.key value` from the other arguments.

  Raises:
    UserError: the last of them has no value.
  """
  argv = list(argv)
  rest, found, i = [], [], 0
  while i < len(argv):
    argument = argv[i]
    i += 1
    if argument == "--":
      return rest + argv[i - 1 :], found
    bare = argument.replace(FLAG[1:], FLAG, 1) if argument.startswith("-config.") else argument
    if not bare.startswith(FLAG + "."):
      rest.append(argument)
      continue
    key, equals, value = bare[len(FLAG) + 1 :].partition("=")
    if not equals:
      if i == len(argv):
        raise UserError(f"{argument}: a value is missing; write {argument}=value")
      value, i = argv[i], i + 1
    found.append((key, value))
  return rest, found


def _find(name: str) -> pathlib.Path:
  path, ours = pathlib.Path(name).expanduser(), shipped.recipes()
  if path.suffix == ".py":
    if path.is_file():
      return path
    # A command finds our recipes from any folder by the path they have in a checkout.
    if path.parent.name == shipped.RECIPES and not path.is_absolute() and path.stem in ours:
      return ours[path.stem]
    raise UserError(f"{FLAG}={name}: no such file; recipes of ours are {', '.join(ours)}")
  if name in ours:
    return ours[name]
  raise UserError(f"{FLAG}={name}: no such recipe; {config_lib.nearest(name, ours)}")


def _get_config(path: pathlib.Path, argument: str, config_class: type) -> dict[str, Any]:
  """What a recipe's `get_config` returns, as a nested dict: a typed config, a ConfigDict, any mapping."""
  spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where dataclasses of a recipe look for their own module
  try:
    spec.loader.exec_module(module)
  except (SyntaxError, ImportError) as e:
    raise UserError(f"{path}: cannot be read as a config: {e}") from e
  function = getattr(module, "get_config", None)
  if function is None:
    raise UserError(f"{path}: defines no get_config(), which returns a config")
  if argument and not inspect.signature(function).parameters:
    raise UserError(f"{path}: takes no argument, got {argument!r}")
  values = function(argument) if argument else function()
  if isinstance(values, config_class):
    return config_lib.to_dict(values)
  values = values.to_dict() if hasattr(values, "to_dict") else values
  if not isinstance(values, Mapping):
    wanted = f"{config_class.__name__} or ConfigDict is wanted"
    raise UserError(f"{path}: get_config() returns {type(values).__name__}, where {wanted}")
  return dict(values)
