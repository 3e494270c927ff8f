"""The table of all kinds of data sources, and how a config opens one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from spatialvlm.config import SourceConfig, nearest
from spatialvlm.types import Example, Question, UserError


class Source(Protocol):
  """A random-access sequence of examples; `len` is `mixture.ENDLESS` where any index is good.

  A source that reads or renders better in blocks offers `__getitems__(indices) -> list[Example]`, the name
  that PyTorch and Hugging Face `datasets` have for it. Calls come from several threads.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


class Kind(NamedTuple):
  """What a kind of source can be opened as; None where it holds no such thing.

  Attributes:
    examples: its config -> a `Source`, for training.
    questions: its config -> a sequence of `Question`, for evaluation.
  """

  examples: Callable[[Any], Source] | None = None
  questions: Callable[[Any], Sequence[Question]] | None = None


def _module(name: str, *what: str) -> Kind:
  """The openers of a module here, imported when first asked: scenes need neither pyarrow nor `datasets`."""

  def opener(function: str) -> Callable:
    module = lambda: importlib.import_module(f"{__package__}.{name}")
    return lambda config, **settings: getattr(module(), function)(config, **settings)

  return Kind(**{function: opener(function) for function in what})


KINDS: dict[str, Kind] = {
  "scenes": _module("scenes", "examples", "questions"),
  "rooms": _module("rooms", "examples", "questions"),
  "skills": _module("skills", "examples"),
  "views": _module("views", "examples", "questions"),
  "cvbench": _module("cvbench", "examples", "questions"),
  "llava": _module("llava", "examples"),
  "hf": _module("hf", "examples", "questions"),
  "stream": _module("stream", "examples"),
  "rgbd": _module("rgbd", "examples", "questions"),
  "posed": _module("posed", "examples", "questions"),
}


def open_source(config: SourceConfig, *, defer: bool = False) -> Source:
  """Opens a source of examples.

  Args:
    defer: whether a row that cannot be used is refused when it is read, also where the source looks at all
      rows when it is opened.

  Raises:
    UserError: an unknown kind, or a source that cannot be read.
  """
  opener = _opener(config, "examples")
  return opener(config, defer=True) if defer else opener(config)


def open_questions(config: SourceConfig) -> Sequence[Question]:
  """Opens a source of multiple-choice questions.

  Raises:
    UserError: a kind that holds no questions, a source that cannot be read, or a weight: the questions of an
      evaluation are those of one source.
  """
  if config.weight != 1:
    raise UserError(
      f"weight: {config.weight:g}: questions come from one source alone, in no mixture; leave it out"
    )
  return _opener(config, "questions")(config)


def read(source: Sequence, indices: Sequence[int]) -> list:
  """The items at `indices`, in their order; in one go where the source can."""
  if hasattr(source, "__getitems__"):
    return list(source.__getitems__(list(indices)))
  return [source[i] for i in indices]


def _opener(config: SourceConfig, what: str) -> Callable:
  found = getattr(KINDS.get(config.kind, Kind()), what)
  if found is None:
    known = [name for name, kind in KINDS.items() if getattr(kind, what)]
    raise UserError(f"data source kind {config.kind!r} holds no {what}; {nearest(config.kind, known)}")
  return found
