"""Prompt tuning and its kin: read where they should be, with a cache and without, whatever the padding."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from spatialvlm.core import axes
from spatialvlm.export import EXPORTERS
from spatialvlm.models.outputs import Wants
from spatialvlm.types import Note, UserError
from tests.models.support import batch_of, call, jit
from tests.peft import support

FIXTURES = Path(__file__).parents[1] / "fixtures"
GIVEN = peft.Given(lambda text: [5, 6, 7] if text else [])
# Name in the table -> settings to be tested under.
SOFT = {"prompt": ({}, {"place": "after_image"}), "prefix": ({},), "p_tuning": ({},)}
CASES = [
  pytest.param(name, more, id="-".join([name, *more.values()])) for name in SOFT for more in SOFT[name]
]
READ = CASES[:3]  # what P-tuning gives is read as prompt tuning is


def config_of(name, **options):
  return PeftConfig(name, options={"tokens": 3, **options})


def softened(name, mesh=None, dtype="float32", prefix_lm=False, **options):
  """A model that carries the method, its values away from their start."""
  vlm = support.build(dtype, mesh)
  vlm.config = dataclasses.replace(vlm.config, prefix_lm=prefix_lm)
  return support.moved(peft.apply(vlm, config_of(name, **options), GIVEN), 0.5)


def alone(batch, row, left=0):
  """One row of a batch of one tile a row, with so much padding before it."""
  cut = lambda x, value: np.pad(np.asarray(x)[row : row + 1], ((0, 0), (left, 0)), constant_values=value)
  return dataclasses.replace(
    batch,
    tokens_BT=cut(batch.tokens_BT, 0),
    valid_BT=cut(batch.valid_BT, False),
    image_slot_BT=cut(batch.image_slot_BT, -1),
    mask_ar_BT=None if batch.mask_ar_BT is None else cut(batch.mask_ar_BT, False),
    pixels_NHWC=batch.pixels_NHWC[row : row + 1],
  )


def two_kinds():
  """A row with an image within its text, and one without."""
  batch = support.batch()
  return dataclasses.replace(batch, image_slot_BT=batch.image_slot_BT.at[1].set(-1))


def by_hand(vlm, batch):
  """Hidden states of one sample, its embeddings laid in a row."""
  rows = vlm.soft_tokens.rows[...]
  x = vlm.embed(batch)[0]
  images = np.flatnonzero(np.asarray(batch.image_slot_BT)[0] >= 0)
  behind = vlm.soft_tokens.place == "after_image" and len(images)
  at = int(images[-1]) + 1 if behind else 0
  whole = jnp.concatenate([x[:at], rows, x[at:]])[None]
  places = np.delete(np.arange(whole.shape[1]), at + np.arange(len(rows)))
  ar = None if not vlm.config.prefix_lm else jnp.zeros(whole.shape[:2], bool)
  return np.asarray(call(vlm.decoder, whole, jnp.ones(whole.shape[:2], bool), ar))[0, places]


@pytest.mark.parametrize("prefix_lm", [False, True])
@pytest.mark.parametrize("place", ["start", "after_image"])
def test_rows_stand_in_their_place(place, prefix_lm):
  vlm, batch = softened("prompt", place=place, prefix_lm=prefix_lm), two_kinds()
  got = np.asarray(call(vlm, batch, method="hidden"))
  for row in range(2):
    np.testing.assert_allclose(got[row], by_hand(vlm, alone(batch, row)), atol=3e-5)


@pytest.mark.parametrize(("name", "more"), READ)
@pytest.mark.parametrize("prefix_lm", [False, True])
def test_neither_padding_nor_neighbours_nor_a_cache_change_a_number(name, more, prefix_lm):
  vlm, batch = softened(name, prefix_lm=prefix_lm, **more), two_kinds()
  # A prompt of six tokens, then two more, each a step; room for more than that.
  first = dataclasses.replace(
    batch,
    tokens_BT=batch.tokens_BT[:, :6],
    valid_BT=batch.valid_BT[:, :6],
    image_slot_BT=batch.image_slot_BT[:, :6],
  )
  hidden, cache = call(vlm, first, vlm.init_cache(2, 12), method="prefill")
  got = [np.asarray(hidden)]
  for i in (6, 7):
    hidden, cache = call(vlm, batch.tokens_BT[:, i], cache, method="decode_step")
    got.append(np.asarray(hidden))
  causal = dataclasses.replace(batch, mask_ar_BT=jnp.broadcast_to(jnp.arange(8) >= 6 * prefix_lm, (2, 8)))
  whole = np.asarray(call(vlm, causal, method="hidden"))
  np.testing.assert_allclose(np.stack(got, 1), whole[:, 5:], atol=3e-5)
  padded = alone(causal, 1, left=2)
  np.testing.assert_allclose(call(vlm, padded, method="hidden")[0, 2:], whole[1], atol=3e-5)


@pytest.mark.parametrize(("name", "more"), CASES)
def test_a_folder_holds_all_of_it(name, more, tmp_path):
  vlm = softened(name, **more)
  plain, expected = support.logits(support.build()), support.logits(vlm)
  assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
  assert peft.carries(vlm) == (name,)
  assert vlm.max_length == vlm.config.text.max_length - 3
  peft.check_claims(vlm)
  peft.save_adapter(vlm, tmp_path / "a", "base")
  again = peft.load_adapter(support.build(), tmp_path / "a")
  kind = "prompt" if name == "p_tuning" else name  # its encoder stays behind
  assert peft.carries(again) == (kind,)
  np.testing.assert_allclose(support.logits(again), expected, atol=1e-5 * (kind != name))
  expected = support.logits(again)
  resumed = PeftConfig(kind, resume_from=str(tmp_path / "a"))
  assert peft.positions(resumed) == 3 == peft.positions(config_of(name))
  assert np.array_equal(support.logits(peft.apply(support.build(), resumed)), expected)
  with pytest.raises(UserError, match=r"cannot be merged.*export the adapter"):
    peft.merge(vlm)
  assert "--to=adapter" in EXPORTERS["merged"].why_not(vlm)
  with pytest.raises(UserError, match="merge adapters first"):
    hub.save_model(vlm, tmp_path / "m")


def test_what_peft_cannot_say_is_said(tmp_path):
  with pytest.warns(Note, match="peft knows no soft tokens behind the image"):
    peft.save_adapter(softened("prompt", place="after_image"), tmp_path / "a")
  said = json.loads((tmp_path / "a/adapter_config.json").read_text())
  assert said["peft_type"] == "SPATIALVLM_PROMPT_AFTER_IMAGE"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), CASES)
def test_eight_devices_are_one(name, more):
  mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  spread, one = softened(name, mesh, **more), softened(name, **more)
  for _, variable in nnx.to_flat_state(nnx.state(spread, peft.Trained)):
    raw = variable.get_raw_value()
    assert raw.dtype == jnp.float32
    assert raw.sharding.is_equivalent_to(axes.sharding_of(variable, mesh), raw.ndim)
  np.testing.assert_allclose(support.logits(spread), support.logits(one), atol=2e-5)
  low = softened(name, dtype="bfloat16", **more)
  assert jax.eval_shape(lambda: low.hidden(support.batch(jnp.bfloat16))).dtype == jnp.bfloat16


def test_first_values():
  vlm = peft.apply(support.build(), config_of("prompt", tokens=5), GIVEN)
  table = np.asarray(vlm.decoder.embed.embedding[...])
  assert np.array_equal(vlm.soft_tokens.rows[...], table[[5, 6, 7, 5, 6]])
  vlm = peft.apply(support.build(), config_of("prompt", init="vocabulary"))
  near = (np.asarray(vlm.soft_tokens.rows[...])[:, None] == table).all(-1)
  assert (near.sum(1) >= 1).all() and not near[:, vlm.config.image_token_id].any()
  vlm = peft.apply(support.build(), config_of("prompt", tokens=400, init="random"))
  assert float(jnp.std(vlm.soft_tokens.rows[...])) == pytest.approx(float(table.std()), rel=0.05)


def test_a_prefix_of_a_text_is_that_text():
  """Before a text of its own the model says what it says of both, one behind the other."""
  vlm, batch = support.build(), two_kinds()
  batch = dataclasses.replace(alone(batch, 1), pixels_NHWC=None, image_slot_BT=None)
  both = dataclasses.replace(
    batch,
    tokens_BT=np.concatenate([[[5, 6, 7, 5]], batch.tokens_BT], 1),
    valid_BT=np.ones((1, 12), bool),
  )
  whole = np.asarray(call(vlm, both, method="hidden"))[:, 4:]
  peft.apply(vlm, config_of("prefix", tokens=4), GIVEN)
  np.testing.assert_allclose(call(vlm, batch, method="hidden"), whole, atol=3e-5)
  for init in ("zeros", "random"):
    pairs = peft.apply(support.build(), config_of("prefix", init=init)).decoder.learned_past.pairs[...]
    assert float(jnp.std(pairs)) == pytest.approx(0.02 * (init == "random"), rel=0.3)


@pytest.mark.parametrize(("name", "more"), READ)
def test_layers_and_logits_are_those_of_the_batch(name, more):
  """Targets are read at the place before them, also where that is a soft token's."""
  vlm, batch = softened(name, **more), two_kinds()
  batch = dataclasses.replace(batch, target_index_BK=jnp.asarray([[5, 7], [3, -1]], jnp.int32))
  wants = Wants(logits=True, hidden=True, decoder_layers=(0, -1), attention=(1,))
  graphdef, state = nnx.split(vlm)
  found = jit(lambda state: nnx.merge(graphdef, state).read(batch, wants))(state)
  assert found.decoder_layers[0].shape == found.hidden.shape == (2, 8, 24)
  np.testing.assert_allclose(found.decoder_layers[0], call(vlm, batch, method="embed"), atol=1e-6)
  assert found.attention[1].shape == (2, 4, 8, 8)
  assert (np.asarray(found.attention[1]).sum(-1)[:, :, -1] < 0.9999).all()
  logits = np.asarray(call(vlm, batch))
  for row, k, at in ((0, 1, 6), (1, 0, 2)):
    np.testing.assert_allclose(found.logits[row, k], logits[row, at], atol=2e-5)
  behind = np.abs(np.asarray(found.logits[0, 0]) - logits[0, 4]).max()
  assert (behind > 1e-3) == ("place" in more)  # the first token behind the image follows the soft ones


