"""Other families and soft prompts: bidirectional prefixes, windows, a class token, further places."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from spatialvlm.inside import reading
from spatialvlm.inside.asked import Asked, Word
from spatialvlm.inside.places import canvases
from spatialvlm.models.outputs import Wants
from spatialvlm.processing.encoded import Encoded
from tests import tiny_model
from tests.inside import support
from tests.models.support import jit, tokens_per_tile

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOFT = {
  "prompt": {"tokens": 3},
  "prompt-after": {"tokens": 3, "place": "after_image"},
  "prefix": {"tokens": 2},
}


def build(name):
  """A model of a family as it was recorded, or a tiny SmolVLM with a soft prompt."""
  if name not in SOFT:
    return hub.load_model(FIXTURES / name)
  method = name.partition("-")[0]
  given = peft.Given(lambda text: [5, 6, 7] if text else [])
  return peft.apply(tiny_model.build(), PeftConfig(method, options=SOFT[name]), given)


def ask(model) -> Asked:
  """Two tiles of noise, some text around them, in the model's own sizes."""
  rng = np.random.default_rng(0)
  P, size = tokens_per_tile(model.config), model.config.vision.image_size
  image = model.config.image_token_id
  tokens = np.concatenate([rng.integers(3, 50, 2), np.full(2 * P, image), rng.integers(3, 50, 7)])
  slot = np.where(tokens == image, np.cumsum(tokens == image) - 1, -1)
  tiles = rng.normal(size=(2, size, size, 3)).astype(np.float32)
  count = len(tokens)
  encoded = Encoded(
    tokens=tokens.astype(np.int32),
    loss_mask=np.zeros(count, bool),
    image_slot=slot.astype(np.int32),
    tiles=tiles,
    images=(1, 1),
    prefix=count if model.config.prefix_lm else 0,
  )
  words = tuple(Word(str(at), (at,)) for at in (0, *range(2 + 2 * P, count)))
  pictures = (np.zeros((8, 8, 3), np.uint8),) * 2
  grids = canvases([(0, 0), (0, 0)], P)
  return Asked(encoded, pictures, grids, words, "What?", ("a", "b"), (7, 9), 1)


@pytest.mark.parametrize("name", ["internvl", "paligemma", "paligemma2", *SOFT])
def test_a_question_of_another_kind(name):
  """Rows, means and the gradient's small form, against probabilities of a whole unpadded read."""
  model = build(name)
  asked = ask(model)
  depth = model.config.text.depth
  rows = np.array([len(asked.encoded.tokens) - 3, len(asked.encoded.tokens) - 1], np.int32)
  every = tuple(range(1, depth + 1))
  seen = reading.see(model, asked, attention=True)
  found = reading.look(
    model,
    asked,
    seen,
    rows=rows,
    layers=every,
    heads=True,
    rollout=True,
    gradient=True,
    vision_gradient=True,
    streams=(0, depth),
  )
  graphdef, state = nnx.split(model)
  wants = Wants(hidden=True, attention=every, encoder_attention=(1,), decoder_layers=(depth,), vision=True)
  batch = support.batch_of(asked)
  whole = jit(lambda state, batch: nnx.merge(graphdef, state).read(batch, wants))(state, batch)
  first = model.config.vision.prefix
  for index, layer in enumerate(every):
    p_NTT = np.asarray(whole.attention[layer])[0]
    np.testing.assert_allclose(found.attention[index], p_NTT[:, rows][..., asked.image_at], atol=2e-6)
    np.testing.assert_allclose(found.mean[index], p_NTT.mean(0), atol=2e-6)
  np.testing.assert_allclose(seen.features.patches_NPD, whole.vision.patches_NPD, rtol=1e-4, atol=1e-4)
  want = np.asarray(whole.encoder_attention[1])[:, :, first:, first:].mean(2).swapaxes(0, 1)
  np.testing.assert_allclose(seen.received[0], want, atol=2e-6)
  at = np.concatenate([rows[-1:], asked.image_at])
  np.testing.assert_allclose(found.streams[depth], whole.decoder_layers[depth][0][at], rtol=1e-3, atol=1e-3)
  logits = np.asarray(model.unembed(whole.hidden[:, -1]))[0]
  assert found.token == (7, 9)[int(logits[[7, 9]].argmax())]
  # Padding and what a prompt does not see have no part in the gradient; what it weighs is attention.
  reach = found.mean > 0
  assert (found.weighted >= 0).all() and not found.weighted[~reach].any() and found.weighted.max() > 0
  assert np.isfinite(np.asarray(found.features)).all() and np.abs(np.asarray(found.features)).max() > 0
  carried = reading.see_gradient(
    model, asked, found.features, np.ones((2, model.config.vision.grid**2), np.float32)
  )
  assert carried.shape == (2, model.config.vision.grid**2) and (carried >= 1).all() and carried.max() > 1


def test_soft_places_take_their_share():
  """What a soft prompt takes of a row is missing from its sum, in rows and in means."""
  model = build("prompt")
  asked = ask(model)
  seen = reading.see(model, asked, attention=False)
  settings = dict(layers=(2,), heads=True, rollout=True, gradient=False, vision_gradient=False, streams=(0,))
  found = reading.look(
    model, asked, seen, rows=np.array([len(asked.encoded.tokens) - 1], np.int32), **settings
  )
  assert 0 < found.mean[1][-1].sum() < 0.99 and found.weighted.size == 0 and found.features is None
