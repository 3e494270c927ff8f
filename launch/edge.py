"""What a model costs on a device: `python launch/edge.py --model=RUN_OR_FOLDER --out=DIR`.

Exports the model in several numbers (`--to=gguf --numbers=f16,q8_0,q4_0`), asks each set of files the
held-out questions within its own runtime (llama.cpp, onnxruntime, transformers), times them, and writes
tables and a picture: accuracy with intervals over bytes, time to the first token, tokens a second, memory.
`--config` says on which questions, `--config.score.limit` on how many. A second start does what is missing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import EvaluateConfig
from spatialvlm.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "a model's folder or hub id, or a run's workdir; else the config's")
flags.DEFINE_string("out", None, "folder of all that is written; what is done there is not done again")
flags.DEFINE_list("to", ["gguf"], "forms, with commas between: gguf, gguf-lora, onnx, merged")
flags.DEFINE_list(
  "numbers", [], "of the files, with commas between; q4_0+embedding=q8_0 by parts; gguf:q8_0 of several forms"
)
flags.DEFINE_integer("threads", None, "of every runtime; all cores where nothing is said")
flags.DEFINE_integer("repeats", 5, "how often a question is timed; 0: not at all")
flags.DEFINE_integer("tokens", 32, "of a timed answer, behind its first")


def main(config: EvaluateConfig, workdir: str | None) -> None:
  if workdir or not FLAGS.out:
    raise UserError("--out is missing; name the folder that is written, as --out=DIR (in place of --workdir)")
  from spatialvlm.deployed import cost, plan, speed
  from spatialvlm.training import runs

  if FLAGS.model:
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=FLAGS.model))
  exports = plan.read_exports(FLAGS.to, FLAGS.numbers)
  asked = plan.Plan(exports, FLAGS.threads or speed.cores(), FLAGS.repeats, FLAGS.tokens)
  cost.run(config, asked, pathlib.Path(FLAGS.out).expanduser(), runs.find)


def run() -> None:
  cli.run(main, EvaluateConfig, "cvbench")


if __name__ == "__main__":
  run()
