"""Prints what a model can do on held-out scenes, skill by skill: `python launch/skills.py --model=FOLDER`.

Every skill of `spatialvlm/worlds/skills.py` is asked `--count` times, one question a picture, and an
answer counts when the greedy text is exactly the expected one. `--out` writes the tables as Markdown.

Spoken distances, the skill `metres`, are measured too: how near they are to the truth, beside guesses that
see no picture. `--rgbd=FOLDER --layout=nyuv2` asks that skill about photographs with depth, and no other.
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
flags.DEFINE_string("rgbd", None, "folder of photographs with depth, of which metres is asked; none: scenes")
flags.DEFINE_string("layout", "pairs", "how that folder is laid out (docs/open_data.md)")
flags.DEFINE_string("out", None, "Markdown file for the tables")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}; options are written --name=value")
  if FLAGS.count < 1:
    raise UserError(f"--count={FLAGS.count}: ask at least one question")
  from spatialvlm import loading, priors, workdir
  from spatialvlm.config import ModelConfig
  from spatialvlm.evaluation import skill_scores, spoken
  from spatialvlm.processing.processor import load_processor
  from spatialvlm.reporting import tables, terminal
  from spatialvlm.worlds import skills

  if FLAGS.rgbd and FLAGS.skill not in ([], [spoken.SKILL]):
    raise UserError(f"--skill: photographs are asked {spoken.SKILL} alone; leave it out, or --rgbd")
  out = pathlib.Path(FLAGS.out) if FLAGS.out else None
  if out:  # before minutes are spent
    with workdir.writing(out):
      out.parent.mkdir(parents=True, exist_ok=True)
      out.touch()
  names = FLAGS.skill or list(skills.SKILLS)
  others = None
  if FLAGS.rgbd:
    own, others = spoken.of_photographs(FLAGS.rgbd, FLAGS.layout, FLAGS.count)
    asked = {spoken.SKILL: lambda: own}
  else:
    sources = {n: skills.SceneSkills(FLAGS.seed, {n: 1.0}, FLAGS.image_size) for n in names}
    asked = {n: lambda source=source: skills.asked(source, FLAGS.count) for n, source in sources.items()}
  model = loading.find(ModelConfig(path=FLAGS.model), FLAGS.adapter or None)
  reads = priors.reader_of(model.priors)
  vlm, processor = model.load(None), load_processor(model.folder, max_tiles=FLAGS.max_tiles, priors=reads)
  scores, shown = {}, []
  for name, examples in asked.items():
    examples = examples()
    found = scores[name] = skill_scores.score_skill(vlm, processor, examples)
    print(f"{name}: {found.right} of {found.count}", flush=True)
    for prompt, expected, given in found.misses if FLAGS.misses else ():
      print(f"    {prompt!r}: expected {expected!r}, got {given!r}")
    if name == spoken.SKILL:
      others = others or spoken.of_scenes(FLAGS.seed, FLAGS.image_size)
      near = skill_scores.score_distances(found.given, examples, others)
      shown.append(skill_scores.distance_table(near))
  shown.insert(0, skill_scores.table(scores))
  for table in shown:
    terminal.show(table)
  if out:
    workdir.write_text(out, "\n".join(map(tables.to_markdown, shown)))


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
