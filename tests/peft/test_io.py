"""PEFT folders: those that peft wrote (recorded by tests/oracle/record_peft.py), ours, and bad ones."""

import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from spatialvlm.hub import tensors
from spatialvlm.peft.lora import Lora
from spatialvlm.peft.method import Site
from spatialvlm.types import UserError
from tests.models.support import batch_of, call
from tests.peft import support

FIXTURES = Path(__file__).parents[1] / "fixtures"
TIED = ("tied", "parted", "parted_head", "embedding_tied", "token_rows_tied")
FAMILY = dict.fromkeys(TIED, "idefics3")  # the others: smolvlm
RECORD = dict(np.load(FIXTURES / "peft" / "record.npz"))
CASES = sorted(name.removesuffix(".logits") for name in RECORD if name.endswith(".logits"))


def recorded_batch():
  pixels = RECORD["pixel_values"]
  pixels = np.where(pixels == 255, 0.0, pixels / 127.5 - 1).astype(np.float32)
  return batch_of({**RECORD, "pixel_values": pixels}, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_folders_of_peft_give_the_logits_of_peft(name, tmp_path):
  """Loaded, written again and loaded from there, and merged: always the recorded logits."""
  base = FIXTURES / FAMILY.get(name, "smolvlm")
  expected, batch = RECORD[f"{name}.logits"], recorded_batch()
  vlm = hub.load_model(base)
  assert np.abs(np.asarray(call(vlm, batch)) - expected).max() > 0.1
  peft.load_adapter(vlm, FIXTURES / "peft" / name)
  tolerance = 1e-5 * np.abs(expected).max()
  assert np.abs(np.asarray(call(vlm, batch)) - expected).max() <= tolerance
  peft.save_adapter(vlm, tmp_path / "a", "base/id")
  again = peft.load_adapter(hub.load_model(base), tmp_path / "a")
  assert np.array_equal(np.asarray(call(again, batch)), np.asarray(call(vlm, batch)))
  assert np.abs(np.asarray(call(peft.merge(vlm), batch)) - expected).max() <= 2 * tolerance
  ours, theirs = (
    load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "a", FIXTURES / "peft" / name)
  )
  assert set(ours) == {key for key in theirs if not key.endswith(".base_layer.weight")}
  assert all(np.array_equal(value, theirs[key]) for key, value in ours.items())


def test_a_sharded_bfloat16_base_takes_an_adapter_too():
  from spatialvlm.core.axes import make_mesh, sharding_of

  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  vlm = hub.load_model(FIXTURES / "smolvlm", dtype="bfloat16", mesh=mesh)
  peft.load_adapter(vlm, FIXTURES / "peft" / "saved")
  trained = nnx.to_flat_state(nnx.state(vlm, support.TRAINED))
  assert {variable.get_raw_value().dtype for _, variable in trained} == {jnp.dtype("float32")}
  for _, variable in trained:
    raw = variable.get_raw_value()
    assert raw.sharding.is_equivalent_to(sharding_of(variable, mesh), raw.ndim)
  logits, expected = np.asarray(call(vlm, recorded_batch())), RECORD["saved.logits"]
  assert np.abs(logits - expected).mean() <= 0.03 * np.abs(expected).mean()


def test_training_goes_on_from_a_folder(tmp_path):
  vlm = support.moved(
    peft.apply(support.build(), PeftConfig(target=r".*q_proj", options={"rank": 3, "dropout": 0.1}))
  )
  peft.save_adapter(vlm, tmp_path / "a")
  config = PeftConfig(resume_from=str(tmp_path / "a"), full="lm_head", options={"dropout": 0.4, "rank": 99})
  again = peft.apply(support.build(), config)
  assert np.array_equal(support.logits(again), support.logits(vlm))
  spec = again.vision.stack.layers[0].attn.q_proj.spec
  assert (spec.rank, spec.dropout) == (3, 0.4)
  trained = peft.count_parameters(again, peft.trainable_filter(again, config))[0]
  assert trained == peft.count_parameters(vlm, support.TRAINED)[0] + 64 * 24


