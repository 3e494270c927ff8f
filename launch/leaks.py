"""Looks for a benchmark's pictures in training data: `python launch/leaks.py --config=configs/lora.py`.

Compares every picture of the config's sources (`--config.data.sources...`) with the benchmark's, by the name
of the file and by a perceptual hash. Ends with exit code 1 where a picture is found, so that a script can
stop there; or train on without those rows: `--config.data.leave_out=` takes what `--output` wrote.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import RunConfig

_BENCHMARK = flags.DEFINE_string(
  "benchmark", "", "parquet file, folder or hub id in CV-Bench's schema; empty for CV-Bench itself"
)
_SPLIT = flags.DEFINE_string("split", "test", "of the benchmark, where its files are named by splits")
_SCAN = flags.DEFINE_integer(
  "scan", 0, "only the first so many examples of a source, 0 for all", lower_bound=0
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for everything that was found")
# Of a source without an end, where --scan does not say otherwise.
ENDLESS_SCAN = 1000


def main(config: RunConfig, workdir: str | None) -> int:
  from spatialvlm import mixture
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.data import leave_out
  from spatialvlm.data.sources import cvbench, registry
  from spatialvlm.evaluation import leaks
  from spatialvlm.reporting import terminal
  from spatialvlm.types import UserError

  used = {name: source for name, source in config.data.sources.items() if source.weight > 0}
  defer = config.data.bad_rows == "skip"  # what cannot be trained on leaks nothing
  opened = {name: registry.open_source(source, defer=defer) for name, source in used.items()}
  if not opened:
    raise UserError("config.data.sources: there is no source with a weight above 0 to look at")
  output = (
    pathlib.Path(_OUTPUT.value or pathlib.Path(workdir, "leaks.json")) if _OUTPUT.value or workdir else None
  )
  if output:  # before minutes are spent
    with workdir_lib.writing(output):
      output.parent.mkdir(parents=True, exist_ok=True)
  questions = cvbench.open_cvbench(_BENCHMARK.value, split=_SPLIT.value, partial=True)
  if questions.note:
    print(f"note: {questions.note}", flush=True)
  benchmark = leaks.Benchmark(questions)
  found, looked = [], {}
  for name, source in opened.items():
    limit = _SCAN.value or (ENDLESS_SCAN if len(source) == mixture.ENDLESS else 0)
    with terminal.progress(f"looking at {name}") as show:
      some, count = leaks.find(
        benchmark,
        {name: source},
        limit=limit,
        skip=defer,
        on_progress=lambda _, done, total, show=show: show(done, total),
      )
    found, looked = found + some, looked | count
  terminal.show(leaks.table(leaks.summary(found, looked, benchmark)))
  if output:
    whole = leaks.summary(found, looked, benchmark)
    for name, source in opened.items():
      whole["sources"][name]["of"] = leave_out.described(used[name], len(source))
    workdir_lib.write_json(output, whole)
    print(f"all of them: {output}; data.leave_out={output} trains without those found by their pictures")
  return int(any(leak.distance is not None for leak in found))


def run() -> None:
  cli.run(main, RunConfig)


if __name__ == "__main__":
  run()
