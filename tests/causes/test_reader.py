"""A model asked row by row, against the same questions asked by themselves."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from spatialvlm import loading
from spatialvlm.causes import cases, heads, layers, maps, one, panel, record, regions
from spatialvlm.causes.reader import Reader, Row, log_odds
from spatialvlm.config import ModelConfig
from spatialvlm.models.interventions import Cut, Interventions
from spatialvlm.models.outputs import Wants
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Batch, UserError
from tests.tiny_model import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_checkpoint(tmp_path_factory.mktemp("model"), depth=2, longest_edge=16, split=False)


@pytest.fixture(scope="module")
def loaded(folder):
  found = loading.find(ModelConfig(path=str(folder)))
  return found.load(None), load_processor(found.folder)


@pytest.fixture(scope="module")
def reader(loaded):
  return Reader(*loaded, rows=8)


@pytest.fixture(scope="module")
def some():
  return cases.make("Depth", 5, 3, 96)


def alone(loaded, case, image):
  """Log-probabilities of a case's choices, the plain way."""
  vlm, processor = loaded
  encoded = processor.encode_prompt([image], case.text)
  count = len(encoded.tokens)
  batch = Batch(
    tokens_BT=encoded.tokens[None],
    valid_BT=np.ones((1, count), bool),
    pixels_NHWC=encoded.tiles,
    normal=encoded.normal,
    image_slot_BT=encoded.image_slot[None],
    target_index_BK=np.array([[count]], np.int32),
  )
  logits = vlm.read(batch, Wants(logits=True)).logits[0, 0]
  return np.asarray(jax.nn.log_softmax(logits))[list(processor.letter_ids(len(case.choices)))]


def test_rows_are_what_each_would_be_alone(reader, loaded, some):
  rows, want = [], []
  for case in some:
    prompt = reader.prompt(case)
    for image in (case.image, regions.greyed(case.image, case.instance == case.named[0])):
      rows.append(Row(prompt, reader.cut(image)))
      want.append(alone(loaded, case, image))
  # Nine rows are a whole batch and a part of one.
  found = reader.ask([*rows, *rows[:3]])
  np.testing.assert_allclose(found, [*want, *want[:3]], rtol=1e-5, atol=1e-5)


def test_pictures_that_are_shared_are_the_same(reader, some):
  prompt, tiles = reader.prompt(some[0]), reader.cut(some[0].image)
  shared = reader.ask([Row(prompt, tiles)] * 3)
  own = reader.ask([Row(prompt, tiles.copy()) for _ in range(3)])
  np.testing.assert_allclose(shared, own, rtol=1e-6)


def test_questions_without_a_picture_and_of_other_numbers_of_choices(reader, some):
  text = cases.make("letters", 5, 40, 96)
  three = next(case for case in text if len(case.choices) == 3)
  found = reader.ask(
    [Row(reader.prompt(three), None), Row(reader.prompt(some[0]), reader.cut(some[0].image))]
  )
  assert np.isfinite(found[0]).all() and np.isnan(found[1, 2]) and np.isfinite(found[1, :2]).all()


def test_changes_go_with_their_rows(reader, some):
  prompt = reader.prompt(some[0])
  row = Row(prompt, reader.cut(some[0].image))
  plain = reader.ask([row])[0]
  L, T = reader.depth, reader.length
  layers_BL = np.zeros((10, L), bool)
  layers_BL[[1, 9], 0] = True
  queries = np.repeat([np.arange(T) >= prompt.behind], 10, 0)
  keys = np.repeat([reader.pad(prompt.slots >= 0)], 10, 0)
  found = reader.ask([row] * 10, Interventions(Cut(layers_BL, queries, keys)))
  np.testing.assert_allclose(found[[0, 5, 8]], [plain] * 3, rtol=1e-5)
  np.testing.assert_array_equal(found[1], found[9])
  assert np.abs(found[1] - plain).max() > 1e-4


def test_exchanged_tokens_are_those_of_the_other_place(reader, some):
  prompt, tiles = reader.prompt(some[0]), reader.cut(some[0].image)
  order = np.array([3, 1, 2, 0])
  plain, moved, twice = reader.ask(
    [Row(prompt, tiles), Row(prompt, tiles, order), Row(prompt, tiles, order[order])]
  )
  np.testing.assert_array_equal(plain, twice)
  assert np.abs(moved - plain).max() > 1e-4


def test_patching_everything_is_the_clean_picture(reader, some):
  case = some[0]
  prompt, clean = reader.prompt(case), reader.cut(case.image)
  other = reader.cut(np.full_like(case.image, 128))
  whole = {
    "all": np.ones(len(prompt.tokens), bool),
    "last": np.arange(len(prompt.tokens)) == len(prompt.tokens) - 1,
  }
  found = layers.patched(reader, prompt, clean, other, whole)
  want_clean, want_other = reader.ask([Row(prompt, clean), Row(prompt, other)])
  np.testing.assert_allclose(found[0], [want_clean] * 3, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1, -1], want_clean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1, 0], want_other, rtol=1e-4, atol=1e-5)  # the last token is the same word


def test_groups_part_a_prompt(reader, some):
  for case in some:
    prompt = reader.prompt(case)
    at = layers.groups(case, prompt)
    assert (at["picture"] == (prompt.slots >= 0)).all() and at["last"].sum() == 1 and at["last"][-1]
    text = (
      at["other words"].astype(int) + at.get("colour words", np.zeros(len(at["last"]), bool)) + at["last"]
    )
    assert (text[prompt.behind :] == 1).all() and not text[: prompt.behind].any()
    if "elsewhere" in at:
      assert not (at["elsewhere"] & (at["first"] | at["second"])).any()


