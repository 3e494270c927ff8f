"""The run that is prepared for a GPU (benchmarks/gpu.py), from end to end at toy size on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, *more: str) -> subprocess.CompletedProcess:
  command = [
    sys.executable,
    str(ROOT / "benchmarks" / "gpu.py"),
    f"--out={out}",
    "--shape=toy",
    "--repeats=2",
  ]
  one_device = dict(os.environ, XLA_FLAGS="", JAX_PLATFORMS="cpu")
  return subprocess.run([*command, *more], capture_output=True, text=True, timeout=1800, env=one_device)


def rows(out: Path) -> list[dict]:
  return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.mark.large
def test_every_row_of_the_table_comes_out(tmp_path):
  done = run(tmp_path, "--seconds=1700")
  assert done.returncode == 0, done.stdout + done.stderr
  found = rows(tmp_path)
  timed = {side: {row["work"] for row in found if row.get("side") == side} for side in ("ours", "theirs")}
  both = {
    f"{work} of {tiles}" for work in ("forward", "letters", "LoRA step") for tiles in ("1 tile", "5 tiles")
  }
  both |= {"generate 32 of 1 tile", "full step of 1 tile"}
  assert both <= timed["ours"] and both <= timed["theirs"]
  known = {f"LoRA step of {tiles}, features known" for tiles in ("1 tile", "5 tiles")}
  flags = {f"LoRA step of 5 tiles, {name}" for name in ("no command buffers", "no Triton products")}
  assert known | flags <= timed["ours"]
  assert sum(work.startswith("conversations ") for work in timed["ours"]) == 2
  said = "\n".join(row["said"] for row in found if "said" in row)
  assert (
    "CV-Bench's shape, 1 tile: 12 questions" in said and "CV-Bench's shape, 17 tiles: 12 questions" in said
  )
  assert "adapters bit-equal" in said
  # Of what a CPU has not the table says so; nothing else went wrong.
  problems = [row["problem"] for row in found if "problem" in row]
  assert len(problems) == 1 and problems[0].startswith("attention cudnn: "), problems
  table = (tmp_path / "table.md").read_text()
  assert table in done.stdout and "NOT MEASURED: attention cudnn" in table
  (line,) = [line for line in table.splitlines() if line.startswith("| LoRA step of 5 tiles |")]
  ours, share, theirs, ratio = (line.split("|")[i].strip() for i in (3, 4, 5, 7))
  assert float(ratio) == pytest.approx(float(theirs.split()[0]) / float(ours.split()[0]), rel=0.02)
  assert share.endswith("%")


@pytest.mark.large
def test_a_part_that_fails_or_hangs_costs_its_own_rows_alone(tmp_path):
  done = run(tmp_path, "--parts=machine,resume", "--seconds=100")
  assert done.returncode == 0, done.stdout + done.stderr
  table = (tmp_path / "table.md").read_text()
  assert "of a copy" in table
  (problem,) = [row["problem"] for row in rows(tmp_path) if "problem" in row]
  assert problem.startswith(("resume: stopped after", "resume: ended with code"))
