"""What the skill "metres" is asked about, and other questions of it that guesses are fitted to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from spatialvlm.config import RgbdConfig
from spatialvlm.data.sources.registry import open_source, read
from spatialvlm.types import Example, UserError
from spatialvlm.worlds import skills

SKILL = "metres"
# Questions that guesses about scenes are fitted to.
OTHERS = 1024


def of_scenes(seed: int, image_size: int) -> Sequence[Example]:
  """OTHERS questions about scenes of another world."""
  return skills.asked(skills.SceneSkills(seed + 1, {SKILL: 1.0}, image_size), OTHERS)


def of_photographs(path: str, layout: str, count: int) -> tuple[Sequence[Example], Sequence[Example]]:
  """Questions about photographs of a folder (`RgbdConfig`): what is asked, and others, of other pictures.

  Every second picture is asked about, `count` questions at most.

  Raises:
    UserError: as a source of kind "rgbd"; or the folder has one picture that can be asked about.
  """
  source = open_source(RgbdConfig(path=path, layout=layout, tasks={"Metres": 1.0}, depth_size=0))
  pictures: dict[str, list[Example]] = {}
  for example in read(source, range(len(source))):
    pictures.setdefault(example.files[0], []).append(example)
  parts = [list(itertools.chain(*list(pictures.values())[start::2])) for start in (0, 1)]
  if not parts[1]:
    raise UserError(f"{path}: has one picture that can be asked about; guesses need others beside it")
  return parts[0][:count], parts[1]
