"""Settings that are put on a built model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import ModelConfig, PeftConfig
from spatialvlm.core.attention import IMPLEMENTATIONS, Attention, Implementation
from spatialvlm.core.axes import make_mesh
from spatialvlm.loading import load_base
from spatialvlm.models import execution
from spatialvlm.models.execution import Execution
from spatialvlm.types import UserError
from tests import tiny_language, tiny_model
from tests.models.support import call
from tests.peft import support


def settings(model) -> set[tuple[str, bool]]:
  modules = [module for _, module in nnx.iter_modules(model)]
  ways = {m.implementation for m in modules if isinstance(m, Attention)}
  return {(way, m.remat) for m in modules if hasattr(m, "remat") for way in ways}


def test_settings_reach_every_block_of_a_model_with_adapters():
  model = peft.apply(support.build(), PeftConfig(options={"rank": 2}))
  assert settings(model) == {("xla", False)}
  assert execution.apply(model, Execution(attention="blocked", remat=True)) is model
  assert settings(model) == {("blocked", True)}
  graphdef, state = nnx.split(model)  # they are static, and survive being split
  assert settings(nnx.merge(graphdef, state)) == {("blocked", True)}
  execution.apply(model, Execution())
  assert settings(model) == {("xla", False)}


def test_blocked_attention_gives_the_numbers_of_the_whole(monkeypatch):
  model, batch = support.build(), support.batch()
  want = np.asarray(call(model, batch, method="hidden"))
  called = []
  blocked = IMPLEMENTATIONS["blocked"].run
  counted = Implementation(lambda *args: called.append(1) or blocked(*args))
  monkeypatch.setitem(IMPLEMENTATIONS, "blocked", counted)
  execution.apply(model, Execution(attention="blocked"))
  got = call(model, batch, method="hidden")
  assert len(called) == 4  # two layers in each tower
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "attention, dtype, message",
  [
    ("flash", "float32", "attention 'flash': expected xla, blocked, whole, cudnn or splash"),
    ("splash", "bfloat16", "attention splash: needs a TPU; use xla"),
    ("cudnn", "float32", "attention cudnn: needs an NVIDIA GPU and dtype bfloat16; use xla"),
    ("cudnn", "bfloat16", "attention cudnn: needs an NVIDIA GPU"),
  ],
)
def test_what_cannot_run_here_is_said_before_weights_are_read(attention, dtype, message):
  with pytest.raises(UserError, match=message):
    load_base(ModelConfig(path="nowhere", dtype=dtype, attention=attention), None)
  model = support.build()
  with pytest.raises(UserError, match=message):
    execution.apply(model, Execution(attention=attention, remat=True))
  assert settings(model) == {("xla", False)}


def test_bounded_scores_are_refused_by_cudnn(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  Execution(attention="cudnn").check("bfloat16")
  with pytest.raises(UserError, match=r"attention cudnn: cannot bound scores \(attn_logit_softcapping\)"):
    Execution(attention="cudnn").check("bfloat16", softcap=50.0)


def test_a_loaded_model_has_the_attention_of_its_config(tmp_path):
  folder = tiny_model.write_checkpoint(tmp_path)
  model = load_base(ModelConfig(path=str(folder), attention="blocked"), None)
  assert settings(model) == {("blocked", False)}
  assert model.decoder.embed.embedding.dtype == jnp.float32


@pytest.mark.parametrize(
  "few_bits",
  [{}, dict(quantize="int8", quantize_target=r".*mlp\.(down_proj|fc2)")],
  ids=("plain", "int8"),
)
def test_a_part_that_is_kept_whole_is_on_every_device(tmp_path, few_bits):
  folder = tiny_model.write_checkpoint(tmp_path)
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  model = load_base(ModelConfig(path=str(folder), **few_bits), mesh)
  split = places(model)
  of_vision = {name for name in split if name.startswith("vision.")}
  assert any("fsdp" in split[name] for name in of_vision)
  assert execution.keep_whole(model, ("vision",), mesh) is model
  found = places(model)
  assert not any("fsdp" in found[name] for name in of_vision)
  assert any("tensor" in found[name] for name in of_vision)
  assert {n: p for n, p in found.items() if n not in of_vision} == {
    n: p for n, p in split.items() if n not in of_vision
  }


def places(model) -> dict[str, str]:
  """Where each array of a model lies, in words."""
  found = {}
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    for number, part in enumerate(jax.tree.leaves(variable.get_raw_value())):
      found[".".join(map(str, (*path, number)))] = str(part.sharding.spec)
  return found


def test_a_part_that_is_not_there_cannot_be_kept_whole(tmp_path):
  mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
  model = load_base(ModelConfig(path=str(tiny_language.write_checkpoint(tmp_path))), mesh)
  with pytest.raises(UserError, match=r"config\.mesh\.whole: vision, connector: the model has none"):
    execution.keep_whole(model, ("vision", "decoder", "connector"), mesh)
