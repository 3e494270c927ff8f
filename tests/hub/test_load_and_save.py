import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.core.axes import make_mesh
from spatialvlm.hub import rules, tensors
from spatialvlm.hub.load import match
from spatialvlm.hub.resolve import read_entries, weight_files
from spatialvlm.models.families import FAMILIES
from spatialvlm.types import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def folder(tmp_path):
  """A copy of a small untied checkpoint."""
  copy = tmp_path / "model"
  shutil.copytree(FIXTURES / "smolvlm", copy)
  return copy


@pytest.fixture(scope="module")
def model():
  return hub.load_model(FIXTURES / "smolvlm")


def stored(folder) -> dict[str, np.ndarray]:
  entries, doubled = read_entries(sorted(Path(folder).glob("*.safetensors")))
  assert not doubled
  return {name: entry.read() for name, entry in entries.items()}


def rewrite(folder, change, name="model.safetensors"):
  """Replaces the tensors of a folder by what `change` makes of them."""
  out = change(stored(folder))
  for file in folder.glob("*.safetensors"):
    file.unlink()
  tensors.write(folder / name, {key: tensors.lazy(np.asarray(value)) for key, value in out.items()})


def edit_config(folder, **changes):
  source = json.loads((folder / "config.json").read_text())
  source.update(changes)
  (folder / "config.json").write_text(json.dumps(source))


def same(one, other):
  pairs = zip(nnx.to_flat_state(nnx.state(one)), nnx.to_flat_state(nnx.state(other)), strict=True)
  return all(a == b and np.array_equal(np.asarray(x[...]), np.asarray(y[...])) for (a, x), (b, y) in pairs)


def test_every_rule_goes_both_ways():
  for family, spec in FAMILIES.items():
    for theirs, ours, _ in spec.rules:
      theirs, ours = theirs.replace("{i}", "17"), ours.replace("{i}", "17")
      assert rules.to_ours(theirs, family) == ours
      assert rules.to_hf(ours, family) == theirs
  assert rules.to_ours("model.text_model.layers.x.mlp.up_proj.weight", "smolvlm") is None


def test_layouts_go_both_ways():
  x = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
  ours = rules.from_file(x, "vision.patch_embed.kernel", "smolvlm")
  assert ours.shape == (4, 4, 3, 2) and ours[1, 2, 0, 1] == x[1, 0, 1, 2]
  np.testing.assert_array_equal(rules.to_file(ours, "vision.patch_embed.kernel", "smolvlm"), x)
  assert rules.file_shape((4, 4, 3, 2), "vision.patch_embed.kernel", "smolvlm") == (2, 3, 4, 4)


def test_saved_tensors_are_the_loaded_ones(model, tmp_path):
  hub.save_model(model, tmp_path / "out")
  before, after = stored(FIXTURES / "smolvlm"), stored(tmp_path / "out")
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[key], after[key]) for key in before)
  assert same(hub.load_model(tmp_path / "out"), model)


def test_shards_with_an_index(model, tmp_path):
  hub.save_model(model, tmp_path)
  whole = {key: tensors.lazy(value) for key, value in stored(tmp_path).items()}
  (tmp_path / "model.safetensors").unlink()
  tensors.write_sharded(tmp_path, whole, most=30_000)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert len(set(index["weight_map"].values())) > 2 and set(index["weight_map"]) == set(whole)
  assert same(hub.load_model(tmp_path), model)
  next(tmp_path.glob("model-00002*")).unlink()
  with pytest.raises(UserError, match=r"shards that are not there: model-00002"):
    hub.load_model(tmp_path)


def test_saving_over_an_older_save_leaves_no_old_weights(model, folder):
  (folder / "model-00001-of-00002.safetensors").write_bytes(b"old")
  (folder / "model.safetensors.index.json").write_text("{}")
  (folder / "README.md").write_text("mine")
  hub.save_model(model, folder)
  assert {file.name for file in folder.iterdir()} == {
    "README.md",
    "config.json",
    "model.safetensors",
    "record.npz",
  }


