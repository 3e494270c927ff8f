"""Adapters against Hugging Face peft on random models: folders both ways, gradients, first values."""

import copy
import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft as theirs
import pytest
import torch
import transformers
from flax import nnx
from peft.utils.incremental_pca import IncrementalPCA
from scipy import stats

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.hub import rules
from spatialvlm.peft import select
from spatialvlm.peft.lora import Lora
from spatialvlm.types import UserError
from tests.models.support import answer_loss, batch_of, call, jit
from tests.oracle import adapters, reference

CASE = reference.cases()["right"]
BATCH = batch_of(CASE, reference.IMAGE)
LABELS = reference.labels_of(CASE)
OURS = {
  "lora": {"target": r".*text_model.*_proj", "rank": 3, "alpha": 5.0},
  "rslora": {"target": r".*vision_model.*(q_proj|out_proj|fc\d)|.*connector.*|lm_head", "rslora": True},
  "dora": {"target": r".*\.(q|v)_proj", "rank": 2, "dora": True},
  "patterns": {
    "target": r".*\.(q|k)_proj|.*fc1",
    "rank_pattern": {r".*vision.*q_proj": 2, r".*fc1": 5},
    "alpha_pattern": {r".*k_proj": 2.5},
  },
  "full": {
    "target": r".*text_model.*q_proj",
    "full": r".*(layer)?norm\d?|lm_head|model\.connector|.*embedding|.*embed_tokens|.*\.1\.mlp\.fc1\.bias",
  },
  "tied": {"target": r".*text_model.*q_proj", "full": r".*embed_tokens|.*text_model\.norm"},
  "biases": {
    "target": "all-linear",
    "bias": "all",
    "exclude_modules": r".*(text_model|connector).*",
    "lora_bias": True,
  },
  "own_biases": {"target": ["q_proj", "fc2"], "bias": "lora_only", "layers_to_transform": [0]},
  "embedding": {"target": r".*q_proj", "embedding": True},
  "embedding_tied": {"target": r".*q_proj", "embedding": True},
  "tokens": {"target": r".*q_proj|lm_head", "token_indices": [40, *range(30)]},
  "tokens_tied": {"target": r".*q_proj", "token_indices": [40, *range(30)]},
  "pissa": {"target": r".*text_model.*_proj", "init": "pissa", "rank": 3, "alpha": 5.0},
  "olora": {"target": r".*(q_proj|fc1)", "init": "olora", "rank": 4, "rslora": True},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """family -> (their model, its folder). The first has a head of its own, the second a tied one."""
  made = {}
  for family, tied in (("smolvlm", False), ("idefics3", True)):
    model, folder = reference.build(family, tied=tied), tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    made[family] = model, folder
  return made


def logits(vlm):
  return np.asarray(call(vlm, BATCH))


def assert_close(ours, expected, relative=1e-5):
  ours, expected = np.asarray(ours), np.asarray(expected)
  assert ours.shape == expected.shape
  assert np.abs(ours - expected).max() <= relative * np.abs(expected).max()


def moved(vlm, seed=3):
  """The same model with every trained value moved from its start."""
  graphdef, params, rest = nnx.split(vlm, peft.Trained, ...)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: x + 0.2 * jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
  return nnx.merge(graphdef, params, rest)


def reload(model, folder):
  """peft's own reading of a folder; a warning about missing or unknown tensors is an error."""
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*(adapter keys|inconsistency|did not match).*")
    return theirs.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


@pytest.mark.parametrize("name", adapters.CASES)
def test_their_folder_gives_their_logits(bases, name, tmp_path):
  options, family = adapters.CASES[name]
  model, folder = bases[family]
  adapted = adapters.adapt(model, options)
  expected = reference.logits(adapted, CASE)
  vlm = peft.load_adapter(hub.load_model(folder), adapters.save(adapted, tmp_path / "a"))
  real = CASE["attention_mask"].astype(bool)
  assert np.abs(expected - reference.logits(model, CASE))[real].max() > 0.1
  assert_close(logits(vlm)[real], expected[real])
  merged = peft.merge(vlm)
  assert_close(logits(merged)[real], expected[real], 2e-5)

  back = reload(model, peft.save_adapter(vlm, tmp_path / "b"))
  assert_close(reference.logits(back, CASE)[real], expected[real])

  hub.save_model(merged, tmp_path / "c", folder)
  whole = type(model).from_pretrained(tmp_path / "c").eval()
  assert_close(reference.logits(whole, CASE)[real], expected[real], 2e-5)


def test_attention_of_an_adapted_model(bases, tmp_path):
  """Probabilities and their gradient behind LoRA, of every layer and head, as eager attention has them."""
  options, family = adapters.CASES["regex"]
  model, folder = bases[family]
  adapted = adapters.adapt(model, options)
  vlm = peft.load_adapter(hub.load_model(folder), adapters.save(adapted, tmp_path))
  reference.assert_attention(adapted.base_model.model, vlm, CASE)
  reference.assert_attention_gradient(adapted.base_model.model, vlm, CASE)


@pytest.mark.parametrize("name", OURS)
def test_our_folder_gives_our_logits_in_peft(bases, name, tmp_path):
  model, folder = bases["idefics3" if "tied" in name else "smolvlm"]
  vlm = moved(peft.apply(hub.load_model(folder), from_config_dict(OURS[name], PeftConfig)))
  expected = logits(vlm)
  real = CASE["attention_mask"].astype(bool)
  assert np.abs(expected - reference.logits(model, CASE))[real].max() > 0.1
  adapted = reload(model, peft.save_adapter(vlm, tmp_path / "a", "some/base"))
  assert_close(reference.logits(adapted, CASE)[real], expected[real])
  again = peft.load_adapter(hub.load_model(folder), tmp_path / "a")
  assert np.array_equal(logits(again), expected)
  config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
  assert config["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("name", ["regex", "dora", "saved", "pissa"])
def test_gradients_are_those_of_peft(bases, name, tmp_path):
  options, family = adapters.CASES[name]
  model, folder = bases[family]
  adapted = adapters.adapt(model, options)
  adapted(**reference.tensors(CASE), labels=torch.tensor(LABELS)).loss.backward()
  gradients = {
    n.removeprefix("base_model.model.")
    .replace(".default", "")
    .replace(".modules_to_save", ""): p.grad.numpy()
    for n, p in adapted.named_parameters()
    if p.requires_grad
  }
  vlm = peft.load_adapter(hub.load_model(folder), adapters.save(adapted, tmp_path))
  graphdef, params, rest = nnx.split(vlm, peft.trainable_filter(vlm, PeftConfig()), ...)
  loss = lambda params: answer_loss(nnx.merge(graphdef, params, rest)(BATCH), jnp.asarray(LABELS))
  ours = nnx.merge(graphdef, jit(jax.grad(loss))(params), rest)

  checked = set()
  for module, path in select.linear_paths(ours).items():
    layer = select.get(ours, path)
    if isinstance(layer, peft.LoraLinear):
      pairs = {"lora_A.weight": layer.lora_a[...].T, "lora_B.weight": layer.lora_b[...].T}
      if layer.magnitude is not None:
        pairs["lora_magnitude_vector.weight"] = layer.magnitude[...]
      for suffix, gradient in pairs.items():
        assert_close(gradient, gradients[f"{module}.{suffix}"], 1e-4)
        checked.add(f"{module}.{suffix}")
  for parameter, path in select.parameter_paths(ours).items():
    variable = select.get(ours, path)
    if isinstance(variable, peft.FullParam):
      dotted = ".".join(map(str, path))
      gradient = rules.to_file(np.asarray(variable[...]), dotted, ours.config.family)
      # biases of keys have no gradient but rounding
      scale = max(np.abs(gradients[parameter]).max(), 1e-3)
      assert np.abs(gradient - gradients[parameter]).max() <= 1e-4 * scale, parameter
      checked.add(parameter)
  assert checked == set(gradients)


def test_first_values_are_drawn_as_peft_draws_them(bases):
  """A uniform in +-1/sqrt(d_in), B zero, DoRA's magnitude the base's own: a fresh adapter changes nothing."""
  model, folder = bases["smolvlm"]
  torch.manual_seed(0)
  options = {"r": 16, "target_modules": "all-linear", "use_dora": True}
  adapted = theirs.get_peft_model(copy.deepcopy(model), theirs.LoraConfig(**options))
  vlm = hub.load_model(folder)
  before = logits(vlm)
  target = r".*_proj|.*fc\d|.*modality_projection\.proj"
  peft.apply(vlm, PeftConfig(target=target, seed=5, options={"rank": 16, "dora": True}))
  # DoRA divides the magnitude by the norm it came from, which rounds
  assert_close(logits(vlm), before, 1e-5)
  values, expected = dict(adapted.named_parameters()), {}
  ours, drawn = {}, {}
  for module, path in select.linear_paths(vlm).items():
    layer = select.get(vlm, path)
    if not isinstance(layer, peft.LoraLinear):
      continue
    stem = f"base_model.model.{module}."
    width = layer.in_features
    ours.setdefault(width, []).append(np.asarray(layer.lora_a[...]).ravel())
    drawn.setdefault(width, []).append(values[stem + "lora_A.default.weight"].detach().numpy().ravel())
    expected[module] = values[stem + "lora_magnitude_vector.default.weight"].detach().numpy()
    assert not np.asarray(layer.lora_b[...]).any()
    assert_close(layer.magnitude[...], expected[module], 1e-6)
  assert len(expected) == sum("lora_magnitude_vector" in name for name in values)
  for width, parts in ours.items():
    mine, peer = np.concatenate(parts), np.concatenate(drawn[width])
    assert np.abs(mine).max() <= width**-0.5 and np.abs(mine).max() > 0.99 * width**-0.5
    assert stats.ks_2samp(mine, peer).pvalue > 1e-3


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_a_start_from_data_is_that_of_peft(bases, rho, tmp_path, monkeypatch):
  """EVA: ranks, alphas and directions. peft finds these by random sketches, here by whole decompositions."""
  monkeypatch.setattr(IncrementalPCA, "_svd_fn_lowrank", IncrementalPCA._svd_fn_full)
  model, folder = bases["smolvlm"]
  options = {"r": 3, "lora_alpha": 5, "target_modules": r".*text_model.*_proj", "init_lora_weights": "eva"}
  config = theirs.LoraConfig(**options, eva_config=theirs.EvaConfig(rho=rho))
  adapted = theirs.get_peft_model(copy.deepcopy(model), config).eval()
  adapters.begin_from_data(adapted)
  supervised = [np.flatnonzero(row != -100) for row in LABELS]
  index = np.full((len(LABELS), max(map(len, supervised))), -1, np.int32)
  for row, places in zip(index, supervised, strict=True):
    row[: len(places)] = places
  batch = dataclasses.replace(BATCH, target_index_BK=jnp.asarray(index))
  ours = {"target": options["target_modules"], "rank": 3, "alpha": 5.0, "init": "eva"}
  ours |= {"eva_rho": rho, "eva_batches": 1}
  vlm = peft.apply(
    hub.load_model(folder), from_config_dict(ours, PeftConfig), peft.Given(batches=lambda count: [batch])
  )
  found = peft.load_adapter(hub.load_model(folder), adapters.save(adapted, tmp_path / "theirs"))
  first, second = ({n: site.module for n, (site, _) in Lora().adapted_sites(m).items()} for m in (vlm, found))
  assert set(first) == set(second) and {n: m.spec for n, m in first.items()} == {
    n: m.spec for n, m in second.items()
  }
  assert (len({m.spec.rank for m in first.values()}) > 1) == (rho > 1)
  for name, layer in first.items():
    assert_close(layer.lora_a[...], second[name].lora_a[...], 1e-4)  # directions of float32 inputs
  back = reload(model, peft.save_adapter(moved(vlm), tmp_path / "ours"))
  real = CASE["attention_mask"].astype(bool)
  assert_close(reference.logits(back, CASE)[real], logits(moved(vlm))[real])


def test_what_is_not_supported_is_refused(bases, tmp_path):
  model, folder = bases["smolvlm"]
  refused = {
    "peft_type 'ADALORA'": theirs.AdaLoraConfig(target_modules=["q_proj"], total_step=1),
    "save_projection=False": theirs.VeraConfig(target_modules=["q_proj"], r=2, save_projection=False),
    "embeddings of positions": theirs.LoraConfig(target_modules=["position_embedding", "q_proj"]),
    "not linear": theirs.LoraConfig(target_modules=["patch_embedding", "q_proj"]),
    "init_lora_weights='pissa_niter_2'": theirs.LoraConfig(
      target_modules=["q_proj"], init_lora_weights="pissa_niter_2"
    ),
    "trainable_token_indices: 'lm_head'": theirs.LoraConfig(
      target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1], "lm_head": [2]}
    ),
  }
  vlm = hub.load_model(folder)
  before = jax.tree.map(np.asarray, nnx.state(vlm))
  for i, (message, config) in enumerate(refused.items()):
    adapted = theirs.get_peft_model(copy.deepcopy(model), config)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
      peft.load_adapter(vlm, adapters.save(adapted, tmp_path / str(i)))
  assert jax.tree.structure(nnx.state(vlm)) == jax.tree.structure(before)


