"""One prepared run on a GPU: this project beside transformers + PEFT, in one table, in under ten minutes.

  python benchmarks/gpu.py --out=FOLDER [--seconds=570] [--parts=ours,theirs] [--shape=500m]

Needs one device, PyTorch, transformers and peft; nothing is downloaded: weights are drawn at random, in
SmolVLM-500M's shape, and pictures are rendered. Every part is a process of its own with a limit of seconds,
so that one that hangs, fails or finds no memory costs its own rows alone; what is measured is written at once
(rows.jsonl), and the table (table.md) is written anew after every part.

  machine    rate of a bfloat16 product and of a copy: the ceilings that shares are taken of
  ours       forward, LoRA step (1, 5, 17 tiles; plain, features known, packed), full step, letters, answers
  theirs     the same of transformers + PEFT, bfloat16, SDPA; FlashAttention where flash_attn is installed
  cvbench1   CV-Bench's 2,638 questions, rendered in its proportions, at 1 tile: projected, and run whole
             where that fits the time left
  attention  the LoRA step of 5 tiles with cuDNN's attention
  resume     a run that was stopped and went on, beside one that was not: bit by bit
  cvbench17  as cvbench1, at 17 tiles
  flags      the LoRA step of 5 tiles under other flags of XLA

MFU is the arithmetic that the model needs (a frozen tower's forward pass, the decoder's twice for LoRA, all
three times for a full step; padding and recomputation not counted) over the time and the chip's rate by its
datasheet, or, for a chip that is not known here, the rate that `machine` measured.
`--shape=toy` is for machines without a GPU: it shows that the run works, and measures nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Parts in their order, and the most seconds of each in a run of `SECONDS`; what one leaves goes to the next.
SECONDS = 570
PARTS = {
  "weights": 25,
  "machine": 20,
  "ours": 200,
  "theirs": 80,
  "cvbench1": 50,
  "attention": 45,
  "resume": 50,
  "cvbench17": 50,
  "flags": 50,
}
# Sets of XLA's flags that are compared, beside its own choice.
FLAGS = {
  "no command buffers": "--xla_gpu_enable_command_buffer=",
  "no Triton products": "--xla_gpu_enable_triton_gemm=false",
}
# Dense bfloat16 TFLOP/s by the datasheets.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L4": 121.0, "4090": 165.0, "4060": 60.0}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for the table and all else")
  parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of all parts together")
  parser.add_argument("--parts", default="", help="which parts, by commas; weights are made in any case")
  parser.add_argument("--shape", default="500m", choices=("500m", "toy"))
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--part", default="", help=argparse.SUPPRESS)  # what a process of the run does
  parser.add_argument("--limit", type=float, default=60, help=argparse.SUPPRESS)
  parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
  return parser.parse_args(given)


def note(out: Path, **row) -> None:
  """Writes a row down at once."""
  with open(out / "rows.jsonl", "a", encoding="utf-8") as stream:
    stream.write(json.dumps(row) + "\n")


def rows(out: Path) -> list[dict]:
  file = out / "rows.jsonl"
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def runs_of(part: str) -> list[tuple[str, str]]:
  """(variant, XLA_FLAGS) of each process of a part."""
  return [*FLAGS.items()] if part == "flags" else [("", "")]


def run_part(args: argparse.Namespace, part: str, limit: float) -> None:
  """Runs a part within its limit; what goes wrong is a row of the table."""
  variants = runs_of(part)
  for number, (variant, flags) in enumerate(variants):
    share = limit / (len(variants) - number)
    started = time.perf_counter()
    environment = dict(os.environ, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip())
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(args.out / "compiled"))
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    if part in ("weights", "theirs"):  # the device's memory is PyTorch's
      environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, __file__, f"--part={part}", f"--out={args.out}", f"--shape={args.shape}"]
    command += [f"--repeats={args.repeats}", f"--variant={variant}", f"--limit={share:.0f}"]
    with open(args.out / f"{part}{number or ''}.log", "w", encoding="utf-8") as log:
      child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
      try:
        code = child.wait(max(share, 1))
      except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        code = None
    limit -= time.perf_counter() - started
    name = f"{part} ({variant})" if variant else part
    if code is None:
      note(args.out, part=part, problem=f"{name}: stopped after {share:.0f} s")
    elif code:
      last = [line for line in Path(log.name).read_text().splitlines() if line.strip()]
      note(args.out, part=part, problem=f"{name}: ended with code {code}: {last[-1] if last else ''}"[:300])


def table(found: list[dict]) -> str:
  """The rows as Markdown: both sides of a piece of work beside each other."""
  machine = next((row for row in found if row["part"] == "machine" and "device" in row), {})
  device = machine.get("device", "unknown device")
  known = next((peak for name, peak in PEAKS.items() if name in device), 0.0)
  peak = known or machine.get("tflops", 0.0)
  lines = [f"{device}; bfloat16; peak {peak:.3g} TFLOP/s ({'datasheet' if known else 'measured'})"]
  if machine:
    lines.append(
      f"measured: {machine['tflops']:.3g} TFLOP/s of a product, {machine['gbytes']:.4g} GB/s of a copy"
    )
    lines.append(machine["versions"])
  lines += [
    "",
    "| work | examples | ours, s | MFU | transformers, s | MFU | ratio |",
    "|---|---|---|---|---|---|---|",
  ]
  timed = {side: {r["work"]: r for r in found if r.get("side") == side} for side in ("ours", "theirs")}
  for work in dict.fromkeys([*timed["ours"], *timed["theirs"]]):
    ours, theirs = timed["ours"].get(work), timed["theirs"].get(baseline(work)) or timed["theirs"].get(work)
    ratio = f"{theirs['seconds'] / ours['seconds']:.2f}" if ours and theirs else ""
    cells = [cell for row in (ours, theirs) for cell in (_seconds(row), _share(row, peak))]
    lines.append(f"| {work} | {(ours or theirs)['examples']} | {' | '.join(cells)} | {ratio} |")
  said = [row["said"] for row in found if "said" in row]
  problems = [row["problem"] for row in found if "problem" in row]
  lines += ["", "ratio: transformers' seconds over ours; above 1 we take less time.", *said]
  lines += [f"NOT MEASURED: {problem}" for problem in problems]
  return "\n".join(lines) + "\n"


def baseline(work: str) -> str:
  """What of transformers a variant of ours stands beside: the plain step of as many tiles."""
  return work.split(",")[0]


def _seconds(row: dict | None) -> str:
  return f"{row['seconds']:.4g} ({row['best']:.4g})" if row else ""


def _share(row: dict | None, peak: float) -> str:
  return f"{row['flops'] / row['seconds'] / peak / 1e10:.1f} %" if row and row["flops"] and peak else ""


def main(given: list[str] | None = None) -> None:
  args = arguments(given)
  args.out = args.out.resolve()
  sys.path.insert(0, str(ROOT))
  if args.part:
    from benchmarks import gpu_parts

    gpu_parts.run(args)
    return
  args.out.mkdir(parents=True, exist_ok=True)
  (args.out / "rows.jsonl").unlink(missing_ok=True)
  wanted = [part for part in args.parts.split(",") if part] or [*PARTS]
  if unknown := [part for part in wanted if part not in PARTS]:
    sys.exit(f"benchmarks/gpu.py: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
  chosen = [part for part in PARTS if part in wanted or part == "weights"]
  started, spare = time.perf_counter(), 0.0
  for number, part in enumerate(chosen):
    left = args.seconds - (time.perf_counter() - started)
    own = PARTS[part] * args.seconds / SECONDS + spare
    limit = min(own if number + 1 < len(chosen) else left, left)
    if limit < 5:
      note(args.out, part=part, problem=f"{part}: no time was left")
      continue
    before = time.perf_counter()
    run_part(args, part, limit)
    spare = max(0.0, limit - (time.perf_counter() - before))
    (args.out / "table.md").write_text(table(rows(args.out)), encoding="utf-8")
  print(table(rows(args.out)), end="")
  print(f"{time.perf_counter() - started:.0f} s in all; {args.out}/table.md")


if __name__ == "__main__":
  main()
