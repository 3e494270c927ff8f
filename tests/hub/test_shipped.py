"""The models that ship with the project are found by their path in a checkout, from any folder."""

import importlib

import pytest

from spatialvlm.types import UserError

# The package offers the function under the module's name.
resolve_lib = importlib.import_module("spatialvlm.hub.resolve")


def test_found_from_any_folder(tmp_path, monkeypatch):
  shipped = tmp_path / "checkout" / "checkpoints"
  (shipped / "small").mkdir(parents=True)
  monkeypatch.setattr(resolve_lib, "SHIPPED", shipped)
  monkeypatch.chdir(tmp_path)
  assert resolve_lib.resolve("checkpoints/small") == shipped / "small"
  # A folder of that name where the user stands comes first.
  (tmp_path / "checkpoints" / "small").mkdir(parents=True)
  assert resolve_lib.resolve("checkpoints/small").resolve() == tmp_path / "checkpoints" / "small"


def test_an_installed_package_says_where_they_are(tmp_path, monkeypatch):
  monkeypatch.setattr(resolve_lib, "SHIPPED", tmp_path / "site-packages" / "checkpoints")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="come with a checkout of the project"):
    resolve_lib.resolve("checkpoints/small")
