"""What is exported, scored and timed: the user's words, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from spatialvlm import export
from spatialvlm.deployed.runtimes import RUNTIMES, form_of
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Export:
  """One set of files.

  Attributes:
    form: a key of `RUNTIMES`.
    numbers: what `--numbers` of `launch/export.py` says; "" where the form has no choice.
  """

  form: str
  numbers: str

  @property
  def name(self) -> str:
    """Of its folder, and in tables."""
    numbers = re.sub(r"[^a-z0-9_.=]+", "-", self.numbers.lower())
    return f"{self.form}-{numbers}" if numbers else self.form


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is done with a model.

  Attributes:
    exports: files that are scored, in the order of the tables.
    threads: of every runtime.
    repeats: how often a question is timed; 0: nothing is timed.
    tokens: of an answer that is timed, behind its first.
  """

  exports: tuple[Export, ...]
  threads: int
  repeats: int = 5
  tokens: int = 32


def read_exports(to: Sequence[str], numbers: Sequence[str]) -> tuple[Export, ...]:
  """The exports that a user names.

  Args:
    to: forms. numbers: of each of them; `q4_0+embedding=q8_0` by parts. With several forms each number names
      its own, as `gguf:q8_0`. Empty: the forms' usual ones.

  Raises:
    UserError: forms or numbers that are not known, or named twice; a runtime that is not installed.
  """
  forms, found = {name: form_of(name) for name in to}, []
  if len(forms) < len(to):
    raise UserError(f"--to={','.join(to)}: one stands twice")
  for item in numbers:
    named, colon, words = item.rpartition(":")
    if not colon and len(forms) > 1:
      raise UserError(f"--numbers={item}: of which form? with several write {to[0]}:{item}")
    if colon and named not in forms:
      raise UserError(f"--numbers={item}: {named!r} is not in --to={','.join(to)}")
    found.append(Export(named or to[0], words.replace("+", ",")))
  for name, form in forms.items():
    if not any(export_.form == name for export_ in found):
      found += [Export(name, words) for words in form.numbers]
  for export_ in found:
    export.named(export_.form, export_.numbers)
  if len({export_.name for export_ in found}) < len(found):
    raise UserError(f"--numbers={','.join(numbers)}: one stands twice")
  order = list(RUNTIMES)
  return tuple(sorted(found, key=lambda export_: order.index(export_.form)))
