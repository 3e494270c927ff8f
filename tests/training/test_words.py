"""The dense loss against a plain NumPy count over the cells of a small map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.config import LossConfig
from spatialvlm.models.outputs import Outputs
from spatialvlm.training.objectives import Models, check_data, make_objectives, read_vocabulary
from spatialvlm.training.objectives.words import Words, WordsSettings, token_labels
from spatialvlm.types import Batch, Extra, UserError

VOCABULARY, WIDTH, FIRST, CLASSES = 11, 6, 4, 3


class Readout:
  """Just the model's vocabulary product."""

  def __init__(self, table_VD):
    self.table_VD = table_VD

  def unembed(self, x, ids=None):
    return x @ self.table_VD.T[:, slice(None) if ids is None else ids]


def words_loss(target, first, classes, **settings):
  """The objective as a function of a readout and a batch that holds its image tokens."""
  objective = Words(WordsSettings(target, first, classes, **settings))

  def loss(model, batch, key):
    return objective(Outputs(image=batch.features_NPD), Models(model), batch, key)

  return loss


@pytest.fixture
def maps():
  return np.random.default_rng(0).integers(-1, CLASSES, (2, 6, 6)).astype(np.int8)


def cells(maps):
  """(N, 4) lists of the pixels of each cell of a 2 x 2 grid, row-major."""
  return [[m[r : r + 3, c : c + 3].ravel() for r in (0, 3) for c in (0, 3)] for m in maps]


def test_labels_are_the_commonest_class(maps):
  maps[0, :3, 3:] = -1
  label_NP, weight_NP = token_labels(jnp.asarray(maps), 4, CLASSES, False, 0.5)
  for n, row in enumerate(cells(maps)):
    for p, pixels in enumerate(row):
      counts = np.bincount(pixels[pixels >= 0], minlength=CLASSES)
      assert weight_NP[n, p] == (counts.sum() >= 4.5)
      if weight_NP[n, p]:
        assert label_NP[n, p] == counts.argmax()
  assert weight_NP[0, 1] == 0


def test_share_is_the_least_part_of_a_cell_that_must_be_labelled():
  """One of nine pixels is labelled: enough for a share of 0.1, not of 0.2; the loss passes its share on."""
  maps = np.full((1, 6, 6), -1, np.int8)
  maps[0, 0, 0] = maps[0, 3, 3] = 1
  maps[0, 3, 4] = 1
  assert token_labels(jnp.asarray(maps), 4, CLASSES, False, 0.1)[1].tolist() == [[1, 0, 0, 1]]
  assert token_labels(jnp.asarray(maps), 4, CLASSES, False, 0.2)[1].tolist() == [[0, 0, 0, 1]]
  label_NP, _ = token_labels(jnp.asarray(maps), 4, CLASSES, True, 0.2)
  assert label_NP.tolist() == [[CLASSES, CLASSES, CLASSES, 1]]
  for share, seen in ((0.1, 2), (0.2, 1), (0.3, 0)):
    batch = Batch(
      None, None, features_NPD=jnp.ones((1, 4, WIDTH)), extra={"shape": Extra(jnp.asarray(maps), "tile")}
    )
    readout = Readout(jnp.ones((VOCABULARY, WIDTH)))
    _, weight, _ = words_loss("shape", FIRST, CLASSES, share=share)(readout, batch, jax.random.key(0))
    assert float(weight) == seen
  # The default, 0.1, is part of what the shipped model was trained with.
  _, weight, _ = words_loss("shape", FIRST, CLASSES)(readout, batch, jax.random.key(0))
  assert float(weight) == 2


def test_background_is_a_class_but_not_of_tiles_without_target(maps):
  maps[0, :3, 3:] = -1
  maps[1] = -1
  label_NP, weight_NP = token_labels(jnp.asarray(maps), 4, CLASSES, True, 0.5)
  assert label_NP[0, 1] == CLASSES and weight_NP[0].tolist() == [1, 1, 1, 1]
  assert weight_NP[1].tolist() == [0, 0, 0, 0]


def test_loss_is_the_cross_entropy_of_normalised_tokens(maps):
  rng = np.random.default_rng(1)
  table, features = rng.normal(size=(VOCABULARY, WIDTH)), rng.normal(size=(2, 4, WIDTH))
  batch = Batch(
    None,
    None,
    features_NPD=jnp.asarray(features, jnp.float32),
    extra={"shape": Extra(jnp.asarray(maps), "tile")},
  )
  loss = words_loss("shape", FIRST, CLASSES)
  total, weight, metrics = loss(Readout(jnp.asarray(table, jnp.float32)), batch, jax.random.key(0))
  x = features / np.sqrt((features**2).mean(-1, keepdims=True) + 1e-6)
  logits = (x @ table.T)[..., FIRST : FIRST + CLASSES]
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected, seen, right = 0.0, 0, 0
  for n, row in enumerate(cells(maps)):
    for p, pixels in enumerate(row):
      counts = np.bincount(pixels[pixels >= 0], minlength=CLASSES)
      if counts.sum() >= 0.9:
        expected -= log_p[n, p, counts.argmax()]
        right += logits[n, p].argmax() == counts.argmax()
        seen += 1
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert float(weight) == seen
  np.testing.assert_allclose(metrics["accuracy"][0], right)


def test_text_alone_weighs_nothing():
  total, weight, _ = words_loss("shape", FIRST, CLASSES)(None, Batch(None, None), jax.random.key(0))
  assert float(total) == float(weight) == 0


def test_missing_target_and_bad_settings_are_named(maps):
  terms = {"color": (1.0, Words(WordsSettings("color", FIRST, CLASSES), "config.losses.color"))}
  with pytest.raises(UserError, match=r"config\.losses\.color: no data source gives.*'color'.*shape"):
    check_data(terms, {"own": ["shape"], "text": []})
  check_data(terms, {"own": ["shape"], "other": ["color"]})
  # A batch of the sources that do not give it says nothing.
  extra = {"shape": Extra(jnp.asarray(maps), "tile")}
  batch = Batch(None, None, features_NPD=jnp.ones((2, 4, WIDTH)), extra=extra)
  total, weight, _ = words_loss("color", FIRST, CLASSES)(None, batch, jax.random.key(0))
  assert float(total) == float(weight) == 0
  with pytest.raises(UserError, match="does not divide"):
    token_labels(jnp.asarray(maps), 16, CLASSES, False, 0.1)
  with pytest.raises(UserError, match="needs a target"):
    make_objectives({"shape": LossConfig(kind="words", target="shape")})


def test_words_of_a_tokenizer_are_the_ids_that_it_gives():
  ids = {" left": [4, 9], " right": [7], " none": [2]}
  settings = {"words": ["left", "right"], "none_word": "none"}
  named = make_objectives({"side": LossConfig("words", target="side", kwargs=settings)})
  read_vocabulary(named, ids.__getitem__)
  assert named["side"][1].ids.tolist() == [4, 7, 2]
  assert named["side"][1].background and named["side"][1].classes == 2
  with pytest.raises(UserError, match="'left' and 'right' begin with the same token"):
    read_vocabulary(named, lambda text: [5])
  with pytest.raises(UserError, match="'left' is no word"):
    read_vocabulary(named, lambda text: [])
  both = {"words": ["left", "right"], "first": 4, "classes": 2}
  with pytest.raises(UserError, match="either words or first and classes"):
    make_objectives({"side": LossConfig("words", target="side", kwargs=both)})
