"""What every method of the table keeps to; its own settings; and that nothing trained is lost."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig, from_config_dict, to_dict
from spatialvlm.core import axes
from spatialvlm.peft.ia3 import Ia3Linear
from spatialvlm.peft.lora import Lora
from spatialvlm.peft.method import LayerMethod
from spatialvlm.training import state as state_lib
from spatialvlm.types import UserError
from tests.peft import support
from tests.peft.test_soft import SOFT

# Those that change layers; tests/peft/test_soft.py is of the others.
ADAPTERS = [name for name, method in peft.METHODS.items() if isinstance(method, LayerMethod)]
# Settings under which each method trains in every part of the model.
WIDE = {
  "lora": {"target": ".*", "rank": 2},
  "ia3": {"target": ".*"},
  "ln_tuning": {"target": ".*"},
  "loha": {"target": ".*", "rank": 2},
  "lokr": {"target": ".*", "rank": 2, "decompose_both": True},
  "vera": {"target": ".*", "rank": 40},
  "houlsby": {"target": r".*\.(o_proj|out_proj|down_proj|fc2)", "reduction_factor": 2},
  "pfeiffer": {"target": ".*", "reduction_factor": 2},
  "parallel": {"target": ".*", "reduction_factor": 2},
  "trainable_tokens": {"token_indices": list(range(3, 20))},
}


def config_of(name: str, **settings) -> PeftConfig:
  return from_config_dict({"method": name, **WIDE[name], **settings}, PeftConfig, "config.peft")


def adapted(name: str, dtype="float32", mesh=None, **settings):
  return peft.apply(support.build(dtype, mesh), config_of(name, **settings))


def trained(vlm) -> dict[str, jax.Array]:
  flat = nnx.to_flat_state(nnx.state(vlm, peft.Trained))
  return {".".join(map(str, path)): variable.get_raw_value() for path, variable in flat}


def test_the_tests_know_every_method():
  assert set(WIDE) == set(ADAPTERS) and set(peft.METHODS) == {*ADAPTERS, *SOFT, "none"}
  assert all(name == method.name for name, method in peft.METHODS.items())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_method_starts_at_the_base_and_comes_back_from_its_folder_and_merges(name, tmp_path):
  plain = support.logits(support.build())
  vlm = adapted(name, target=r"(?!.*connector).*", full=r"model\.connector\..*")
  assert np.array_equal(support.logits(vlm), plain)
  assert peft.carries(vlm) == (name,) and not peft.carries(support.build())
  vlm = support.moved(vlm, 0.1)
  expected = support.logits(vlm)
  assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
  peft.check_claims(vlm)
  peft.save_adapter(vlm, tmp_path / "a")
  again = peft.load_adapter(support.build(), tmp_path / "a")
  assert np.array_equal(support.logits(again), expected)
  assert set(trained(again)) == set(trained(vlm))
  if not peft.METHODS[name].mergeable:
    with pytest.raises(UserError, match=rf"method '{name}' cannot be merged"):
      peft.merge(vlm)
    return
  merged = peft.merge(vlm)
  assert {type(v) for _, v in nnx.to_flat_state(nnx.state(merged))} == {nnx.Param}
  assert nnx.graphdef(merged) == nnx.graphdef(support.build())
  assert np.abs(support.logits(merged) - expected).max() <= 5e-6 * np.abs(expected).max()
  assert np.array_equal(support.logits(vlm), expected)  # the original is left as it is


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_method_trains_in_float32_beside_bfloat16_on_every_mesh(name):
  mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  vlm = adapted(name, "bfloat16", mesh)
  config = config_of(name)
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config), mesh)
  assert {value.dtype for value in split.params.values()} == {jnp.dtype("float32")}
  # what VeRA's layers share is float32, as in its folder
  base = {value.dtype for n, value in split.frozen.items() if not n.endswith((".first", ".second"))}
  assert base <= {jnp.dtype("bfloat16")}
  for _, variable in nnx.to_flat_state(nnx.state(vlm)):
    raw = variable.get_raw_value()
    assert raw.sharding.is_equivalent_to(axes.sharding_of(variable, mesh), raw.ndim)
  forward = jax.eval_shape(lambda: vlm.hidden(support.batch(jnp.bfloat16)))
  assert forward.dtype == jnp.bfloat16
  if peft.METHODS[name].mergeable:
    assert {v.dtype for _, v in nnx.to_flat_state(nnx.state(peft.merge(vlm)))} == {jnp.dtype("bfloat16")}
  # the same model on one device gives the same numbers
  spread, alone = (support.moved(adapted(name, mesh=m), 0.1) for m in (mesh, None))
  np.testing.assert_allclose(support.logits(spread), support.logits(alone), atol=2e-5)


def test_vectors_of_ia3_lie_as_their_layers_do():
  mesh = axes.make_mesh({"fsdp": 2, "tensor": 4})
  layer = adapted("ia3", mesh=mesh).decoder.stack.layers[0]
  q, down = layer.attn.q_proj, layer.mlp.down_proj
  assert not q.spec.feedforward and down.spec.feedforward
  assert q.factors.shape == (32,) and q.factors[...].sharding.shard_shape((32,)) == (8,)
  assert down.factors.shape == (32,) and down.factors[...].sharding.shard_shape((32,)) == (8,)
  assert np.array_equal(q.factors[...], np.ones(32))


@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_is_its_formula(feedforward):
  rng = np.random.default_rng(0)
  base = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
  base.bias[...] = jnp.asarray(rng.normal(size=5), jnp.float32)
  factors = rng.normal(size=6 if feedforward else 5)
  from spatialvlm.peft.ia3 import Ia3Spec

  layer = Ia3Linear(base, Ia3Spec(feedforward), peft.AdapterParam(jnp.asarray(factors, jnp.float32)))
  x, w, b = rng.normal(size=(3, 6)), np.float64(base.kernel[...]), np.float64(base.bias[...])
  expected = (x * factors) @ w + b if feedforward else factors * (x @ w + b)
  np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-5)


def test_defaults_of_a_method_find_its_layers():
  """Keys, values and the last layer of the MLP; the decoder's norms."""
  vlm = peft.apply(support.build(), PeftConfig(method="ia3"))
  stem = "decoder.stack.layers."
  assert set(trained(vlm)) == {
    f"{stem}{i}.{n}.factors" for i in range(2) for n in ("attn.k_proj", "attn.v_proj", "mlp.down_proj")
  }
  vlm = peft.apply(support.build(), PeftConfig(method="ln_tuning"))
  names = {f"{stem}{i}.{n}.scale" for i in range(2) for n in ("attn_norm", "mlp_norm")}
  assert set(trained(vlm)) == {*names, "decoder.norm.scale"}