def test_a_converted_folder_is_ordinary_lora(bases, tmp_path):
  """PiSSA as peft converts it, and as it is converted here."""
  model, folder = bases["smolvlm"]
  options = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "fc1"]}
  start = theirs.get_peft_model(copy.deepcopy(model), theirs.LoraConfig(**options, init_lora_weights="pissa"))
  start.peft_config["default"].init_lora_weights = True
  adapters.save(start, tmp_path / "start")
  adapted = adapters.adapt(model, options | {"init_lora_weights": "pissa"})
  expected, real = reference.logits(adapted, CASE), CASE["attention_mask"].astype(bool)
  raw = peft.load_adapter(hub.load_model(folder), adapters.save(adapted, tmp_path / "raw"))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start")
  said = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
  assert (said["r"], said["init_lora_weights"]) == (6, True)
  vlm = peft.load_adapter(hub.load_model(folder), tmp_path / "plain")
  assert_close(logits(vlm)[real], expected[real], 2e-5)
  back = reload(model, peft.save_adapter(peft.as_plain_lora(raw), tmp_path / "back"))
  assert_close(reference.logits(back, CASE)[real], expected[real], 2e-5)


def test_a_sum_is_the_one_that_peft_makes(bases, tmp_path):
  model, folder = bases["smolvlm"]
  first = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
  second = {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
  several = peft.Adapters(hub.load_model(folder))
  for name, options in (("a", first), ("b", second)):
    adapters.save(adapters.adapt(model, options, seed=len(name + name) + ord(name)), tmp_path / name)
    several.load(tmp_path / name, name)
  both = theirs.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "a", adapter_name="a")
  both.load_adapter(tmp_path / "b", adapter_name="b")
  both.add_weighted_adapter(["a", "b"], [0.7, 0.4], "sum", combination_type="cat")
  both.set_adapter("sum")
  vlm = several.add({"a": 0.7, "b": 0.4}, "sum")
  real = CASE["attention_mask"].astype(bool)
  assert_close(logits(vlm)[real], reference.logits(both.eval(), CASE)[real])


def test_auto_class_finds_the_model(bases, tmp_path):
  """`AutoPeftModel` reads the class of the base from what we write."""
  _, folder = bases["idefics3"]
  vlm = moved(peft.apply(hub.load_model(folder), PeftConfig(target=r".*text_model.*q_proj")))
  peft.save_adapter(vlm, tmp_path / "a", str(folder))
  loaded = theirs.AutoPeftModel.from_pretrained(tmp_path / "a").eval()
  assert isinstance(loaded.get_base_model(), transformers.PreTrainedModel)
  real = CASE["attention_mask"].astype(bool)
  assert_close(reference.logits(loaded, CASE)[real], logits(vlm)[real])
