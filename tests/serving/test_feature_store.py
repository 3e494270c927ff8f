"""Image features on disk: the same numbers with and without, and nothing of another model."""

import dataclasses
import errno
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.hub import tensors
from spatialvlm.serving import feature_store
from spatialvlm.serving.feature_store import FeatureStore, Place, open_store
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.evaluation.test_evaluate import CONFIG, Counting


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
  return support.prompter(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def questions():
  return support.questions(count=12, images=5)


@pytest.fixture
def config(tmp_path):
  controls = ("grey", "other_image", "flip")
  return dataclasses.replace(CONFIG, features=str(tmp_path / "kept"), controls=controls, pool_tiles=200)


def files(config):
  return sorted((f for f in os.scandir(os.scandir(config.features).__next__())), key=lambda f: f.name)


def score(questions, prompter, config, **fields):
  scorer = Counting()
  for name, value in fields.items():
    setattr(scorer, name, value)
  return scorer, evaluate(questions, scorer, prompter, config)


def test_a_second_run_encodes_nothing(questions, prompter, config):
  plain, without = score(questions, prompter, dataclasses.replace(config, features=None))
  first, result = score(questions, prompter, config)
  assert result.all_rows == without.all_rows and without.notes == ()
  assert first.tiles == plain.tiles > 0
  # Five images, five mirrored ones, grey of two shapes.
  assert " 12 encoded and kept; " in result.notes[0]
  again, result = score(questions, prompter, config)
  assert again.tiles == 0 and result.all_rows == without.all_rows
  kept = [f for f in files(config) if f.name.endswith(".safetensors")]
  size = sum(f.stat().st_size for f in kept)
  assert len(kept) == 12 and result.notes[0].endswith(f"holds 12 in {size:,} bytes")
  assert "features: 12 images read, 0 encoded" in result.notes[0]


def test_what_another_model_made_is_never_read(questions, prompter, config):
  first, _ = score(questions, prompter, config)
  assert score(questions, prompter, config, weights="others")[0].tiles == first.tiles
  tiler = prompter._processor.tiler
  try:
    prompter._processor.tiler = dataclasses.replace(tiler, max_tiles=3)
    fewer, _ = score(questions, prompter, config)
    prompter._processor.tiler = dataclasses.replace(tiler, mean=(0.4, 0.5, 0.5))
    other, _ = score(questions, prompter, config)
  finally:
    prompter._processor.tiler = tiler
  assert 0 < fewer.tiles < other.tiles == first.tiles
  assert len(list(os.scandir(config.features))) == 4


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "renamed", "foreign"])
def test_damaged_files_are_encoded_again(questions, prompter, config, capsys, harm):
  _, wanted = score(questions, prompter, config)
  victim, other = (pathlib.Path(f) for f in files(config)[:2])
  data = bytearray(victim.read_bytes())
  whole = bytes(data)
  data[-1] ^= 1
  harmed = {
    "cut": whole[: len(whole) - 7],
    "changed": bytes(data),
    "empty": b"",
    "renamed": other.read_bytes(),
    "foreign": b"\x02\0\0\0\0\0\0\0{}",
  }
  victim.write_bytes(harmed[harm])
  scorer, result = score(questions, prompter, config)
  assert result.all_rows == wanted.all_rows and 0 < scorer.tiles <= 5
  assert "11 images read, 1 encoded and kept (1 were damaged)" in result.notes[0]
  note = capsys.readouterr().err
  assert note.startswith(f"note: {victim}: ") and note.count("\n") == 1 and "encoded again" in note
  assert victim.read_bytes() == whole


def test_a_full_disk_ends_no_run(questions, prompter, config, capsys, monkeypatch):
  write, calls = tensors.write, []

  def full(file, content):
    calls.append(file)
    if len(calls) > 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(file, content)

  monkeypatch.setattr(tensors, "write", full)
  _, result = score(questions, prompter, config)
  _, wanted = score(questions, prompter, dataclasses.replace(config, features=None))
  assert result.all_rows == wanted.all_rows
  note = capsys.readouterr().err
  assert "no space left on the disk" in note and note.count("\n") == 1
  assert " 2 encoded and kept; " in result.notes[0] and len(calls) == 3
  assert not [f for f in files(config) if f.name.endswith(".part")]


def test_folders_that_cannot_be(questions, prompter, config, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  for folder, message in ((tmp_path / "file", "cannot be written"), ("", "name a folder")):
    with pytest.raises(UserError, match=message):
      score(questions, prompter, dataclasses.replace(config, features=str(folder)))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(UserError, match="several processes"):
    open_store("somewhere", dict)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_come_back_bit_by_bit(tmp_path, dtype):
  rows = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(dtype)
  store = FeatureStore(tmp_path, {})
  # An image whose tiles come in two chunks, out of order, between another's.
  store.add([Place("b", 1, 2), Place("a", 0, 1)], jnp.asarray(rows[:2]))
  store.add([Place("b", 0, 2)], jnp.asarray(rows[2:]))  # a row of padding behind it
  store.close()
  for key, wanted in (("a", rows[1:2]), ("b", rows[[2, 0]])):
    found = store.get(key, len(wanted))
    assert found.dtype == dtype and found.tobytes() == wanted.tobytes()
  assert store.get("b", 1) is None and store.get("c", 1) is None
  assert (store.read, store.written, store.damaged) == ({"a", "b"}, {"a", "b"}, {"b"})
  other = FeatureStore(tmp_path, {"dtype": "another"})
  assert other.folder != store.folder and other.get("a", 1) is None


def test_the_identity_is_that_of_the_vision_tower():
  def identity(target=None, alpha=16.0, seed=0):
    vlm = support.model(5)
    nnx.update(vlm, jax.tree.map(jnp.asarray, nnx.state(vlm)))
    if target is not None:
      peft.apply(vlm, PeftConfig(target=target, seed=seed, options={"rank": 2, "alpha": alpha}))
    return VlmScorer(vlm).identity()

  plain = identity()
  assert plain == identity() == identity(".*text_model.*q_proj")
  adapted = identity(".*vision.*q_proj")
  assert adapted == identity(".*vision.*q_proj")
  others = [identity(".*vision.*q_proj", alpha=8.0), identity(".*vision.*q_proj", seed=1), plain]
  others.append(identity(".*connector.*"))
  names = {item["weights"] for item in (adapted, *others)}
  assert len(names) == 5
  assert feature_store.FORMAT == 1 and plain["dtype"] == "float32"
