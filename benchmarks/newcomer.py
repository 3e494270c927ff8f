"""What a newcomer's `make train` spends on compilers, with and without programs kept between its commands.

  python benchmarks/newcomer.py [--steps=20] [--questions=48]

Runs the two trainings of `make train`, cut to a few questions and to so many steps that batches of both
lengths come, one after the other: first with nothing kept anywhere, then with a fresh folder that keeps what
is compiled (what a newcomer has), then with the same folder once more (the second `make train`). Of each:
seconds in the compilers, seconds to trace, how many programs were compiled and how many were read, and the
command's seconds of the processor. Seconds of compilers are of the clock; run it where nothing else runs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILE = "/jax/core/compile/backend_compile_duration"
TRACE = "/jax/core/compile/jaxpr_trace_duration"
READ = "/jax/compilation_cache/cache_hits"
RECIPES = ("lora:tiny", "lora:tiny-distance")


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--questions", type=int, default=48)
  parser.add_argument("--child", help="used within: where one command writes what it counted")
  return parser.parse_known_args()[0]


def child(out: Path) -> None:
  """One training in this process, whose compilers are listened to."""
  import runpy

  import jax

  seconds, counts = {COMPILE: 0.0, TRACE: 0.0}, {COMPILE: 0, TRACE: 0, READ: 0}

  def lasted(name: str, duration: float, **_) -> None:
    if name in seconds:
      seconds[name] += duration
      counts[name] += 1

  def happened(name: str, **_) -> None:
    if name in counts:
      counts[name] += 1

  jax.monitoring.register_event_duration_secs_listener(lasted)
  jax.monitoring.register_event_listener(happened)
  sys.argv = sys.argv[sys.argv.index("--") + 1 :]
  sys.path.insert(0, str(ROOT))
  try:
    runpy.run_path(sys.argv[0], run_name="__main__")
  finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
      "compilers": seconds[COMPILE],
      "traces": seconds[TRACE],
      "programs": counts[COMPILE],
      "read": counts[READ],
      "processor": used.ru_utime + used.ru_stime,
    }
    out.write_text(json.dumps(found))


def both(args: argparse.Namespace, environment: dict[str, str]) -> list[dict[str, float]]:
  """What each command counted; the second goes on from what the first leaves in runs/tiny."""
  found = []
  with tempfile.TemporaryDirectory() as folder:
    for recipe in RECIPES:
      name = recipe.partition(":")[2]
      out = Path(folder) / f"{name}.json"
      settings = {
        "train.steps": args.steps,
        "eval.source.size": args.questions,
        "eval.after": str(recipe != RECIPES[0]).lower(),  # as `make train` has it
      }
      command = [sys.executable, __file__, f"--child={out}", "--", str(ROOT / "launch" / "train.py")]
      command += [f"--config={ROOT}/configs/{recipe.replace(':', '.py:')}", f"--workdir=runs/{name}"]
      command += [f"--config.{key}={value}" for key, value in settings.items()]
      subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
      found.append(json.loads(out.read_text()))
  return found


def main() -> None:
  args = arguments()
  if args.child:
    child(Path(args.child))
    return
  print(
    "| | compilers | traces | compiled or read | of these read | processor |\n|---|---:|---:|---:|---:|---:|"
  )
  with tempfile.TemporaryDirectory() as kept:
    nothing = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    keeping = {**os.environ, "XDG_CACHE_HOME": kept}
    for title, environment in (
      ("nothing kept", nothing),
      ("a newcomer's", keeping),
      ("the second time", keeping),
    ):
      rows = both(args, environment)
      rows.append({key: sum(row[key] for row in rows) for key in rows[0]})
      for recipe, row in zip((*RECIPES, "both"), rows, strict=True):
        numbers = f"{row['compilers']:.1f} s | {row['traces']:.1f} s | {row['programs']} | {row['read']}"
        print(f"| {title}: {recipe} | {numbers} | {row['processor']:.1f} s |", flush=True)


if __name__ == "__main__":
  main()
