"""InternVL, PaliGemma and PaliGemma 2 against transformers, on random weights."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from spatialvlm import hub
from spatialvlm.hub import rules
from spatialvlm.types import Features, UserError
from tests.models.support import batch_of, call, jit
from tests.oracle import reference
from tests.oracle.reference import assert_close, real

BUILD = {
  "internvl": lambda: reference.build_internvl(),
  "internvl-qk": lambda: reference.build_internvl(qk_norm=True),
  "paligemma": lambda: reference.build_paligemma(second=False),
  "paligemma2": lambda: reference.build_paligemma(second=True),
}
CASES = {name: case for name, case in reference.cases().items() if name != "masked"}


@pytest.fixture(scope="module", params=BUILD)
def pair(request, tmp_path_factory):
  """(theirs, ours, folder): one model twice, the second through the files of the first."""
  theirs = BUILD[request.param]()
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  return theirs, hub.load_model(folder), folder


def cases_of(model, name, suffix=4):
  """The case as theirs takes it, and as ours."""
  case = CASES[name]
  if model.config.prefix_lm:
    case = reference.typed(case, suffix)
  return reference.flat(case), case


def test_image_tokens(pair):
  """Vision tower and connector."""
  theirs, ours, _ = pair
  pixels = np.random.default_rng(1).normal(size=(3, 3, 24, 24)).astype(np.float32)
  with torch.no_grad():
    outputs = theirs.model.get_image_features(torch.tensor(pixels))
  x_NHWC = jnp.asarray(pixels.transpose(0, 2, 3, 1))
  x_NTD = outputs.last_hidden_state
  tokens = jit(functools.partial(ours.vision.read, tokens=True))
  assert_close(tokens(x_NHWC).tokens_NTD, x_NTD)
  patches = jnp.asarray(x_NTD[:, ours.config.vision.prefix :].numpy())
  grid = ours.config.vision.grid
  assert_close(ours.connector(Features(patches, (grid, grid))), outputs.pooler_output)
  assert_close(call(ours, x_NHWC, method="encode_images"), outputs.pooler_output)


@pytest.mark.parametrize("layer", [-2, 1, 2, -3])
def test_image_tokens_of_another_layer(layer, tmp_path):
  """InternVL's `vision_feature_layer`: 2 is the last without the norm that -1 has here, -3 the embeddings."""
  theirs = reference.build_internvl(feature_layer=layer, vision={"use_mean_pooling": False})
  theirs.save_pretrained(tmp_path / "theirs")
  ours = hub.load_model(tmp_path / "theirs")
  pixels = np.random.default_rng(1).normal(size=(3, 3, 24, 24)).astype(np.float32)
  x_NHWC = jnp.asarray(pixels.transpose(0, 2, 3, 1))
  with torch.no_grad():
    outputs = theirs.model.get_image_features(torch.tensor(pixels))
  assert_close(call(ours, x_NHWC, method="encode_images"), outputs.pooler_output)
  given, case = cases_of(ours, "left")
  got = np.asarray(call(ours, batch_of(case, reference.IMAGE)))
  assert_close(got[real(case)], reference.logits(theirs, given)[real(case)])
  # A saved folder says so, to transformers too.
  again = transformers.AutoModelForImageTextToText.from_pretrained(hub.save_model(ours, tmp_path / "ours"))
  assert again.config.vision_feature_layer == layer
  np.testing.assert_array_equal(reference.logits(again, given), reference.logits(theirs, given))


def test_full_features_are_refused_since_transformers_cannot_run_them(tmp_path):
  theirs = reference.build_internvl()
  pixels = torch.zeros(1, 3, 24, 24)
  theirs.config.vision_feature_select_strategy = "full"
  with pytest.raises(RuntimeError, match="is invalid for input of size"):
    theirs.model.get_image_features(pixels)
  theirs.save_pretrained(tmp_path)
  with pytest.raises(UserError, match=r"vision_feature_select_strategy 'full' cannot be computed"):
    hub.load_model(tmp_path)


@pytest.mark.parametrize("layer", [0, 3, [1, 2]])
def test_feature_layers_that_are_none(layer, tmp_path):
  """What transformers fails on in the forward is said when the folder is read."""
  theirs = reference.build_internvl(feature_layer=layer)
  with pytest.raises((TypeError, IndexError)):
    theirs.model.get_image_features(torch.zeros(1, 3, 24, 24))
  theirs.save_pretrained(tmp_path)
  with pytest.raises(UserError, match=r"vision_feature_layer .*: expected one layer, 1 to 2, or -3 to -1"):
    hub.load_model(tmp_path)


def test_hidden_states(pair):
  """Every layer of both towers, by `Vlm.read`; theirs has the last of the decoder after the norm."""
  theirs, ours, _ = pair
  given, case = cases_of(ours, "left")
  reference.assert_hidden_states(theirs, ours, given, case)


@pytest.mark.parametrize("name", ["left", "right"])
def test_attention(pair, name):
  """Probabilities of every layer and head of both towers; PaliGemma 2's with windows and bounded scores."""
  theirs, ours, folder = pair
  given, case = cases_of(ours, name)
  reference.assert_attention(type(theirs).from_pretrained(folder).eval(), ours, case, given=given)


