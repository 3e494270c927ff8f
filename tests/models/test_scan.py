"""Models whose layers run as a loop (`Execution.scan`) against the same models layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import generation
from spatialvlm.config import ModelConfig
from spatialvlm.core.block import Stack
from spatialvlm.loading import load_base
from spatialvlm.models import execution
from spatialvlm.models.execution import Execution
from spatialvlm.models.outputs import Wants
from tests import tiny_model
from tests.models.support import batch_of, call, jit

IMAGE = 60


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  ids = rng.integers(3, IMAGE - 1, (2, 9))
  ids[:, 1:5] = IMAGE
  mask = np.ones_like(ids)
  mask[1, 7:] = 0
  pixels = rng.normal(size=(2, 1, 3, tiny_model.TILE, tiny_model.TILE)).astype(np.float32)
  batch = batch_of({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, IMAGE)
  return dataclasses.replace(batch, target_index_BK=jnp.asarray([[7, 8], [6, -1]], jnp.int32))


def as_both(model, function):
  """(as a list, as a loop) of what a function of the model gives."""
  found = []
  for loop in (False, True):
    execution.apply(model, Execution(scan=loop))
    found.append(function(model))
  return found


def close(got, want, rtol=3e-6):
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=rtol * max(np.abs(np.asarray(other)).max(), 1e-6))


ALL = Wants(vision=True, encoder_layers=(2, -1), decoder_layers=(0, 2), attention=(-1,), logits=True)


@pytest.mark.parametrize("wants", [ALL, pytest.param(Wants(logits=True), marks=pytest.mark.slow)])
def test_one_forward_gives_all_that_is_wanted(batch, wants):
  def read(model):
    graph, state = nnx.split(model)
    return jit(lambda state, batch: nnx.merge(graph, state).read(batch, wants))(state, batch)

  want, got = as_both(tiny_model.build(depth=4), read)
  close(got, want)


@pytest.mark.slow
def test_prefill_decoding_and_generation(batch):
  model = tiny_model.build(depth=3)
  plain = dataclasses.replace(batch, target_index_BK=None)

  def several(model):
    hidden, cache = call(model, plain, model.init_cache(2, 12), method="prefill")
    again, longer = call(model, jnp.asarray([5, 6]), cache, method="decode_step")
    return hidden, cache, again, longer

  want, got = as_both(model, several)
  close(got, want)
  said = as_both(model, lambda model: generation.generate(model, plain, max_new_tokens=5))
  np.testing.assert_array_equal(*said)


@pytest.mark.slow
def test_windows_that_alternate_are_one_loop(batch):
  """Gemma 2's layers differ in what their queries see, and in nothing else."""
  model = tiny_model.build(depth=4)
  full = np.asarray(call(model, batch, method="hidden"))
  model.decoder.config = dataclasses.replace(model.decoder.config, windows=(3, 0, 3, 0))

  def several(model):
    plain = dataclasses.replace(batch, target_index_BK=None)
    hidden, cache = call(model, plain, model.init_cache(2, 12), method="prefill")
    return (
      call(model, batch, method="hidden"),
      hidden,
      call(model, jnp.asarray([5, 6]), cache, method="decode_step"),
    )

  want, got = as_both(model, several)
  close(got, want)
  assert np.abs(np.asarray(got[0]) - full).max() > 0.01  # the windows hide something
  program = str(jax.make_jaxpr(lambda x, v: model.decoder(x, v))(jnp.zeros((2, 9, 24)), batch.valid_BT))
  assert program.count("scan[") == 1


def test_a_loaded_model_loops_as_its_config_says(tmp_path):
  folder = tiny_model.write_checkpoint(tmp_path, depth=2)
  model = load_base(ModelConfig(path=str(folder), scan_layers=True), None)
  assert all(m.scan for _, m in nnx.iter_modules(model) if isinstance(m, Stack))
