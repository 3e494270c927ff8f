"""docs/views.png: a question of each kind across pictures, as the model is shown them.

`python -m tests.views_picture` draws it anew.
"""

from __future__ import annotations

import pathlib
import textwrap

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from spatialvlm.config import ViewsConfig
from spatialvlm.data.sources.registry import open_questions
from spatialvlm.worlds.view_questions import KINDS, PREFACE

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "views.png"
SEED, SIZE, SHOWN = 5, 160, 2


def main() -> None:
  figure, axes = plt.subplots(
    len(KINDS), SHOWN + 1, figsize=(9.6, 10.4), gridspec_kw={"width_ratios": [1, 1, 1.7]}, dpi=110
  )
  for row, kind in zip(axes, KINDS, strict=True):
    config = ViewsConfig(tasks={kind: 1.0}, seed=SEED, image_size=SIZE, views=(SHOWN,))
    question = open_questions(config)[2]
    for number, (axis, image) in enumerate(zip(row, question.images, strict=False), 1):
      axis.imshow(image)
      axis.set_title(f"image {number}", fontsize=8, pad=3)
    text = "\n".join(textwrap.wrap(question.question.removeprefix(PREFACE).strip(), 46))
    options = "\n".join(f"({'AB'[k]}) {choice}" for k, choice in enumerate(question.choices))
    said = f"{kind}\n\n{text}\n{options}\n\nanswer: {'AB'[question.answer]}"
    row[-1].text(0, 0.98, said, fontsize=8.5, va="top", transform=row[-1].transAxes)
    for axis in row:
      axis.axis("off")
  figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, wspace=0.04, hspace=0.16)
  figure.savefig(PICTURE, facecolor="white")


if __name__ == "__main__":
  main()
