"""A model with kernels in few bits: adapters over it, gradients, meshes, merging, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub, loading, peft
from spatialvlm.config import ModelConfig, PeftConfig, from_config_dict
from spatialvlm.core import axes
from spatialvlm.core.quantised import QuantisedLinear, QuantisedParam, formats, weight_bytes
from spatialvlm.models import execution
from spatialvlm.quantise.nf4 import Nf4
from spatialvlm.training import state as state_lib
from spatialvlm.types import UserError
from tests.models.support import answer_loss, jit
from tests.peft.support import batch, logits, moved
from tests.quantise.support import load, write_model

LORA = {"target": r".*text_model.*_proj", "rank": 2, "dora": True}
IA3 = {"method": "ia3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp("quantised") / "model")


def adapted(vlm, settings):
  return peft.apply(vlm, from_config_dict(settings, PeftConfig))


def gradients(vlm):
  graphdef, params, rest = nnx.split(vlm, peft.Trained, ...)
  labels = np.asarray(batch().tokens_BT)
  loss = lambda params: answer_loss(nnx.merge(graphdef, params, rest)(batch()), labels)
  return dict(nnx.to_flat_state(jit(jax.grad(loss))(params)))


def test_the_decoders_linear_layers_are_quantised_and_nothing_else(folder):
  vlm, full = load(folder), hub.load_model(folder)
  kinds = {".".join(map(str, p)): v for p, v in nnx.iter_graph(vlm) if isinstance(v, nnx.Param)}
  few = {name for name, v in kinds.items() if isinstance(v, QuantisedParam)}
  layer = "decoder.stack.layers.0"
  assert few == {f"{layer}.attn.{p}_proj.kernel" for p in "qkvo"} | {
    f"{layer}.mlp.{p}_proj.kernel" for p in ("gate", "up", "down")
  }
  kept, whole = weight_bytes(vlm)
  assert whole == weight_bytes(full)[1] == weight_bytes(full)[0] and formats(vlm) == ("nf4",)
  weights = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64
  assert whole - kept == 4 * weights - weights // 2 - 4 * weights // 32
  counted = peft.count_parameters(vlm, nnx.Param)
  assert counted == peft.count_parameters(full, nnx.Param)
  drawn = loading.load_base(ModelConfig(str(folder), from_scratch=True, quantize="int8"), None)
  assert "QuantisedParam" in repr(drawn.decoder.stack.layers[0].mlp)
  assert formats(drawn) == ("int8",) and isinstance(
    drawn.decoder.stack.layers[0].mlp.up_proj, QuantisedLinear
  )


@pytest.mark.parametrize("settings", [LORA, IA3], ids=["dora", "ia3"])
def test_an_adapter_over_few_bits_is_one_over_the_decoded_weights(folder, settings):
  """Outputs and gradients alike; and what it is merged into is these weights."""
  few = load(folder)
  full = peft.merge(few)
  assert formats(full) == () and formats(few) == ("nf4",)
  few, full = (moved(adapted(vlm, settings)) for vlm in (few, full))
  expected = logits(full)
  np.testing.assert_allclose(logits(few), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
  ours, theirs = gradients(few), gradients(full)
  assert ours.keys() == theirs.keys() and ours
  for path, value in ours.items():
    np.testing.assert_allclose(value[...], theirs[path][...], atol=2e-6 * np.abs(theirs[path][...]).max())
  merged = logits(peft.merge(few))
  np.testing.assert_allclose(merged, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
  "settings", [{"quantize_double": True}, {"quantize": "int8", "quantize_block": None}]
)
def test_on_a_mesh(folder, settings):
  alone = moved(adapted(load(folder, **settings), LORA))
  mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  spread = adapted(load(folder, mesh, **settings), LORA)
  array = spread.decoder.stack.layers[0].mlp.up_proj.kernel.get_raw_value()
  assert array.codes.addressable_shards[0].data.size == array.codes.size // 4
  split = state_lib.Split(adapted(load(folder, **settings), LORA), peft.Trained, mesh)  # from one device
  kept = split.frozen["decoder.stack.layers.0.mlp.up_proj.kernel"]
  assert jax.tree.map(lambda a: a.sharding.spec, kept) == jax.tree.map(lambda a: a.sharding.spec, array)
  spread, expected = moved(spread), logits(alone)
  with jax.set_mesh(mesh):
    np.testing.assert_allclose(logits(spread), expected, atol=2e-5)
  merged, wanted = (peft.merge(vlm).decoder.stack.layers[0].mlp for vlm in (spread, alone))
  for name in ("gate_proj", "up_proj"):
    ours, theirs = getattr(merged, name).kernel, getattr(wanted, name).kernel
    assert ours[...].sharding.is_equivalent_to(axes.sharding_of(ours, mesh), 2)
    np.testing.assert_allclose(ours[...], theirs[...], atol=2e-6)


@pytest.mark.parametrize(
  "settings", [{"quantize_double": True}, {"quantize": "q4_0", "quantize_block": None}]
)
def test_a_loop_over_layers_in_few_bits_gives_their_numbers(tmp_path, settings):
  path = write_model(tmp_path / "deep", depth=3)
  mesh = axes.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  vlm = moved(adapted(load(path, **settings), LORA))
  wanted, expected = gradients(vlm), logits(vlm)
  execution.apply(vlm, execution.Execution(scan=True))
  np.testing.assert_allclose(logits(vlm), expected, atol=1e-5 * np.abs(expected).max())
  for name, gradient in gradients(vlm).items():
    want = np.asarray(wanted[name][...])
    np.testing.assert_allclose(gradient[...], want, atol=1e-5 * np.abs(want).max())
  spread = moved(adapted(load(path, mesh, scan_layers=True, **settings), LORA))
  with jax.set_mesh(mesh):
    np.testing.assert_allclose(logits(spread), expected, atol=2e-5 * np.abs(expected).max())


def test_a_saved_model_holds_the_decoded_weights(folder, tmp_path):
  vlm = load(folder)
  again = hub.load_model(hub.save_model(vlm, tmp_path / "a", folder))
  for name in ("gate_proj", "down_proj"):
    kernel = getattr(vlm.decoder.stack.layers[0].mlp, name).kernel
    assert np.array_equal(kernel[...], getattr(again.decoder.stack.layers[0].mlp, name).kernel[...])


def test_the_backward_pass_decodes_again_instead_of_keeping_kernels():
  """What is kept between the passes are the few bits; of a layer in full it is its kernel."""
  kernel = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
  full = nnx.eval_shape(lambda: nnx.Linear(64, 96, use_bias=False, rngs=nnx.Rngs(0)))
  full.kernel = nnx.Param(jnp.asarray(kernel))
  few = nnx.clone(full)
  few.kernel = QuantisedParam(jax.tree.map(jnp.asarray, Nf4(32).quantise(kernel)))
  few = QuantisedLinear(few)

  def kept(layer):
    _, pullback = jax.vjp(lambda x: layer(x), jnp.ones((2, 64)))
    return [
      leaf for leaf in jax.tree.leaves(pullback) if leaf.dtype == jnp.float32 and leaf.size >= kernel.size
    ]

  assert kept(full) and not kept(few)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"quantize_block": 64}, r"layers\.0\.self_attn\.._proj cannot be kept in nf4: its 32 inputs are no"),
    ({"quantize_target": ".*nothing"}, r"config\.model\.quantize_target: '\.\*nothing' matches no layer"),
  ],
)
def test_what_cannot_be_quantised(folder, settings, message):
  with pytest.raises(UserError, match=message):
    load(folder, **settings)


def test_what_is_quantised_is_not_trained_in_full(folder):
  vlm = load(folder, quantize_target=r".*down_proj|lm_head")
  assert isinstance(vlm.decoder.lm_head, QuantisedLinear) and logits(vlm).dtype == np.float32
  with pytest.raises(UserError, match=r"peft\.full: lm_head\.weight is kept in nf4, in which nothing is"):
    peft.apply(vlm, PeftConfig(method="none", full="lm_head"))