def test_names_of_loras_trained_arrays_are_those_of_older_checkpoints():
  """Literal: a TrainState's keys are these names, and checkpoints of earlier versions hold them."""
  config = from_config_dict(
    {"target": r".*text_model.*layers\.0.*(q|down)_proj|lm_head", "dora": True, "full": r"model\.connector"},
    PeftConfig,
  )
  vlm = peft.apply(support.build(), config)
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config), axes.make_mesh({}, jax.devices()[:1]))
  assert sorted(split.params) == [
    "connector.proj.kernel",
    "decoder.lm_head.lora_a",
    "decoder.lm_head.lora_b",
    "decoder.lm_head.magnitude",
    "decoder.stack.layers.0.attn.q_proj.lora_a",
    "decoder.stack.layers.0.attn.q_proj.lora_b",
    "decoder.stack.layers.0.attn.q_proj.magnitude",
    "decoder.stack.layers.0.mlp.down_proj.lora_a",
    "decoder.stack.layers.0.mlp.down_proj.lora_b",
    "decoder.stack.layers.0.mlp.down_proj.magnitude",
  ]
  assert "decoder.stack.layers.0.attn.q_proj.kernel" in split.frozen


@pytest.mark.parametrize("kind", [peft.AdapterParam, peft.FullParam, nnx.LoRAParam])
def test_a_variable_that_nobody_would_export_is_named_before_anything_is_trained(kind, tmp_path):
  vlm = adapted("lora")
  peft.check_claims(vlm)
  extra = {"compute_dtype": "float32"} if kind is peft.FullParam else {}
  vlm.decoder.prompt = kind(jnp.zeros((2, 24)), **extra)
  with pytest.raises(UserError, match=r"decoder\.prompt") as caught:
    peft.check_claims(vlm)
  assert "\n" not in str(caught.value)
  if kind is not nnx.LoRAParam:  # which is no longer the mark of what is trained
    with pytest.raises(UserError, match=r"decoder\.prompt"):
      peft.save_adapter(vlm, tmp_path / "a")
    assert not (tmp_path / "a").exists()
  if kind is peft.AdapterParam:
    peft.check_claims(vlm, claimed=[("decoder", "prompt")])


