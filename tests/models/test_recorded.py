"""Our model against what transformers computed once, recorded by tests/oracle/record_fixtures.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.hub import rules
from tests.models.support import answer_loss, batch_of, call, jit

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module", params=["smolvlm", "idefics3", "internvl", "paligemma", "paligemma2"])
def recorded(request):
  """(model, {case: {field: array}})."""
  cases: dict[str, dict[str, np.ndarray]] = {}
  with np.load(FIXTURES / request.param / "record.npz") as record:
    for key in record.files:
      if "." in key:
        case, field = key.split(".", 1)
        cases.setdefault(case, {})[field] = record[key]
  for case in cases.values():
    if "pixel_values" in case:
      pixels = case["pixel_values"]
      case["pixel_values"] = np.where(pixels == 255, 0.0, pixels / 127.5 - 1).astype(np.float32)
  return hub.load_model(FIXTURES / request.param), cases


def test_logits(recorded):
  model, cases = recorded
  for name, case in cases.items():
    logits = np.asarray(call(model, batch_of(case, model.config.image_token_id)))
    real = case["attention_mask"].astype(bool)
    assert np.abs(logits - case["logits"])[real].max() <= 1e-4, name


@pytest.mark.parametrize("recorded", ["smolvlm", "idefics3"], indirect=True)
def test_loss_and_gradients(recorded):
  """Of every parameter the gradient's norm and sum. Other families' are compared in tests/oracle."""
  model, cases = recorded
  (case,) = [case for case in cases.values() if "loss" in case]
  batch, labels = batch_of(case, model.config.image_token_id), jnp.asarray(case["labels"])
  graphdef, params = nnx.split(model)
  loss = lambda params: answer_loss(nnx.merge(graphdef, params)(batch), labels)
  value, grads = jit(jax.value_and_grad(loss))(params)
  assert float(value) == pytest.approx(float(case["loss"]), rel=1e-5)
  wanted = {key.removeprefix("grad."): both for key, both in case.items() if key.startswith("grad.")}
  total = float(np.sqrt(sum(norm**2 for norm, _ in wanted.values())))
  assert len(wanted) > 20
  for path, leaf in nnx.to_flat_state(grads):
    key = rules.to_hf(".".join(map(str, path)), model.config.family)
    gradient = np.asarray(leaf[...], np.float64)
    norm, summed = map(float, wanted.get(key, (0.0, 0.0)))
    assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-4, abs=1e-5 * total), key
    assert gradient.sum() == pytest.approx(summed, rel=1e-3, abs=1e-4 * total), key


def test_greedy_decoding_with_a_cache(recorded):
  model, cases = recorded
  name = "left" if "left" in cases else "text"
  case = {key: value for key, value in cases[name].items() if key != "token_type_ids"}
  batch, steps = batch_of(case, model.config.image_token_id), case["greedy"].shape[1]
  B, T = batch.tokens_BT.shape
  graphdef, params = nnx.split(model)

  @jit
  def decode(params):
    model = nnx.merge(graphdef, params)
    hidden_BD, cache = model.prefill(batch, model.init_cache(B, T + steps))

    def step(carry, _):
      hidden_BD, cache = carry
      tokens_B = jnp.argmax(model.unembed(hidden_BD), axis=-1).astype(jnp.int32)
      return model.decode_step(tokens_B, cache), tokens_B

    return jax.lax.scan(step, (hidden_BD, cache), length=steps)[1].T

  np.testing.assert_array_equal(np.asarray(decode(params)), case["greedy"])
