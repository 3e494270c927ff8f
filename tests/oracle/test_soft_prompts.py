"""Soft prompts against Hugging Face peft and transformers on models of three families: folders both ways.

The truth is one plain forward pass: peft's generation goes wrong for soft prompts in some pairs of versions.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from spatialvlm.types import Note
from tests.models.support import answer_loss, batch_of, call, jit
from tests.oracle import adapters, reference
from tests.oracle.test_peft import assert_close, moved, reload
from tests.oracle.test_peft_methods import FAMILIES, assert_moved

CASE = reference.cases()["right"]
REAL = CASE["attention_mask"].astype(bool)
T = REAL.shape[1]
GIVEN = peft.Given(lambda text: [5, 9, 17, 30])
OURS = {
  "prompt": PeftConfig("prompt", options={"tokens": 3}),
  "prefix": PeftConfig("prefix", options={"tokens": 3}),
  "p_tuning": PeftConfig("p_tuning", options={"tokens": 3, "hidden": 7}),
}
BASES = {
  **FAMILIES,
  # peft takes the first parameter with as many rows as the vocabulary for the embeddings
  "internvl": lambda: reference.build_internvl(text={"vocab_size": 96}),
  "llama": lambda: reference.build_language("llama"),
}
pytestmark = pytest.mark.filterwarnings("ignore::spatialvlm.types.Note")


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
  """(Their model, its folder, a prompt as theirs takes it and as ours), all of it causal as peft reads it."""
  model, folder = BASES[request.param](), tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  given, case = (CASE if request.param == "smolvlm" else reference.flat(CASE)), CASE
  if request.param == "llama":
    given = case = {name: CASE[name] for name in ("input_ids", "attention_mask")}
  if request.param == "paligemma2":
    case = {**CASE, "token_type_ids": np.ones_like(CASE["input_ids"])}
  return model, folder, given, case


def logits(vlm, case):
  return np.asarray(call(vlm, batch_of(case, reference.IMAGE)))


def theirs(model, given):
  """Logits of the batch's own positions."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return reference.logits(model, given)[:, -T:]


@pytest.mark.parametrize("name", adapters.SOFT)
def test_their_folder_gives_their_logits(base, name, tmp_path):
  """Loaded, written again, and loaded by peft."""
  model, folder, given, case = base
  adapted = adapters.adapt(model, adapters.config_of(name))
  expected = theirs(adapted, given)
  assert_moved(expected, theirs(model, given))
  vlm = peft.load_adapter(hub.load_model(folder), adapters.save(adapted, tmp_path / "a"))
  assert_close(logits(vlm, case)[REAL], expected[REAL])
  back = reload(model, peft.save_adapter(vlm, tmp_path / "b"))
  assert_close(theirs(back, given)[REAL], expected[REAL])
  said = json.loads((tmp_path / "b/adapter_config.json").read_text())["peft_type"]
  assert said == ("PREFIX_TUNING" if name.startswith("prefix") else "PROMPT_TUNING")


@pytest.mark.parametrize("name", OURS)
def test_our_folder_gives_our_logits_in_peft(base, name, tmp_path):
  model, folder, given, case = base
  vlm = moved(peft.apply(hub.load_model(folder), OURS[name], GIVEN))
  expected = logits(vlm, case)
  adapted = reload(model, peft.save_adapter(vlm, tmp_path / "a", "some/base"))
  assert_close(theirs(adapted, given)[REAL], expected[REAL])


def by_hand(model, ids, rows, at, pixels, suffix):
  """transformers' logits of one sample, soft rows laid before its position `at`."""
  with torch.no_grad():
    x = model.get_input_embeddings()(torch.tensor(ids)[None])
    x = torch.cat([x[:, :at], torch.tensor(rows)[None], x[:, at:]], dim=1)
    more = {"attention_mask": torch.ones(x.shape[:2], dtype=torch.long)}
    if suffix is not None:
      more["token_type_ids"] = (torch.arange(x.shape[1]) >= x.shape[1] - suffix).long()[None]
    if pixels is not None:
      more["pixel_values"] = pixels
    return np.delete(model(inputs_embeds=x, **more).logits.numpy()[0], at + np.arange(len(rows)), axis=0)


