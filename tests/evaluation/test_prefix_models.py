"""A model whose prompts are bidirectional: nothing of a prompt but its image's features can be shared."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm import generation
from spatialvlm.api import LoadedVlm
from spatialvlm.config import ScoreConfig
from spatialvlm.data.batch import collate
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, ProcessorPrompter
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.models.vlm import Vlm
from spatialvlm.serving.scorer import VlmScorer
from tests.evaluation import support
from tests.models.support import jit


class Prefixed(ProcessorPrompter):
  """Prompts up to the answer's prefix are bidirectional, as PaliGemma's processor has them."""

  def __call__(self, question, protocol="native", images=None, blind=False):
    prompt = super().__call__(question, protocol, images, blind)
    shown = () if blind else question.images if images is None else images
    whole = self._processor.encode_prompt(shown, PROTOCOLS[protocol].text(question), pixels=False)
    return prompt._replace(encoded=dataclasses.replace(prompt.encoded, prefix=len(whole.tokens)))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
  """(model, prompter, questions); one layer of the decoder has a window far shorter than the prompts."""
  processor = support.processor(tmp_path_factory.mktemp("processor"))
  processor.tiler = dataclasses.replace(processor.tiler, split=False)
  vlm = support.model(processor.image_id)
  text = dataclasses.replace(vlm.config.text, windows=(5, 0), softcap=4.0)
  config = dataclasses.replace(vlm.config, text=text, prefix_lm=True)
  other = Vlm(config, rngs=nnx.Rngs(0))
  nnx.update(other, nnx.state(vlm))
  return other, Prefixed(processor), support.questions(count=3, images=2)


@pytest.mark.slow
def test_scores_and_answers_are_those_of_the_plain_model(setting):
  vlm, prompter, questions = setting
  config = ScoreConfig(
    batch_size=2,
    protocols=("native", "native-prefill", "options", "vlmevalkit"),
    new_tokens=6,
    lengths=(32,),
    tiles=(1,),
    bootstrap=10,
  )
  rows = evaluate(questions, VlmScorer(vlm), prompter, config).all_rows
  assert len(rows) == 3 * 4
  graphdef, state = nnx.split(vlm)
  plain = jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
  by_idx = {question.idx: question for question in questions}
  for row in rows:
    question = by_idx[row.idx]
    encoded = prompter(question, row.protocol)
    ids, encoded = encoded.option_ids, encoded.encoded
    batch = collate([encoded], length=256, tiles=1, targets=0, pad_id=prompter.pad_id, batch_size=1)
    assert not batch.mask_ar_BT[0, : encoded.prefix].any() and batch.mask_ar_BT[0, encoded.prefix :].all()
    logits = np.asarray(plain(state, batch))[0, len(encoded.tokens) - 1]
    if row.protocol in ("native", "native-prefill"):
      np.testing.assert_allclose(row.logprobs, log_softmax(logits)[ids], atol=2e-5)
    elif row.protocol == "vlmevalkit":
      new = generation.generate(
        vlm, batch, max_new_tokens=6, stop_ids=prompter.stop_ids, pad_id=prompter.pad_id
      )
      tokens = [t for t in new[0].tolist() if t not in prompter.stop_ids and t != prompter.pad_id]
      assert row.output == prompter.decode(tokens)
  options = [row for row in rows if row.protocol == "options" and row.idx == questions[0].idx]
  loaded = LoadedVlm(vlm, None, "", None, {})
  loaded.__dict__["processor"] = prompter._processor
  for row in options:
    question = by_idx[row.idx]
    wanted = loaded.score_choices(question.images, question.prompt, row.choices)
    np.testing.assert_allclose(np.multiply(row.logprobs, row.tokens), wanted, atol=1e-4)


def test_a_prompt_without_a_mask_is_bidirectional(setting):
  """As `logits` and `generate` take it; said out loud it is the same, and causal it is another."""
  vlm, prompter, questions = setting
  encoded = prompter(questions[0]).encoded
  batch = collate([encoded], length=256, tiles=1, targets=0, pad_id=prompter.pad_id, batch_size=1)
  silent = dataclasses.replace(batch, mask_ar_BT=None)
  causal = dataclasses.replace(batch, mask_ar_BT=np.ones_like(batch.valid_BT))
  graphdef, state = nnx.split(vlm)
  plain = jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
  last = lambda batch: np.asarray(plain(state, batch))[0, len(encoded.tokens) - 1]
  np.testing.assert_allclose(last(silent), last(batch), atol=1e-5)
  assert np.abs(last(causal) - last(batch)).max() > 1e-2
