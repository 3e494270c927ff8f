"""Draws docs/rearranged.png: true pictures of sentences, and the same scenes rearranged.

python -m tests.rearranged_picture
"""

import io
import pathlib

import matplotlib.figure

from spatialvlm import workdir
from spatialvlm.worlds import skills

ROWS, COLUMNS, SIZE = (1, 2, 0, 7), 4, 192


def draw(path: pathlib.Path) -> None:
  source = skills.SceneSkills(3, {"statement": 1.0}, image_size=SIZE, false_pictures=COLUMNS - 1)
  figure = matplotlib.figure.Figure(figsize=(1.9 * COLUMNS, 2.1 * len(ROWS)), layout="constrained")
  for axes, example in zip(figure.subplots(len(ROWS), COLUMNS), source.__getitems__(ROWS), strict=True):
    for axis, image in zip(axes, (example.images[0], *example.rearranged), strict=False):
      axis.imshow(image)
    for axis in axes:
      axis.set_axis_off()
    axes[0].set_title(example.turns[0].answer, fontsize=9, loc="left")
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=100)
  workdir.write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
  draw(pathlib.Path(__file__).parents[1] / "docs" / "rearranged.png")
