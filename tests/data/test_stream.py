"""Rows in shards: parquet and tars alike, few of them held, resumed exactly, damage named."""

import io
import itertools
import json
import tarfile
import weakref

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm.config import StreamConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources import stream, tar_index, tar_shards
from spatialvlm.mixture import Mixture, Shards
from spatialvlm.types import Turn, UserError
from tests.data import fakes


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")


def png(value: int, size: int = 2) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(stream, "PNG")
  return stream.getvalue()


def talk(number: int) -> list[dict[str, str]]:
  return [{"user": "q", "assistant": str(number)}]


def parquet(
  folder, shards: int = 3, rows: int = 4, group: int = 2, noise: int = 0, name: str = "d-{}.parquet"
):
  """Shards whose rows are numbered through; `noise`: bytes that nothing reads, of each row."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for shard in range(shards):
    numbers = range(shard * rows, (shard + 1) * rows)
    columns = {
      "image": pa.array([{"bytes": png(n % 256), "path": f"{n}.png"} for n in numbers]),
      "texts": pa.array([talk(n) for n in numbers]),
      "weight": pa.array([rng.bytes(noise).hex() for _ in numbers]),
    }
    pq.write_table(pa.table(columns), folder / name.format(shard), row_group_size=group)
  return folder


def sample(number: int) -> dict[str, bytes]:
  return {"png": png(number % 256), "json": json.dumps({"texts": talk(number)}).encode()}


def write_tar(path, samples: list[tuple[str, dict[str, bytes]]], format: int = tarfile.PAX_FORMAT):
  path.parent.mkdir(exist_ok=True)
  with tarfile.open(path, "w", format=format) as opened:
    for key, files in samples:
      for ending, data in files.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(data)
        opened.addfile(member, io.BytesIO(data))


def tars(folder, shards: int = 3, rows: int = 4):
  for shard in range(shards):
    numbers = range(shard * rows, (shard + 1) * rows)
    write_tar(folder / f"{shard:05d}.tar", [(f"{n:06d}", sample(n)) for n in numbers])
  return folder


def opened(folder, **settings):
  return pipeline.open_source(StreamConfig(path=str(folder), **settings))


@pytest.mark.parametrize("write", [parquet, tars])
def test_rows_of_both_kinds_are_read_alike(tmp_path, write):
  source = opened(write(tmp_path / "d"))
  assert len(source) == 12
  for index in (0, 5, 11):
    assert source[index].turns == (Turn("q", str(index)),)
    assert [image[0, 0, 0] for image in source[index].images] == [index]
  assert [e.turns[0].answer for e in pipeline.read(source, [7, 2])] == ["7", "2"]
  assert len(opened(tmp_path / "d", size=5)) == 5
  np.testing.assert_array_equal(source.picture_counts(3), [1, 1, 1])


def test_questions_of_a_tar_and_what_must_be_said_of_them(tmp_path):
  rows = [
    ("a", {"jpg": png(1), "cls": b"1", "txt": b"Where?"}),
    ("b", {"jpg": png(2), "cls": b"0", "txt": b"And?"}),
  ]
  write_tar(tmp_path / "d" / "0.tar", rows)
  columns = {"question": "txt", "answer": "cls"}
  settings = dict(columns=columns, choices=("left", "right"))
  with pytest.raises(UserError, match="set answers to index"):
    opened(tmp_path / "d", **settings)
  source = opened(tmp_path / "d", **settings, answers="index")
  assert [e.turns[0].answer for e in source] == ["B", "A"]
  assert source[0].id == "a" and source[0].turns[0].prompt.startswith("Where?")


def order(shards: Shards, epoch: int = 0, seed: int = 0) -> list[int]:
  return [shards.index((seed, 1), epoch, position) for position in range(int(shards.sizes.sum()))]


@pytest.mark.parametrize("sizes", [[5, 7, 3, 4, 6, 5], [1], [0, 4, 0], [30, 1, 1]])
@pytest.mark.parametrize(("buffer", "at_once"), [(4, 2), (100, 1), (1, 3)])
def test_every_epoch_holds_every_row_once(sizes, buffer, at_once):
  shards = Shards(np.array(sizes), buffer, at_once)
  for epoch in range(2):
    assert sorted(order(shards, epoch)) == list(range(sum(sizes)))
  if len(sizes) > 3:
    assert len({tuple(order(shards, epoch, seed)) for epoch in range(2) for seed in range(2)}) == 4


def test_few_shards_are_read_at_the_same_time():
  shards = Shards(np.full(20, 50), buffer=25, at_once=4)
  found = [index // 50 for index in order(shards)]
  for first in range(0, 1000, 25):
    assert len({*found[first : first + 25]}) <= 8  # of a group and, at its end, of the next one
  assert len({*found[:25]}) == 4  # and all of a group are mixed from the start
  assert found != sorted(found)


def test_rows_that_are_left_out_leave_the_order_of_the_others():
  shards = Shards(np.array([5, 7, 3]), buffer=4, at_once=2)
  kept = np.setdiff1d(np.arange(15), [2, 5, 6, 14])
  left = shards.without(kept)
  assert left.sizes.tolist() == [4, 5, 2] and sorted(order(left)) == list(range(11))
  mixture = Mixture({"a": 11}, {"a": 1.0}, shuffle=True, seed=3, shards={"a": left})
  assert sorted(mixture[p].index for p in range(11)) == list(range(11))
  plain = Mixture({"a": 11}, {"a": 1.0}, shuffle=False, seed=3, shards={"a": left})
  assert [plain[p].index for p in range(22)] == 2 * list(range(11))


def answers(batches, count: int) -> list[int]:
  return [fakes.answer_of(batch, row) for batch, _ in itertools.islice(batches, count) for row in range(2)]


@pytest.mark.parametrize("write", [parquet, tars])
def test_a_stream_goes_on_with_the_same_rows(tmp_path, write):
  source = StreamConfig(path=str(write(tmp_path / "d")), buffer=5, at_once=2)
  config = fakes.config(sources={"s": source}, workers=2, prefetch=3)
  make = lambda: pipeline.training_stream(config, fakes.FakeProcessor(), 2, seed=4, on_note=lambda text: None)
  whole = answers(make(), 12)
  assert sorted(whole[:12]) == list(range(12)) == sorted(whole[12:]) and whole[:12] != whole[12:]
  first = make()
  answers(first, 3)
  second = make()
  second.set_state(first.get_state())
  assert isinstance(second, grain.DatasetIterator) and answers(second, 9) == whole[6:]


def test_rows_are_not_held(tmp_path, monkeypatch):
  source = opened(parquet(tmp_path / "d", shards=30, rows=20, group=5, noise=4000), buffer=10, at_once=2)
  held = source._table
  load, made, most = held._load, [], 0

  def loaded(group):
    table = load(group)
    made.append(weakref.ref(table))
    return table

  monkeypatch.setattr(held, "_load", loaded)
  for index in order(source.shards)[:300]:
    source[index]
    most = max(most, sum(one() is not None for one in made))
  assert len(held._held) <= held.keep == 6
  assert 1 < most <= held.keep and len(made) >= 300 / 5  # of 30 * 4 groups


def test_of_tars_no_more_than_places_are_held(tmp_path, monkeypatch):
  folder, seen = tars(tmp_path / "d", shards=12), []
  monkeypatch.setattr(stream, "_FIRST", 3)
  read = tar_index.read_index
  monkeypatch.setattr(tar_shards, "read_index", lambda path: seen.append(path.name) or read(path))
  source = opened(folder, buffer=4, at_once=1)
  assert sorted(seen[:12]) == sorted(path.name for path in folder.iterdir())
  seen.clear()
  for index in order(source.shards):
    source[index]
  assert len(source._table._indices) <= source._table.keep == 3 and len(seen) < 14  # each but once
  seen.clear()
  opened(folder)  # what was counted is known
  assert seen == ["00000.tar"]


@pytest.mark.parametrize(("write", "name"), [(parquet, "d-2.parquet"), (tars, "00002.tar")])
def test_a_shard_that_changed_since_is_named(tmp_path, write, name):
  folder = write(tmp_path / "d", rows=60)
  source = opened(folder, at_once=1, buffer=1)
  shard = folder / name
  shard.write_bytes(shard.read_bytes() + bytes(512))
  with pytest.raises(UserError, match=rf"{name}: was changed since the run began"):
    source[150]
  shard.unlink()
  with pytest.raises(UserError, match=rf"{name}: is gone since the run began"):
    source[150]


def cut(path, share: float):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])


def other_columns(folder):
  pq.write_table(pa.table({"image": [png(1)], "texts": [talk(1)], "w": ["x"]}), folder / "d-1.parquet")


def other_type(folder):
  columns = {"image": [{"bytes": png(1), "path": "a"}], "texts": [talk(1)], "weight": [1]}
  pq.write_table(pa.table(columns), folder / "d-1.parquet")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda d: cut(d / "d-1.parquet", 0.7), r"d-1.parquet: damaged, or no parquet file"),
    (lambda d: (d / "d-1.parquet").write_bytes(b""), "d-1.parquet: the file is empty"),
    (
      lambda d: (d / "d-1.parquet").write_text("version https://git-lfs.github.com/spec/v1\n"),
      "git lfs pull",
    ),
    (other_columns, r"d-1.parquet: has w beside and lacks weight of the columns of d-0.parquet"),
    (other_type, r"d-1.parquet: column 'weight' is int64, not string as in d-0.parquet"),
    (
      lambda d: (d / "d-1.parquet").rename(d / "test-1.parquet"),
      r"shards of 2 names \(d-\S+, test-1.parquet\)",
    ),
    (
      lambda d: (d / "d-1.parquet").rename(d / "d-1.tar"),
      r"files of one kind, .parquet or .tar, but there are",
    ),
  ],
)
def test_damaged_parquet_ends_before_the_run(tmp_path, damage, message):
  folder = parquet(tmp_path / "d")
  damage(folder)
  with pytest.raises(UserError, match=message) as found:
    opened(folder)
  assert "\n" not in str(found.value)


def test_a_set_that_is_not_whole(tmp_path):
  folder = parquet(tmp_path / "d", name="train-{:05d}-of-00004.parquet")
  with pytest.raises(UserError, match=r"1 of 4 shards are missing, the first train-00003-of-00004.parquet"):
    opened(folder)
  assert len(opened(folder, missing=True)) == 12
  assert len(opened(folder / "train-00000-of-00004.parquet", missing=True)) == 4
  with pytest.raises(UserError, match=r"holds no train-00003-of-00004.parquet, one of"):
    opened(folder, files="train-{00000..00003}-of-00004.parquet")
  with pytest.raises(UserError, match="holds no test-"):
    opened(folder, files="test-*.parquet")
  assert len(opened(folder, files="train-{00001..00002}-of-00004.parquet", missing=True)) == 8


def double(folder):
  path = folder / "00001.tar"
  path.write_bytes(path.read_bytes() * 2)


def linked(folder):
  with tarfile.open(folder / "00001.tar", "w") as opened_:
    member = tarfile.TarInfo("a.png")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    opened_.addfile(member)


def packed(folder):
  with tarfile.open(folder / "00001.tar", "w:gz"):
    pass


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      lambda d: cut(d / "00001.tar", 0.05),
      r"00001.tar: the tar is cut short (within '000004.png', )?at byte",
    ),
    (lambda d: cut(d / "00001.tar", 0.4), r"00001.tar: the tar is cut short"),
    (lambda d: (d / "00001.tar").write_bytes(b"<html>" * 200), r"00001.tar: is no tar, .* b'<html><h'"),
    (packed, r"00001.tar: is packed, so that no row can be read by itself"),
    (double, r"00001.tar: more stands behind the tar's end mark"),
    (linked, r"00001.tar: 'a.png' is a link or device"),
    (
      lambda d: write_tar(d / "00001.tar", [("a", sample(1)), ("b", sample(2)), ("a", {"txt": b"x"})]),
      "the files of 'a' do not stand together",
    ),
    (lambda d: write_tar(d / "00001.tar", [("a", sample(1)), ("a", {"png": b"x"})]), "'a.png' stands twice"),
    (lambda d: (d / "00001.tar").rename(d / "00001.tar.gz"), None),
  ],
)
def test_damaged_tars_end_before_the_run(tmp_path, damage, message):
  folder = tars(tmp_path / "d")
  damage(folder)
  if message is None:
    with pytest.raises(UserError, match=r"unpack it to a .tar file"):
      opened(folder, files="*.tar*")
    return
  with pytest.raises(UserError, match=message) as found:
    opened(folder)
  assert "\n" not in str(found.value)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_folders(tmp_path, format):
  deep = "/".join(["a" * 60] * 2)
  rows = [(f"{deep}/{n:050d}", sample(n)) for n in range(3)]
  write_tar(tmp_path / "d" / "0.tar", rows, format)
  found = tar_index.read_index(tmp_path / "d" / "0.tar")
  assert found.keys == [key for key, _ in rows] and found.endings == ["png", "json"] * 3
  assert opened(tmp_path / "d")[2].turns == (Turn("q", "2"),)


def test_a_broken_row_is_named_by_its_file_or_passed_over(tmp_path):
  rows = [(f"{n}", sample(n)) for n in range(4)]
  rows[2][1]["png"] = rows[2][1]["png"][:30]
  write_tar(tmp_path / "d" / "0.tar", rows)
  with pytest.raises(UserError, match=r"0.tar, '2', column 'png'.*cannot be read as an image"):
    opened(tmp_path / "d")[2]
  config = fakes.config(sources={"s": StreamConfig(path=str(tmp_path / "d"))}, bad_rows="skip", shuffle=False)
  batches = pipeline.training_stream(config, fakes.FakeProcessor(), 2, on_note=lambda text: None)
  assert answers(batches, 2) == [0, 1, 3, 3]


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"mp4": b"x"}, r"0.tar, '0': file 'mp4' holds video or sound"),
    ({"jpg": png(3)}, r"several columns may hold a sample's pictures: png, jpg; set columns.image=png"),
  ],
)
def test_files_that_nobody_reads_are_refused(tmp_path, more, message):
  write_tar(tmp_path / "d" / "0.tar", [(f"{n}", sample(n) | more) for n in range(2)])
  with pytest.raises(UserError, match=message):
    opened(tmp_path / "d")
  assert len(opened(tmp_path / "d", ignore=tuple(more))) == 2


def test_a_file_that_the_first_samples_do_not_have(tmp_path):
  rows = [(f"{n:03d}", sample(n)) for n in range(102)]
  rows[101][1]["txt"] = b"more"
  write_tar(tmp_path / "d" / "0.tar", rows)
  with pytest.raises(UserError, match="'101': has a file 'txt', as none of the first samples"):
    opened(tmp_path / "d")[101]