@pytest.mark.parametrize("place", ["start", "after_image"])
def test_places_are_those_of_embeddings_laid_in_a_row(base, place):
  """By transformers alone, sample by sample; prompts of PaliGemma bidirectional, soft tokens and all."""
  model, folder, _, case = base
  vlm = hub.load_model(folder)
  config = PeftConfig("prompt", options={"tokens": 3, "place": place})
  vlm = moved(peft.apply(vlm, config, GIVEN))
  bidirectional = vlm.config.prefix_lm
  case = reference.typed(CASE, 4) if bidirectional else case
  got, rows = logits(vlm, case), np.asarray(vlm.soft_tokens.rows[...])
  for row in range(3):
    ids = CASE["input_ids"][row][REAL[row]]
    images = np.flatnonzero(ids == reference.IMAGE) if vlm.config.vision is not None else ()
    at = int(images[-1]) + 1 if place == "after_image" and len(images) else 0
    tiles = CASE["pixel_values"][row]
    tiles = torch.tensor(tiles[tiles.any(axis=(1, 2, 3))])
    if vlm.config.family == "smolvlm":
      tiles = tiles[None]
    pixels = tiles if len(images) else None
    expected = by_hand(model, ids, rows, at, pixels, 4 if bidirectional else None)
    assert_close(got[row][REAL[row]], expected)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_gradients_are_those_of_peft(name, tmp_path):
  model = reference.build("smolvlm", tied=False)
  model.save_pretrained(tmp_path / "base")
  adapted = adapters.adapt(model, adapters.config_of(name))
  labels = reference.labels_of(CASE)
  labels[:, 0] = -100  # which peft predicts from the last virtual token
  adapted(**reference.tensors(CASE), labels=torch.tensor(labels)).loss.backward()
  wanted = adapted.prompt_encoder["default"].embedding.weight.grad.numpy()
  vlm = peft.load_adapter(hub.load_model(tmp_path / "base"), adapters.save(adapted, tmp_path / "a"))
  graphdef, params, rest = nnx.split(vlm, peft.Trained, ...)
  batch = batch_of(CASE, reference.IMAGE)
  loss = lambda params: answer_loss(nnx.merge(graphdef, params, rest)(batch), jnp.asarray(labels))
  (gradient,) = jax.tree.leaves(jit(jax.grad(loss))(params))
  assert_close(np.asarray(gradient).reshape(wanted.shape), wanted, 1e-4)


def test_modules_saved_beside_a_prompt(tmp_path):
  """Their names have one `model.` fewer than those beside LoRA."""
  model = reference.build("smolvlm", tied=False)
  model.save_pretrained(tmp_path / "base")
  kind, options = adapters.SOFT["prompt"]
  adapted = adapters.adapt(model, kind(**options, modules_to_save=["lm_head"]))
  expected = theirs(adapted, CASE)
  vlm = peft.load_adapter(hub.load_model(tmp_path / "base"), adapters.save(adapted, tmp_path / "a"))
  assert_close(logits(vlm, CASE)[REAL], expected[REAL])
  back = reload(model, peft.save_adapter(vlm, tmp_path / "b"))
  assert_close(theirs(back, CASE)[REAL], expected[REAL])


def test_of_a_bidirectional_family_the_difference_is_said(tmp_path):
  model = reference.build_paligemma(second=True)
  model.save_pretrained(tmp_path / "base")
  vlm = peft.apply(hub.load_model(tmp_path / "base"), OURS["prompt"], GIVEN)
  with pytest.warns(Note, match="peft reads prompts of paligemma2 causally"):
    peft.save_adapter(vlm, tmp_path / "a")
  with pytest.warns(Note, match="peft reads prompts of paligemma2 causally"):
    peft.load_adapter(hub.load_model(tmp_path / "base"), tmp_path / "a")