def test_heads_out_of_all_cases(reader, some):
  lines = heads.of_cases(reader, some, "zero", (1, 2))
  assert lines[0]["out"].shape == (2, 4, 2)
  base = np.array([line["base"] for line in lines])
  np.testing.assert_allclose(base, reader.ask([Row(reader.prompt(c), reader.cut(c.image)) for c in some]))
  assert all(np.abs(line["out"] - line["base"]).max((0, 1, 2)) > 1e-4 for line in lines)
  means = heads.of_cases(reader, some, "mean", (1, 2))
  assert not np.allclose(means[0]["out"], lines[0]["out"])
  for a, b in zip(heads.of_cases(reader, some, "mean", (2,)), means, strict=True):
    assert len(a["out"]) == 1
    np.testing.assert_allclose(a["out"][0], b["out"][1], rtol=1e-5)


def test_the_mean_knows_nothing_of_rows_that_fill_a_batch(loaded, reader, some):
  narrow = Reader(*loaded, rows=3)
  narrow.fit([narrow.prompt(case) for case in some])
  for a, b in zip(
    heads.of_cases(reader, some, "mean", (1, 2)), heads.of_cases(narrow, some, "mean", (1, 2)), strict=True
  ):
    np.testing.assert_allclose(a["out"], b["out"], rtol=1e-4, atol=1e-5)


def test_attention_of_the_last_position(reader, some):
  prompt = reader.prompt(some[0])
  found = reader.attention([Row(prompt, reader.cut(some[0].image))])
  assert found.shape[:3] == (1, 2, 4)
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  assert not found[..., len(prompt.tokens) :].any()


def test_maps_of_a_model_are_those_of_its_record(reader, some):
  """Each sums to the share of its own measure that goes to the picture, and no two are alike."""
  case, prompt = some[0], reader.prompt(some[0])
  found = {
    name: maps.MAPS[name](reader, case, prompt, 4, None) for name in ("attention", "rollout", "gradient")
  }
  seen = reader.attention([Row(prompt, reader.cut(case.image))])[0].mean((0, 1))
  assert found["attention"].sum() == pytest.approx(
    seen[: len(prompt.slots)][prompt.slots >= 0].sum(), rel=1e-5
  )
  assert 0 < found["rollout"].sum() < 1 and (found["gradient"] >= 0).all() and found["gradient"].any()
  flat = [x.ravel() / x.sum() for x in found.values()]
  assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(flat, 2))


def test_the_panel_tells_everything_and_escapes_it(reader, some):
  case = dataclasses.replace(some[0], choices=("<b>a</b>", "b"))
  found = one.causes(reader, case, grid=2)
  made = panel.panel(found)
  assert "blind control" in made.html and "&lt;b&gt;" in made.html and "<b>a" not in made.html
  assert " style=" not in made.html and made.html.count("<table") == 3 and "data:image/png" in made.html


def test_causes_of_one_question_are_kept(reader, some, tmp_path):
  found = one.causes(reader, some[0], grid=2)
  assert found.grey.shape == (len(found.regions), 2) and found.kinds.count("cell") == 4
  assert found.cut.shape == (len(found.cut_groups), 3, 2) and found.patched.shape[1:] == (3, 2)
  np.testing.assert_array_equal(found.blind, found.grey[found.kinds.index("all")])
  np.testing.assert_allclose(found.blind, found.opposite)  # no other picture is known: it is the grey one
  record.write(found, tmp_path / "one.npz")
  again = record.read(tmp_path / "one.npz")
  for field in dataclasses.fields(found):
    np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
  assert again.restored().shape == (len(found.patch_groups), 3)
  (tmp_path / "bad.npz").write_bytes(b"no")
  with pytest.raises(UserError, match="no whole record of causes"):
    record.read(tmp_path / "bad.npz")


def test_causes_of_a_question_of_somebody(reader, some):
  case = some[0]
  own = one.case_of([case.image], case.text, case.choices, boxes=case.boxes)
  found = one.causes(reader, own, grid=0)
  assert "first object" in found.regions and found.right == -1 and "cell" not in found.kinds
  bare = one.causes(reader, one.case_of([case.image], case.text, case.choices), grid=3)
  assert bare.kinds == ("all",) + ("cell",) * 9 and bare.cut_groups == ("picture",) and len(bare.swapped) == 0


def test_log_odds_are_of_one_against_all_others():
  logprobs = np.log([[0.2, 0.3, 0.1], [0.5, 0.25, np.nan]])
  np.testing.assert_allclose(log_odds(logprobs, 0), np.log([0.2 / 0.4, 0.5 / 0.25]))


def test_what_cannot_be_asked(reader, loaded, some):
  blind = dataclasses.replace(some[0], image=None)
  with pytest.raises(UserError, match="needs a picture"):
    one.causes(reader, blind)
  with pytest.raises(UserError, match="has 2 pictures"):
    one.case_of([some[0].image] * 2, "which?", ("a", "b"))
  same = dataclasses.replace(some[0], choices=("cone", "cone"), lettered=False)
  with pytest.raises(UserError, match="begin with the same token"):
    reader.prompt(same)
