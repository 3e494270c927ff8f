"""Our SmolVLM against transformers, on random weights: submodules, logits, loss, gradients, folders."""

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatialvlm import hub
from spatialvlm.core.masks import attention_mask, positions
from spatialvlm.core.rope import rope_angles
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.positions import position_ids
from spatialvlm.types import Features
from tests.models.support import batch_of, call, jit
from tests.oracle import reference
from tests.oracle.reference import assert_close, real

CASES = reference.cases()


@pytest.fixture(scope="module", params=[("smolvlm", False), ("idefics3", True)], ids=lambda p: p[0])
def pair(request, tmp_path_factory):
  """(theirs, ours, folder): one model twice, the second through the files of the first."""
  family, tied = request.param
  theirs = reference.build(family, tied=tied)
  folder = tmp_path_factory.mktemp(family)
  theirs.save_pretrained(folder)
  return theirs, hub.load_model(folder), folder


@pytest.mark.parametrize(
  "height, width, masked", [(24, 24, False), (24, 24, True), (36, 20, True), (18, 27, False)]
)
def test_vision_tower(pair, height, width, masked):
  theirs, ours, _ = pair
  rng = np.random.default_rng(1)
  pixels = rng.normal(size=(3, 3, height, width)).astype(np.float32)
  mask = np.ones((3, height, width), bool)
  if masked:
    mask[0, 9:], mask[1, :, 13:], mask[2, 8:], mask[2, :, 16:] = False, False, False, False
  patches = torch.tensor(mask).unfold(1, 4, 4).unfold(2, 4, 4).sum(dim=(-1, -2)) > 0
  with torch.no_grad():
    wanted = theirs.model.vision_model(torch.tensor(pixels), patch_attention_mask=patches).last_hidden_state
  got = call(ours.vision, jnp.asarray(pixels.transpose(0, 2, 3, 1)), jnp.asarray(mask) if masked else None)
  assert got.grid == (height // 4, width // 4)
  assert_close(got.patches_NPD, wanted)


def test_connector(pair):
  theirs, ours, _ = pair
  x = np.random.default_rng(2).normal(size=(2, 36, 16)).astype(np.float32)
  with torch.no_grad():
    wanted = theirs.model.connector(torch.tensor(x))
  assert_close(ours.connector(Features(jnp.asarray(x), (6, 6))), wanted)


@pytest.mark.parametrize("layer", range(3))
def test_decoder_layer(pair, layer):
  theirs, ours, _ = pair
  case = CASES["left"]
  x = np.random.default_rng(layer).normal(size=(3, 40, 24)).astype(np.float32)
  valid = jnp.asarray(case["attention_mask"], bool)
  places = np.asarray(positions(valid))
  mask = attention_mask(valid)
  text = theirs.model.text_model
  with torch.no_grad():
    wanted = text.layers[layer](
      torch.tensor(x),
      attention_mask=torch.tensor(np.asarray(mask))[:, None],
      position_embeddings=text.rotary_emb(torch.tensor(x), torch.tensor(places)),
    )
  block = ours.config.text.block
  angles = rope_angles(jnp.asarray(places), block.attention.head_dim, ours.config.text.rope_theta)
  got, _ = call(ours.decoder.stack.layers[layer], jnp.asarray(x), mask, angles)
  assert_close(np.asarray(got)[real(case)], wanted.numpy()[real(case)])


@pytest.mark.parametrize("name", ["left", "right"])
def test_hidden_states(pair, name):
  """Every layer of both towers, by `Vlm.read`."""
  theirs, ours, _ = pair
  reference.assert_hidden_states(theirs, ours, CASES[name], CASES[name])


def test_attention(pair):
  """Every layer's probabilities of both towers, by `Vlm.read`."""
  _, ours, folder = pair
  theirs = reference.CLASSES[ours.config.family][1].from_pretrained(folder).eval()
  reference.assert_attention(theirs, ours, CASES["left"])


def test_gradient_of_attention(pair):
  """Of one logit with regard to every head's probabilities, as the gradient-weighted maps have it."""
  _, ours, folder = pair
  theirs = reference.CLASSES[ours.config.family][1].from_pretrained(folder).eval()
  reference.assert_attention_gradient(theirs, ours, CASES["left"])


@pytest.mark.parametrize("shared", [False, True], ids=["aligned", "shared"])
@pytest.mark.parametrize("name", CASES)
def test_logits(pair, name, shared):
  theirs, ours, _ = pair
  case = CASES[name]
  got = np.asarray(call(ours, batch_of(case, reference.IMAGE, shared)))
  assert np.abs(got - reference.logits(theirs, case))[real(case)].max() <= 1e-4
  assert_close(got[real(case)], reference.logits(theirs, case)[real(case)])


@pytest.mark.parametrize("name", ["left", "right", "masked", "text"])
def test_loss_and_gradients(pair, name):
  theirs, ours, _ = pair
  case, labels = CASES[name], reference.labels_of(CASES[name])
  reference.assert_loss_and_gradients(theirs, ours, case, case, labels)


@pytest.mark.parametrize("name", ["left", "right", "text"])
def test_cached_decoding_picks_the_same_tokens(pair, name):
  theirs, ours, _ = pair
  case = CASES["left" if name == "right" else name]  # theirs needs left padding, ours takes either
  steps = 6
  with torch.no_grad():
    wanted = theirs.generate(
      **reference.tensors(case),
      max_new_tokens=steps,
      min_new_tokens=steps,
      do_sample=False,
      eos_token_id=None,
    ).numpy()[:, -steps:]
  batch = batch_of(CASES[name], reference.IMAGE)
  B, T = batch.tokens_BT.shape
  prefill = jit(lambda batch: ours.prefill(batch, ours.init_cache(B, T + steps)))
  step = jit(lambda tokens, cache: ours.decode_step(tokens, cache))
  hidden, cache = prefill(batch)
  for i in range(steps):
    tokens = jnp.argmax(ours.unembed(hidden), axis=-1)
    np.testing.assert_array_equal(np.asarray(tokens), wanted[:, i])
    hidden, cache = step(tokens, cache)


@pytest.mark.parametrize("name", ["right", "text"])
def test_saved_folder_is_theirs_again(pair, name, tmp_path, caplog):
  theirs, ours, folder = pair
  hub.save_model(ours, tmp_path / "saved", folder)
  with caplog.at_level(logging.WARNING):
    logging.getLogger("transformers").propagate = True
    again, info = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not any(info.values()), info
  assert not [r for r in caplog.records if "weight" in r.getMessage() or "ignored" in r.getMessage()]
  np.testing.assert_array_equal(reference.logits(again, CASES[name]), reference.logits(theirs, CASES[name]))
  for (key, one), (other_key, other) in zip(
    theirs.state_dict().items(), again.state_dict().items(), strict=True
  ):
    assert key == other_key and torch.equal(one, other)


def test_a_base_model_without_prefix_is_read_as_tied(tmp_path):
  theirs = reference.build("smolvlm", tied=False)
  theirs.model.save_pretrained(tmp_path)
  ours = hub.load_model(tmp_path)
  assert ours.config.tied
  theirs.lm_head.weight.data.copy_(theirs.model.text_model.embed_tokens.weight.data)
  got = call(ours, batch_of(CASES["text"], reference.IMAGE))
  assert_close(
    np.asarray(got)[real(CASES["text"])], reference.logits(theirs, CASES["text"])[real(CASES["text"])]
  )


def test_shards_and_bfloat16_files(tmp_path):
  theirs = reference.build("smolvlm", tied=False).to(torch.bfloat16)
  theirs.save_pretrained(tmp_path, max_shard_size="40KB")
  assert (tmp_path / "model.safetensors.index.json").exists()
  ours = hub.load_model(tmp_path)
  # Read again: casting a live model to bfloat16 rounds its rotary frequencies as well.
  wanted = reference.logits(type(theirs).from_pretrained(tmp_path, dtype=torch.float32), CASES["right"])
  got = np.asarray(call(ours, batch_of(CASES["right"], reference.IMAGE)))
  assert_close(got[real(CASES["right"])], wanted[real(CASES["right"])])


def test_bfloat16_stays_as_near_as_theirs(pair):
  theirs, _, folder = pair
  exact = reference.logits(theirs, CASES["right"])
  low = type(theirs).from_pretrained(folder, dtype=torch.bfloat16)
  case = CASES["right"]
  with torch.no_grad():
    theirs_low = low(**reference.tensors(case)).logits.float().numpy()
  ours_low = np.asarray(call(hub.load_model(folder, dtype="bfloat16"), batch_of(case, reference.IMAGE)))
  error = lambda x: np.sqrt(np.mean((x - exact)[real(case)] ** 2))
  assert error(ours_low) <= 1.25 * error(theirs_low)


def test_attention_and_mlp_biases_of_llama(tmp_path):
  theirs = reference.build("smolvlm", tied=False, text={"attention_bias": True, "mlp_bias": True})
  theirs.save_pretrained(tmp_path)
  got = np.asarray(call(hub.load_model(tmp_path), batch_of(CASES["right"], reference.IMAGE)))
  wanted = reference.logits(theirs, CASES["right"])
  assert_close(got[real(CASES["right"])], wanted[real(CASES["right"])])


def test_rotation_of_llama_3(tmp_path):
  """Idefics3-8B's, slowed for long contexts: pairs kept, slowed and mixed."""
  rope = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0}
  rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
  theirs = reference.build("idefics3", tied=False, text={"rope_parameters": rope})
  theirs.save_pretrained(tmp_path)
  ours = hub.load_model(tmp_path)
  frequencies = theirs.model.text_model.rotary_emb.inv_freq.numpy()
  plain = 100.0 ** -np.arange(0, 1, 2 / 8)
  slowed = plain / frequencies
  assert slowed.min() < 1.01 and slowed.max() > 7.99 and ((slowed > 1.1) & (slowed < 7.9)).any()
  got = np.asarray(call(ours, batch_of(CASES["right"], reference.IMAGE)))
  wanted = reference.logits(theirs, CASES["right"])
  assert_close(got[real(CASES["right"])], wanted[real(CASES["right"])])


@pytest.mark.parametrize("grid", [1, 2, 3, 5, 7, 14, 16, 24, 27, 32, 64])
def test_position_ids(grid):
  """Every count of valid patches, on tables of many sizes.

  Where a patch falls exactly on a boundary, rounding decides, and torch.arange rounds differently by the
  CPU's vector width: tables of some other sizes (49) differ there. Published ones have 27 or 32.
  """
  from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionConfig, SmolVLMVisionEmbeddings

  config = SmolVLMVisionConfig(hidden_size=1, num_attention_heads=1, image_size=grid, patch_size=1)
  embeddings = SmolVLMVisionEmbeddings(config)
  with torch.no_grad():
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.bias.zero_()
    embeddings.position_embedding.weight.copy_(torch.arange(grid**2)[:, None])
  most = grid + 5
  counts = np.arange(1, most + 1)
  valid = (np.arange(most)[None, :, None] < counts[:, None, None]) & (
    np.arange(most)[None, None, :] < counts[::-1, None, None]
  )
  with torch.no_grad():
    wanted = embeddings(torch.zeros(most, 3, most, most), torch.tensor(valid))[..., 0]
  got = jit(position_ids, static_argnums=1)(jnp.asarray(valid), grid)
  np.testing.assert_array_equal(np.asarray(got).reshape(most, -1), wanted.numpy().astype(int))


def test_config_defaults_are_those_of_transformers():
  """Published configs leave out what equals the defaults of transformers' classes."""
  for family, (config_class, _) in reference.CLASSES.items():
    for source in ({}, {"text_config": {"model_type": "llama"}, "vision_config": {"hidden_size": 64}}):
      source = {**source, "scale_factor": 7}  # their default, 2, does not fit their default grid
      ours, theirs = parse(family, source), parse(family, config_class(**source).to_dict())
      assert ours == dataclasses.replace(theirs, source=ours.source)


def parse(family, source):
  source = {"model_type": family, **source}
  return FAMILIES[family].parse_config(source, dtype="float32", where="config.json")
