"""How far everything in a picture is: `python launch/depth.py --model=RUN --out=depth.png`.

RUN is the workdir of a training with a loss of kind `dense_depth` (docs/geometry.md). Without `--image` it is
asked about held-out rendered scenes, whose depth is known, and measured beside two constants that see no
picture: one depth everywhere, and one for each place. `--image=a.jpg,b.jpg` draws these instead.
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
flags.DEFINE_string("model", None, "workdir of a training run, with the head in RUN/heads")
flags.DEFINE_string("head", "depth", "name of the loss that trained it")
flags.DEFINE_list("image", [], "pictures to look at, separated by commas; none: rendered scenes")
flags.DEFINE_integer("count", 64, "rendered scenes that are measured")
flags.DEFINE_integer("seed", 1_000_000, "of their world")
flags.DEFINE_integer("image_size", 96, "pixels of the rendered scenes")
flags.DEFINE_integer("max_tiles", None, "tile budget of an image; by default the checkpoint's own")
flags.DEFINE_float("farthest", 10.0, "metres beyond which nothing is measured")
flags.DEFINE_string("out", "depth.png", "the drawing")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}; options are written --name=value")
  if not FLAGS.model:
    raise UserError("--model is missing; write --model=RUN, the workdir of a training with a depth head")
  if FLAGS.count < 1 or FLAGS.farthest <= 0:
    raise UserError("--count must be at least 1, --farthest above 0")
  import spatialvlm
  from spatialvlm.depth import picture, scores
  from spatialvlm.depth import run as depth_run
  from spatialvlm.depth.predict import check_metric
  from spatialvlm.reporting import terminal

  vlm = spatialvlm.load_vlm(FLAGS.model, max_tiles=FLAGS.max_tiles)
  head = pathlib.Path(FLAGS.model) / "heads" / f"{FLAGS.head}.json"
  check_metric(head, vlm.model.config)
  depth = lambda pixels: vlm.depth(pixels, head)
  if FLAGS.image:
    rows = depth_run.look(depth, FLAGS.image)
  else:
    sizes = dict(count=FLAGS.count, image_size=FLAGS.image_size, farthest=FLAGS.farthest)
    errors, rows = depth_run.measure(depth, seed=FLAGS.seed, **sizes)
    terminal.show(scores.table(errors))
  out = pathlib.Path(FLAGS.out)
  picture.draw(rows, out)
  print(f"{out}: {len(rows)} pictures")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
