"""A few real photographs out of two Python packages, with questions whose answers a person can check.

scikit-image 0.16.2 shipped the left and right picture of Middlebury's Motorcycle with their dense disparity
(Scharstein et al., GCPR 2014), and some classics; scikit-learn ships two more. The questions are ours, in the
words of CV-Bench's; each was answered by looking, those of depth in the motorcycle's picture also by its
disparity. They are few: a look at what a model does on photographs, no benchmark.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from spatialvlm.types import UserError
from spatialvlm.wheels.fetch import Packed, fetch
from spatialvlm.workdir import writing

_DATA = "skimage/data/"
SKIMAGE = Packed(
  "scikit-image",
  "0.16.2",
  "41e28db0136f29ecd305bef0408fdfc64be9d415e54f5099a95555c65f5c1865",
  tuple(
    _DATA + name
    for name in (
      "motorcycle_left.png",
      "motorcycle_disp.npz",
      "coins.png",
      "coffee.png",
      "astronaut.png",
      "rocket.jpg",
      "chelsea.png",
      "camera.png",
    )
  ),
  "cp38-cp38-manylinux1_x86_64",
)
SKLEARN = Packed(
  "scikit-learn",
  "1.9.1",
  "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
  ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
  "cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64",
)
QUESTIONS, DEPTH = "questions.jsonl", "depth"
_SIDES, _HEIGHTS = ("left", "right"), ("above", "below")


@dataclasses.dataclass(frozen=True)
class _Asked:
  """One question; the first of `choices` is right unless `answer` says another."""

  image: str
  task: str
  question: str
  choices: tuple[str, ...]
  answer: str


def _relation(image: str, one: str, other: str, answer: str) -> _Asked:
  question = (
    f"Considering the relative positions of the {one} and the {other} in the image provided, where is the"
    f" {one} located with respect to the {other}?"
  )
  return _Asked(image, "Relation", question, _SIDES if answer in _SIDES else _HEIGHTS, answer)


def _depth(image: str, nearer: str, farther: str, swapped: bool = False) -> _Asked:
  one, other = (farther, nearer) if swapped else (nearer, farther)
  question = f"Which object is closer to the camera taking this photo, the {one} or the {other}?"
  return _Asked(image, "Depth", question, (one, other), nearer)


def _count(image: str, things: str, right: int, others: tuple[int, ...]) -> _Asked:
  choices = tuple(map(str, sorted({right, *others})))
  return _Asked(image, "Count", f"How many {things} are in the image?", choices, str(right))


ASKED = (
  _relation("astronaut.png", "flag", "space shuttle", "left"),
  _relation("astronaut.png", "helmet", "woman's face", "below"),
  _relation("astronaut.png", "space shuttle", "woman's face", "right"),
  _depth("astronaut.png", "helmet", "space shuttle"),
  _count("astronaut.png", "people", 1, (0, 2, 3, 4)),
  _count("coffee.png", "cups", 1, (0, 2, 3, 4)),
  _relation("coffee.png", "spoon", "handle of the cup", "right"),
  _relation("coffee.png", "handle of the cup", "coffee", "below"),
  _count("coins.png", "coins", 24, (12, 16, 20, 28)),
  _count("coins.png", "rows of coins", 4, (2, 3, 5, 6)),
  _count("rocket.jpg", "rockets", 1, (0, 2, 3, 4)),
  _count("rocket.jpg", "towers around the rocket", 4, (1, 2, 3, 6)),
  _depth("rocket.jpg", "tower at the left edge", "rocket", swapped=True),
  _relation("rocket.jpg", "rocket", "tower at the left edge", "right"),
  _relation("motorcycle_left.png", "bench", "shelf", "left"),
  _relation("motorcycle_left.png", "headlight", "seat", "right"),
  _depth("motorcycle_left.png", "motorcycle", "shelf", swapped=True),
  _depth("motorcycle_left.png", "front wheel", "bench"),
  _count("motorcycle_left.png", "motorcycles", 1, (0, 2, 3, 4)),
  _relation("china.jpg", "pagoda", "lake", "left"),
  _depth("china.jpg", "pagoda", "island", swapped=True),
  _relation("china.jpg", "top of the pagoda", "trees", "above"),
  _count("chelsea.png", "eyes", 2, (0, 1, 3, 4)),
  _relation("chelsea.png", "nose", "eyes", "below"),
  _relation("camera.png", "camera", "man's head", "right"),
  _depth("camera.png", "man", "buildings"),
  _relation("flower.jpg", "whole flower", "flower at the bottom edge", "above"),
)


def write(folder: str | Path, wheels: str | Path | None = None) -> Path:
  """Pictures, `questions.jsonl` beside them, and below `depth` the motorcycle with its disparity.

  `launch/evaluate.py --config.data.kind=hf` reads the first, `launch/encoders.py --config.photos` the last.

  Args:
    wheels: a folder with the two wheels, in place of the package index.

  Raises:
    UserError: a wheel cannot be had or is another one, or the disk is full.
  """
  folder = Path(folder).expanduser()
  files = {path.name: path for packed in (SKIMAGE, SKLEARN) for path in fetch(packed, folder, wheels)}
  with writing(folder):
    (folder / DEPTH).mkdir(exist_ok=True)
    shutil.copyfile(files["motorcycle_left.png"], folder / DEPTH / "motorcycle.png")
    with np.load(files["motorcycle_disp.npz"], allow_pickle=False) as stored:
      if len(stored.files) != 1:
        raise UserError(
          f"{files['motorcycle_disp.npz']}: expected one array, found {stored.files}; fetch again"
        )
      np.save(folder / DEPTH / "motorcycle.disparity.npy", stored[stored.files[0]].astype(np.float32))
    lines = [
      {
        "id": number,
        "task": asked.task,
        "image": asked.image,
        "question": asked.question,
        "choices": list(asked.choices),
        "answer": f"({'ABCDEF'[asked.choices.index(asked.answer)]})",
      }
      for number, asked in enumerate(ASKED)
    ]
    (folder / QUESTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder
