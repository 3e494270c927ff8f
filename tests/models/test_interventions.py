"""`Vlm.read` with changes: what is cut, taken out or given, against the same done by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.models.interventions import Cut, Given, Heads, Interventions
from spatialvlm.models.outputs import Wants
from spatialvlm.models.soft_prompts import AFTER_IMAGE, SoftTokens
from spatialvlm.types import UserError
from tests import tiny_model
from tests.models.support import batch_of, jit

IMAGE, B, T, L, N = 60, 3, 9, 2, 4
WANTS = Wants(decoder_layers=(0, 1, 2), attention=(1, 2), hidden=True)


@pytest.fixture(scope="module")
def model():
  return tiny_model.build()


@pytest.fixture(scope="module")
def batch():
  """Three samples of one tile each; the last is padded."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, IMAGE - 1, (B, T))
  ids[:, 1:5] = IMAGE
  mask = np.ones_like(ids)
  mask[2, 7:] = 0
  pixels = rng.normal(size=(B, 1, 3, tiny_model.TILE, tiny_model.TILE)).astype(np.float32)
  batch = batch_of({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, IMAGE)
  return dataclasses.replace(batch, target_index_BK=jnp.asarray([[8], [8], [6]], jnp.int32))


def read(model, batch, changes=None, wants=WANTS):
  graphdef, state = nnx.split(model)
  run = jit(lambda state, batch, changes: nnx.merge(graphdef, state).read(batch, wants, changes))
  return run(state, batch, changes)


def at(*true, size=T, rows=None):
  """bool (B, size), true at some places of some rows."""
  found = np.zeros((B, size), bool)
  found[np.ix_(list(range(B)) if rows is None else rows, list(true))] = True
  return found


def test_nothing_changed_is_nothing_changed(model, batch):
  plain, same = read(model, batch), read(model, batch, Interventions())
  jax.tree.map(np.testing.assert_array_equal, plain, same)
  nobody = Interventions(
    Cut(at(size=L), at(5), at(2)),
    Heads(np.zeros((B, L, N), bool)),
    Given(at(size=L + 1), at(3), _streams(plain)),
  )
  jax.tree.map(np.testing.assert_array_equal, plain, read(model, batch, nobody))


def test_programs_without_changes_are_as_before(model, batch):
  graphdef, state = nnx.split(model)
  program = lambda *more: str(
    jax.make_jaxpr(lambda s, b: nnx.merge(graphdef, s).read(b, WANTS, *more))(state, batch)
  )
  assert program() == program(None)


def test_cut_attention_is_seen_in_the_probabilities(model, batch):
  plain = read(model, batch)
  cut = Cut(at(1, size=L, rows=[0, 2]), at(6, 7), at(1, 2))  # in block 2 of rows 0 and 2
  found = read(model, batch, Interventions(cut))
  np.testing.assert_array_equal(found.attention[1], plain.attention[1])
  p_BNTS = np.asarray(found.attention[2])
  assert not p_BNTS[0, :, 6:8, 1:3].any() and p_BNTS[0, :, 6:8, 3].all() and p_BNTS[0, :, 5, 1:3].all()
  np.testing.assert_array_equal(p_BNTS[1], plain.attention[2][1])
  # What is left of a row is divided anew.
  want = np.array(plain.attention[2][0, :, 6])
  want[:, 1:3] = 0
  np.testing.assert_allclose(p_BNTS[0, :, 6], want / want.sum(-1, keepdims=True), rtol=1e-5)
  assert not np.allclose(found.hidden[0, 6], plain.hidden[0, 6])
  np.testing.assert_array_equal(found.hidden[0, 5], plain.hidden[0, 5])


def test_heads_taken_out_are_columns_of_the_projection(model, batch):
  out = np.zeros((B, L, N), bool)
  out[1, 0, 2] = True
  found = read(model, batch, Interventions(heads_out=Heads(out)))
  by_hand = nnx.clone(model)
  kernel = by_hand.decoder.stack.layers[0].attn.o_proj.kernel
  H = by_hand.decoder.config.block.attention.head_dim
  kernel[...] = kernel[...].at[2 * H : 3 * H].set(0)
  want, plain = read(by_hand, batch), read(model, batch)
  np.testing.assert_allclose(found.hidden[1], want.hidden[1], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found.hidden[0], plain.hidden[0])


def test_the_mean_of_a_head_is_that_of_the_batch(model, batch):
  """Where all samples are alike, a head is its mean."""
  out = np.zeros((B, L, N), bool)
  out[:, 1, 1] = True
  kind = np.where(np.asarray(batch.valid_BT), np.arange(T), -1).astype(np.int32)
  same = jax.tree.map(lambda x: jnp.repeat(x[:1], B, 0), batch)
  changes = Interventions(heads_out=Heads(out, np.repeat(kind[:1], B, 0), T))
  np.testing.assert_allclose(
    read(model, same, changes).hidden, read(model, same).hidden, rtol=2e-5, atol=2e-5
  )
  mixed = read(model, batch, Interventions(heads_out=Heads(out, kind, T)))
  assert not np.allclose(mixed.hidden[0], read(model, batch).hidden[0])
  zero = read(model, batch, Interventions(heads_out=Heads(out)))
  assert not np.allclose(mixed.hidden[0], zero.hidden[0])


def _streams(out):
  return np.stack([np.asarray(out.decoder_layers[layer]) for layer in range(L + 1)])


def test_given_states_stand_where_they_were_put(model, batch):
  plain = read(model, batch)
  other = np.asarray(_streams(plain))[:, :1] + 1
  found = read(model, batch, Interventions(given=Given(at(1, size=L + 1, rows=[1]), at(4), other)))
  np.testing.assert_array_equal(found.decoder_layers[1][1, 4], other[1, 0, 4])
  np.testing.assert_array_equal(found.decoder_layers[1][1, 3], plain.decoder_layers[1][1, 3])
  assert not np.allclose(found.hidden[1, 6], plain.hidden[1, 6])
  np.testing.assert_array_equal(found.hidden[0], plain.hidden[0])
  # All of another's states at one layer are all of the other.
  everything = Given(at(1, size=L + 1), np.ones((B, T), bool), np.asarray(_streams(plain))[:, :1])
  rows = read(model, batch, Interventions(given=everything)).hidden
  np.testing.assert_allclose(rows[1], plain.hidden[0], rtol=1e-5, atol=1e-5)


def test_a_soft_prompt_moves_the_places(model, batch):
  soft = nnx.clone(model)
  rows = np.random.default_rng(1).normal(size=(2, 24)).astype(np.float32)
  soft.soft_tokens = SoftTokens(nnx.Param(jnp.asarray(rows)), AFTER_IMAGE)
  plain = read(soft, batch)
  cut = Interventions(Cut(at(0, 1, size=L), at(6), at(5)))
  found = read(soft, batch, cut)
  assert not np.asarray(found.attention[1])[:, :, 6, 5].any()
  assert np.asarray(found.attention[1])[0, :, 6, [4, 6]].all()
  np.testing.assert_array_equal(found.hidden[:, 5], plain.hidden[:, 5])
  given = Given(at(2, size=L + 1), at(8), np.asarray(_streams(plain))[:, :1] + 1)
  moved = read(soft, batch, Interventions(given=given))
  np.testing.assert_array_equal(moved.decoder_layers[2][1, 8], given.streams[2, 0, 8])


def test_rows_are_picked_from_all_but_shared_streams():
  streams = np.zeros((L + 1, 1, T, 4), np.float32)
  changes = Interventions(
    Cut(at(1, size=L, rows=[2]), at(6), at(5)), given=Given(at(0, size=L + 1), at(1), streams)
  )
  found = changes.rows(np.array([2, 0]))
  assert found.cut.layers_BL[:, 1].tolist() == [True, False] and found.given.streams.shape == streams.shape
  own = Interventions(given=Given(at(0, size=L + 1), at(1), np.repeat(streams, B, 1)))
  assert own.rows(np.array([2, 0])).given.streams.shape[1] == 2


def test_several_questions_a_row_are_refused(model, batch):
  packed = dataclasses.replace(batch, segment_BT=jnp.zeros((B, T), jnp.int32))
  with pytest.raises(UserError, match="one question a row"):
    model.read(packed, WANTS, Interventions())
