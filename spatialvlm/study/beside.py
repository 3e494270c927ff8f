"""What a model is asked beside a study's own questions: other worlds, and skills that it must not forget."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from spatialvlm import priors, workdir
from spatialvlm.config import EvaluateConfig, MeshConfig, ModelConfig, ScoreConfig, StudyConfig
from spatialvlm.core import axes
from spatialvlm.evaluation import run as evaluation
from spatialvlm.evaluation import skill_scores
from spatialvlm.evaluation.asking.extraction import same_text
from spatialvlm.evaluation.evaluate import SUMMARY_FILE
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import runs
from spatialvlm.types import UserError
from spatialvlm.worlds import skills

# Below a workdir: an evaluation by its name, and the answers to skills.
FOLDER, SKILLS_FILE = "beside", "skills.json"
# Of the skills' worlds, which no recipe trains on.
SEED = 1_000_000
_IMAGE_SIZE = 96


@dataclasses.dataclass(frozen=True)
class Beside:
  """What is asked of one model.

  Attributes:
    asked: further evaluations of it, by their names.
    skills: skills of `worlds.skills`, each asked `count` times of pictures of `image_size` pixels.
    model, adapter: which model that is.
  """

  asked: Mapping[str, EvaluateConfig] = dataclasses.field(default_factory=dict)
  skills: tuple[str, ...] = ()
  count: int = 0
  image_size: int = _IMAGE_SIZE
  model: ModelConfig = ModelConfig()
  adapter: str | None = None
  mesh: MeshConfig = MeshConfig()

  def finished(self, folder: pathlib.Path) -> bool:
    """Whether all of it lies below a model's workdir."""
    files = [folder / FOLDER / name / SUMMARY_FILE for name in self.asked]
    files += [folder / FOLDER / SKILLS_FILE] if self.skills else []
    return all(file.exists() for file in files)


def of(study: StudyConfig, model: ModelConfig, mesh: MeshConfig, adapter: str | None = None) -> Beside:
  """What a study asks of a model beside its questions.

  Raises:
    UserError: an unknown skill, or no question of one.
  """
  size = getattr(study.questions.source, "image_size", _IMAGE_SIZE)
  score = ScoreConfig(**{f.name: getattr(study.questions, f.name) for f in dataclasses.fields(ScoreConfig)})
  score = dataclasses.replace(score, controls=(), protocols=score.protocols[:1], limit=0)
  asked = {
    name: EvaluateConfig(f"{study.name}-{name}", model, adapter, source, score, {}, mesh)
    for name, source in study.beside.items()
  }
  for skill in study.skills:
    skills.SceneSkills(SEED, {skill: 1.0}, size)
  if study.skills and study.skill_count < 1:
    raise UserError(f"config.skill_count: {study.skill_count}: ask at least one question")
  return Beside(asked, tuple(study.skills), study.skill_count, size, model, adapter, mesh)


def ask(beside: Beside, folder: pathlib.Path) -> None:
  """Asks what was not asked yet, and leaves the answers below the model's workdir.

  Raises:
    UserError: as `evaluation.run`.
  """
  for name, config in beside.asked.items():
    own = folder / FOLDER / name
    if not (own / SUMMARY_FILE).exists():
      evaluation.run(config, own, runs.find, show_tables=False)
  if beside.skills and not (folder / FOLDER / SKILLS_FILE).exists():
    with workdir.writing(folder / FOLDER):
      (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / FOLDER / SKILLS_FILE, _skills(beside))


def _skills(beside: Beside) -> dict[str, list[bool]]:
  """By skill, which of its questions are answered by exactly the expected text."""
  found = runs.find(beside.model, beside.adapter)
  processor = load_processor(found.folder, priors=priors.reader_of(found.priors), **beside.model.tiling)
  vlm = found.load(axes.make_mesh(beside.mesh))
  right = {}
  for skill in beside.skills:
    examples = skills.asked(skills.SceneSkills(SEED, {skill: 1.0}, beside.image_size), beside.count)
    given = skill_scores.score_skill(vlm, processor, examples).given
    right[skill] = [same_text(text, e.turns[0].answer) for text, e in zip(given, examples, strict=True)]
    print(f"skill {skill}: {sum(right[skill])} of {len(examples)}", flush=True)
  return right
