"""Rendered questions in the numbers and under the names of CV-Bench, to try a whole evaluation without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.types import Question, UserError
from spatialvlm.worlds.questions import SceneQuestions

# Questions of each task from each (source, data set of the source): CV-Bench's 2,638, which the benchmark's
# description splits by task and by source. How Count and Relation share ADE20K's 633 and COCO's 805 is not
# said there; here both do as all 2D questions do.
_OMNI3D = {("Omni3D", f"Omni3D_{name}"): 200 for name in ("Hypersim", "SUNRGBD", "nuScenes")}
_ADE, _COCO = ("ADE20K", "ADE20K Validation Set"), ("COCO", "COCO Validation Set")
NUMBERS: Mapping[str, Mapping[tuple[str, str], int]] = {
  "Count": {_ADE: 347, _COCO: 441},
  "Relation": {_ADE: 286, _COCO: 364},
  "Depth": _OMNI3D,
  "Distance": _OMNI3D,
}
FILES = {"test_2d.parquet": ("Count", "Relation"), "test_3d.parquet": ("Depth", "Distance")}


def write(folder: str | Path, seed: int, image_size: int = 96, share: float = 1.0) -> dict[str, int]:
  """Writes CV-Bench's two files with rendered questions; returns how many of each task.

  The sources' names are CV-Bench's, so that its official formula applies; the pictures are all rendered.

  Args:
    seed: of the world. Training and the held-out scenes of the recipes have others.
    image_size: pixels of the square images.
    share: of CV-Bench's numbers, rounded up for each source.

  Raises:
    UserError: the share is not in (0, 1]; what `SceneQuestions` and `write_cvbench` raise.
  """
  if not 0 < share <= 1:
    raise UserError(f"share: {share} is not above 0 and at most 1")
  numbers = {task: {key: -int(-n * share // 1) for key, n in of.items()} for task, of in NUMBERS.items()}
  first = 0
  for name, tasks in FILES.items():
    write_cvbench(Path(folder) / name, _questions({t: numbers[t] for t in tasks}, first, seed, image_size))
    first += sum(sum(numbers[task].values()) for task in tasks)
  return {task: sum(of.values()) for task, of in numbers.items()}


def _questions(
  numbers: Mapping[str, Mapping[tuple[str, str], int]], idx: int, seed: int, image_size: int
) -> Iterator[Question]:
  for task, of in numbers.items():
    keys: Sequence[tuple[str, str]] = [key for key, count in of.items() for _ in range(count)]
    rendered = SceneQuestions(seed, [task], image_size=image_size, size=len(keys), shuffle_options=True)
    for i, (source, source_dataset) in enumerate(keys):
      yield dataclasses.replace(rendered[i], idx=idx, source=source, source_dataset=source_dataset)
      idx += 1