def test_gradient_of_attention(pair):
  """Of one logit with regard to every head's probabilities, as the gradient-weighted maps have it."""
  theirs, ours, folder = pair
  given, case = cases_of(ours, "left")
  reference.assert_attention_gradient(type(theirs).from_pretrained(folder).eval(), ours, case, given)


@pytest.mark.parametrize("layer", range(2))
def test_decoder_layer(pair, layer):
  """One layer alone, on what stands before it; with a window and without."""
  theirs, ours, _ = pair
  given, case = cases_of(ours, "left")
  with torch.no_grad():
    wanted = theirs(**reference.tensors(given), output_hidden_states=True).hidden_states
  before = jnp.asarray(wanted[layer].numpy())
  decoder, batch = ours.decoder, batch_of(case, reference.IMAGE)
  masks, angles = decoder.context(batch.valid_BT, batch.mask_ar_BT)
  got, _ = call(decoder.stack.layers[layer], before, masks[layer], angles)
  assert_close(np.asarray(got)[real(case)], wanted[layer + 1].numpy()[real(case)])


@pytest.mark.parametrize("shared", [False, True], ids=["aligned", "shared"])
@pytest.mark.parametrize("name", CASES)
def test_logits(pair, name, shared):
  theirs, ours, _ = pair
  given, case = cases_of(ours, name)
  got = np.asarray(call(ours, batch_of(case, reference.IMAGE, shared)))
  wanted = reference.logits(theirs, given)
  assert np.abs(got - wanted)[real(case)].max() <= 1e-4
  assert_close(got[real(case)], wanted[real(case)])


@pytest.mark.parametrize("name", ["left", "right", "text"])
def test_loss_and_gradients(pair, name):
  theirs, ours, _ = pair
  given, case = cases_of(ours, name)
  labels = reference.labels_of(case)
  if ours.config.prefix_lm:
    labels = np.where(case["token_type_ids"] == 1, labels, -100)
  reference.assert_loss_and_gradients(theirs, ours, given, case, labels)


@pytest.mark.parametrize("name", ["left", "right", "text"])
def test_cached_decoding_picks_the_same_tokens(pair, name):
  """Prompts alone, so of a prefix model all of them is bidirectional: given as such, and by default."""
  theirs, ours, _ = pair
  given, _ = cases_of(ours, "left" if name == "right" else name, suffix=0)
  steps = 6
  with torch.no_grad():
    wanted = theirs.generate(
      **reference.tensors(given),
      max_new_tokens=steps,
      min_new_tokens=steps,
      do_sample=False,
      eos_token_id=None,
    ).numpy()[:, -steps:]
  batch = batch_of(CASES[name], reference.IMAGE)
  B, T = batch.tokens_BT.shape
  hidden, cache = jit(lambda batch: ours.prefill(batch, ours.init_cache(B, T + steps)))(batch)
  step = jit(lambda tokens, cache: ours.decode_step(tokens, cache))
  for i in range(steps):
    tokens = jnp.argmax(ours.unembed(hidden), axis=-1)
    np.testing.assert_array_equal(np.asarray(tokens), wanted[:, i])
    hidden, cache = step(tokens, cache)


def test_saved_folder_is_theirs_again(pair, tmp_path, caplog):
  theirs, ours, folder = pair
  hub.save_model(ours, tmp_path / "saved", folder)
  with caplog.at_level(logging.WARNING):
    logging.getLogger("transformers").propagate = True
    again, info = type(theirs).from_pretrained(
      tmp_path / "saved", output_loading_info=True, attn_implementation="eager"
    )
  assert not any(info.values()), info
  assert not [r for r in caplog.records if "weight" in r.getMessage() or "ignored" in r.getMessage()]
  for (key, one), (other_key, other) in zip(
    theirs.state_dict().items(), again.state_dict().items(), strict=True
  ):
    assert key == other_key and torch.equal(one, other)


@pytest.mark.parametrize("spelling", ["published", "modules"])
def test_names_old_and_new(pair, spelling, tmp_path):
  """Files as the hub has them, and as transformers 4.52 and later name their modules."""
  from safetensors.numpy import load_file, save_file

  _, ours, folder = pair
  family = ours.config.family
  state = nnx.to_flat_state(nnx.state(ours, nnx.Param))
  name_of = rules.to_hf if spelling == "published" else rules.to_module
  saved = {}
  for path, value in state:
    dotted = ".".join(map(str, path))
    saved[name_of(dotted, family)] = rules.to_file(np.asarray(value[...]), dotted, family)
  save_file(saved, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text((folder / "config.json").read_text())
  again = hub.load_model(tmp_path)
  for one, other in zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(again)), strict=True):
    np.testing.assert_array_equal(one, other)
  if spelling == "published":
    published = set(load_file(hub.save_model(ours, tmp_path / "saved", folder) / "model.safetensors"))
    assert published == set(saved)
