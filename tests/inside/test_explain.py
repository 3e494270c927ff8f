"""A record against what the model gives of the same question by other ways."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from spatialvlm.inside import asked as asked_lib
from spatialvlm.inside import explain, lens, record
from spatialvlm.models.outputs import Wants
from spatialvlm.types import UserError
from tests.inside import support
from tests.models.support import jit


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
  return support.load(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def asked(vlm):
  return support.ask(vlm, right="B")


@pytest.fixture(scope="module")
def found(vlm, asked):
  settings = explain.Settings(vision_gradient=True)
  return explain.explain(vlm.model, vlm.processor, asked, settings, name="tiny")


@pytest.fixture(scope="module")
def whole(vlm, asked):
  """Everything that the model gives, in one read of pixels, without padding."""
  wants = Wants(
    logits=True,
    hidden=True,
    vision=True,
    attention=(1, 2),
    encoder_attention=(1, 2),
    decoder_layers=(0, 1, 2),
  )
  graphdef, state = nnx.split(vlm.model)
  return jit(lambda state, batch: nnx.merge(graphdef, state).read(batch, wants))(
    state, support.batch_of(asked)
  )


def test_words_are_those_of_the_question(asked):
  texts = [word.text for word in asked.words]
  assert " ".join(texts).count("Which object is closer to the camera") == 1
  assert "?" in texts and "camera" in texts and not any("<" in text for text in texts)
  used = [at for word in asked.words for at in word.at]
  assert len(set(used)) == len(used) and not set(used) & set(asked.image_at)


def test_attention_is_that_of_the_model(asked, found, whole):
  assert found.attention.shape == (2, 4, len(found.rows), 13 * 4) and found.rows[-1] == len(found.tokens) - 1
  for index, layer in enumerate(found.layers):
    want = np.asarray(whole.attention[int(layer)])[0][:, found.rows][..., found.image_at]
    np.testing.assert_allclose(found.attention[index], want, atol=1e-6)
  every = np.asarray(found.of_words(found.looked))
  assert every.shape == (2, len(found.words) + 1, 52)
  number = found.words.index("camera")
  want = found.looked[:, list(found.word_rows[number])].mean(1)
  np.testing.assert_allclose(every[:, number], want, atol=1e-7)


def test_rollout_and_relevance_are_of_whole_matrices(vlm, asked, found, whole):
  p = [np.asarray(whole.attention[layer])[0].mean(0) for layer in (1, 2)]
  eye = np.eye(len(p[0]))
  rolled = (p[1] + eye) @ (p[0] + eye) / 4
  np.testing.assert_allclose(found.rollout[-1], rolled[found.rows][:, found.image_at], atol=1e-6)
  graphdef, state = nnx.split(vlm.model)
  batch, T = support.batch_of(asked), len(found.tokens)
  token = asked.option_ids[found.chosen]
  read = lambda traces: nnx.merge(graphdef, state).read(batch, Wants(logits=True), traces=traces)
  zeros = {layer: np.zeros((1, T, T), np.float32) for layer in (1, 2)}
  a = jit(jax.grad(lambda traces: read(traces).logits[0, 0, token]))(zeros)
  carried = (eye + np.asarray(a[2])[0]) @ (eye + np.asarray(a[1])[0])
  want = carried[found.rows][:, found.image_at]
  assert want[-1].max() > 1e-5
  np.testing.assert_allclose(found.gradient, want, rtol=1e-3, atol=1e-5 * want.max())


def test_the_vision_tower(found, whole):
  """What patches receive, and the rollout of each image token: a square of 2 x 2 patches."""
  assert found.vision.received.shape == (2, 2, 13, 16) and found.vision.rollout.shape == (13, 4, 16)
  for layer in (1, 2):
    want = np.asarray(whole.encoder_attention[layer]).mean(2).swapaxes(0, 1)
    np.testing.assert_allclose(found.vision.received[layer - 1], want, atol=1e-6)
  p = [np.asarray(whole.encoder_attention[layer]).mean(1) for layer in (1, 2)]
  rolled = (p[1] + np.eye(16)) @ (p[0] + np.eye(16)) / 4
  want = rolled.reshape(13, 2, 2, 2, 2, 16).mean((2, 4)).reshape(13, 4, 16)
  np.testing.assert_allclose(found.vision.rollout, want, atol=1e-6)
  through = found.through_vision(found.rollout[-1, -1])
  np.testing.assert_allclose(through.sum(), found.rollout[-1, -1].sum(), rtol=1e-5)
  one = np.zeros(52)
  one[17] = 1
  np.testing.assert_allclose(found.through_vision(one).reshape(13, 16)[4], want[4, 1], atol=1e-6)


def test_the_gradient_goes_on_through_the_vision_tower(vlm, asked, found):
  """Against a gradient of the whole model, all tiles at once."""
  graphdef, state = nnx.split(vlm.model)
  batch, token = support.batch_of(asked), asked.option_ids[found.chosen]

  def logit(traces):
    model = nnx.merge(graphdef, state)
    pixels = (np.asarray(batch.normal(batch.pixels_NHWC)),)
    features = model.vision.read(*pixels, traces=traces).features
    shown = dataclasses.replace(batch, pixels_NHWC=None, normal=None, vision=features)
    return model.read(shown, Wants(logits=True)).logits[0, 0, token]

  a = jit(jax.grad(logit))({layer: np.zeros((13, 16, 16), np.float32) for layer in (1, 2)})
  a = [np.asarray(a[layer]) for layer in (1, 2)]
  top = found.gradient[-1].reshape(13, 2, 1, 2, 1).repeat(2, 2).repeat(2, 4).reshape(13, 1, 16) / 4
  want = (top @ (np.eye(16) + a[1]) @ (np.eye(16) + a[0]))[:, 0]
  assert np.abs(want - top[:, 0]).max() > 1e-4 * want.max()
  np.testing.assert_allclose(found.vision.gradient, want, rtol=1e-3, atol=1e-4 * want.max())


def test_the_last_layer_of_the_lens_is_the_answer(vlm, asked, found, whole):
  logits = np.asarray(whole.logits)[0, 0]
  want = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
  np.testing.assert_allclose(found.lens.options[-1], want[list(asked.option_ids)], atol=1e-5)
  assert found.lens.answer_ids[-1].tolist() == np.argsort(-want, kind="stable")[:5].tolist()
  assert found.chosen == int(want[list(asked.option_ids)].argmax()) and found.said == "AB"[found.chosen]
  said = np.asarray(vlm.model.unembed(whole.hidden))[0][found.image_at]
  assert found.lens.patch_ids[-1, :, 0].tolist() == said.argmax(-1).tolist()
  middle = np.asarray(vlm.model.unembed(vlm.model.decoder.norm(whole.decoder_layers[1])))[0]
  at = list(found.lens.layers).index(1)
  assert found.lens.patch_ids[at, :, 0].tolist() == middle[found.image_at].argmax(-1).tolist()
  assert found.lens.answer_ids[1, 0] == middle[-1].argmax()
  assert all(str(i) in found.vocabulary for i in found.lens.patch_ids.flat)


def test_when_an_option_overtakes():
  fields = {f.name: np.zeros((4, 1)) for f in dataclasses.fields(record.Lens)}
  said = lambda *rows: record.Lens(**{**fields, "options": np.log(np.array(rows, np.float32))})
  one = said((0.4, 0.3, 0.3), (0.2, 0.7, 0.1), (0.6, 0.2, 0.2), (0.1, 0.6, 0.3), (0.1, 0.5, 0.4))
  assert (one.overtakes(1), one.overtakes(0), said((0.9, 0.1), (0.6, 0.4)).overtakes(0)) == (3, None, 0)
  np.testing.assert_allclose(one.log_odds[1, 1], np.log(0.7 / 0.3), rtol=1e-5)


def test_a_record_is_what_was_written(found, tmp_path):
  record.write(found, tmp_path / "r.npz")
  again = record.read(tmp_path / "r.npz")
  old, new = jax.tree.leaves(dataclasses.asdict(found)), jax.tree.leaves(dataclasses.asdict(again))
  assert len(old) == len(new) > 30
  for one, other in zip(old, new, strict=True):
    assert type(one) is type(other)
    np.testing.assert_array_equal(one, other)
  (tmp_path / "r.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:-200])
  with pytest.raises(UserError, match="no whole record"):
    record.read(tmp_path / "r.npz")


def test_less_is_what_it_says(vlm, asked, found):
  settings = explain.Settings(
    layers=(-1,), heads=False, words=False, rollout=False, gradient=False, vision=False
  )
  less = explain.explain(vlm.model, vlm.processor, asked, settings)
  assert less.layers.tolist() == [2] and less.attention.shape == (1, 1, 1, 52) and less.vision is None
  assert less.rollout.size == less.gradient.size == 0 and less.words == ()
  np.testing.assert_allclose(less.attention[0, 0, 0], found.looked[1, -1], atol=1e-6)
  assert explain.memory(vlm.model, asked, settings) < explain.memory(vlm.model, asked, explain.Settings())


def test_a_free_question(vlm):
  asked = asked_lib.ask(vlm.processor, [support.picture()], "Describe the picture.")
  found = explain.explain(vlm.model, vlm.processor, asked)
  assert found.free and len(found.options) == 5 and found.chosen == 0 and found.right == -1
  assert found.said == vlm.chat([support.picture()], "Describe the picture.", max_new_tokens=24)


def test_a_tuned_lens_reads_with_its_maps(vlm, asked):
  """Zeros are the logit lens; the last layer has no map."""
  width = vlm.model.config.text.block.width
  zeros = lens.Translator(np.zeros((width, width), np.float32), np.zeros(width, np.float32))
  moved = zeros._replace(b_D=np.ones(width, np.float32))
  one = explain.explain(vlm.model, vlm.processor, asked, translators={0: zeros, 1: moved})
  np.testing.assert_allclose(one.tuned.options[0], one.lens.options[0], atol=1e-6)
  assert np.abs(one.tuned.options[1] - one.lens.options[1]).max() > 0.01
  np.testing.assert_array_equal(one.tuned.options[2], one.lens.options[2])


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (explain.Settings(layers=(3,)), "layer 3: this decoder's attention has layers 1 to 2"),
    (explain.Settings(memory=1e-4), r"13 tiles with 2 layers, 4 heads and \d+ places .* GiB.*--layers=8,16"),
  ],
)
def test_what_cannot_be_is_said_before(vlm, asked, settings, message):
  with pytest.raises(UserError, match=message):
    explain.explain(vlm.model, vlm.processor, asked, settings)


def test_questions_that_are_none(vlm):
  with pytest.raises(UserError, match="the question has no image; give one with --image=FILE"):
    asked_lib.ask(vlm.processor, [], "What?")
  with pytest.raises(UserError, match="the question is empty"):
    asked_lib.ask(vlm.processor, [support.picture()], " ")
  with pytest.raises(UserError, match="right 'C': expected one of A, B"):
    support.ask(vlm, right="C")
  with pytest.raises(UserError, match="right 'A': expected no letter without --options"):
    asked_lib.ask(vlm.processor, [support.picture()], "What?", right="A")
