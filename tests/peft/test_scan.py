"""Adapted layers as a loop (`Stack.scan`) against the same layers one by one, under every method."""

import jax
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig
from spatialvlm.core import scan
from spatialvlm.models import execution
from spatialvlm.models.execution import Execution
from spatialvlm.types import UserError
from tests.models.support import answer_loss, call, jit
from tests.peft import support
from tests.peft.test_methods import ADAPTERS, adapted
from tests.peft.test_soft import softened


def gradients(vlm, key=None):
  """Of all that is trained, with dropout where there is a key."""
  graphdef, params, rest = nnx.split(vlm, peft.Trained, ...)
  labels = np.asarray(support.batch().tokens_BT)

  def loss(params):
    model = nnx.merge(graphdef, params, rest)
    model = model if key is None else peft.seed_dropout(model, key)
    return answer_loss(model(support.batch()), labels)

  return dict(nnx.to_flat_state(jit(jax.grad(loss))(params)))


def compare(vlm, key=None):
  found = []
  for loop in (False, True):
    execution.apply(vlm, Execution(scan=loop))
    found.append((call(vlm, support.batch()), gradients(vlm, key)))
  (want, wanted), (got, grads) = found
  np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())
  assert grads.keys() == wanted.keys() and grads
  size = max(np.abs(g[...]).max() for g in wanted.values())
  assert np.isfinite(size)  # of two that are not, NumPy finds nothing to say
  for name, gradient in wanted.items():
    np.testing.assert_allclose(grads[name][...], gradient[...], rtol=0, atol=1e-5 * size, err_msg=str(name))


@pytest.mark.parametrize("name", ADAPTERS)
def test_layers_of_every_method_are_of_one_kind(name):
  vlm = adapted(name)
  for stack in (vlm.vision.stack, vlm.decoder.stack):
    assert list(scan.runs(list(map(scan.parts, stack.layers)))) == [(0, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_loop_over_adapted_layers_gives_their_numbers(name):
  compare(support.moved(adapted(name)))


@pytest.mark.slow
def test_every_layer_draws_its_own_dropout_in_a_loop():
  vlm = support.moved(adapted("lora", dropout=0.5, dora=True))
  compare(vlm, jax.random.key(3))
  dropped, whole = gradients(vlm, jax.random.key(3)), gradients(vlm)
  assert any(np.abs(dropped[name][...] - whole[name][...]).max() > 1e-3 for name in whole)


@pytest.mark.slow
def test_a_loop_reads_a_learned_past():
  compare(softened("prefix"))


def test_layers_that_differ_stand_apart_and_are_refused_where_no_two_are_alike():
  only = PeftConfig(target=r".*text_model.*q_proj", options={"rank": 2, "layers_to_transform": [0]})
  vlm = peft.apply(support.build(), only)
  assert list(scan.runs(list(map(scan.parts, vlm.decoder.stack.layers)))) == [(0, 1), (1, 2)]
  message = r"model\.scan_layers: of the 2 blocks of decoder\.stack no two neighbours are of one kind"
  with pytest.raises(UserError, match=message):
    execution.apply(vlm, Execution(scan=True, remat=True))
  assert not vlm.decoder.stack.remat and not vlm.vision.stack.scan
