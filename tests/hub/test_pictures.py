"""A model remembers how it was shown pictures, and whoever shows them otherwise is told."""

import json
import warnings

import pytest

import spatialvlm
from spatialvlm import export, hub, loading
from spatialvlm.config import ModelConfig
from spatialvlm.hub import pictures
from spatialvlm.types import Note, UserError
from tests import tiny_edge

TRAINED = {"layout": "mtmd", "max_tiles": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_edge.write("smolvlm", tmp_path_factory.mktemp("pictures") / "tiny")


def exported(folder, out, to="merged", vlm=None, **trained):
  model = export.Exportable(
    vlm or hub.load_model(folder), str(folder), folder, ModelConfig(str(folder), **trained)
  )
  return export.export(model, to, out)


def told(path, **shown) -> list[str]:
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found, asked = loading.find(ModelConfig(str(path))), ModelConfig(str(path), **shown)
    loading.note_pictures(found, asked)
  return [str(w.message) for w in caught if issubclass(w.category, Note)]


def test_a_saved_model_remembers(folder, tmp_path):
  out = exported(folder, tmp_path / "a", **TRAINED)
  assert json.loads((out / "pictures.json").read_text()) == {"max_tiles": 3, "layout": "mtmd"}
  (said,) = told(out)
  assert (
    "was trained with max_tiles=3, layout=mtmd and is shown pictures with max_tiles=None, layout=own" in said
  )
  assert "layout" not in told(out, layout="mtmd")[0] and not told(out, **TRAINED)
  with pytest.warns(Note, match="max_tiles=3, layout=mtmd"):
    vlm = spatialvlm.load_vlm(out)
  again = vlm.save(tmp_path / "b")
  assert pictures.read(again) == TRAINED
  # Trained further with the checkpoint's own settings, it forgets them; a base never had any.
  assert not (exported(again, tmp_path / "c") / "pictures.json").exists()
  assert not told(folder) and not told(folder, **TRAINED)


def test_an_adapter_remembers_and_counts_before_its_base(folder, tmp_path):
  base = exported(folder, tmp_path / "base", longest_edge=32)
  adapted = tiny_edge.adapted(hub.load_model(base), **tiny_edge.LORA)
  out = exported(base, tmp_path / "adapter", "adapter", adapted, **TRAINED)
  assert "trained with max_tiles=3, layout=mtmd and" in told(out)[0]
  (out / "pictures.json").unlink()
  assert "trained with longest_edge=32 and" in told(out)[0]


def test_eyes_in_a_gguf_file_remember_their_layout(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  out = exported(folder, tmp_path / "a", "gguf", layout="mtmd")
  assert "trained with layout=mtmd" in told(out)[0] and not told(out, layout="mtmd")
  assert not told(exported(folder, tmp_path / "b", "gguf", max_tiles=1))


@pytest.mark.parametrize("said", ['{"layout": 3}', '{"tiles": 3}', '{"max_tiles": true}', "[]"])
def test_a_damaged_file_is_named(said, folder, tmp_path):
  out = exported(folder, tmp_path / "a", **TRAINED)
  (out / "pictures.json").write_text(said)
  with pytest.raises(UserError, match=r"pictures\.json: .*it may be deleted"):
    loading.find(ModelConfig(str(out)))