@pytest.mark.parametrize(("name", "more"), READ)
def test_what_comes_behind_a_full_row(name, more):
  """The token behind the last one is a target that no position of the batch is left for."""
  vlm, batch = softened(name, **more), two_kinds()
  B, T = batch.tokens_BT.shape
  full = dataclasses.replace(batch, valid_BT=jnp.ones((B, T), bool), target_index_BK=jnp.full((B, 1), T))
  behind = lambda x, value: jnp.pad(x, ((0, 0), (0, 1)), constant_values=value)
  longer = dataclasses.replace(
    full,
    tokens_BT=behind(full.tokens_BT, 0),
    valid_BT=behind(full.valid_BT, False),
    image_slot_BT=behind(full.image_slot_BT, -1),
    mask_ar_BT=None if full.mask_ar_BT is None else behind(full.mask_ar_BT, True),
  )
  graphdef, state = nnx.split(vlm)
  read = lambda one: jit(lambda state: nnx.merge(graphdef, state).read(one, Wants(logits=True)).logits)(state)
  got, want = read(full), read(longer)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_packed_rows():
  """Keys and values stand before every conversation of a row; soft tokens before one, so they refuse."""
  batch = dataclasses.replace(two_kinds(), pixels_NHWC=None, image_slot_BT=None)
  segments = jnp.asarray(np.arange(8) >= 3, jnp.int32)[None].repeat(2, 0)
  packed = dataclasses.replace(batch, segment_BT=segments)
  vlm = softened("prefix")
  got = np.asarray(call(vlm, packed, method="hidden"))
  for part in (slice(0, 3), slice(3, 8)):
    cut = dataclasses.replace(batch, tokens_BT=batch.tokens_BT[:, part], valid_BT=batch.valid_BT[:, part])
    np.testing.assert_allclose(got[:, part], call(vlm, cut, method="hidden"), atol=3e-5)
  with pytest.raises(UserError, match="this batch is packed"):
    softened("prompt").hidden(packed)


