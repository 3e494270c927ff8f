"""Every protocol and control of one run, against a model that is asked prompt by prompt."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm import generation
from spatialvlm.api import LoadedVlm
from spatialvlm.config import ScoreConfig
from spatialvlm.data.batch import collate
from spatialvlm.evaluation import extract_choice, records
from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, ProcessorPrompter
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.serving import engine, usage
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.evaluation.test_evaluate import Counting

ALL = ScoreConfig(
  batch_size=4,
  protocols=tuple(PROTOCOLS),
  controls=tuple(name for name in controls.CONTROLS if name != "first_image"),  # which takes several
  new_tokens=40,
  lengths=(192,),
  tiles=(1,),
  pool_tiles=40,
  pool_prefixes=16,
  bootstrap=20,
)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
  """One tile an image, so that few programs are compiled."""
  full = support.processor(tmp_path_factory.mktemp("processor"))
  full.tiler = dataclasses.replace(full.tiler, split=False)
  return full


@pytest.fixture(scope="module")
def prompter(processor):
  return ProcessorPrompter(processor)


@pytest.fixture(scope="module")
def vlm(processor):
  return support.model(processor.image_id)


@pytest.fixture(scope="module")
def questions():
  return support.questions(count=8, images=5)


@pytest.fixture(scope="module")
def result(vlm, prompter, questions):
  """Generated answers pause twice on their way to 40 tokens."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, "PAUSES", (16, 24))
    return evaluate(questions, VlmScorer(vlm), prompter, ALL)


def test_more_questions_make_no_more_programs(vlm, prompter, result):
  """Shapes are the buckets', however many questions there are, and nothing is compiled anew for them."""
  config = dataclasses.replace(ALL, protocols=("native", "options"), controls=("circular", "grey"))
  scorers = [VlmScorer(vlm), VlmScorer(vlm)]
  evaluate(support.questions(count=8, images=5), scorers[0], prompter, config)
  before = usage.compiled()
  evaluate(support.questions(count=40, images=30), scorers[1], prompter, config)
  assert scorers[0].programs == scorers[1].programs and usage.compiled() == before
  said = usage.programs(scorers[0].programs, 3)
  assert said.startswith(f"programs: {len(scorers[0].programs)} of the model (1 images, 1 letters, ")
  assert "3 compiled" in said


@pytest.fixture(scope="module")
def letters(vlm, prompter, processor):
  """(question, protocol) -> log-probabilities of its letters, by one pass of the plain model."""
  graphdef, state = nnx.split(vlm)
  plain = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))

  def ask(question, protocol="native", blind=False):
    asked = PROTOCOLS[protocol]
    images = () if blind else question.images
    encoded = processor.encode_prompt(images, asked.text(question), asked.answer_prefix)
    batch = collate([encoded], length=256, tiles=len(images), targets=0, pad_id=prompter.pad_id, batch_size=1)
    logits = np.asarray(plain(state, batch))[0, len(encoded.tokens) - 1]
    return log_softmax(logits)[list(processor.letter_ids(len(question.choices), asked.answer_prefix))]

  return ask


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_both_letter_protocols(result, questions, letters):
  for protocol in ("native", "native-prefill"):
    for question, row in zip(questions[:3], result.passes[protocol, "sighted"], strict=False):
      close(row.logprobs, letters(question, protocol))


def test_options_are_what_score_choices_says(result, questions, vlm, processor):
  loaded = LoadedVlm(vlm, pathlib.Path(), "tiny", None, {})
  loaded.processor = processor
  for question, row in list(zip(questions, result.passes["options", "sighted"], strict=True))[1:3]:
    sums = loaded.score_choices(question.images, question.prompt, list(question.choices))
    close(np.multiply(row.logprobs, row.tokens), sums)
    lengths = [len(processor.answer_ids(choice)) for choice in question.choices]
    assert row.tokens == tuple(lengths)
    assert row.choice == "ABCDEF"[np.argmax(sums / lengths)]


