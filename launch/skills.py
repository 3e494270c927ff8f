"""Prints what a model can do on held-out scenes, skill by skill: `python launch/skills.py --model=FOLDER`.

Every skill of `spatialvlm/worlds/skills.py` is asked `--count` times, one question a picture, and an
answer counts when the greedy text is exactly the expected one. `--out` writes the table as Markdown.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "checkpoints/smolvlm-tiny", "checkpoint: a folder or a hub id")
flags.DEFINE_string("adapter", None, "PEFT folder that is put on the model")
flags.DEFINE_integer("count", 500, "questions of each skill")
flags.DEFINE_integer("seed", 1_000_000, "of the held-out world")
flags.DEFINE_integer("image_size", 96, "pixels of the rendered images")
flags.DEFINE_integer("max_tiles", None, "tile budget of an image; by default the checkpoint's own")
flags.DEFINE_list("skill", [], "only these skills, separated by commas")
flags.DEFINE_boolean("misses", False, "show some wrong answers")
flags.DEFINE_string("out", None, "Markdown file for the table")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}; options are written --name=value")
  if FLAGS.count < 1:
    raise UserError(f"--count={FLAGS.count}: ask at least one question")
  from spatialvlm import hub, peft, workdir
  from spatialvlm.evaluation.skill_scores import score_skill, table
  from spatialvlm.processing.processor import load_processor
  from spatialvlm.reporting import tables, terminal
  from spatialvlm.worlds import skills

  out = pathlib.Path(FLAGS.out) if FLAGS.out else None
  if out:  # before minutes are spent
    with workdir.writing(out):
      out.parent.mkdir(parents=True, exist_ok=True)
      out.touch()
  names = FLAGS.skill or list(skills.SKILLS)
  sources = {n: skills.SceneSkills(FLAGS.seed, {n: 1.0}, FLAGS.image_size) for n in names}
  folder = hub.resolve(FLAGS.model)
  vlm, processor = hub.load_model(folder), load_processor(folder, max_tiles=FLAGS.max_tiles)
  if FLAGS.adapter:
    peft.load_adapter(vlm, FLAGS.adapter)
  scores = {}
  for name, source in sources.items():
    found = scores[name] = score_skill(vlm, processor, skills.asked(source, FLAGS.count))
    print(f"{name}: {found.right} of {found.count}", flush=True)
    for prompt, expected, given in found.misses if FLAGS.misses else ():
      print(f"    {prompt!r}: expected {expected!r}, got {given!r}")
  terminal.show(table(scores))
  if out:
    workdir.write_text(out, tables.to_markdown(table(scores)))


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
