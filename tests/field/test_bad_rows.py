"""One row in many is broken: it ends the run, or is left out and named, and resuming keeps the bits."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.types import Note, UserError
from tests.data.fakes import FakeProcessor, config

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Grey."}]


@pytest.fixture
def source(tmp_path):
  """Eight pictures, the third of them cut short, the fourth no picture."""
  rows = []
  for i in range(8):
    noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
    noise[:2, :2] = 10 * i
    Image.fromarray(noise).save(tmp_path / f"{i}.png")
    rows.append({"id": f"r{i}", "image": f"{i}.png", "conversations": TALK})
  (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:900])
  (tmp_path / "3.png").write_bytes(b"gone wrong")
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  return LlavaConfig(path=str(tmp_path / "rows.json"))


def stream(source, **settings):
  settings = config(sources={"mine": source}, **({"shuffle": False} | settings))
  return pipeline.training_stream(settings, FakeProcessor(), 3)


def test_a_cut_picture_ends_the_run_by_name_unless_it_may_be_left_out(source):
  batches = stream(source)
  with pytest.raises(UserError, match=r"row 2, image 2.png: cannot be read as an image"):
    next(batches)


def test_rows_that_are_left_out_are_named_and_the_next_good_one_stands_there(source):
  batches = stream(source, bad_rows="skip")
  infos = [next(batches)[1] for _ in range(3)]
  assert [list(info.ids) for info in infos] == [
    ["mine[0] (r0)", "mine[1] (r1)", "mine[4] (r4)"],
    ["mine[4] (r4)", "mine[4] (r4)", "mine[5] (r5)"],
    ["mine[6] (r6)", "mine[7] (r7)", "mine[0] (r0)"],
  ]
  assert list(infos[0].skipped) == ["mine[2]", "mine[3]"] and not infos[2].skipped
  assert "2.png: cannot be read as an image" in infos[0].skipped["mine[2]"]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_interrupted_stream_goes_on_with_the_same_bits(source, threads):
  settings = dict(bad_rows="skip", shuffle=True, workers=threads, prefetch=threads)
  whole, half = stream(source, **settings), stream(source, **settings)
  for _ in range(2):
    next(whole), next(half)
  again = stream(source, **settings)
  again.set_state(json.loads(json.dumps(half.get_state())))
  seen = set()
  for _ in range(6):
    (batch, info), (other, same) = next(whole), next(again)
    assert info.ids == same.ids and info.skipped == same.skipped
    assert all(map(np.array_equal, jax.tree.leaves(batch), jax.tree.leaves(other)))
    seen |= set(info.skipped)
  assert seen == {"mine[2]", "mine[3]"}


def test_a_picture_that_is_not_there_and_a_broken_record_are_left_out_too(source, tmp_path):
  rows = json.loads((tmp_path / "rows.json").read_text())
  rows[2]["image"], rows[3] = "gone.png", {"id": "r3", "image": "0.png", "conversations": TALK[:1]}
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  with pytest.raises(UserError, match=r"row 2: image gone.png: no such image file"):
    stream(source)
  skipped = next(stream(source, bad_rows="skip"))[1].skipped
  assert "gone.png" in skipped["mine[2]"] and "must take turns" in skipped["mine[3]"]


def test_data_of_which_nothing_can_be_used_ends_the_run_all_the_same(source, tmp_path):
  for i in range(8):
    (tmp_path / f"{i}.png").write_bytes(b"gone wrong")
  with pytest.raises(UserError, match="data source 'mine': not one row can be used; the last: "):
    next(stream(source, bad_rows="skip"))


def test_rows_without_a_picture_are_counted_before_and_while_they_are_read(source, tmp_path):
  rows = json.loads((tmp_path / "rows.json").read_text())
  for row in rows[2:5]:
    row["image"] = ""
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  with pytest.warns(Note, match="data source 'mine': without a picture are 3 of its first 8 rows"):
    batches = stream(source)
  assert [next(batches)[1].blind for _ in range(2)] == [{"mine": 1}, {"mine": 2}]
  for row in rows:
    row["image"] = "0.png"
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  with pytest.warns(Note, match="data source 'mine': its first 8 rows all have pictures"):
    stream(source)
