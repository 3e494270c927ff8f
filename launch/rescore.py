"""Reads a finished evaluation anew: `python launch/rescore.py RUN`.

Applies every rule of extraction and every aggregation to the answers that the run has kept, without the model
and without the data. Shows the same answers under every rule; writes rescored.json into the run, and its
report and tables anew.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spatialvlm import cli


def main(arguments: Sequence[str]) -> None:
  from spatialvlm.evaluation import rescore
  from spatialvlm.evaluation.report import run_page, run_tables
  from spatialvlm.reporting import terminal
  from spatialvlm.types import UserError

  if len(arguments) != 1:
    raise UserError("name one run: spatialvlm-rescore RUN, the workdir of a finished evaluation")
  folder = pathlib.Path(arguments[0]).expanduser()
  found = rescore.write(folder)
  terminal.show(run_tables.protocols(found["summary"]))
  if others := run_page.published(folder):
    terminal.show(run_tables.published(found["summary"], others))
  if found["extractors"]:
    terminal.show(rescore.table(found))
  print(f"all of it: {folder / rescore.FILE}; report: {folder / run_page.PAGE}")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
