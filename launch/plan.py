"""What a run would cost on other devices: `python launch/plan.py --config=lora --topology=v5e:2x4`.

Compiles the run's training step and an evaluator's passes by the compilers of those devices, without the
devices, weights or data: memory, whether it fits, arithmetic, what devices send each other, and how long each
takes at least. `--topology` may be given several times: v5e-8, v5e-256, v6e-8, v5p-128, v5e:AxB, h100, h200,
rtx4090, rtx4060. Needs `pip install "spatialvlm[plan]"`. docs/scale.md says what each number is.
"""

from __future__ import annotations

import json
import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import RunConfig
from spatialvlm.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("topology", [], "devices to compile for; may be given several times")
flags.DEFINE_list(
  "programs", None, "train, vision, encode, prefix, read, decode; by default train,prefix,decode"
)
flags.DEFINE_integer("tiles", None, "of a row; by default what model.max_tiles and data.tiles say")
flags.DEFINE_integer(
  "length", None, "tokens of a row; by default the smallest of data.lengths that holds the tiles"
)
flags.DEFINE_bool("json", False, "one JSON object a program, in place of tables")
flags.DEFINE_string("dump", None, "folder that is written: the optimised programs as text")


def main(config: RunConfig, workdir: str | None) -> None:
  from spatialvlm.plan import compiled, report, run, targets
  from spatialvlm.reporting import terminal

  if workdir:
    raise UserError("--workdir: a plan runs nothing; leave it out")
  if not FLAGS.topology:
    raise UserError(
      f"--topology is missing; write --topology=v5e:2x4, or one of {', '.join(targets.TARGETS)}"
    )
  wanted = [targets.find(name) for name in FLAGS.topology]
  programs = FLAGS.programs or run.USUAL
  run.check(programs)
  dump = pathlib.Path(FLAGS.dump).expanduser() if FLAGS.dump else None
  for target in wanted:
    if missing := target.missing():
      raise UserError(f"--topology={target.name}: {missing}")
  if dump is not None:
    dump.mkdir(parents=True, exist_ok=True)
  for target in wanted:
    found = []
    for plan in run.plan(config, target, programs, tiles=FLAGS.tiles, tokens=FLAGS.length, dump=dump):
      if FLAGS.json:
        print(json.dumps(compiled.to_json(plan)), flush=True)
      else:
        print(f"{plan.target}: compiled {plan.program} in {plan.seconds:.0f} s", flush=True)
      found.append(plan)
    if found and not FLAGS.json:
      terminal.show(report.table(found))
      for plan in found:
        if plan.collectives:
          terminal.show(report.messages(plan))


def run() -> None:
  cli.run(main, RunConfig, "lora")


if __name__ == "__main__":
  run()
