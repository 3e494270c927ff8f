"""The model that ships is found from any folder, by its path in a checkout and by its name."""

import importlib

import pytest

from spatialvlm import shipped
from spatialvlm.types import UserError

# The package offers the function under the module's name.
resolve_lib = importlib.import_module("spatialvlm.hub.resolve")
OURS = shipped.checkpoints()["smolvlm-tiny"]


def test_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert resolve_lib.resolve("checkpoints/smolvlm-tiny") == resolve_lib.resolve("smolvlm-tiny") == OURS
  assert (OURS / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["checkpoints/smolvlm-tiny", "smolvlm-tiny"])
def test_a_folder_of_that_name_where_the_user_stands_comes_first(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).mkdir(parents=True)
  assert resolve_lib.resolve(name).resolve() == tmp_path / name


def test_one_that_does_not_ship_is_refused_with_those_that_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=r"checkpoints/small: no such folder; .*: smolvlm-tiny"):
    resolve_lib.resolve("checkpoints/small")


def test_inside_of_a_wheel_and_beside_the_library_in_a_checkout(tmp_path, monkeypatch):
  package = tmp_path / "spatialvlm"
  monkeypatch.setattr(shipped, "_PACKAGE", package)
  for where in (tmp_path, package):  # once both are there, the wheel's
    model, recipe = where / "checkpoints" / "some", where / "configs" / "some.py"
    for path in (model, recipe.parent):
      path.mkdir(parents=True)
    (model / "config.json").touch()
    recipe.touch()
    (recipe.parent / "__init__.py").touch()
    assert shipped.checkpoints() == {"some": model} and shipped.recipes() == {"some": recipe}


def test_files_that_come_with_the_project():
  found = shipped.file("checkpoints/smolvlm-135m-dinov2s/connector.safetensors")
  assert found is not None and found.is_absolute() and found.is_file()
  assert shipped.file("checkpoints/none.safetensors") is None and shipped.file("runs/1/model") is None
