"""From a config to a workdir, with real files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import (
  CVBenchConfig,
  EvaluateConfig,
  HFConfig,
  MeshConfig,
  ModelConfig,
  PeftConfig,
  ScoreConfig,
)
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.evaluation import records
from spatialvlm.evaluation.run import run
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.launch.tiny import write_model

QUESTIONS = support.questions(count=12, images=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A model with weights, an adapter for it, and questions as parquet."""
  folder = tmp_path_factory.mktemp("files")
  drawn = hub.load_model(write_model(folder / "drawn"), from_scratch=True)
  hub.save_model(drawn, folder / "model", source=folder / "drawn")
  write_cvbench(folder / "data" / "test.parquet", QUESTIONS)
  adapted = peft.apply(hub.load_model(folder / "model"), PeftConfig(options={"rank": 2}))
  rng = np.random.default_rng(0)
  state = nnx.state(adapted, peft.trainable_filter(adapted, PeftConfig(options={"rank": 2})))
  nnx.update(adapted, jax.tree.map(lambda x: jnp.array(rng.normal(0, 0.5, x.shape), x.dtype), state))
  peft.save_adapter(adapted, folder / "adapter")
  return folder


@pytest.fixture
def config(files):
  return EvaluateConfig(
    model=ModelConfig(path=str(files / "model")),
    data=CVBenchConfig(path=str(files / "data"), split="test"),
    score=ScoreConfig(batch_size=8, lengths=(160,), tiles=(1,), pool_tiles=8, bootstrap=20),
    mesh=MeshConfig(data=4, tensor=2),
  )


def test_from_files_to_files(config, tmp_path, capsys):
  result = run(config, tmp_path / "run")
  made = {f.name for f in (tmp_path / "run").iterdir()}
  assert made == {
    "config.json", "environment.json", "identity.json", "predictions.jsonl", "summary.json", "table.txt",
    "report.html", "tables.md", "tables.tex",
  }  # fmt: skip
  identity = json.loads((tmp_path / "run" / "identity.json").read_text())
  assert len(identity["model"]["sha256"]) == 64 and len(identity["row_order"]) == 40
  shown = capsys.readouterr().out
  assert "official" in shown and "12/12" in shown and str(tmp_path / "run") in shown
  assert f"{100 * np.mean([r.correct for r in result.rows]):.1f}" in (tmp_path / "run/table.txt").read_text()

  file = tmp_path / "run" / records.FILE
  before = file.read_bytes()
  file.write_bytes(before[: before.index(b"\n") + 20])
  assert run(config, tmp_path / "run").rows == result.rows
  assert file.read_bytes() == before

  other = dataclasses.replace(config, score=dataclasses.replace(config.score, seed=1))
  with pytest.raises(UserError, match=r"score\.seed: 0, now 1"):
    run(other, tmp_path / "run")


def test_a_screen_that_breaks_costs_no_file(config, tmp_path, monkeypatch):
  def broken(table):
    raise UnicodeEncodeError("ascii", "–", 0, 1, "ordinal not in range(128)")

  monkeypatch.setattr("spatialvlm.reporting.terminal.show", broken)
  with pytest.raises(UnicodeEncodeError):
    run(config, tmp_path / "run")
  assert {"report.html", "tables.md", "table.txt"} <= {f.name for f in (tmp_path / "run").iterdir()}


def test_features_on_disk_change_no_bit(config, tmp_path, capsys, monkeypatch):
  wanted = (run(config, tmp_path / "plain"), (tmp_path / "plain" / records.FILE).read_bytes())[1]
  kept = dataclasses.replace(config, score=dataclasses.replace(config.score, features=str(tmp_path / "kept")))
  run(kept, tmp_path / "first")
  shown = capsys.readouterr().out
  assert "image features: 0 images read, 4 encoded and kept; " in shown and "peak memory: process " in shown
  monkeypatch.setattr(VlmScorer, "encode", None)  # whoever calls it fails
  run(kept, tmp_path / "second")
  assert "image features: 4 images read, 0 encoded and kept; " in capsys.readouterr().out
  for name in ("first", "second"):
    assert (tmp_path / name / records.FILE).read_bytes() == wanted
  # A run may go on without the folder, or with another.
  assert run(config, tmp_path / "first").notes == ()


def test_an_adapter_counts_and_is_known_by_its_content(config, files, tmp_path):
  plain = run(config, tmp_path / "plain").rows
  adapted = dataclasses.replace(config, adapter=str(files / "adapter"))
  rows = run(adapted, tmp_path / "adapted").rows
  assert not np.allclose(rows[0].logprobs, plain[0].logprobs, atol=1e-3)
  settings = files / "adapter" / "adapter_config.json"
  said = json.loads(settings.read_text())

  # An adapter's folder in the place of the model's: it names its base.
  alone = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(files / "adapter")))
  settings.write_text(json.dumps(said | {"base_model_name_or_path": str(files / "model")}))
  assert run(alone, tmp_path / "alone").rows == rows
  identity = json.loads((tmp_path / "alone" / "identity.json").read_text())
  assert identity["model"]["id"] == str(files / "model") and len(identity["adapter"]) == 64
  for base, why in ((None, "names no base_model"), (str(tmp_path / "gone"), "whose base is not found")):
    settings.write_text(json.dumps(said | {"base_model_name_or_path": base}))
    with pytest.raises(UserError, match=rf"{why}.*give the base as config\.model\.path, and"):
      run(alone, tmp_path / "none")
  with pytest.raises(UserError, match=r"holds an adapter, and config\.adapter"):
    run(dataclasses.replace(alone, adapter=adapted.adapter), tmp_path / "none")
  settings.write_text(json.dumps(said) + "\n")
  with pytest.raises(UserError, match=r"began with other inputs \(adapter"):
    run(adapted, tmp_path / "adapted")


def test_nothing_is_written_before_all_is_known_to_be_good(config, files, tmp_path):
  table = pq.read_table(files / "data" / "test.parquet")
  (tmp_path / "bad").mkdir()
  pq.write_table(table.drop_columns(["choices"]), tmp_path / "bad" / "test.parquet")
  folder = tmp_path / "run"
  for changes, message in (
    (dict(data=dataclasses.replace(config.data, path=str(tmp_path / "bad"))), "column 'choices'"),
    (dict(data=dataclasses.replace(config.data, path=str(tmp_path / "no.parquet"))), "no such file"),
    (dict(model=ModelConfig(path=str(tmp_path / "none"))), "no such folder"),
    (dict(model=ModelConfig(path=str(files / "drawn"))), "no weights"),
    (dict(model=dataclasses.replace(config.model, dtype="float16")), "float16"),
    (dict(adapter=str(tmp_path / "none")), "no such folder"),
    (dict(mesh=MeshConfig(data=3)), "does not fit 8 device"),
    (
      dict(
        data=HFConfig(several_images="join"),
        score=dataclasses.replace(config.score, controls=("flip",)),
      ),
      "'flip' would swap images",
    ),
    (dict(score=dataclasses.replace(config.score, protocols=("naive",))), "did you mean 'native'"),
    (dict(score=dataclasses.replace(config.score, lengths=(64, 32))), "ascending"),
    (dict(score=dataclasses.replace(config.score, batch_size=0)), "at least 1"),
  ):
    with pytest.raises(UserError, match=message):
      run(dataclasses.replace(config, **changes), folder)
    assert not folder.exists()
