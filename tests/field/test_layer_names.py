"""Layers by the names that users have for them: lists as in PEFT, names of older versions of transformers."""

import functools
import json
import pathlib

import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig, RunConfig, from_config_dict, overrides, to_dict
from spatialvlm.peft import methods, select
from spatialvlm.peft.variables import AdapterParam
from spatialvlm.types import UserError

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
# What older versions of transformers call the language model's layers, by family, and today's name.
OLDER = {
  "paligemma": (
    "language_model.model.layers.0.self_attn.q_proj",
    "model.language_model.layers.0.self_attn.q_proj",
  ),
  "internvl": (
    "language_model.model.layers.0.self_attn.q_proj",
    "model.language_model.layers.0.self_attn.q_proj",
  ),
  "smolvlm": ("text_model.layers.0.self_attn.q_proj", "model.text_model.layers.0.self_attn.q_proj"),
}


def adapted(vlm):
  """Names of the layers that carry an adapter."""
  return {name for name, path in select.linear_paths(vlm).items() if hasattr(select.get(vlm, path), "lora_a")}


def trained(family, target):
  return peft.apply(hub.load_model(FIXTURES / family), PeftConfig(target=target, options={"rank": 2}))


base = functools.cache(lambda family: hub.load_model(FIXTURES / family))


def chosen(family, target):
  """Names of the layers that `trained` would adapt; one model serves for all of them."""
  config = PeftConfig(target=target)
  return {*methods.named("lora").plan(base(family), config, methods.options_of(config))}


@pytest.mark.parametrize("written", ["['q_proj','v_proj']", "('q_proj', 'v_proj')", '["q_proj", "v_proj"]'])
def test_a_list_of_names_is_meant_as_a_list(written):
  found = chosen("smolvlm", written)
  assert found == chosen("smolvlm", r".*\.(q_proj|v_proj)") and len(found) == 8


@pytest.mark.parametrize("written", ["[q_proj,v_proj]", "q_proj, v_proj", "(q_proj,v_proj)"])
def test_a_list_whose_quotes_a_shell_took_is_shown_as_it_should_be(written):
  with pytest.raises(UserError, match=r"""a list is written "\['q_proj', 'v_proj'\]", in double quotes"""):
    select.match(written, ["text.q_proj"], "peft.target")


def test_a_setting_that_is_a_list_is_shown_as_it_should_be_written():
  source = {"kind": "llava", "path": "a.jsonl", "ignore": "(video,audio)"}
  with pytest.raises(UserError, match=r"""ignore: expected tuple, got .*ignore="\('video', 'audio'\)", in"""):
    from_config_dict({"data": {"sources": {"mine": source}}})


def test_a_list_in_a_recipe_is_a_list_and_comes_back_from_its_config_json():
  recipe = {"peft": {"target": ["q_proj", "v_proj"], "full": ["norm"], "rank": 2}}
  config = from_config_dict(json.loads(json.dumps(to_dict(from_config_dict(recipe)))))
  assert config.peft.target == ("q_proj", "v_proj") and config.peft.full == ("norm",)
  overrides(recipe, [("peft.target", "['k_proj']"), ("peft.full", r"(lm_head|.*\.norm)")], RunConfig)
  config = from_config_dict(recipe)
  assert config.peft.target == ("k_proj",) and config.peft.full == r"(lm_head|.*\.norm)"
  assert len(adapted(trained("smolvlm", ["q_proj", "v_proj"]))) == 8
  for target, said in ((3, "expected str, got 3"), (["q_proj", 3], r"target\[1\]: expected str, got 3")):
    with pytest.raises(UserError, match=said):
      from_config_dict({"peft": {"target": target}})
  with pytest.raises(UserError, match=r"peft\.target: an empty list names no layer"):
    chosen("smolvlm", [])


def test_a_list_of_longer_ends_and_of_whole_names():
  found = chosen("smolvlm", "['0.self_attn.q_proj', 'model.text_model.layers.1.mlp.up_proj']")
  assert {n.split("model.")[-1] for n in found} == {
    "layers.1.mlp.up_proj", "layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.q_proj"
  }  # fmt: skip


def test_an_end_that_is_none_is_named():
  with pytest.raises(
    UserError, match=r"peft\.target: no layer's name ends in 'vproj'; did you mean .*v_proj"
  ):
    chosen("smolvlm", "['q_proj', 'vproj']")
  with pytest.raises(UserError, match=r"no layer's name ends in '_proj'"):  # parts of a name are no end of it
    chosen("smolvlm", "['_proj']")


@pytest.mark.parametrize("family", OLDER)
def test_a_regex_of_older_names(family):
  older, today = OLDER[family]
  for target in (older.replace(".", r"\."), f"^{older}$", older.replace("0", r"\d+"), f"['{older}']"):
    found = chosen(family, target)
    assert today in found and all(name.startswith(today.split("layers")[0]) for name in found)
  assert chosen(family, today.replace(".", r"\.")) == {today}


@pytest.mark.parametrize("family", OLDER)
def test_an_adapter_whose_config_has_older_names(family, tmp_path):
  older, today = OLDER[family]
  vlm = trained(family, today.replace(".", r"\."))
  for _, variable in nnx.iter_graph(vlm):
    if isinstance(variable, AdapterParam):
      variable.set_raw_value(variable.get_raw_value() * 0 + 0.1)
  peft.save_adapter(vlm, tmp_path)
  file = tmp_path / "adapter_config.json"
  said = json.loads(file.read_text())
  for change in (
    {"target_modules": older.replace(".", r"\.")},
    {"target_modules": [older], "alpha_pattern": {older: 64}},
  ):
    file.write_text(json.dumps(said | change))
    again = peft.load_adapter(hub.load_model(FIXTURES / family), tmp_path)
    assert adapted(again) == {today}
    layer = select.get(again, select.linear_paths(again)[today])
    assert layer.spec.alpha == (64 if "alpha_pattern" in change else said["lora_alpha"])
    np.testing.assert_allclose(layer.lora_a[...], 0.1)