def test_ranks_and_alphas_survive_the_folder(tmp_path):
  config = PeftConfig(
    target=r".*text_model.*\.(q|k|v)_proj",
    options={
      "rank": 4,
      "alpha": 2.5,
      "rslora": True,
      "rank_pattern": {r".*layers\.1.*q_proj": 7},
      "alpha_pattern": {r".*v_proj": 16.0},
    },
  )
  vlm = peft.apply(support.build(), config)
  peft.save_adapter(vlm, tmp_path / "a", "base")
  again = peft.load_adapter(support.build(), tmp_path / "a")
  specs = [
    [m.spec for _, m in nnx.iter_modules(model) if isinstance(m, peft.LoraLinear)] for model in (vlm, again)
  ]
  assert specs[0] == specs[1]
  written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
  assert written["rank_pattern"] == {r"model\.text_model\.layers\.1\.self_attn\.q_proj": 7}
  assert written["peft_type"] == "LORA" and written["use_rslora"] is True
  assert written["base_model_name_or_path"] == "base"


def sites(*names) -> dict[str, Site]:
  layer = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
  return {name: Site(name, (), layer, "smolvlm") for name in names}


@pytest.mark.parametrize(
  "changes, names",
  [
    ({"target_modules": "all-linear"}, {"a.layers.0.q", "a.layers.1.q", "b.blocks.0.layers.1.k", "b.q"}),
    ({"target_modules": ["q"]}, {"a.layers.0.q", "a.layers.1.q", "b.q"}),
    ({"target_modules": ["b.q", "head"]}, {"b.q", "head"}),
    ({"target_modules": r"a\..*"}, {"a.layers.0.q", "a.layers.1.q"}),
    ({"target_modules": "q"}, set()),
    ({"target_modules": ["q"], "exclude_modules": ["layers.1.q"]}, {"a.layers.0.q", "b.q"}),
    ({"target_modules": ["q"], "exclude_modules": r"a\..*"}, {"b.q"}),
    ({"target_modules": ["q", "k"], "layers_to_transform": [1]}, {"a.layers.1.q"}),
    ({"target_modules": ["q", "k"], "layers_to_transform": 0}, {"a.layers.0.q", "b.blocks.0.layers.1.k"}),
    (
      {"target_modules": ["q", "k"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
      {"a.layers.1.q", "b.blocks.0.layers.1.k"},
    ),
    ({"target_modules": ["q", "k"], "modules_to_save": ["a"]}, {"b.blocks.0.layers.1.k", "b.q"}),
  ],
)
def test_targets_are_matched_as_peft_matches_them(changes, names):
  linears = ["a.layers.0.q", "a.layers.1.q", "b.blocks.0.layers.1.k", "b.q", "head"]
  config = {"r": 2, "lora_alpha": 4} | changes
  assert set(Lora().specs_of_folder(config, sites(*linears), "head")) == names


def test_patterns_of_ranks_match_ends_of_names():
  config = {"r": 2, "lora_alpha": 4, "target_modules": ["q"], "rank_pattern": {"layers.0.q": 5, "^b.q": 6}}
  found = Lora().specs_of_folder(config, sites("a.layers.0.q", "a.b.q", "b.q"), "")
  ranks = {name: spec.rank for name, spec in found.items()}
  assert ranks == {"a.layers.0.q": 5, "a.b.q": 2, "b.q": 6}


@pytest.fixture
def folder(tmp_path):
  """A good adapter of `support.build()`, to be spoilt."""
  vlm = support.moved(
    peft.apply(support.build(), PeftConfig(target=r".*text_model.*(q|v)_proj", options={"rank": 3}))
  )
  return peft.save_adapter(vlm, tmp_path / "good")


def spoil(folder, tensors_=None, **config):
  if tensors_ is not None:
    found = load_file(folder / "adapter_model.safetensors")
    tensors_(found)
    save_file(found, folder / "adapter_model.safetensors")
  file = folder / "adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | config))


def refusal(folder):
  vlm = support.build()
  before = nnx.graphdef(vlm)
  with pytest.raises(UserError) as caught:
    peft.load_adapter(vlm, folder)
  assert nnx.graphdef(vlm) == before
  message = str(caught.value)
  assert "\n" not in message
  return message


def test_all_misfits_are_listed_at_once(folder):
  stem = "base_model.model.model.text_model.layers."

  def change(found):
    found.pop(stem + "0.self_attn.q_proj.lora_A.weight")
    found[stem + "1.self_attn.v_proj.lora_B.weight"] = np.zeros((5, 3), np.float32)
    found[stem + "0.self_attn.k_proj.lora_A.weight"] = np.zeros((3, 24), np.float32)
    found[stem + "9.self_attn.q_proj.lora_A.weight"] = np.zeros((3, 24), np.float32)
    name = "base_model.model.model.vision_model.embeddings.position_embedding.lora_embedding_A"
    found[name] = np.zeros((3, 36), np.float32)
    found["base_model.model.model.text_model.norm.weight"] = np.zeros(24, np.float32)

  spoil(folder, change)
  message = refusal(folder)
  for words in (
    "6 tensor(s)",
    "0.self_attn.q_proj.lora_A.weight: missing",
    "1.self_attn.v_proj.lora_B.weight: shape [5, 3], wanted [16, 3]",
    "0.self_attn.k_proj.lora_A.weight: target_modules does not name this layer",
    "9.self_attn.q_proj.lora_A.weight: the model has no such linear layer",
    "as embeddings of positions, are not supported",
    "model.text_model.norm.weight: modules_to_save does not name its module",
  ):
    assert words in message, message


@pytest.mark.parametrize(
  "config, words",
  [
    ({"r": 4}, ["shape [3, 24], wanted [4, 24]"]),
    ({"peft_type": "ADALORA"}, ["peft_type 'ADALORA'"]),
    (
      {"target_parameters": ["x"], "fan_in_fan_out": True},
      ["target_parameters=['x']", "fan_in_fan_out=True"],
    ),
    ({"bias": "some"}, ["bias is 'some'"]),
    ({"bias": "all"}, ["fc1.bias: missing"]),
    ({"lora_bias": True}, ["lora_B.bias: missing"]),
    ({"lora_bias": True, "use_dora": True}, ["lora_bias=True with use_dora=True"]),
    ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights='pissa_niter_4'"]),
    ({"some_future_option": [1]}, ["some_future_option=[1]"]),
    ({"target_parameters": ["x"]}, ["target_parameters"]),
    ({"target_modules": ["nothing"]}, ["target_modules does not name this layer"]),
    ({"target_modules": None}, ["target_modules is None"]),
    ({"r": "8"}, ["r is '8'"]),
    ({"use_dora": True}, ["lora_magnitude_vector: missing"]),
    ({"modules_to_save": ["lm_head"]}, ["lm_head.weight: missing"]),
    ({"trainable_token_indices": [1]}, ["embed_tokens.token_adapter.trainable_tokens_delta: missing"]),
    (
      {"trainable_token_indices": [1], "target_modules": ["q_proj", "embed_tokens"]},
      ["of a table that target_modules adapts"],
    ),
    (
      {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
      ["of a table that modules_to_save holds"],
    ),
    ({"trainable_token_indices": [1, 1]}, ["trainable_token_indices is [1, 1]"]),
    ({"trainable_token_indices": {"embed_tokens": [64]}}, ["[64] are beyond the 64 rows"]),
    (
      {"trainable_token_indices": {"lm_head": [1]}},
      ["'lm_head': only rows of model.text_model.embed_tokens"],
    ),
  ],
)
def test_configs_that_do_not_fit_are_refused(folder, config, words):
  spoil(folder, **config)
  message = refusal(folder)
  assert all(word in message for word in words), message


def test_only_safetensors(folder):
  (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
  assert "pickle" in refusal(folder)
  (folder / "adapter_model.bin").unlink()
  assert "adapter_model.safetensors: missing" in refusal(folder)


def test_broken_folders(folder, tmp_path):
  weights = folder / "adapter_model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  assert "truncated" in refusal(folder)
  weights.write_bytes(whole)
  (folder / "adapter_config.json").write_text("{")
  assert "JSON" in refusal(folder)
  (folder / "adapter_config.json").unlink()
  assert "adapter_config.json: missing" in refusal(folder)
  assert "no such folder" in refusal(tmp_path / "absent")


def test_another_base_is_refused(folder):
  """An adapter of a wider model; and a base weight that peft saved beside, which is not ours."""
  other = support.build()
  wider = json.loads((folder / "adapter_config.json").read_text())
  assert wider["r"] == 3

  def widen(found):
    for key, value in found.items():
      found[key] = np.pad(value, [(0, 0), (0, 8)]) if "lora_A" in key else value

  spoil(folder, widen)
  assert refusal(folder).count("wanted [3, 24]") == 4
  shutil.rmtree(folder)
  peft.save_adapter(peft.apply(other, PeftConfig(target="lm_head")), folder)
  spoil(
    folder,
    lambda found: found.update({"base_model.model.lm_head.base_layer.weight": np.ones((64, 24), "f4")}),
  )
  assert "another base" in refusal(folder)


def test_a_second_adapter_is_refused(folder):
  vlm = peft.load_adapter(support.build(), folder)
  with pytest.raises(UserError, match="already carries"):
    peft.load_adapter(vlm, folder)


def test_saving_without_an_adapter_is_refused(tmp_path):
  vlm = peft.apply(support.build(), PeftConfig(method="none", full="lm_head"))
  with pytest.raises(UserError, match="no layer carries an adapter"):
    peft.save_adapter(vlm, tmp_path / "a")
  assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_adapter(folder, monkeypatch):
  before = {file.name: file.read_bytes() for file in folder.iterdir()}
  vlm = peft.load_adapter(support.build(), folder)

  def full(file, _):
    file.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(tensors, "write", full)
  for place in (folder, folder.parent / "new"):
    with pytest.raises(UserError, match="No space left"):
      peft.save_adapter(vlm, place)
  assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
  assert [path.name for path in folder.parent.iterdir()] == ["good"]


def test_saving_replaces_an_adapter(folder):
  vlm = peft.load_adapter(support.build(), folder)
  changed = support.moved(vlm, 0.1, seed=9)
  (folder / "notes.txt").write_text("kept")
  peft.save_adapter(changed, folder)
  assert np.array_equal(support.logits(peft.load_adapter(support.build(), folder)), support.logits(changed))
  assert sorted(file.name for file in folder.iterdir()) == [
    "adapter_config.json",
    "adapter_model.safetensors",
    "notes.txt",
  ]


def test_a_merged_model_is_a_plain_checkpoint(tmp_path):
  """The way of an export: adapters merged, saved in Hugging Face's format, loaded with the same logits."""
  base = FIXTURES / "smolvlm"
  vlm = peft.load_adapter(hub.load_model(base), FIXTURES / "peft" / "dora")
  with pytest.raises(UserError, match="merge adapters first"):
    hub.save_model(vlm, tmp_path / "no")
  merged = peft.merge(vlm)
  again = hub.load_model(hub.save_model(merged, tmp_path / "yes"))
  for old, new in zip(jax.tree.leaves(nnx.state(merged)), jax.tree.leaves(nnx.state(again)), strict=True):
    assert np.array_equal(old, new)
