"""Every setting says what it means."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

from spatialvlm import config as config_lib
from spatialvlm.configs import lora
from spatialvlm.types import UserError

MODULES = [
  importlib.import_module(m.name) for m in pkgutil.walk_packages(config_lib.__path__, "spatialvlm.config.")
]
CLASSES = {c for m in MODULES for c in vars(m).values() if inspect.isclass(c) and dataclasses.is_dataclass(c)}


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_every_field_is_described(cls):
  """Under "Attributes:", one or several names to a line; those of a class above are described there."""
  attributes = inspect.cleandoc(cls.__doc__).partition("Attributes:\n")[2]
  named = re.findall(r"^  (\w+(?:, \w+)*): \S", attributes, re.M)
  described = [name for names in named for name in names.split(", ")]
  assert sorted(described) == sorted(inspect.get_annotations(cls))


def test_a_config_with_other_values_is_the_command_line_s():
  recipe = lora.get_config("tiny")
  settings = {
    "train.steps": 7,
    "eval.source.tasks": {"Depth": 1.0},
    "optim.name": "adamw",
    "peft.rank": 4,
  }
  found = config_lib.changed(recipe, settings)
  assert (found.train.steps, found.optim.name, found.peft.options["rank"]) == (7, "adamw", 4)
  assert found.eval.source.tasks == {"Depth": 1.0} and found.data == recipe.data
  assert recipe == lora.get_config("tiny")
  for wrong, said in (
    ({"train.step": 7}, "config.train.step: unknown key"),
    ({"train.steps": "many"}, "train.steps"),
  ):
    with pytest.raises(UserError, match=said):
      config_lib.changed(recipe, wrong)
