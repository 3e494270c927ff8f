"""Where examples and questions come from: one small registry of random-access sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from spatialvlm.config import SourceConfig, nearest
from spatialvlm.types import Example, Question, Turn, UserError


class Source(Protocol):
  """A random-access sequence of examples; `len` is `mixture.ENDLESS` where any index is good.

  A source that reads or renders better in blocks offers `__getitems__(indices) -> list[Example]`, the name
  that PyTorch and Hugging Face `datasets` have for it. Calls come from several threads.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


def open_source(config: SourceConfig) -> Source:
  """Opens a source of examples.

  Raises:
    UserError: an unknown kind, or a source that cannot be read.
  """
  return _opener(SOURCES, config, "examples")(config)


def open_questions(config: SourceConfig) -> Sequence[Question]:
  """Opens a source of multiple-choice questions.

  Raises:
    UserError: a kind that holds no questions, or a source that cannot be read.
  """
  return _opener(QUESTIONS, config, "questions")(config)


def read(source: Sequence, indices: Sequence[int]) -> list:
  """The items at `indices`, in their order; in one go where the source can."""
  if hasattr(source, "__getitems__"):
    return list(source.__getitems__(list(indices)))
  return [source[i] for i in indices]


def question_to_example(question: Question) -> Example:
  """The training form of a question: its prompt as CV-Bench writes it, answered by the bare letter ("B").

  The letter is what the "native" protocol of `evaluation` scores, at the same place.
  """
  turn = Turn(prompt=question.prompt, answer=chr(ord("A") + question.answer))
  return Example(
    images=(question.image,),
    turns=(turn,),
    id=str(question.idx),
    task=question.task,
    source=question.source,
    files=(question.source_filename,),
  )


class QuestionExamples(Sequence[Example]):
  """A sequence of questions seen as a sequence of examples."""

  def __init__(self, questions: Sequence[Question]):
    self.questions = questions

  def __len__(self) -> int:
    return len(self.questions)

  def __getitem__(self, index: int) -> Example:
    return question_to_example(self.questions[index])

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [question_to_example(q) for q in read(self.questions, indices)]


class SceneExamples(QuestionExamples):
  """Questions about rendered scenes as examples, each with its picture's `depth` in metres."""

  def __getitem__(self, index: int) -> Example:
    question, depth = self.questions.with_depth(index)
    return dataclasses.replace(question_to_example(question), dense={"depth": depth})

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]


# Settings that change what is read, and the kinds that heed them; others would pass them over in silence.
_HEEDED_BY = {
  "turns": ("skills",),
  "tasks": ("scenes", "skills"),
  "columns": ("hf",),
  "templates": ("hf",),
  "files": ("hf",),
  "choices": ("hf",),
  "answers": ("hf",),
  "shuffle_choices": ("hf",),
  "several_images": ("hf",),
  "image_root": ("hf", "llava"),
}


def _opener(kinds: Mapping[str, Callable], config: SourceConfig, what: str) -> Callable:
  if config.kind not in kinds:
    raise UserError(f"data source kind {config.kind!r} holds no {what}; {nearest(config.kind, kinds)}")
  for name, heeding in _HEEDED_BY.items():
    if config.kind not in heeding and getattr(config, name) != getattr(SourceConfig(), name):
      raise UserError(
        f"a source of kind {config.kind!r} heeds no `{name}`; it is for kind {' and '.join(heeding)}"
      )
  return kinds[config.kind]


# Each opener imports its reader itself: a run over rendered scenes needs neither pyarrow nor `datasets`.


def _skills(config: SourceConfig) -> Source:
  from spatialvlm.worlds.skills import SceneSkills

  return SceneSkills(config.seed, config.tasks, config.image_size, config.turns, config.size)


def _scene_questions(config: SourceConfig) -> Sequence[Question]:
  from spatialvlm.worlds.questions import SceneQuestions

  return SceneQuestions(config.seed, config.tasks, config.image_size, config.size)


def _cvbench(config: SourceConfig) -> Sequence[Question]:
  from spatialvlm.data.sources.cvbench import open_cvbench

  return open_cvbench(
    config.path,
    revision=config.revision,
    split=config.split,
    size=config.size,
    partial=config.partial,
  )


def _llava(config: SourceConfig) -> Source:
  from spatialvlm.data.sources.llava import Llava

  if not config.path:
    raise UserError("a source of kind 'llava' needs a `path`: a .json or .jsonl file")
  return Llava(config.path, config.image_root, config.size)


def _hub_examples(config: SourceConfig) -> Source:
  from spatialvlm.data.sources.hf import HubExamples, open_dataset

  rows, root = open_dataset(config.path, split=config.split, revision=config.revision, files=config.files)
  return HubExamples(rows, config, root)


def _hub_questions(config: SourceConfig) -> Sequence[Question]:
  from spatialvlm.data.sources.hf import HubQuestions, open_dataset

  rows, root = open_dataset(config.path, split=config.split, revision=config.revision, files=config.files)
  return HubQuestions(rows, config, root)


QUESTIONS: dict[str, Callable[[SourceConfig], Sequence[Question]]] = {
  "scenes": _scene_questions,
  "cvbench": _cvbench,
  "hf": _hub_questions,
}

SOURCES: dict[str, Callable[[SourceConfig], Source]] = {
  "scenes": lambda config: SceneExamples(_scene_questions(config)),
  "skills": _skills,
  "cvbench": lambda config: QuestionExamples(_cvbench(config)),
  "llava": _llava,
  "hf": _hub_examples,
}
