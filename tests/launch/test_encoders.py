"""`launch/encoders.py` as a user runs it."""

import json

import pytest

from spatialvlm.probing import features, worlds
from tests.launch import command
from tests.probing.support import numbers, recorded_encoder
from tests.probing.test_photos import write_photo

SETTINGS = ("--config.grid=4", "--config.batch_size=20", "--config.bootstrap=20", "--config.pictures=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return recorded_encoder(tmp_path_factory.mktemp("encoders") / "siglip")


@pytest.fixture
def typed(folder, tmp_path, capfd, monkeypatch):
  """Runs the command on scenes that are numbers, and on the same weights for drawn ones, to save time."""
  monkeypatch.setattr(worlds, "render", lambda config, show: numbers(40))
  monkeypatch.setattr(features, "drawn", lambda encoder, seed: encoder)
  named = f"--config.encoders.siglip={folder}"

  def run(*arguments, encoders=(named,)):
    return command.run(
      capfd, "encoders", "--config=probe", f"--workdir={tmp_path}/run", *SETTINGS, *encoders, *arguments
    )

  return run


def test_a_comparison(typed, tmp_path, monkeypatch):
  # Interrupted at the second: what was seen stays, nothing else is there, and the rest follows.
  see, calls = features.see, []

  def interrupted(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return see(*arguments)

  monkeypatch.setattr(features, "see", interrupted)
  photos = f"--config.photos={write_photo(tmp_path / 'photos')}"
  assert typed(photos).code == 130
  kept = sorted(p.name for p in (tmp_path / "run" / "features").iterdir())
  assert kept == ["siglip.npz"]
  assert not (tmp_path / "run" / "results.json").exists()
  done = typed(photos)
  assert done.code == 0, done.err
  assert len(calls) == 3 and done.out.startswith("continues in") and "GFLOPs" in done.out
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  rows = ["guessing", "place alone", "raw pixels", "siglip", "siglip (drawn)"]
  assert list(results["probes"]) == rows
  assert list(results["encoders"]) == ["siglip"] and results["encoders"]["siglip"]["tokens"] == 9
  assert results["cka"]["names"] == rows[2:] and len(results["cka"]["cells"]) == 3
  assert list(results["photos"]["rows"]) == rows[1:]
  assert results["photos"]["rows"]["siglip"]["bike"]["cells"] == 15
  assert "Photographs" in (tmp_path / "run" / "encoders.html").read_text()
  names = {p.name for p in (tmp_path / "run").iterdir()}
  assert {"encoders.html", "encoders.png", "encoders.md", "results.json", "config.json"} <= names
  assert (tmp_path / "run" / "encoders.png").read_bytes()[:4] == b"\x89PNG"
  other = typed(photos, "--config.grid=2")
  assert other.code == 2 and "a run with other settings" in other.err


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config.layers=(-4,)"], "config.layers: siglip has layers 0 to 2"),
    (["--config.layers=()"], "must name layers"),
    (["--config.image_size=3"], "smaller than a patch of siglip, 4 pixels"),
    (["--config.render_size=30"], "30 is no multiple of config.grid, 4"),
    (["--config.dtype=float16"], "config.dtype: 'float16' is not offered"),
    (["--config.test=0"], "config.test: must be at least 1"),
    (["--config.scene=3"], "unknown key; did you mean 'scenes'"),
    (["--config.encoders.none=/no/such/folder"], "no such folder"),
    (["--config=probe:large"], "unknown argument 'large'"),
    (["extra"], "unexpected argument 'extra'"),
  ],
)
def test_what_users_get_wrong(typed, tmp_path, arguments, message):
  done = typed(*arguments)
  assert done.code == 2 and done.err.count("\n") == 1 and message in done.err
  assert not (tmp_path / "run").exists()


def test_no_encoders_and_no_image_settings(typed, folder, tmp_path):
  done = typed(encoders=[])
  assert done.code == 2 and "config.encoders: there are none" in done.err
  bare = tmp_path / "bare"
  bare.mkdir()
  done = typed(encoders=[f"--config.encoders.bare={bare}"])
  assert done.code == 2 and "config.json: missing" in done.err
  for name in ("config.json", "model.safetensors"):
    (bare / name).write_bytes((folder / name).read_bytes())
  done = typed(encoders=[f"--config.encoders.bare={bare}"])
  assert done.code == 2 and "no preprocessor_config.json; copy it" in done.err
