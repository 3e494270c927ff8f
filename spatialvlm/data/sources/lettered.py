"""Multiple-choice questions as the conversations that train for them."""

from __future__ import annotations

from collections.abc import Sequence

from spatialvlm.data.sources.registry import read
from spatialvlm.types import LETTERS, Example, Geometry, Question, Turn


def question_to_example(question: Question) -> Example:
  """The training form of a question: its prompt as CV-Bench writes it, answered by the bare letter ("B").

  The letter is what the "native" protocol of `evaluation` scores, at the same place.
  """
  turn = Turn(prompt=question.prompt, answer=LETTERS[question.answer])
  return Example(
    images=question.images,
    turns=(turn,),
    id=str(question.idx),
    task=question.task,
    source=question.source,
    files=question.source_filenames,
    geometry=question.asked and Geometry((question.asked,)),
    shots=question.shots,
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
