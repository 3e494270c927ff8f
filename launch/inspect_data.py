"""Shows what the model will really see, before anything is trained.

`python launch/inspect_data.py --config=configs/lora.py[:tiny] [--config.any.key=value] [--output=FILE]`
writes a page of tiles, tokens coloured by role, buckets and lengths, and ends with exit code 2 where a sample
would train wrongly.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", None, "the page; inspect.html in the workdir, or here without one")
_SCAN = flags.DEFINE_integer("scan", 256, "samples that are read, encoded and checked", lower_bound=1)
_SHOW = flags.DEFINE_integer("show", 24, "samples that are shown in full", lower_bound=0)


def main(config: RunConfig, workdir: str | None) -> int:
  from spatialvlm import hub
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.data import inspect, inspect_page
  from spatialvlm.processing.processor import load_processor

  model = hub.assembled(config.model)
  processor = load_processor(hub.resolve(model.path, model.revision), **model.tiling)
  found = inspect.inspect_data(
    config.data,
    processor,
    config.train.batch_size,
    seed=config.seed,
    scan=_SCAN.value,
    show=_SHOW.value,
    multiple=config.train.accumulation,
  )
  page = pathlib.Path(_OUTPUT.value or pathlib.Path(workdir or ".", "inspect.html"))
  with workdir_lib.writing(page):
    page.parent.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_text(page, inspect_page.page(found, processor, f"{config.name}: what the model will see"))
  for inspection in found:
    print(inspect.summary(inspection))
  print(f"page: {page}")
  for inspection in found:
    inspection.raise_if_bad()
  return 0


def run() -> None:
  cli.run(main, RunConfig, "lora:tiny")


if __name__ == "__main__":
  run()