def test_an_embedding_that_is_the_head_too_fits_loras_folder_alone(tmp_path):
  for name in [name for name in ADAPTERS if name != "trainable_tokens"]:  # which refuses it before that
    vlm = peft.apply(support.build(tied=True), config_of(name, full=".*embed_tokens"))
    if name == "lora":
      peft.check_claims(vlm)
    else:
      with pytest.raises(UserError, match="the embedding that is also the head"):
        peft.check_claims(vlm)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"method": "ia"}, ["config.peft.method", "did you mean 'ia3'"]),
    ({"method": "ia3", "rank": 4}, ["config.peft.rank", "belongs to method 'lora', not 'ia3'"]),
    ({"method": "ia3", "feedfoward": "x"}, ["config.peft.feedfoward", "did you mean 'feedforward'"]),
    ({"tagret": ".*"}, ["config.peft.tagret", "did you mean 'target'"]),
    ({"rank": "8"}, ["config.peft.rank", "expected int"]),
    ({"options": {"rank": 8}}, ["config.peft.options", "unknown key"]),
    ({"method": "ia3", "feedforward": r".*fc9"}, ["peft.feedforward", "did you mean"]),
    ({"method": "ia3", "target": r".*norm"}, ["peft.target", "matches no layer"]),
    ({"method": "ln_tuning", "target": r".*q_proj"}, ["peft.target", "matches no layer"]),
    ({"method": "ln_tuning", "dropout": 0.1}, ["config.peft.dropout", "'lora', not 'ln_tuning'"]),
    ({"exclude_modules": r".*q_porj"}, ["peft.exclude_modules", "did you mean"]),
    ({"exclude_modules": r".*text_model.*"}, ["peft.exclude_modules", "leaves out every layer"]),
    ({"layers_to_transform": [0, 7]}, ["peft.layers_to_transform", "of block 7; blocks: [0, 1]"]),
    ({"layers_pattern": "layers"}, ["peft.layers_pattern", "layers_to_transform"]),
    ({"method": "ln_tuning", "target": "all-linear"}, ["peft.target", "'ln_tuning' adapts none"]),
    ({"bias": "al"}, ["peft.bias", "did you mean 'all'"]),
    ({"init": "pisa"}, ["peft.init", "did you mean 'pissa'"]),
    ({"init": "pissa", "rank": 30}, ["rank 30 of model.text_model", "lower the rank"]),
    ({"lora_bias": True}, ["peft.lora_bias", "has no bias"]),
    ({"lora_bias": True, "dora": True}, ["peft.lora_bias", "dora"]),
    ({"embedding": True, "dora": True}, ["peft.embedding", "dora"]),
    ({"bias": "lora_only"}, ["peft.bias", "no layer that it means has a bias"]),
    ({"token_indices": [2, 2]}, ["peft.token_indices", "different"]),
    ({"token_indices": [64]}, ["[64] are beyond the 64 rows"]),
    ({"token_indices": [1], "embedding": True}, ["peft.token_indices", "leave one out"]),
    ({"token_indices": [1], "full": ".*embed_tokens"}, ["peft.token_indices", "peft.full trains whole"]),
    ({"method": "vera", "rank": 0}, ["peft.rank"]),
    ({"method": "vera", "d_initial": 0.0}, ["peft.d_initial"]),
    ({"method": "vera", "dropout": 1.0}, ["peft.dropout"]),
    ({"method": "houlsby", "activation": "rely"}, ["peft.activation", "did you mean 'relu'"]),
    ({"method": "pfeiffer", "target": r".*q_proj"}, ["peft.target", "matches no layer"]),
    ({"method": "trainable_tokens"}, ["peft.token_indices", "empty"]),
    ({"method": "trainable_tokens", "token_indices": [1, 1]}, ["peft.token_indices", "different"]),
    ({"method": "trainable_tokens", "token_indices": [64]}, ["[64] are beyond the 64 rows"]),
    (
      {"method": "trainable_tokens", "token_indices": [1], "full": ".*embed_tokens"},
      ["is named by peft.full and by peft.target"],
    ),
  ],
)
def test_mistakes_are_told_in_one_line(settings, words):
  with pytest.raises(UserError) as caught:
    peft.apply(support.build(), from_config_dict(settings, PeftConfig, "config.peft"))
  message = str(caught.value)
  assert "\n" not in message and all(word in message for word in words), message