def test_generated_answers_are_those_of_greedy_decoding(result, questions, vlm, processor, prompter):
  for protocol, limit in (("lmms_eval", 40), ("vlmevalkit", 40), ("cambrian", 40), ("vsi", 16)):
    rows = result.passes[protocol, "sighted"]
    encoded = [processor.encode_prompt(q.images, PROTOCOLS[protocol].text(q)) for q in questions]
    batch = collate(encoded, length=256, tiles=1, targets=0, pad_id=prompter.pad_id, batch_size=8)
    tokens = generation.generate(
      vlm, batch, max_new_tokens=40, stop_ids=prompter.stop_ids, pad_id=prompter.pad_id
    )
    for question, row, new in zip(questions, rows, tokens[:, :limit], strict=True):
      stops = np.flatnonzero(np.isin(new, prompter.stop_ids))
      assert row.ended == bool(len(stops))
      assert row.output == processor.decode(new[: stops[0]] if len(stops) else new)
      assert row.choice == extract_choice(row.output, question.choices, protocol)


def test_circular(result, questions, letters):
  rows = result.passes["native", "circular"]
  assert len(rows) == sum(len(q.choices) - 1 for q in questions)
  of = {q.idx: q for q in questions}
  for row in rows[:4]:
    turned = controls.rotated(of[row.idx], row.shift)
    shown = letters(turned)
    for text, value in zip(row.choices, row.logprobs, strict=True):
      close(value, shown[turned.choices.index(text)])
    assert row.choice == "ABCDEF"[np.argmax(row.logprobs)]
    assert row.choices == of[row.idx].choices and row.gold == "ABCDEF"[of[row.idx].answer]
  found = result.summary["controls"]["circular"]
  right = {q.idx: [r.correct for r in (*rows, *result.rows) if r.idx == q.idx] for q in questions}
  assert all(len(right[q.idx]) == len(q.choices) for q in questions)
  assert found["scores"]["plain"]["score"] == pytest.approx(np.mean([np.mean(r) for r in right.values()]))
  assert found["all_right"]["plain"]["score"] == pytest.approx(np.mean([all(r) for r in right.values()]))
  # Every option has stood at every place once, so each letter was right as often as it was there.
  assert [v["gold"] for v in found["letters"].values()] == [
    sum(len(q.choices) > i for q in questions) for i in range(len(found["letters"]))
  ]
  assert sum(v["chosen"] for v in found["letters"].values()) == sum(len(q.choices) for q in questions)


def test_blind_and_mirrored(result, questions, letters):
  for i in (0, 3):
    question = questions[i]
    grey = dataclasses.replace(question, images=tuple(map(controls.grey, question.images)))
    close(result.passes["native", "grey"][i].logprobs, letters(grey))
    close(result.passes["native", "no_image"][i].logprobs, letters(question, blind=True))
    close(result.passes["native", "flip"][i].logprobs, letters(controls.flipped(question)))
    row = result.passes["native", "other_image"][i]
    (other,) = {
      records.images_hash(q.images): q for q in questions if records.image_name(q) == row.image_shown
    }.values()
    assert other.task == question.task and row.image_shown != row.image
    close(row.logprobs, letters(dataclasses.replace(question, images=other.images)))
  found = result.summary["controls"]
  plain = result.summary["scores"]["plain"]["score"]
  for name in controls.BLIND:
    gap = found[name]["gap"]["plain"]["difference"]
    assert gap == pytest.approx(plain - found[name]["scores"]["plain"]["score"])
  follows = [
    now.choice == controls.flipped_letter(was.task, was.question, was.choices, was.choice)
    for was, now in zip(result.rows, result.passes["native", "flip"], strict=True)
  ]
  assert found["flip"]["consistency"]["plain"]["score"] == pytest.approx(np.mean(follows))


def test_one_at_a_time_gives_the_same(result, questions, vlm, prompter):
  alone = dataclasses.replace(ALL, batch_size=1, protocols=("native", "options"), controls=())
  single = evaluate(questions[:3], VlmScorer(vlm), prompter, alone)
  for key, rows in single.passes.items():
    whole = {row.key: row for row in result.passes[key]}
    for row in rows:
      np.testing.assert_allclose(row.logprobs, whole[row.key].logprobs, rtol=1e-5, atol=1e-5)
      assert (row.choice, row.output) == (whole[row.key].choice, whole[row.key].output)


