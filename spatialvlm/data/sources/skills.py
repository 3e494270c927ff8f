"""Kind "skills": conversations about rendered scenes (`worlds.skills`)."""

from __future__ import annotations

from spatialvlm.config import SkillsConfig
from spatialvlm.data.sources.registry import Source
from spatialvlm.worlds.skills import SceneSkills


def examples(config: SkillsConfig, *, defer: bool = False) -> Source:
  tasks = dict(sorted(config.tasks.items()))  # equal configs draw alike, in whatever order they name skills
  return SceneSkills(
    config.seed,
    tasks,
    config.image_size,
    config.turns,
    config.size,
    pictures=config.pictures,
    false_answers=config.false_answers,
    false_pictures=config.false_pictures,
  )