def test_companions_are_copied(model, folder, tmp_path):
  (folder / "tokenizer.json").write_text("{}")
  (folder / "chat_template.jinja").write_text("hello")
  (folder / "modeling_evil.py").write_text("raise SystemExit")
  hub.save_model(model, tmp_path / "out", folder)
  assert (tmp_path / "out/chat_template.jinja").read_text() == "hello"
  assert not (tmp_path / "out/modeling_evil.py").exists() and not (tmp_path / "out/record.npz").exists()


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
  def full(fd):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match=r"No space left on device"):
    hub.save_model(model, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_older_save(model, folder, monkeypatch):
  before = stored(folder)
  monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
  with pytest.raises(UserError):
    hub.save_model(model, folder)
  assert all(np.array_equal(value, stored(folder)[key]) for key, value in before.items())
  assert list(folder.parent.iterdir()) == [folder]


def test_bfloat16_loads_casts_and_saves(folder, tmp_path):
  low = hub.load_model(folder, dtype="bfloat16")
  leaves = jax.tree.leaves(nnx.state(low))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
  hub.save_model(low, tmp_path / "low")
  kept = stored(tmp_path / "low")
  want = {key: value.astype(ml_dtypes.bfloat16) for key, value in stored(folder).items()}
  assert all(kept[key].dtype == ml_dtypes.bfloat16 and np.array_equal(kept[key], want[key]) for key in want)
  assert json.loads((tmp_path / "low/config.json").read_text())["dtype"] == "bfloat16"
  high = hub.load_model(tmp_path / "low")  # a bfloat16 file read as float32 is exact
  assert high.decoder.norm.scale.dtype == jnp.float32
  np.testing.assert_array_equal(high.decoder.norm.scale[...], low.decoder.norm.scale[...].astype(jnp.float32))


def test_a_head_in_the_file_decides_over_the_config(model, folder):
  assert not model.config.tied
  edit_config(folder, tie_word_embeddings=True)
  assert not hub.load_model(folder).config.tied
  rewrite(folder, lambda kept: {key: value for key, value in kept.items() if key != "lm_head.weight"})
  edit_config(folder, tie_word_embeddings=False)
  tied = hub.load_model(folder)
  assert tied.config.tied and not hasattr(tied.decoder, "lm_head")
  hub.save_model(tied, folder)
  source = json.loads((folder / "config.json").read_text())
  assert source["tie_word_embeddings"] and source["text_config"]["tie_word_embeddings"]


def test_both_spellings_of_rope(folder):
  source = json.loads((folder / "config.json").read_text())["text_config"]
  source.pop("rope_parameters", None)
  for text, want in (
    ({"rope_theta": 7.0}, 7.0),
    ({"rope_parameters": {"rope_theta": 9.0, "rope_type": "default"}}, 9.0),
    ({"rope_theta": 7.0, "rope_scaling": None}, 7.0),
    ({"rope_theta": 5.0, "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}}, 5.0),
    ({}, 10000.0),
  ):
    edit_config(folder, text_config={**source, **text})
    assert hub.read_config(folder).text.rope_theta == want
  edit_config(folder, text_config={**source, "rope_scaling": {"rope_type": "yarn", "factor": 2}})
  with pytest.raises(UserError, match=r"rope type 'yarn' is not supported"):
    hub.read_config(folder)


def test_a_base_model_has_no_prefix_and_old_buffers_are_left_out(model, folder):
  def change(kept):
    kept = {key.removeprefix("model."): value for key, value in kept.items()}
    return {**kept, "text_model.rotary_emb.inv_freq": np.ones(4, np.float32)}

  rewrite(folder, change)
  assert same(hub.load_model(folder), model)


def test_all_misfits_are_listed_at_once(folder):
  def change(kept):
    kept["model.text_model.norm.weight"] = np.ones(5, np.float32)
    kept["model.text_model.layers.0.mlp.extra.weight"] = np.ones((2, 2), np.float32)
    kept["text_model.embed_tokens.weight"] = kept["model.text_model.embed_tokens.weight"]
    kept["model.vision_model.post_layernorm.bias"] = np.ones(16, np.int32)
    del kept["model.connector.modality_projection.proj.weight"]
    return kept

  rewrite(folder, change)
  with pytest.raises(UserError) as error:
    hub.load_model(folder)
  message = str(error.value)
  assert "\n" not in message and "5 tensor(s)" in message
  for part in (
    "model.text_model.norm.weight: shape [5], wanted [24]",
    "layers.0.mlp.extra.weight: no place for it",
    "a second tensor for decoder.embed.embedding",
    "post_layernorm.bias: dtype I32",
    "model.connector.modality_projection.proj.weight: missing",
  ):
    assert part in message


def test_a_tensor_in_two_shards(folder):
  entries, _ = read_entries([folder / "model.safetensors"])
  shapes = {rules.to_ours(name, "smolvlm"): entry.shape for name, entry in entries.items()}
  shutil.copy(folder / "model.safetensors", folder / "again.safetensors")
  entries, doubled = read_entries([folder / "model.safetensors", folder / "again.safetensors"])
  with pytest.raises(UserError, match=r"lm_head.weight: stands in two files"):
    match(entries, doubled, shapes, "smolvlm", folder)


@pytest.mark.parametrize("keep", [0, 5, 200, 20_000, -1])
def test_truncated_files(folder, keep):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(UserError, match=r"model.safetensors: .*truncated"):
    hub.load_model(folder)


def test_files_that_are_no_safetensors(folder):
  file = folder / "model.safetensors"
  file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
  with pytest.raises(UserError, match=r"model.safetensors: a pointer of git-lfs .* run 'git lfs pull'"):
    hub.load_model(folder)
  file.write_bytes(b"<!DOCTYPE html><html>a page that asks for a login</html>")
  with pytest.raises(UserError, match=r"not a safetensors file"):
    hub.load_model(folder)
  for header, says in (
    (b"what", "header is no JSON"),
    (b'"no"', "header is no JSON object"),
    (b'{"x": {"dtype": "F32"}}', "entry of tensor x is damaged"),
    (b'{"x": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}', "dtype F9, which is not supported"),
    (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "4 bytes do not hold shape"),
  ):
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError, match=says):
      hub.load_model(folder)


def test_pickles_are_refused(folder):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
  with pytest.raises(UserError, match=r"only pickle files \(pytorch_model.bin\)"):
    hub.load_model(folder)


def test_folders_that_hold_no_model(folder, tmp_path):
  (folder / "model.safetensors").unlink()
  with pytest.raises(UserError, match=r"no weights"):
    hub.load_model(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config.json: cannot be read as JSON"):
    hub.load_model(folder)
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match=r"config.json: missing"):
    hub.load_model(folder)


def test_architectures_that_are_not_known(folder):
  edit_config(folder, model_type="llava")
  with pytest.raises(
    UserError, match=r"unknown architecture 'llava'; supported: gemma, gemma2, idefics3, internvl, llama"
  ):
    hub.load_model(folder)


def test_settings_that_are_not_computed(folder):
  source = json.loads((folder / "config.json").read_text())
  edit_config(folder, text_config={**source["text_config"], "model_type": "mistral"})
  with pytest.raises(UserError, match=r"text_config.model_type 'mistral'"):
    hub.load_model(folder)
  edit_config(folder, text_config={**source["text_config"], "hidden_size": "wide"})
  with pytest.raises(UserError, match=r"text_config.hidden_size: expected a whole number .* got 'wide'"):
    hub.load_model(folder)
  edit_config(folder, text_config={**source["text_config"], "hidden_act": "relu"})
  with pytest.raises(UserError, match=r"hidden_act 'relu'"):
    hub.load_model(folder)


@pytest.mark.parametrize("name", ["some/where/deep", "./none", "HuggingFaceTB/SmolVLM-nothing"])
def test_no_folder_and_no_network(name, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=r"no such folder") as error:
    hub.load_model(name)
  assert "\n" not in str(error.value)


def test_a_file_is_no_folder(folder):
  with pytest.raises(UserError, match=r"a file, where a folder"):
    hub.load_model(folder / "config.json")


@pytest.mark.parametrize(
  "settings, says",
  [
    ({"dtype": "float16"}, "dtype: 'float16' is not offered .its largest number"),
    ({"dtype": "int8"}, "dtype: 'int8' is not offered; use float32 or bfloat16"),
  ],
)
def test_numbers_that_are_refused(settings, says):
  with pytest.raises(UserError, match=says):
    hub.load_model(FIXTURES / "smolvlm", **settings)


def test_loading_onto_a_mesh(model):
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  spread = hub.load_model(FIXTURES / "smolvlm", mesh=mesh)
  assert same(spread, model)
  kernel = spread.decoder.stack.layers[0].mlp.up_proj.kernel[...]
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(12, 20)}


def test_from_scratch_needs_only_a_config(folder):
  (folder / "model.safetensors").unlink()
  one, two = (hub.load_model(folder, from_scratch=True, seed=seed) for seed in (0, 1))
  assert not same(one, two)
  assert hub.identity(folder)["sha256"].startswith("config:")


def test_identity_changes_with_the_weights(folder):
  before = hub.identity(folder)
  assert before["id"] == str(folder) and before["revision"] is None and len(before["sha256"]) == 64
  assert before["sha256"] == hub.identity(FIXTURES / "smolvlm")["sha256"]
  rewrite(folder, lambda kept: {**kept, "lm_head.weight": kept["lm_head.weight"] + 1})
  assert hub.identity(folder)["sha256"] != before["sha256"]


def test_adapters_must_be_merged_before_saving(tmp_path):
  vlm = hub.load_model(FIXTURES / "smolvlm")
  vlm.decoder.stack.layers[0].attn.q_proj.lora_a = nnx.Param(jnp.zeros((2, 2)))
  with pytest.raises(UserError, match=r"merge adapters first.*q_proj.lora_a"):
    hub.save_model(vlm, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_snapshot_without_safetensors_says_what_to_do(tmp_path):
  """Pickles are never fetched, so that of a repository which holds nothing else no weights arrive."""
  for folder, said in ((tmp_path / "snapshots" / "abc", True), (tmp_path / "plain", False)):
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="no weights") as error:
      weight_files(folder)
    assert ("refs/pr/N" in str(error.value)) == said and "\n" not in str(error.value)
