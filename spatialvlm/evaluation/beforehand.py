"""Questions looked at before the first is asked: no picture is found broken, no prompt too long half-way."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from spatialvlm.config import ScoreConfig
from spatialvlm.data.sources import registry
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking import asks
from spatialvlm.evaluation.asking.controls import DONATED, OtherImages
from spatialvlm.evaluation.asking.protocols import Prompter
from spatialvlm.evaluation.records import SIGHTED, Key
from spatialvlm.reporting import terminal
from spatialvlm.serving.pictures import Pictures
from spatialvlm.serving.requests import Picture, buckets
from spatialvlm.types import Question, UserError

# Seconds that a check takes without a word.
QUIET = 3.0
# Questions that stand for all of a source that renders its pictures: none is broken, and all are alike.
SOME = 8


def check(questions: Sequence[Question], prompter: Prompter, config: ScoreConfig) -> None:
  """Looks at the pictures of questions, and lays out their prompts in every pass, without any pixels.

  Works in threads, and shows how far it is where that takes long. Of CV-Bench it takes some seconds. Of a
  source without `unopened` (`data.sources`) only the first few questions are laid out.

  Args:
    config: which passes there are, over how many questions, and what must fit.

  Raises:
    UserError: the tokenizer has no token for a word of a shifted world; or the first question with a picture
      that cannot be read, or a prompt that cannot be asked, by file, row and column, and how many others.
  """
  if unknown := spelled_out(questions, prompter):
    raise UserError(
      f"scenes: shift {questions.shift!r} asks about things that the model's tokenizer has no token for"
      f" ({', '.join(unknown)}), so it has never read them; leave the shift out"
    )
  count = min(len(questions), config.limit or len(questions))
  layout, others = _Layout(prompter, config), OtherImages()
  if not hasattr(questions, "unopened"):
    for question in registry.read(questions, range(min(count, SOME))):
      layout.check(question, "")
    return
  broken: list[UserError] = []

  def found(index: int) -> Question | UserError:
    try:
      question = questions.unopened(index)
      layout.check(question, questions.place(index))
      return question
    except UserError as error:
      return error

  rows: dict[int, int] = {}
  for index, question in enumerate(_in_threads(found, count)):
    if isinstance(question, UserError):
      broken.append(question)
    elif DONATED & set(config.controls):
      rows[question.idx] = index
      for asked, other in others(records.image_name(question), question):
        try:
          layout.check_other(asked, other, questions.place(rows[asked.idx]))
        except UserError as error:
          broken.append(error)
  if broken:
    more = f"; so it is with {len(broken) - 1} more of the questions" if broken[1:] else ""
    raise UserError(f"{broken[0]}{more}")
  others.close()


def spelled_out(questions: Sequence[Question], prompter: Prompter) -> list[str]:
  """The `new_words` of questions, where they have such, that a tokenizer does not know as one token each."""
  known = lambda ids, word: len(ids) == 1 and prompter.decode(ids).strip() == word
  words = getattr(questions, "new_words", ())
  return [w for w, ids in zip(words, prompter.answers(words), strict=True) if not known(ids, w)]


class _Layout:
  """Makes the requests that a run would make, and sees whether they fit. Safe to use from several threads."""

  def __init__(self, prompter: Prompter, config: ScoreConfig):
    self._asker, self._config = asks.Asker(prompter, config, _NoPictures()), config
    self._engine = asks.engine_config(config)

  def check(self, question: Question, place: str) -> None:
    """Raises a UserError that names `place`, for any pass on the question's own images or none."""
    keys = [key for key in asks.keys_of_question(question, self._config) if key[1] not in DONATED]
    self._check(question, place, keys, None)

  def check_other(self, question: Question, other: Question, place: str) -> None:
    """The same of the passes on another question's images or shots."""
    conditions = [name for name in self._config.controls if name in DONATED]
    keys = [(self._config.protocols[0], name, int(question.idx), 0) for name in conditions]
    self._check(question, place, keys, (other, records.images_hash(other.images)))

  def _check(
    self, question: Question, place: str, keys: Collection[Key], donor: tuple[Question, str] | None
  ) -> None:
    image, name = records.images_hash(question.images), f"question {question.idx}"
    for key in keys:
      try:
        for request in self._asker.requests(question, image, {}, {key}, donor):
          buckets(request, self._engine)
      except UserError as error:
        named, instead = self._named(key)
        said = str(error).removeprefix(f"{name}: ")
        raise UserError(f"{place or name}{named}: {said}{'' if 'leave' in said else instead}") from None

  def _named(self, key: Key) -> tuple[str, str]:
    """What messages call a row's pass, and what may be done instead of mending its prompt."""
    protocol, condition = key[:2]
    if condition != SIGHTED:
      return f", control {condition!r}", f"; else leave {condition!r} out of score.controls"
    if protocol != self._config.protocols[0]:
      return f", protocol {protocol!r}", f"; else leave {protocol!r} out of score.protocols"
    return "", "; else leave the row out"


class _NoPictures(Pictures):
  """Loads nothing."""

  def ahead(self, key, count: int, cut: Callable[[], np.ndarray], priors=None) -> Callable[[], Picture]:
    return Picture


def _in_threads(found: Callable[[int], Question | UserError], count: int) -> Iterator[Question | UserError]:
  """What is found of each question, in order, while it is shown how far that is."""
  workers = min(max(os.cpu_count() or 2, 2), 8)
  began, show = time.monotonic(), None
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
    for done, item in enumerate(pool.map(found, range(count)), start=1):
      yield item
      if show is None and time.monotonic() - began > QUIET:
        show = stack.enter_context(terminal.progress("checking questions"))
      if show is not None:
        show(done, count)
