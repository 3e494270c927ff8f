"""What an exporter is, and what it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatialvlm import peft
from spatialvlm.config import ModelConfig
from spatialvlm.models.vlm import Vlm


@dataclasses.dataclass(frozen=True)
class Exportable:
  """A model with what an exporter needs to know of its origin.

  Attributes:
    vlm: with or without an adapter; of a form with a `find` of its own, what that finds.
    base: hub id or path of the base, as others should find it.
    folder: the base's local folder, with the files of its processor.
    trained: of a training run, its model's settings, among them how it was shown pictures.
    numbers: what the exporter's `numbers` made of the user's words; None where it has none.
    length: most tokens of prompt and answer, of forms whose sizes are fixed; None for the exporter's choice.
  """

  vlm: Vlm
  base: str
  folder: Path
  trained: ModelConfig | None = None
  numbers: Any = None
  length: int | None = None


@dataclasses.dataclass(frozen=True)
class Exporter:
  """One form of a model; the contract stands at the head of this room.

  Attributes:
    what: the form in a few words, for help and errors.
    numbers: reads what a user says of the numbers that it is written in; None where there is no choice.
    find: finds what is written, of forms of something else than a whole model; None of the others.
    sized: whether its sizes are fixed, so that a user may choose a length.
  """

  what: str
  why_not: Callable[[Vlm], str | None]
  write: Callable[[Exportable, Path], Path]
  numbers: Callable[[str], Any] | None = None
  find: Callable[[ModelConfig], Exportable] | None = None
  sized: bool = False


def no_merging(vlm: Vlm) -> str | None:
  """Why the adapters of a model cannot become part of its weights; None where they can."""
  names = [name for name in peft.carries(vlm) if not peft.METHODS[name].mergeable]
  return f"an adapter of method {names[0]!r} cannot be merged; --to=adapter writes it" if names else None
