"""Questions to a model with priors: every pass against the model that is asked prompt by prompt."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm import priors
from spatialvlm import shots as shot_lib
from spatialvlm.config import PriorConfig, ScoreConfig
from spatialvlm.data.batch import collate
from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, ProcessorPrompter
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.processing.processor import load_processor
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import Shot, UserError
from tests.evaluation import support
from tests.peft.support import moved
from tests.tiny_processor import write_processor

CONFIGS = {
  "depth": PriorConfig("depth_map", kwargs={"width": 8}),
  "rays": PriorConfig("rays", kwargs={"width": 8}),
}
SCORE = ScoreConfig(
  batch_size=4,
  protocols=("native", "options"),
  controls=("grey", "other_image", "flip", "no_prior", "other_prior", "prior_alone"),
  lengths=(192,),
  tiles=(5,),
  pool_tiles=40,
  bootstrap=20,
)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
  folder = write_processor(tmp_path_factory.mktemp("processor"), longest_edge=32)
  return load_processor(folder, priors=priors.reader_of(CONFIGS))


@pytest.fixture(scope="module")
def vlm(processor):
  return moved(priors.attach(support.model(processor.image_id), CONFIGS), size=0.3)


@pytest.fixture(scope="module")
def questions():
  """Several to a picture, each with a shot of its own: equal pixels with other maps are other pictures."""
  rng = np.random.default_rng(3)

  def shot():
    depth = rng.uniform(1, 5, (12, 12)).astype(np.float32)
    return Shot(focal=(float(rng.uniform(0.8, 1.4)), 1.0), depth=lambda: depth)

  return [dataclasses.replace(q, shots=(shot(),)) for q in support.questions(count=8, images=3)]


@pytest.fixture(scope="module")
def result(questions, vlm, processor):
  return evaluate(questions, VlmScorer(vlm), ProcessorPrompter(processor), SCORE)


@pytest.fixture(scope="module")
def letters(vlm, processor):
  """Log-probabilities of a question's letters, its prompt read whole."""
  graph, state = nnx.split(vlm)
  read = jax.jit(lambda state, batch: nnx.merge(graph, state)(batch))

  def of(question, shots, images=None):
    text = PROTOCOLS["native"].text(question)
    encoded = processor.encode_prompt(images or question.images, text, shots=shots)
    batch = collate([encoded], length=192, tiles=5, targets=0, pad_id=processor.pad_id, batch_size=1)
    logits = np.asarray(read(state, batch))[0, len(encoded.tokens) - 1]
    return log_softmax(logits)[list(processor.letter_ids(len(question.choices)))]

  return of


def test_every_pass_is_told_what_it_should(result, questions, letters):
  nothing = Shot(focal=(1.0, 1.0), depth=lambda: np.zeros((2, 2), np.float32))
  of_name = {q.idx: q for q in questions}
  for i in (0, 3, 5):
    question, row = questions[i], result.passes["native", "sighted"][i]
    close = lambda condition, found, i=i: np.testing.assert_allclose(
      result.passes["native", condition][i].logprobs, found, rtol=1e-3, atol=1e-3
    )
    own = letters(question, question.shots)
    close("sighted", own)
    grey = tuple(map(controls.grey, question.images))
    close("prior_alone", letters(question, question.shots, grey))
    close("other_prior", letters(question, donor(questions, i).shots))
    if row.task != "Relation":
      mirrored = tuple(map(shot_lib.mirrored, question.shots))
      close("flip", letters(question, mirrored, tuple(map(controls.mirror, question.images))))
    assert of_name[row.idx] is question
    assert np.abs(letters(question, (nothing,)) - own).max() > 1e-2


def test_a_blind_prior_is_no_prior(result, questions, vlm, processor):
  plain = evaluate(
    questions, VlmScorer(priors.without(vlm)), ProcessorPrompter(processor.with_priors(None)), SCORE_PLAIN
  )
  for blind, bare in zip(result.passes["native", "no_prior"], plain.rows, strict=True):
    np.testing.assert_allclose(blind.logprobs, bare.logprobs, rtol=1e-4, atol=1e-4)
  greys = zip(result.passes["native", "grey"], plain.passes["native", "grey"], strict=True)
  for blind, bare in greys:
    np.testing.assert_allclose(blind.logprobs, bare.logprobs, rtol=1e-4, atol=1e-4)
  gap = result.summary["controls"]["no_prior"]["gap"]["plain"]
  assert gap.keys() == {"difference", "low", "high"}


def test_one_at_a_time_gives_the_same(result, questions, vlm, processor):
  alone = evaluate(
    questions[:3],
    VlmScorer(vlm),
    ProcessorPrompter(processor),
    dataclasses.replace(SCORE, batch_size=1, controls=()),
  )
  for a, b in zip(alone.rows, result.rows, strict=False):
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-4, atol=1e-4)


def test_a_question_that_says_nothing_of_its_picture_is_refused(questions, vlm, processor):
  bare = [dataclasses.replace(questions[0], shots=())]
  config = dataclasses.replace(SCORE, controls=())
  with pytest.raises(UserError, match=r"question 100: prior 'depth' needs a map of depth"):
    evaluate(bare, VlmScorer(vlm), ProcessorPrompter(processor), config)
  allowed = processor.with_priors(priors.reader_of(priors.with_missing(CONFIGS, "without")))
  assert evaluate(bare, VlmScorer(vlm), ProcessorPrompter(allowed), config).rows[0].choice


def test_controls_of_priors_that_are_not_there():
  with pytest.raises(
    UserError, match="'no_prior' takes away what priors say of images, and this model has none"
  ):
    controls.check_priors(False, ("grey", "no_prior"))
  controls.check_priors(True, ("no_prior", "other_prior"))


SCORE_PLAIN = dataclasses.replace(SCORE, protocols=("native",), controls=("grey",))


def donor(questions, i):
  """The nearest earlier question of the task on another picture, else the first later one."""
  task, name = questions[i].task, questions[i].filename
  others = [
    k
    for k, q in enumerate(questions)
    if q.task == task and not np.array_equal(q.images[0], questions[i].images[0])
  ]
  earlier = [k for k in others if k < i]
  assert name and others
  return questions[earlier[-1] if earlier else others[0]]
