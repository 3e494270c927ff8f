"""The page of what the model will see, with the real processor."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import DataConfig, SkillsConfig
from spatialvlm.data import inspect, inspect_page, pipeline
from spatialvlm.data.sources import lettered, registry
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Question, Turn, UserError
from tests.tiny_processor import write_processor

PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
  return load_processor(write_processor(tmp_path_factory.mktemp("processor"), split=False, longest_edge=16))


class Talks:
  """Example i: a picture, and one or two turns."""

  def __len__(self):
    return 5

  def __getitem__(self, index):
    turns = (Turn("How many <cones>?", f"{index}"), Turn("Which?\n(A) it", "A"))[: 1 + index % 2]
    return Example(images=(PICTURE,), turns=turns, id=f"t{index}", task=("odd", "even")[index % 2 == 0])


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(registry.KINDS, "skills", registry.Kind(examples=lambda c: Talks()))
  talks = {"t": SkillsConfig()}
  return DataConfig(sources=talks, lengths=(32, 64), tiles=(1, 2), targets=4, shuffle=False, workers=0)


def test_figures_are_those_of_the_stream(config, processor):
  (found,) = inspect.inspect_data(config, processor, 2, scan=6, show=3)
  stream = pipeline.training_stream(config, processor, 2)
  rows = [next(stream) for _ in range(3)]
  assert found.lengths.sum() == sum(info.tokens for _, info in rows)
  assert found.supervised.sum() == sum(info.targets for _, info in rows)
  assert found.images == 4 * 6 and found.count == 6
  assert sum(found.buckets.values()) == 3 and set(found.buckets) == {info.bucket for _, info in rows}
  cells = sum(batch.valid_BT.size for batch, _ in rows)
  assert found.padding == pytest.approx(1 - found.lengths.sum() / cells)
  assert found.tasks == {"even": 4, "odd": 2} and found.sources == {"t": 6}
  assert [seen.id for seen in found.shown] == ["t[0] (t0)", "t[1] (t1)", "t[2] (t2)"]
  found.raise_if_bad()


def test_packed_rows_are_shown_as_the_stream_makes_them(config, processor):
  config = dataclasses.replace(config, packing=True)
  (found,) = inspect.inspect_data(config, processor, 5, scan=5, show=0)
  batch, info = next(pipeline.training_stream(config, processor, 5))
  bucket, rows = found.packed
  assert bucket == info.bucket and len(rows) < 5 and found.padding < found.unpacked
  assert [[one.tokens for one in row] for row in rows] == [
    np.bincount(segments[valid]).tolist()
    for segments, valid in zip(batch.segment_BT, batch.valid_BT, strict=True)
  ]
  assert sum(len(row) for row in rows) == 5
  html = inspect_page.page([found], processor, "a page")
  assert f"{bucket.rows} rows of {bucket.length} tokens" in html
  assert all(f"width:{100 * one.tokens / bucket.length:.2f}%" in html for row in rows for one in row)
  assert f"packed: padding {found.padding:.1%}" in inspect.summary(found)


def test_training_teaches_the_token_that_evaluation_scores(processor):
  question = Question(
    7, "2D", "Count", (PICTURE,), "How many?", ("1", "2"), 1, "How many? Select.\n(A) 1\n(B) 2", "COCO"
  )
  encoded = processor.encode(lettered.question_to_example(question))
  prompt = processor.encode_prompt(question.images, question.prompt)
  first = np.flatnonzero(encoded.loss_mask)[0]
  np.testing.assert_array_equal(encoded.tokens[:first], prompt.tokens)
  assert encoded.tokens[first] == processor.letter_ids(2)[question.answer]


def test_validation_is_looked_at_too(config, processor):
  config = dataclasses.replace(config, validation=config.sources, validation_size=3)
  found = inspect.inspect_data(config, processor, 2)
  assert [(i.name, i.count) for i in found] == [("training", 256), ("validation", 3)]


def test_the_page_shows_tiles_and_roles(config, processor):
  found = inspect.inspect_data(config, processor, 2, scan=2)
  page = inspect_page.page(found, processor, "a <title>")
  assert "<title>a &lt;title&gt;</title>" in page and "http" not in page
  data = re.search(r"src='data:image/png;base64,([^']+)'", page)[1]
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), PICTURE)
  assert page.count("image x 4</span>") == 2
  first = page.split("<div class='sample'>")[1]
  answer = "".join(re.findall(r"<span class='answer'[^>]*>(.*?)</span>", first, re.S))
  assert answer == " 0&lt;end_of_utterance&gt;"
  prompt = "".join(re.findall(r"<span class='prompt'[^>]*>(.*?)</span>", first, re.S))
  assert prompt.startswith("User:How many &lt;cones&gt;?") and prompt.endswith("⏎\nAssistant:⏎\n")


def test_the_summary_names_what_matters(config, processor):
  (found,) = inspect.inspect_data(config, processor, 2, scan=4)
  text = inspect.summary(found)
  assert "4 samples from t 4" in text and "truncated: 0" in text and "REFUSED" not in text


class Spoilt:
  """A processor that makes one of the usual mistakes on every second sample."""

  def __init__(self, processor, spoil):
    self._processor, self._spoil = processor, spoil

  def __getattr__(self, name):
    return getattr(self._processor, name)

  def encode(self, example):
    encoded = self._processor.encode(example)
    return self._spoil(encoded) if example.id in ("t1", "t3") else encoded


def _on_images(e):
  return dataclasses.replace(e, loss_mask=e.loss_mask | (e.image_slot >= 0))


def _on_prompt(e):
  start = np.flatnonzero(e.loss_mask)[0]
  mask = e.loss_mask.copy()
  mask[start - 3 : start] = True
  return dataclasses.replace(e, loss_mask=mask)


def _nowhere(e):
  return dataclasses.replace(e, loss_mask=np.zeros_like(e.loss_mask))


def _cut(e):
  keep = np.arange(len(e.tokens)) != np.flatnonzero(e.image_slot >= 0)[-1]
  return dataclasses.replace(
    e, tokens=e.tokens[keep], loss_mask=e.loss_mask[keep], image_slot=e.image_slot[keep]
  )


@pytest.mark.parametrize(
  "spoil, message",
  [
    (_on_images, "the loss would be taken on 4 image tokens"),
    (_on_prompt, "the supervised tokens of turn 1 read 'istant: 1', but its answer is '1'"),
    (_nowhere, "no token is supervised"),
    (_cut, "3 image tokens for 1 tiles of 4"),
  ],
)
def test_the_usual_mistakes_are_shown_and_refused(config, processor, spoil, message):
  spoilt = Spoilt(processor, spoil)
  (found,) = inspect.inspect_data(config, spoilt, 2, scan=5, show=1)
  assert list(found.problems) == ["t[1] (t1)", "t[3] (t3)"] and found.count == 5
  assert [seen.id for seen in found.shown] == ["t[0] (t0)", "t[1] (t1)", "t[3] (t3)"]
  page = inspect_page.page([found], spoilt, "bad")
  assert page.count("class='sample bad'") == 2 and "2 samples are refused" in page
  assert ("class='wrong image'" in page) == (spoil is _on_images)
  assert ("class='wrong'" in page) == (spoil is _on_prompt)
  assert "REFUSED t[1] (t1)" in inspect.summary(found)
  with pytest.raises(UserError, match=rf"training data: t\[1\] \(t1\): {message}.*\(and 1 more samples\)"):
    found.raise_if_bad()


def test_what_cannot_even_be_encoded_is_shown(config, processor, monkeypatch):
  class Marks(Talks):
    def __getitem__(self, index):
      return Example(images=(PICTURE,), turns=(Turn("<image><image>", "A"),))

  monkeypatch.setitem(registry.KINDS, "skills", registry.Kind(examples=lambda c: Marks()))
  (found,) = inspect.inspect_data(config, processor, 2, scan=2)
  page = inspect_page.page([found], processor, "bad")
  assert found.count == 2 and len(found.lengths) == 0 and "2 &lt;image&gt; marks" in page
  with pytest.raises(UserError, match="2 <image> marks"):
    found.raise_if_bad()


def test_rows_that_training_leaves_out_are_counted_and_named(config, processor, monkeypatch):
  class Broken(Talks):
    def __getitem__(self, index):
      if index in (1, 2):
        raise UserError(f"row {index}: cut <short>")
      return super().__getitem__(index)

  monkeypatch.setitem(registry.KINDS, "skills", registry.Kind(examples=lambda c, defer=False: Broken()))
  with pytest.raises(UserError, match="row 1: cut"):
    inspect.inspect_data(config, processor, 2, scan=5)
  config = dataclasses.replace(config, bad_rows="skip")
  (found,) = inspect.inspect_data(config, processor, 2, scan=5)
  stream = pipeline.training_stream(config, processor, 5)
  _, info = next(stream)
  assert [seen.id for seen in found.shown] == list(info.ids)
  assert found.skipped == info.skipped and list(found.skipped) == ["t[1]", "t[2]"]
  found.raise_if_bad()
  said = inspect.summary(found)
  assert "left out (data.bad_rows=skip): 2 rows\n  left out t[1]: row 1: cut <short>" in said
  html = inspect_page.page([found], processor, "a page")
  assert "2 rows are left out" in html and "<li>t[2]: row 2: cut &lt;short&gt;</li>" in html


def test_what_is_set_against_each_other_is_shown_apart(processor, monkeypatch):
  """The row ends where its branches begin; each of these is a line, the right one first."""
  turns = (Turn("Is it red?", "yes", ("no",)), Turn("Which?", "it"))
  example = Example((PICTURE,), turns, id="r", rearranged=(PICTURE[::-1],))
  rows = type("Rows", (), {"__len__": lambda self: 1, "__getitem__": lambda self, index: example})
  monkeypatch.setitem(registry.KINDS, "skills", registry.Kind(examples=lambda c: rows()))
  config = DataConfig(sources={"t": SkillsConfig()}, lengths=(128,), tiles=(2,), targets=8, workers=0)
  (found,) = inspect.inspect_data(config, processor, 1, scan=1, show=1)
  html = inspect_page.page([found], processor, "a page").partition("class='sample'")[2]
  own, *against = html.split("<div class='against'>")
  assert own.count("class='answer'") >= 2 and "class='false'" not in own
  assert [part.partition(";")[0] for part in against] == [
    "answers to question 1",
    "pictures set against each other",
  ]
  for part in against:
    right, false = part.split("<div class='tokens'>")[1:]
    assert "class='answer'" in right and "class='false'" not in right
    assert "class='false'" in false and "class='answer'" not in false
  assert "image x" in against[1].split("<div class='tokens'>")[2] and html.count("<img") == 2
