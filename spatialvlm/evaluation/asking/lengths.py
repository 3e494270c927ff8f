"""Lengths in free answers, in metres: "2.4 m", "240 cm", "It is 2.4 meters away."

What could be read in two ways is no length: two numbers ("2 to 3 m", "2 m 40 cm"), a comma within one ("2,4
m"), a bound ("less than 2 m"), a unit of area or speed ("2 m/s"), or a number that somebody else must give a
unit.
"""

from __future__ import annotations

import re

# Units of length by the words that answers use, in metres.
METRES = {
  **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0),
  **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 0.01),
  **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 0.001),
  **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), 1000.0),
  **dict.fromkeys(("ft", "foot", "feet"), 0.3048),
  **dict.fromkeys(("in", "inch", "inches"), 0.0254),
}
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*([A-Za-z]*)\.?")
_WITHIN = re.compile(r"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*-?\s*(?P<unit>[A-Za-z]+)(?![\w²³^/])")
_BOUNDS = re.compile(r"\b(than|least|most|over|under|between|within|not|never)\b", re.IGNORECASE)


def quantity(text: str) -> tuple[float, str] | None:
  """The number that is all of a text, and the word behind it in lower case: "2.3 m." gives (2.3, "m")."""
  match = _QUANTITY.fullmatch(text.strip())
  return (float(match[1]), match[2].lower()) if match else None


def metres(text: str, unit: str = "") -> float | None:
  """The one length that a text says, in metres, at least 0; None where it says none or may be read otherwise.

  Args:
    unit: of a number that stands without one, a key of `METRES`; empty: such a number is no length.
  """
  text = text.strip()
  found = quantity(text) or _within(text)
  if found is None:
    return None
  number, word = found
  factor = METRES.get(word or unit)
  return None if factor is None or number < 0 else number * factor


def _within(text: str) -> tuple[float, str] | None:
  """The only number of a sentence, with the word of length that stands behind it."""
  if len(re.findall(r"\d+(?:\.\d+)?|\.\d+", text)) != 1 or _BOUNDS.search(text):
    return None
  match = _WITHIN.search(text)
  if match is None or text[: match.start()].endswith(("-", "−", "/", ",")):
    return None
  word, behind = match["unit"].lower(), text[match.end() :].strip(" .!)")
  ambiguous = word == "in" and behind  # a preposition as well as a unit
  return None if word not in METRES or ambiguous else (float(match["number"]), word)
