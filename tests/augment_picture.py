"""docs/augment.png: one question of the embedded world as each change of `data.augment` shows it.

`python -m tests.augment_picture` draws it anew.
"""

from __future__ import annotations

import pathlib
import re
import textwrap

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from spatialvlm.config import AugmentConfig, ScenesConfig
from spatialvlm.data.augment.change import Augment
from spatialvlm.data.sources.registry import open_source

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "augment.png"
LIGHT = {"brightness": 0.3, "contrast": 0.2, "blur": 0.7, "noise": 6.0, "jpeg": 70}
PANELS = (
  {},
  {"flip": 1.0},
  {"crop": 0.5},
  {"zoom_out": 0.4},
  {"roll": 20.0},
  {"perspective": 12.0},
  LIGHT,
  {"flip": 1.0, "crop": 0.3, "zoom_out": 0.3, "roll": 12.0, "perspective": 8.0, **LIGHT},
)
SEED, SIZE = 7, 160


def said(turn) -> str:
  """Options and answer on one line."""
  options = re.findall(r"\((\w)\) (.*)", turn.prompt)
  return "   ".join(f"({letter}) {text}" for letter, text in options) + f"      answer: {turn.answer}"


def suits(example) -> bool:
  """A question of left and right about boxed things that are not at the picture's edge."""
  (asked,) = example.geometry.asked
  middle = all(0.1 * SIZE < value < 0.9 * SIZE for box in asked.named for value in box)
  return middle and "(A) left" in example.turns[0].prompt and " box)" in example.turns[0].prompt


def strongest(example, config: AugmentConfig):
  """Of what may be drawn for the example, what is least like it."""
  drawn = [Augment(config).changed(example, position) for position in range(60)]
  whole = [new for new, outcome in drawn if not outcome.left]
  unlike = lambda new: np.abs(new.images[0].astype(int) - example.images[0]).mean()
  return max(whole, key=unlike)


def main() -> None:
  source = open_source(ScenesConfig(seed=SEED, image_size=SIZE, tasks={"Relation": 1.0}))
  example = next(e for e in map(source.__getitem__, range(200)) if suits(e))
  figure, axes = plt.subplots(2, 4, figsize=(12.4, 7.8), layout="constrained")
  figure.get_layout_engine().set(hspace=0.06, h_pad=0.08)
  for axis, settings in zip(axes.flat, PANELS, strict=True):
    shown = strongest(example, AugmentConfig(**settings))
    axis.imshow(shown.images[0])
    axis.set_xticks([]), axis.set_yticks([])
    names = [name for name in settings if name not in LIGHT] + ["light"] * any(n in LIGHT for n in settings)
    axis.set_title("all of these" if len(names) > 3 else ", ".join(names) or "as it is", fontsize=11)
    axis.set_xlabel(said(shown.turns[0]), fontsize=10)
  figure.suptitle(textwrap.fill(example.turns[0].prompt.partition(" Select")[0], 130), fontsize=11)
  figure.savefig(PICTURE, dpi=68)


if __name__ == "__main__":
  main()