@pytest.mark.parametrize(
  ("config", "given", "message"),
  [
    (config_of("prompt", tokens=0), GIVEN, "peft.tokens: 0"),
    (
      config_of("prompt", tokens=512),
      GIVEN,
      "a soft prompt of 512 leaves no room in the model's context of 512",
    ),
    (config_of("prefix", tokens=600), GIVEN, "a soft prompt of 600 leaves no room"),
    (config_of("prompt"), peft.Given(), "needs the tokenizer"),
    (config_of("prompt", text=""), GIVEN, "there are no words in it"),
    (config_of("prefix"), peft.Given(lambda text: [3, 60]), "holds the token of images"),
    (dataclasses.replace(config_of("prompt"), target=".*q_proj"), GIVEN, "changes no layers"),
    (config_of("prompt", place="end"), GIVEN, "place"),
  ],
)
def test_what_cannot_be_is_refused(config, given, message):
  vlm = support.build()
  before = nnx.graphdef(vlm)
  with pytest.raises(UserError, match=message) as caught:
    peft.apply(vlm, config, given)
  assert "\n" not in str(caught.value) and nnx.graphdef(vlm) == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_virtual_tokens": 4}, r"prompt_embeddings: shape \[3, 24\], wanted \[4, 24\]"),
    ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
    ({"num_transformer_submodules": 2}, "not supported: num_transformer_submodules=2"),
    ({"target_modules": ["q_proj"]}, "not supported: target_modules"),
    ({"peft_type": "CPT"}, "peft_type 'CPT' is not supported"),
    ({"peft_type": "PREFIX_TUNING"}, r"wanted \[3, 64\]"),
  ],
)
def test_folders_that_do_not_fit_are_refused(changes, message, tmp_path):
  peft.save_adapter(softened("prompt"), tmp_path / "a")
  file = tmp_path / "a/adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(UserError, match=message):
    peft.load_adapter(support.build(), tmp_path / "a")


