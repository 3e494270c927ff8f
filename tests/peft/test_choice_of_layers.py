"""PEFT's fields for the choice of layers, as settings of a run, and the biases beside them."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.peft.biases import BiasParam
from tests.peft import support


def adapted(**settings):
  return peft.apply(support.build(), from_config_dict(settings, PeftConfig))


def layers(vlm) -> set[str]:
  return set(peft.METHODS["lora"].adapted_sites(vlm))


def test_layers_are_chosen_as_peft_chooses_them():
  everything = layers(adapted(target="all-linear"))
  assert "lm_head" not in everything and "model.connector.modality_projection.proj" in everything
  assert len(everything) == 2 * 7 + 2 * 6 + 1
  text = {name for name in everything if "text_model" in name}
  assert layers(adapted(target="all-linear", exclude_modules=r".*(vision|connector).*")) == text
  assert layers(adapted(target=["q_proj"], exclude_modules=["text_model.layers.0.self_attn.q_proj"])) == {
    "model.text_model.layers.1.self_attn.q_proj",
    *(f"model.vision_model.encoder.layers.{i}.self_attn.q_proj" for i in range(2)),
  }
  first = layers(adapted(target="all-linear", layers_to_transform=[1]))
  assert first == {name for name in everything if ".layers.1." in name}
  assert layers(adapted(target="all-linear", layers_to_transform=[1], layers_pattern="layers")) == first


def test_norms_and_blocks_are_chosen_so_too():
  vlm = adapted(method="ln_tuning", layers_to_transform=[0], exclude_modules=["post_attention_layernorm"])
  assert set(peft.METHODS["ln_tuning"].adapted_sites(vlm)) == {"model.text_model.layers.0.input_layernorm"}
  vlm = adapted(method="pfeiffer", target=".*", exclude_modules=".*vision.*")
  assert set(peft.METHODS["pfeiffer"].adapted_sites(vlm)) == {
    f"model.text_model.layers.{i}" for i in range(2)
  }


@pytest.mark.parametrize("kind", ["all", "lora_only"])
def test_biases_are_trained_and_come_back(kind, tmp_path):
  """All of the vision tower's, or those of the adapted layers; in the names that PEFT gives them."""
  vlm = adapted(target=["q_proj", "fc1"], bias=kind, rank=2)
  plain = support.logits(support.build())
  assert np.array_equal(support.logits(vlm), plain)
  found = {".".join(map(str, path)) for path, v in nnx.iter_graph(vlm) if isinstance(v, BiasParam)}
  own = {f"vision.stack.layers.{i}.{name}.bias" for i in range(2) for name in ("attn.q_proj", "mlp.up_proj")}
  assert found == own if kind == "lora_only" else found > own and len(found) == 2 * 8 + 2
  vlm = support.moved(vlm, 0.1)
  peft.check_claims(vlm)
  folder = peft.save_adapter(vlm, tmp_path / "a")
  assert json.loads((folder / "adapter_config.json").read_text())["bias"] == kind
  again = peft.load_adapter(support.build(), folder)
  assert np.array_equal(support.logits(again), support.logits(vlm))
  merged = support.logits(peft.merge(vlm))
  assert np.abs(merged - support.logits(vlm)).max() <= 5e-6 * np.abs(merged).max()


@pytest.mark.parametrize("init", ["gaussian", "pissa", "olora"])
def test_starts_leave_the_base_as_it_was(init):
  vlm, plain = adapted(target="all-linear", init=init, rank=3), support.logits(support.build())
  assert np.abs(support.logits(vlm) - plain).max() <= 5e-6 * np.abs(plain).max()
  layer = vlm.decoder.stack.layers[0].attn.q_proj
  assert np.array_equal(layer.kernel[...], support.build().decoder.stack.layers[0].attn.q_proj.kernel[...])
  if init == "gaussian":
    a = np.concatenate([np.ravel(m.lora_a[...]) for _, m in nnx.iter_modules(vlm) if hasattr(m, "lora_a")])
    assert abs(a.std() * 3 - 1) < 0.05 and not np.asarray(layer.lora_b[...]).any()
  else:
    # OLoRA's factors are unscaled: what stays behind at a scale of 1 is what loses their rank
    scale = layer.spec.scale if init == "pissa" else 1.0
    rest = np.asarray(layer.kernel[...]) - scale * np.asarray(layer.lora_a[...] @ layer.lora_b[...])
    assert np.linalg.matrix_rank(rest, 1e-4) == 24 - 3


def test_pissa_takes_the_largest_singular_values():
  layer = adapted(target=r".*layers\.0.*k_proj", init="pissa", rank=2).decoder.stack.layers[0].attn.k_proj
  kernel, part = (
    np.float64(layer.kernel[...]),
    layer.spec.scale * np.float64(layer.lora_a[...] @ layer.lora_b[...]),
  )
  left, values, right = np.linalg.svd(kernel, full_matrices=False)
  np.testing.assert_allclose(part, (left[:, :2] * values[:2]) @ right[:2], rtol=1e-4, atol=1e-5)
  norms = [np.linalg.norm(np.asarray(f[...])) for f in (layer.lora_a, layer.lora_b)]
  assert abs(norms[0] / norms[1] - 1) < 1e-4  # the roots of the values stand in both


def test_an_adapter_that_began_with_the_base_is_no_part_of_the_trained_state():
  vlm = adapted(target=r".*layers\.0.*k_proj", init="pissa", rank=2)
  trained = nnx.to_flat_state(nnx.state(vlm, peft.Trained))
  assert {path[-1] for path, _ in trained} == {"lora_a", "lora_b"}
  abstract = nnx.eval_shape(lambda: adapted(target=r".*layers\.0.*k_proj", init="pissa", rank=2))
  assert jax.tree.map(lambda x: x.shape, nnx.state(abstract)) == jax.tree.map(
    lambda x: x.shape, nnx.state(vlm)
  )


def test_an_adapted_embedding_parts_a_tied_head_when_merged(tmp_path):
  base = support.build(tied=True)
  vlm = peft.apply(
    support.build(tied=True), from_config_dict({"target": r".*k_proj", "embedding": True}, PeftConfig)
  )
  assert np.array_equal(support.logits(vlm), support.logits(base))
  vlm = support.moved(vlm, 0.1)
  merged = peft.merge(vlm)
  assert not merged.config.tied and vlm.config.tied
  expected = support.logits(vlm)
  assert np.abs(support.logits(merged) - expected).max() <= 5e-6 * np.abs(expected).max()
  again = peft.load_adapter(support.build(tied=True), peft.save_adapter(vlm, tmp_path / "a"))
  assert np.array_equal(support.logits(again), expected) and again.config.tied
