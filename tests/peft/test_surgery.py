"""Which layers are adapted, what is trained, where it lies, and what is said of a bad pattern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.core import axes
from spatialvlm.models import registry
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import select
from spatialvlm.peft.lora import LoraOptions
from spatialvlm.types import UserError
from tests import tiny_model
from tests.peft import support


@pytest.fixture(scope="module")
def plain():
  return support.build()


def adapters(vlm):
  found = {n: select.get(vlm, p) for n, p in select.linear_paths(vlm).items()}
  return {name: layer for name, layer in found.items() if isinstance(layer, peft.LoraLinear)}


def test_every_linear_layer_can_carry_an_adapter(plain):
  vlm = peft.apply(nnx.clone(plain), PeftConfig(target=".*", options={"rank": 2}))
  text = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
  sight = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
  ]
  expected = {f"model.text_model.layers.{i}.{n}" for i in range(2) for n in text}
  expected |= {f"model.vision_model.encoder.layers.{i}.{n}" for i in range(2) for n in sight}
  expected |= {"model.connector.modality_projection.proj", "lm_head"}
  assert set(adapters(vlm)) == expected
  assert np.array_equal(support.logits(vlm), support.logits(plain))


def test_ranks_and_scales_by_pattern(plain):
  config = PeftConfig(
    target=r".*text_model.*\.(q|k)_proj",
    options={
      "rank": 4,
      "alpha": 8.0,
      "rank_pattern": {r".*layers\.0.*q_proj": 2},
      "alpha_pattern": {r".*k_proj": 3.0},
    },
  )
  found = adapters(peft.apply(nnx.clone(plain), config))
  stem = "model.text_model.layers."
  specs = {name.removeprefix(stem): (layer.spec.rank, layer.spec.scale) for name, layer in found.items()}
  assert specs == {
    "0.self_attn.q_proj": (2, 4.0),
    "1.self_attn.q_proj": (4, 2.0),
    "0.self_attn.k_proj": (4, 0.75),
    "1.self_attn.k_proj": (4, 0.75),
  }
  assert found[stem + "0.self_attn.q_proj"].lora_a.shape == (24, 2)


def test_counts_and_filter(plain):
  config = PeftConfig(
    target=r".*text_model.*q_proj", full=r"model\.text_model\.norm|model\.connector", options={"rank": 3}
  )
  vlm = peft.apply(nnx.clone(plain), config)
  total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(plain)))
  factors = 2 * (24 * 3 + 3 * 32)
  trainable = peft.trainable_filter(vlm, config)
  assert peft.count_parameters(vlm, trainable) == (factors + 24 + 64 * 24, total + factors)
  _, params, frozen = nnx.split(vlm, trainable, ...)
  trained = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
  assert trained == {
    "connector.proj.kernel",
    "decoder.norm.scale",
    *(f"decoder.stack.layers.{i}.attn.q_proj.{f}" for i in range(2) for f in ("lora_a", "lora_b")),
  }
  assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(nnx.state(plain))) - 2


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_weight_is_trained_in_one_way(plain, method):
  vlm, config = nnx.clone(plain), PeftConfig(method=method, target=r"lm_head|.*q_proj", full="lm_head")
  with pytest.raises(UserError, match=r"lm_head is named by peft\.full and by peft\.target"):
    peft.apply(vlm, config)


def test_full_training_alone_and_of_one_parameter(plain):
  vlm = peft.apply(nnx.clone(plain), PeftConfig(method="none", full=r".*layers\.1\.mlp\.fc1\.bias"))
  (leaf,) = jax.tree.leaves(nnx.state(vlm, peft.trainable_filter(vlm, PeftConfig(method="none"))))
  assert leaf.shape == (24,)
  everything = peft.apply(nnx.clone(plain), PeftConfig(method="none", full=".*"))
  assert peft.count_parameters(everything, support.TRAINED)[0] == peft.count_parameters(plain, nnx.Param)[0]


def test_a_tied_embedding_is_trained_once():
  vlm = support.build(tied=True)
  before = support.logits(vlm)
  peft.apply(vlm, PeftConfig(target=r".*q_proj", full=r".*embed_tokens"))
  assert np.array_equal(support.logits(vlm), before)
  _, params, _ = nnx.split(vlm, peft.FullParam, ...)
  assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(64, 24)]


def test_first_values_depend_on_seed_and_name_alone(plain):
  narrow = adapters(peft.apply(nnx.clone(plain), PeftConfig(target=r".*text_model.*q_proj", seed=4)))
  wide = adapters(peft.apply(nnx.clone(plain), PeftConfig(target=".*", seed=4)))
  other = adapters(peft.apply(nnx.clone(plain), PeftConfig(target=".*", seed=5)))
  drawn = []
  for name, layer in narrow.items():
    a = np.asarray(layer.lora_a[...])
    assert np.array_equal(a, wide[name].lora_a[...]) and not np.array_equal(a, other[name].lora_a[...])
    assert np.abs(a).max() <= 24**-0.5 < 1.2 * np.abs(a).max() and abs(a.mean()) < 0.05
    assert np.std(a) == pytest.approx((24 * 3) ** -0.5, rel=0.15)  # of a uniform law
    assert not layer.lora_b[...].any()
    drawn.append(a)
  assert not np.array_equal(*drawn)


def test_factors_are_born_where_they_stay():
  """Split along tensor as their base is, whole along fsdp."""
  config = PeftConfig(target=".*", full=r"model\.text_model\.norm", options={"rank": 4, "dora": True})
  alone = support.moved(peft.apply(support.build(), config))
  mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  spread = peft.apply(support.build(mesh=mesh), config)
  for _, variable in nnx.to_flat_state(nnx.state(spread)):
    assert variable[...].sharding.is_equivalent_to(axes.sharding_of(variable, mesh), variable[...].ndim)
  layer = spread.decoder.stack.layers[0].attn.q_proj
  assert layer.lora_a[...].sharding.shard_shape((24, 4)) == (24, 4)
  assert layer.lora_b[...].sharding.shard_shape((4, 32)) == (4, 16)
  down = spread.decoder.stack.layers[0].mlp.down_proj
  assert down.lora_a[...].sharding.shard_shape((32, 4)) == (16, 4)
  assert down.magnitude[...].sharding.is_fully_replicated
  spread = support.moved(spread)
  np.testing.assert_allclose(support.logits(spread), support.logits(alone), atol=2e-5)
  merged, wanted = (dict(nnx.to_flat_state(nnx.state(peft.merge(model)))) for model in (spread, alone))
  for path, variable in merged.items():
    assert variable[...].sharding.is_equivalent_to(axes.sharding_of(variable, mesh), variable[...].ndim)
    np.testing.assert_allclose(variable[...], wanted[path][...], atol=2e-6)


def test_surgery_inside_a_sharded_creation():
  """A model drawn and adapted in one jitted program, each factor on its shard with its usual values."""
  config = PeftConfig(target=r".*text_model.*q_proj", options={"rank": 2, "dora": True})
  mesh = axes.make_mesh({"fsdp": 4, "tensor": 2})
  settings = support.build().config
  make = lambda: peft.apply(Vlm(settings, rngs=nnx.Rngs(0)), config)
  spread = axes.create_sharded(make, mesh).decoder.stack.layers[1].attn.q_proj
  alone = peft.apply(support.build(), config).decoder.stack.layers[1].attn.q_proj
  assert np.array_equal(spread.lora_a[...], alone.lora_a[...])
  assert spread.lora_a[...].sharding.shard_shape((24, 2)) == (24, 2)
  norms = np.linalg.norm(np.asarray(spread.kernel[...]), axis=0)
  np.testing.assert_allclose(spread.magnitude[...], norms, rtol=1e-6)


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"target": "q_proj"}, ["peft.target", "matched as a whole", "'.*q_proj.*' would find 4"]),
    ({"target": r".*\.qproj"}, ["did you mean", "self_attn.q_proj"]),
    ({"target": r"model\.text_model\.layers\.\d+\.self_atn\.o_proj"}, ["did you mean", "self_attn.o_proj"]),
    ({"target": r".*vision_tower.*out_proj"}, ["did you mean", "self_attn.out_proj"]),
    ({"target": r".*layers\.7.*"}, ["peft.target", "did you mean"]),
    ({"target": "("}, ["peft.target", "not a regular expression"]),
    ({"target": ".*", "full": "lm_hed"}, ["peft.full", "'lm_head'"]),
    ({"target": r".*q_proj", "rank_pattern": {r".*k_proj": 2}}, ["peft.rank_pattern", "q_proj"]),
    (
      {"target": r".*q_proj", "alpha_pattern": {"[": 2.0}},
      ["peft.alpha_pattern", "not a regular expression"],
    ),
    ({"rank": 0}, ["peft", "rank", "at least 1"]),
    ({"dropout": 1.0}, ["peft.dropout"]),
    ({"method": "lroa"}, ["peft.method", "'lroa'", "did you mean 'lora'"]),
    ({"method": "none"}, ["nothing is trained"]),
  ],
)
def test_mistakes_are_told_in_one_line(plain, settings, words):
  config = from_config_dict(settings, PeftConfig)
  vlm = nnx.clone(plain)
  with pytest.raises(UserError) as caught:
    peft.apply(vlm, config)
    peft.trainable_filter(vlm, config)
  message = str(caught.value)
  assert "\n" not in message
  assert all(word in message for word in words), message


def test_adapters_are_not_stacked(plain):
  vlm = peft.apply(nnx.clone(plain), PeftConfig(target=r".*q_proj"))
  with pytest.raises(UserError, match="already carries an adapter"):
    peft.apply(vlm, PeftConfig(target=r".*q_proj"))


@pytest.mark.parametrize("dora", [False, True])
def test_merging_keeps_the_values_and_the_original(dora):
  config = PeftConfig(target=".*", full=r".*post_layernorm|.*embed_tokens", options={"rank": 3, "dora": dora})
  vlm = support.moved(peft.apply(support.build(), config), 0.1)
  before = jax.tree.map(np.asarray, nnx.state(vlm))
  expected = support.logits(vlm)
  merged = peft.merge(vlm)
  assert {type(v) for _, v in nnx.to_flat_state(nnx.state(merged))} == {nnx.Param}
  assert nnx.graphdef(merged) == nnx.graphdef(support.build())
  scale = np.abs(expected).max()
  assert np.abs(support.logits(merged) - expected).max() <= 2e-6 * scale
  assert np.abs(support.logits(support.build()) - expected).max() > 0.1 * scale
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(vlm)), strict=True):
    assert np.array_equal(old, new)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_into_bfloat16_rounds_once(dora):
  config = PeftConfig(target=r".*q_proj", full=r".*post_layernorm", options={"rank": 3, "dora": dora})
  vlm = support.moved(peft.apply(support.build("bfloat16"), config))
  merged = peft.merge(vlm)
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(merged))} == {jnp.dtype("bfloat16")}
  layer, plain = (model.decoder.stack.layers[0].attn.q_proj for model in (vlm, merged))
  exact = np.float64(layer.kernel[...]) + 16 / 3 * np.float64(layer.lora_a[...]) @ np.float64(
    layer.lora_b[...]
  )
  if dora:
    exact *= np.float64(layer.magnitude[...]) / np.linalg.norm(exact, axis=0)
  np.testing.assert_allclose(np.float64(plain.kernel[...]), exact, rtol=2**-8, atol=1e-6)
  assert vlm.vision.norm.scale.get_raw_value().dtype == jnp.float32


def test_halves_of_one_tensor_are_no_layers_of_their_own():
  """DINOv2's SwiGLU keeps gate and value in one tensor: trained in full by their own paths, never adapted."""
  encoder = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "use_swiglu_ffn": True}
  encoder |= {"model_type": "dinov2", "image_size": 16, "patch_size": 4, "mlp_ratio": 2}
  colours = {"mean": [0.5] * 3, "std": [0.5] * 3}
  source = {
    "model_type": "spatialvlm",
    "base": tiny_model.config_json(),
    "encoders": [{"family": "dinov2-swiglu", "config": encoder, **colours}],
    "tile": {"size": 16, **colours},
    "connector": {"factor": 2},
  }
  family = registry.family(registry.family_of(source, "test"))
  config = family.parse_config(source, dtype="float32", where="test")
  vlm = nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0)))
  found = peft.METHODS["lora"].plan(vlm, PeftConfig(target="encoders.*"), LoraOptions())
  layers = {name.removeprefix("encoders.0.encoder.layer.0.") for name in found}
  attention = {f"attention.attention.{part}" for part in ("query", "key", "value")}
  assert layers == attention | {"attention.output.dense", "mlp.weights_out"}
  own = "vision.encoders.0.stack.layers.0.mlp."
  found = select.parameter_paths(vlm)
  assert {f"{own}{part}_proj.{kind}" for part in ("gate", "up") for kind in ("kernel", "bias")} < set(found)
  assert len(found) == len(nnx.to_flat_state(nnx.state(vlm, nnx.Param)))
