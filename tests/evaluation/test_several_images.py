"""Questions about several images, against a model that is asked prompt by prompt."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm import generation
from spatialvlm.config import ScoreConfig
from spatialvlm.data.batch import collate
from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, ProcessorPrompter
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import IMAGE_MARK, UserError, choice_prompt
from tests.evaluation import support

pytestmark = pytest.mark.slow  # `make oracle` runs them

CONFIG = ScoreConfig(
  batch_size=4,
  protocols=("native", "options", "vsi"),
  controls=("circular", "grey", "no_image", "other_image", "flip"),
  lengths=(192,),
  tiles=(1, 2, 3),
  bootstrap=20,
)
IMAGES = (2, 2, 1, 1, 3, 3)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
  """One tile an image, so that tiles count images."""
  full = support.processor(tmp_path_factory.mktemp("processor"))
  full.tiler = dataclasses.replace(full.tiler, split=False)
  return full


@pytest.fixture(scope="module")
def vlm(processor):
  return support.model(processor.image_id)


@pytest.fixture(scope="module")
def questions():
  """Two of each number of images; the second of two and of three says where its images stand."""
  rng = np.random.default_rng(3)
  found = []
  for i, (base, count) in enumerate(zip(support.questions(len(IMAGES)), IMAGES, strict=True)):
    images = tuple(rng.integers(0, 256, (20 + 4 * j, 30, 3), dtype=np.uint8) for j in range(count))
    text = f"Is {IMAGE_MARK} like {' or '.join([IMAGE_MARK] * (count - 1))}?" if i in (1, 5) else "Which one?"
    choices = ("yes", "no")
    asked = dict(question=text, choices=choices, answer=i % 2, prompt=choice_prompt(text, choices))
    found.append(dataclasses.replace(base, images=images, task="Depth", source_filename="", **asked))
  return found


@pytest.fixture(scope="module")
def result(vlm, processor, questions):
  return evaluate(questions, VlmScorer(vlm), ProcessorPrompter(processor), CONFIG)


@pytest.fixture(scope="module")
def letters(vlm, processor):
  """(images, prompt) -> log-probabilities of two letters, by one pass of the plain model."""
  graphdef, state = nnx.split(vlm)
  plain = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))

  def ask(images, prompt):
    encoded = processor.encode_prompt(images, prompt)
    assert encoded.images == (1,) * len(images)
    batch = collate(
      [encoded], length=256, tiles=len(images), targets=0, pad_id=processor.pad_id, batch_size=1
    )
    logits = np.asarray(plain(state, batch))[0, len(encoded.tokens) - 1]
    return log_softmax(logits)[list(processor.letter_ids(2))]

  return ask


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_letters_are_those_of_the_plain_model_on_all_images(result, questions, letters):
  for question, row in zip(questions, result.rows, strict=True):
    expected = letters(question.images, question.prompt)
    close(row.logprobs, expected)
    if len(question.images) > 1 and IMAGE_MARK not in question.prompt:
      assert np.abs(letters(question.images[::-1], question.prompt) - expected).max() > 1e-3  # order counts


def test_each_alone_is_what_it_is_among_others(result, questions, vlm, processor):
  alone = dataclasses.replace(CONFIG, batch_size=1, protocols=("native",), controls=())
  for question, row in zip(questions[:2], result.rows, strict=False):
    (one,) = evaluate([question], VlmScorer(vlm), ProcessorPrompter(processor), alone).rows
    np.testing.assert_allclose(one.logprobs, row.logprobs, rtol=1e-5, atol=1e-5)
    assert one.image == row.image


def test_controls_change_every_image(result, questions, letters):
  passes = {name: result.passes["native", name] for name in CONFIG.controls}
  for i, question in enumerate(questions):
    other = questions[i ^ 1]  # the other one of as many images
    grey = tuple(map(controls.grey, question.images))
    mirrored = tuple(image[:, ::-1] for image in question.images)
    close(passes["grey"][i].logprobs, letters(grey, question.prompt))
    close(passes["other_image"][i].logprobs, letters(other.images, question.prompt))
    close(passes["flip"][i].logprobs, letters(mirrored, question.prompt))
    close(passes["no_image"][i].logprobs, letters((), question.prompt.replace(IMAGE_MARK, "")))
    turned = letters(question.images, controls.rotated(question, 1).prompt)
    close(passes["circular"][i].logprobs, np.roll(turned, 1))


def test_the_first_image_alone_leaves_the_others_grey(questions, letters, vlm, processor):
  config = dataclasses.replace(CONFIG, protocols=("native",), controls=("first_image",))
  several = [q for q in questions if len(q.images) > 1]
  found = evaluate(several, VlmScorer(vlm), ProcessorPrompter(processor), config)
  for question, row in zip(several, found.passes["native", "first_image"], strict=True):
    shown = (question.images[0], *map(controls.grey, question.images[1:]))
    close(row.logprobs, letters(shown, question.prompt))
  gap = found.summary["controls"]["first_image"]["gap"]["plain"]
  assert gap["low"] <= gap["difference"] <= gap["high"]
  with pytest.raises(UserError, match="has 1 image, of which none can be left out; leave 'first_image' out"):
    evaluate(questions[2:4], VlmScorer(vlm), ProcessorPrompter(processor), config)


def test_sides_of_a_mirrored_world_swap_where_they_are_asked_for():
  letter = lambda task, question, choices: controls.flipped_letter(task, question, choices, "A")
  for task in ("ViewRelation", "CameraMoved"):
    assert letter(task, "To which side has it moved?", ("left", "right")) == "B"
  for task, choices in (("ViewDepth", ("the red box", "the blue box")), ("SameObject", ("yes", "no"))):
    assert letter(task, "Is it the same?", choices) == "A"
  assert letter("TotalCount", "How many?", ("4", "5")) == "A"
  assert letter("Depth", "Which side?", ("left", "right")) is None


def test_options_and_generated_answers(result, questions, vlm, processor):
  for i in (1, 4):
    question = questions[i]
    encoded = processor.encode_prompt(question.images, PROTOCOLS["vsi"].text(question))
    count = len(question.images)
    batch = collate([encoded], length=256, tiles=count, targets=0, pad_id=processor.pad_id, batch_size=1)
    limits = dict(max_new_tokens=PROTOCOLS["vsi"].limit, stop_ids=processor.stop_ids, pad_id=processor.pad_id)
    (new,) = generation.generate(vlm, batch, **limits)
    stop = next((t for t, token in enumerate(new) if token in processor.stop_ids), len(new))
    assert result.passes["vsi", "sighted"][i].output == processor.decode(new[:stop])
    assert result.passes["options", "sighted"][i].tokens == tuple(
      len(processor.answer_ids(choice)) for choice in question.choices
    )


def test_features_of_several_images_are_kept_on_disk(result, questions, vlm, processor, tmp_path):
  config = dataclasses.replace(CONFIG, protocols=("native",), controls=("grey",), features=str(tmp_path))
  for _ in range(2):
    again = evaluate(questions, VlmScorer(vlm), ProcessorPrompter(processor), config)
    for one, row in zip(again.rows, result.rows, strict=True):
      np.testing.assert_allclose(one.logprobs, row.logprobs, rtol=1e-5, atol=1e-5)
  # Six sets of images, and three of grey ones, since those of equal sizes are the same.
  assert len(list(tmp_path.rglob("*.safetensors"))) == 9
