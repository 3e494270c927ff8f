"""What a command prints, made fit for the stream that it goes to."""

from __future__ import annotations

import codecs
import sys
import unicodedata
import warnings

from spatialvlm.types import Note

_ERRORS = "spatialvlm-nearest"
_NEAREST = {
  "–": "-", "—": "-", "−": "-", "†": "+", "…": "...", "×": "x", "·": ".", "≥": ">=", "≤": "<=", "±": "+/-",
  "→": "->", "’": "'", "“": '"', "”": '"', "─": "-", "│": "|",
}  # fmt: skip


def prepare() -> None:
  """Text that a stream's encoding lacks is written by the nearest of ASCII, and notes as one line each.

  So a terminal of another encoding (`PYTHONIOENCODING=ascii`, a locale of Latin-1), or a file name that is no
  text, costs no result.
  """
  codecs.register_error(_ERRORS, _nearest)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors=_ERRORS)
  others = warnings.showwarning
  if getattr(others, "of_notes", False):
    return

  def show(message, category, *rest, **options) -> None:
    if issubclass(category, Note):
      print(f"note: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    else:
      others(message, category, *rest, **options)

  show.of_notes = True
  warnings.showwarning = show


def _nearest(error: UnicodeError) -> tuple[str, int]:
  """For `codecs.register_error`."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  return "".join(map(_one, error.object[error.start : error.end])), error.end


def _one(letter: str) -> str:
  plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
  return _NEAREST.get(letter) or plain or "?"
