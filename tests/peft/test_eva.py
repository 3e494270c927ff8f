"""EVA: directions of rows that come in parts, ranks shared out, and a start that is made of batches."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.peft import eva
from spatialvlm.peft.lora import Lora
from spatialvlm.types import UserError
from tests.peft import support

SETTINGS = {"target": r".*text_model.*_proj", "rank": 3, "alpha": 6.0, "init": "eva", "eva_batches": 2}


def batches(count):
  """Two that differ, with answers at some places; of fewer than are there, the others are padding."""
  first = dataclasses.replace(
    support.batch(), target_index_BK=jnp.asarray([[3, 4, 5, 6, 7], [5, 6, 7, -1, -1]], jnp.int32)
  )
  second = dataclasses.replace(
    first, tokens_BT=first.tokens_BT.at[:, 5:].set(7), pixels_NHWC=-2 * first.pixels_NHWC
  )
  return [first, second][:count]


GIVEN = peft.Given(batches=batches)


def applied(given=GIVEN, **settings):
  return peft.apply(support.build(), from_config_dict(SETTINGS | settings, PeftConfig), given)


def layers_of(vlm):
  return {name: site.module for name, (site, _) in Lora().adapted_sites(vlm).items()}


def test_directions_of_parts_are_those_of_all_rows():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(60, 7)) * np.arange(1, 8) + 3
  found = eva.Directions(7)
  for part in np.split(rows, [20, 21, 21, 50]):  # one of them is empty
    found.add(part)
  centred = rows - rows.mean(0)
  _, values, axes = np.linalg.svd(centred, full_matrices=False)
  np.testing.assert_allclose(found.values_K, values, rtol=1e-10)
  np.testing.assert_allclose(np.abs(np.sum(found.axes_KD * axes, 1)), 1, rtol=1e-10)
  np.testing.assert_allclose(found.explained(), values**2 / np.square(centred).sum(), rtol=1e-10)
  largest = np.take_along_axis(found.axes_KD, np.abs(found.axes_KD).argmax(1)[:, None], 1)
  assert found.seen == 60 and (largest > 0).all()


def test_ranks_go_where_directions_explain_most():
  class Known:
    def __init__(self, *shares):
      self.shares = shares

    def explained(self):
      return np.array(self.shares)

  ranks = {"q": 2, "k": 2, "o": 2}
  # q and k read the same; o's second direction explains less than q's third
  found = {"q": Known(0.5, 0.2, 0.15, 0.01), "o": Known(0.6, 0.1, 0.02, 0.01)}
  shared = eva.shared_out(ranks, {"q": "q", "k": "q", "o": "o"}, found)
  assert shared == {"q": 3, "k": 2, "o": 1}
  flat = {"q": Known(0.9, 0.8, 0.7, 0.6), "o": Known(0.1, 0.1, 0.1, 0.1)}
  assert eva.shared_out(ranks, {"q": "q", "k": "q", "o": "o"}, flat) == {"q": 3, "k": 3, "o": 0}


def test_a_start_is_the_base_and_its_factors_are_directions_of_the_data():
  vlm = applied()
  assert np.array_equal(support.logits(vlm), support.logits(support.build()))
  layers = layers_of(vlm)
  ranks = {name: layer.spec.rank for name, layer in layers.items()}
  assert sum(ranks.values()) == 3 * 14 and len(set(ranks.values())) > 1 and max(ranks.values()) <= 6
  for layer in layers.values():
    assert layer.spec.scale == 2.0 and not np.asarray(layer.lora_b[...]).any()
    a = np.asarray(layer.lora_a[...])
    np.testing.assert_allclose(a.T @ a, np.eye(a.shape[1]), atol=1e-5)
  # what reads the same begins in the same directions
  stem = "model.text_model.layers.1.self_attn."
  q, k = (np.asarray(layers[stem + n].lora_a[...]) for n in ("q_proj", "k_proj"))
  shared = min(q.shape[1], k.shape[1])
  assert shared and np.array_equal(q[:, :shared], k[:, :shared])


def test_the_head_reads_the_last_hidden_states():
  vlm, (batch,) = applied(target="lm_head", eva_rho=1.0, eva_batches=1), batches(1)
  hidden = np.asarray(support.call(support.build(), batch, method="hidden"))
  index = np.asarray(batch.target_index_BK)
  rows = np.float64([hidden[b, t] for b in range(2) for t in index[b] if t >= 0])
  _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
  found = np.asarray(layers_of(vlm)["lm_head"].lora_a[...])
  np.testing.assert_allclose(np.abs(np.sum(found.T * axes[:3], 1)), 1, atol=1e-5)


def test_a_start_is_the_same_again_and_goes_on_from_its_folder(tmp_path):
  vlm, again = applied(dora=True), applied(dora=True)
  assert nnx.graphdef(vlm) == nnx.graphdef(again)
  peft.save_adapter(vlm, tmp_path / "a")
  said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
  assert said["init_lora_weights"] == "eva" and said["rank_pattern"] and said["alpha_pattern"]
  config = from_config_dict(SETTINGS | {"resume_from": str(tmp_path / "a")}, PeftConfig)
  loaded = peft.apply(support.build(), config)  # without any data
  assert peft.of_batches(from_config_dict(SETTINGS, PeftConfig)) and not peft.of_batches(config)
  for name, layer in layers_of(vlm).items():
    for other in (layers_of(again)[name], layers_of(loaded)[name]):
      assert layer.spec == other.spec and np.array_equal(layer.lora_a[...], other.lora_a[...])
      assert np.array_equal(layer.magnitude[...], other.magnitude[...])


@pytest.mark.parametrize(
  ("settings", "given", "words"),
  [
    ({}, peft.Given(), ["peft.init: eva begins from the run's data"]),
    ({"target": ".*vision_model.*fc1"}, GIVEN, ["peft.init", "fc1 reads none; narrow peft.target"]),
    ({"rank": 13}, GIVEN, ["rank 13 of model.text_model", "26 directions, of 24 inputs", "eva_rho"]),
    ({"rank": 4, "eva_batches": 1}, GIVEN, ["hold 8 positions of answers, too few for 8 directions"]),
    ({"eva_rho": 0.5}, GIVEN, ["peft.eva_rho", "at least 1"]),
    ({"eva_batches": 0}, GIVEN, ["peft.eva_batches", "at least 1"]),
    ({"init": "default"}, GIVEN, ["count with peft.init=eva alone"]),
    ({"embedding": True}, GIVEN, ["peft.embedding", "eva"]),
  ],
)
def test_mistakes_are_told_in_one_line(settings, given, words):
  vlm = support.build()
  before = nnx.graphdef(vlm)
  with pytest.raises(UserError) as caught:
    peft.apply(vlm, from_config_dict(SETTINGS | settings, PeftConfig, "config.peft"), given)
  message = str(caught.value)
  assert "\n" not in message and all(word in message for word in words), message
  assert nnx.graphdef(vlm) == before