def test_what_the_encoder_of_p_tuning_gives():
  """By hand, in double precision; a run with it begins anew, not from what another one gave."""
  vlm = softened("p_tuning", tokens=4, hidden=5)
  tokens = vlm.soft_tokens
  x = np.float64(tokens.rows[...])
  for number, (kernel, bias) in enumerate(zip(tokens.kernels, tokens.biases, strict=True)):
    x = (np.maximum(x, 0) if number else x) @ np.float64(kernel[...]) + np.float64(bias[...])
  np.testing.assert_allclose(tokens(), x, rtol=1e-5, atol=1e-5)
  assert tokens.kernels[1].shape == (5, 5) and len(peft.METHODS["p_tuning"].claims(vlm)) == 7
  with pytest.raises(UserError, match=r"peft\.hidden: 0"):
    peft.apply(support.build(), config_of("p_tuning", hidden=0), GIVEN)


def test_p_tuning_comes_in_and_goes_out_as_prompt_tuning(tmp_path):
  """Its folders hold what the encoder gave, and not the encoder."""
  vlm = softened("prompt")
  peft.save_adapter(vlm, tmp_path / "a")
  file = tmp_path / "a/adapter_config.json"
  theirs = {"peft_type": "P_TUNING", "encoder_reparameterization_type": "MLP", "encoder_hidden_size": 8}
  file.write_text(json.dumps(json.loads(file.read_text()) | theirs))
  again = peft.load_adapter(support.build(), tmp_path / "a")
  assert np.array_equal(support.logits(again), support.logits(vlm))
  with pytest.raises(UserError, match=r"of method 'prompt'; set config\.peft\.method to it"):
    peft.apply(support.build(), PeftConfig("p_tuning", resume_from=str(tmp_path / "a")), GIVEN)
  peft.save_adapter(again, tmp_path / "b")
  assert json.loads((tmp_path / "b/adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"


@pytest.mark.parametrize("name", ["prompt", "p_tuning_mlp", "prefix"])
def test_folders_of_peft_give_the_logits_of_peft(name):
  """Recorded by tests/oracle/record_soft_prompts.py."""
  record = np.load(FIXTURES / "soft_prompts/record.npz")
  pixels = np.where(record["pixel_values"] == 255, 0.0, record["pixel_values"] / 127.5 - 1)
  batch = batch_of({**record, "pixel_values": pixels}, 60)
  vlm = peft.load_adapter(hub.load_model(FIXTURES / "smolvlm"), FIXTURES / "soft_prompts" / name)
  expected = record[f"{name}.logits"]
  assert np.abs(np.asarray(call(vlm, batch)) - expected).max() <= 1e-5 * np.abs(expected).max()