# The same with a scorer that only counts.


class Words(Counting):
  def __init__(self, processor, **settings):
    super().__init__(**settings)
    self.words = {
      text: processor.tokenizer.encode(text).ids for text in (" no", *(f"({c})" for c in "ABCDE"))
    }


def test_what_is_shared_is_computed_once(processor, prompter, questions):
  scorer = Words(processor)
  evaluate(questions, scorer, prompter, ALL)
  # Five images, their mirrored ones, grey of the two shapes; the prefix without an image is one token.
  assert scorer.tiles == 5 + 5 + 2 and scorer.prefixes == 12
  shifts = sum(len(q.choices) - 1 for q in questions)
  # native, options and vlmevalkit read one text; long answers are read again.
  texts = len(questions) * (1 + 1 + 3) + shifts + 4 * len(questions)
  assert texts < scorer.rows < texts + 4 * len(questions)
  native = Words(processor)
  evaluate(questions, native, prompter, dataclasses.replace(ALL, protocols=("native",), controls=()))
  assert (native.tiles, native.prefixes, native.rows) == (5, 5, len(questions))


def test_long_answers_are_generated_to_their_limit(processor, prompter, questions):
  rows = evaluate(questions * 1, Words(processor), prompter, ALL).passes
  generated = [r for key, part in rows.items() for r in part if r.output is not None]
  assert {r.ended for r in generated} == {True, False}
  for row in generated:
    if row.ended:
      assert row.output[-3:-2] == "(" and row.output.endswith(")")
    else:
      assert row.output.strip().startswith("no no") and not row.output.endswith(")")
  summary = evaluate(questions, Words(processor), prompter, ALL).summary
  vsi = [r for r in generated if r.protocol == "vsi"]
  assert summary["protocols"]["vsi"]["cut"] == pytest.approx(np.mean([not r.ended for r in vsi]))
  assert summary["protocols"]["vsi"]["answered"] == pytest.approx(np.mean([r.choice != "" for r in vsi]))


@pytest.mark.parametrize("ids", [False, True])
def test_a_run_stopped_anywhere_ends_the_same(processor, prompter, questions, tmp_path, ids):
  class WithIds(list):
    ids = property(lambda self: [q.idx for q in self])

  asked = (WithIds if ids else list)(questions)
  whole = evaluate(asked, Words(processor), prompter, ALL, folder=tmp_path / "whole")
  folder, starts = tmp_path / "stopped", 0
  while True:
    starts += 1
    assert starts < 30
    try:
      again = evaluate(asked, Words(processor, stop_after=9), prompter, ALL, folder=folder)
      break
    except KeyboardInterrupt:
      file = folder / records.FILE
      data = file.read_bytes()
      file.write_bytes(data[:-13])  # torn by a kill
  assert starts > 2
  assert again.passes == whole.passes
  for name in (records.FILE, "summary.json"):
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  rows = records.read(folder)
  assert len({row.key for row in rows}) == len(rows) == sum(map(len, whole.passes.values()))
  finished = Words(processor)
  assert evaluate(asked, finished, prompter, ALL, folder=folder).passes == whole.passes
  assert finished.rows == 0
  with pytest.raises(UserError, match="holds grey answers of protocol 'native', for which these settings"):
    evaluate(asked, finished, prompter, dataclasses.replace(ALL, controls=("circular",)), folder=folder)


def test_runs_of_a_single_pass_are_still_read(tmp_path):
  row = json.loads(support.row(7).to_json())
  for field in ("protocol", "condition", "shift", "image_shown", "tokens", "output", "ended", "question"):
    del row[field]
  (tmp_path / records.FILE).write_text(json.dumps(row) + "\n")
  assert records.read(tmp_path) == [support.row(7)]
  (tmp_path / "config.json").write_text(json.dumps({"score": {"protocol": "native-prefill"}}))
  assert records.read(tmp_path)[0].protocol == "native-prefill"
