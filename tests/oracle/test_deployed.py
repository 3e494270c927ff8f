"""Exported files asked within llama.cpp and transformers themselves, beside our own evaluation."""

import dataclasses

import numpy as np
import pytest

from spatialvlm import hub, peft
from spatialvlm.config import CVBenchConfig, EvaluateConfig, ModelConfig, ScoreConfig
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.deployed import cost, plan
from spatialvlm.evaluation import records
from tests import tiny_edge
from tests.evaluation.support import questions

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed (pip install 'spatialvlm[edge]')")
# Log-probabilities: keys and values are float16 in a server by default.
MOST = {"gguf-f32": 0.05, "gguf-f16": 0.05, "gguf-lora-f32": 0.05, "gguf-q8_0": 0.4, "merged": 2e-4}


def test_runtimes_are_asked_as_the_evaluator_asks(tmp_path):
  """Log-probabilities of the letters, the server's own prompt, sizes, times and memory."""
  folder = tiny_edge.write("smolvlm", tmp_path / "tiny-smolvlm")
  write_cvbench(tmp_path / "table.parquet", questions(count=6, images=3))
  base = tiny_edge.adapted(hub.load_model(folder), **tiny_edge.LORA)
  peft.save_adapter(base, tmp_path / "adapter", str(folder))
  config = EvaluateConfig(
    model=ModelConfig(str(folder)),
    adapter=str(tmp_path / "adapter"),
    data=CVBenchConfig(path=str(tmp_path / "table.parquet"), split="test"),
    score=ScoreConfig(batch_size=4, lengths=(160,), bootstrap=20),
  )
  numbers = ["gguf:f32", "gguf:q8_0", "gguf-lora:f32"]
  exports = plan.read_exports(["gguf", "gguf-lora", "merged"], numbers)
  out = tmp_path / "out"
  found = cost.run(config, plan.Plan(exports, threads=1, repeats=1, tokens=4), out)
  assert found["notes"] == []
  layouts = {"merged": "own"}
  for row in found["rows"]:
    if row["changes"] is None:
      continue
    floats = records.read(out / f"float-{layouts.get(row['name'], 'mtmd')}")
    theirs = records.read(out / row["name"])
    differences = [
      np.subtract(a.logprobs, b.logprobs) for a, b in zip(floats, theirs, strict=True) if a.idx == b.idx
    ]
    assert len(differences) == 6 and np.abs(np.concatenate(differences)).max() < MOST[row["name"]]
    speed = row["speed"]
    assert speed["first_token_s"][0] > 0 and speed["tokens_per_s"][0] > 1
    assert 1e7 < speed["empty_bytes"] < speed["peak_bytes"] < 4e9
  sizes = {row["name"]: row["bytes"] for row in found["rows"]}
  assert sizes["gguf-q8_0"] < sizes["gguf-f32"] < sizes["gguf-lora-f32"]
  spread = np.std(np.concatenate([row.logprobs for row in records.read(out / "float-mtmd")]))
  assert spread > 0.1  # of nothing that is all alike would it say anything


def test_a_second_start_asks_only_what_is_new(tmp_path):
  folder = tiny_edge.write("smolvlm", tmp_path / "tiny-smolvlm")
  write_cvbench(tmp_path / "table.parquet", questions(count=4, images=2))
  config = EvaluateConfig(
    model=ModelConfig(str(folder)),
    data=CVBenchConfig(path=str(tmp_path / "table.parquet"), split="test"),
    score=ScoreConfig(batch_size=4, lengths=(160,), bootstrap=20),
  )
  exports = plan.read_exports(["gguf"], ["f16", "q4_0"])
  asked = plan.Plan(exports[:1], threads=1, repeats=0)
  out = tmp_path / "out"
  cost.run(config, asked, out)
  file = out / "gguf-f16" / "predictions.jsonl"
  first = file.stat().st_mtime_ns
  found = cost.run(config, dataclasses.replace(asked, exports=exports), out)
  assert [row["name"] for row in found["rows"]] == ["float32", "gguf-f16", "gguf-q4_0"]
  assert file.stat().st_mtime_ns == first
