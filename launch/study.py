"""Ways of training side by side: `python launch/study.py --config=configs/study.py:tiny-methods`.

Every cell of the recipe is trained with every seed, each in a process and a workdir of its own, and held
against the untrained model on the same questions; what is finished is skipped. The same command once more,
on this machine or another that sees the folder under the same name, is a further worker: they share the
runs, and one whose worker gave no sign for `--lease` seconds is taken over from its checkpoint. `--report`
sums up what is there and trains nothing, also beside a study at work. Exit code 1: a run failed, and the
others went on.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import RunConfig, StudyConfig

_REPORT = flags.DEFINE_boolean("report", False, "train nothing: sum up what is finished")

_LEASE = flags.DEFINE_float("lease", 300.0, "seconds without a sign after which a worker is taken for gone")


def main(config: StudyConfig, workdir: str | None) -> int:
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.study import study

  study.spare_accelerators()
  read = lambda recipe, settings: cli.load(recipe, settings, RunConfig)
  folder = workdir_lib.choose(workdir, config)
  return study.run(config, folder, read, cli.prepare, only_report=_REPORT.value, lease=_LEASE.value)


def run() -> None:
  cli.run(main, StudyConfig, "study:tiny-methods")


if __name__ == "__main__":
  run()