def test_two_methods_on_one_model_are_refused(tmp_path):
  lora = adapted("lora")
  with pytest.raises(UserError, match=r"already carries an adapter \(lora\)"):
    peft.apply(lora, config_of("ia3"))
  folder = peft.save_adapter(adapted("ia3"), tmp_path / "ia3")
  with pytest.raises(UserError, match="already carries an adapter"):
    peft.load_adapter(lora, folder)
  with pytest.raises(UserError, match=r"an adapter of method 'ia3'; set config\.peft\.method"):
    peft.apply(support.build(), PeftConfig(resume_from=str(folder)))
  with pytest.raises(UserError, match=r"peft\.full: names decoder\.stack\.layers\.0\.attn\.q_proj\.kernel"):
    peft.apply(
      support.build(),
      PeftConfig(method="ia3", resume_from=str(folder), full=r".*text_model.*layers\.0.*q_proj"),
    )
  config = json.loads((folder / "adapter_config.json").read_text())
  (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "ADALORA"}))
  with pytest.raises(UserError, match=r"peft_type 'ADALORA' is not .*\(only 'LORA', 'IA3', 'LN_TUNING'"):
    peft.load_adapter(support.build(), folder)


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_goes_on_from_a_folder_of_the_method(name, tmp_path):
  vlm = support.moved(adapted(name))
  peft.save_adapter(vlm, tmp_path / "a")
  again = peft.apply(support.build(), PeftConfig(method=name, resume_from=str(tmp_path / "a")))
  first, second = trained(vlm), trained(again)
  assert set(first) == set(second)
  assert all(np.array_equal(first[key], second[key]) for key in first)


def test_what_cannot_be_merged_says_so_and_offers_the_adapter(monkeypatch):
  vlm = adapted("lora")
  monkeypatch.setattr(Lora, "mergeable", False)
  with pytest.raises(UserError, match=r"method 'lora' cannot be merged .*--to=adapter"):
    peft.merge(vlm)


def test_unmapped_tensors_of_other_methods_are_told(tmp_path):
  for name, tensor in (
    ("ia3", "model.text_model.norm.ia3_l"),
    ("ln_tuning", "lm_head.ln_tuning_layers.weight"),
  ):
    folder = peft.save_adapter(adapted(name), tmp_path / name)
    found = load_file(folder / "adapter_model.safetensors")
    found[f"base_model.model.{tensor}"] = np.ones((24, 1), np.float32)
    save_file(found, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapters on layers that are not (linear|norms) are not supported"):
      peft.load_adapter(support.build(), folder)


def test_settings_are_written_out_and_read_back_flat():
  """config.json of a run holds all of a method's settings beside the shared ones, as it always did."""
  config = peft.completed(from_config_dict({"rank": 4}, PeftConfig))
  flat = to_dict(config)
  assert flat == {
    "method": "lora",
    "target": r".*(text_model|language_model).*\.(q|k|v|o)_proj",
    "rank": 4,
    "alpha": 16.0,
    "dropout": 0.0,
    "rslora": False,
    "dora": False,
    "bias": "none",
    "lora_bias": False,
    "embedding": False,
    "token_indices": [],
    "init": "default",
    "eva_rho": 2.0,
    "eva_batches": 8,
    "exclude_modules": "",
    "layers_to_transform": [],
    "layers_pattern": "",
    "rank_pattern": {},
    "alpha_pattern": {},
    "full": "",
    "resume_from": None,
    "seed": 0,
  }
  assert from_config_dict(json.loads(json.dumps(flat)), PeftConfig) == config
  assert peft.completed(config) == config
  assert to_dict(peft.completed(PeftConfig(method="none", full="x")))["target"] == ""


def test_an_adapter_made_from_a_saved_model_is_the_same(tmp_path):
  """Names of norms in files, where a family's differ from transformers' own modules."""
  vlm = support.moved(adapted("ln_tuning"))
  hub.save_model(support.build(), tmp_path / "base")
  peft.save_adapter(vlm, tmp_path / "a")
  again = peft.load_adapter(hub.load_model(tmp_path / "base"), tmp_path / "a")
  assert np.array_equal(support.logits(again), support.logits(vlm))
  assert dataclasses.asdict(again.config)["tied"] is False


@pytest.mark.parametrize("name", ADAPTERS)
def test_tensors_may_carry_the_adapters_name(name, tmp_path):
  """As a plain `state_dict()` of peft's model has them, e.g. `ln_tuning_layers.default.bias`."""
  vlm = support.moved(adapted(name, target=r"(?!.*connector).*", full=r"model\.connector"))
  folder = peft.save_adapter(vlm, tmp_path / "a")
  found = load_file(folder / "adapter_model.safetensors")
  kinds = peft.METHODS[name].kinds
  named = {}
  for key, value in found.items():
    kind = next((kind for kind in kinds if kind in key.split(".")), None)
    renamed = key.replace(f".{kind}", f".{kind}.default") if kind else key
    named[renamed + (".weight" if renamed.endswith("vector.default") else "")] = value
  assert set(named) != set(found)
  save_file(named, folder / "adapter_model.safetensors")
  again = peft.load_adapter(support.build(), folder)
  assert np.array_equal(support.logits(again), support.logits(vlm))
