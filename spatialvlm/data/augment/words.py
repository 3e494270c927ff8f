"""Left and right in words: which of them change places in a mirrored picture, and where that cannot be known.

English alone. A word counts as a side only where it plainly is one ("on the left", "left of", "top left", an
option that is nothing else); "right next to", "is there any left" and all else leave a text unsure, and its
picture is then not mirrored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIDE = re.compile(r"(?<![A-Za-z])(left|right)(?:[- ]?most|wards?)?(?![A-Za-z])", re.IGNORECASE)
# Another direction that may stand beside a side, and the nouns that have sides.
_OTHER = r"(?:left|right|above|below|top|bottom|front|behind|back|cent(?:er|re)|middle|up|down|over|under)"
_PART = (
  r"(?:[- ]hand)?[ -](?:side|half|third|part|edge|border|corner|end|quadrant|portion|section|region|margin"
  r"|area|column|panel)\b"
)
_GOES_ON = (
  r"(?:of|and|or|to|is|are|was|were|has|have|with|than|from|in|that|which|who|does|do|appears?|looks?)\b"
)
# (what stands before, what stands behind) where a word is a side. The first that fits counts.
_PLAIN = [
  (re.compile(before + r"$", re.IGNORECASE), re.compile(behind, re.IGNORECASE))
  for before, behind in (
    # alone: a whole text, line, option or member of a list
    (r"(?:^|[\n;:/\"'“(\[]|,(?! right\?)|\([A-Z0-9]\)|\b[A-Z0-9][.)])\s*", r"\s*(?:$|[\n.,;:!)\]/\"'”])"),
    # top left, far right, lower-left
    (r"\b(?:top|bottom|upper|lower|middle|mid|cent(?:er|re)|central|far|rear)[- ]", r""),
    # on the left, to the far right of
    (
      r"\b(?:on|to|at|from|towards?|in)\s+(?:the\s+)?(?:far\s+|immediate\s+|very\s+)?",
      rf"\s*(?:$|[\n.,;:!?)\]/]|{_GOES_ON})|{_PART}",
    ),
    # the left side, the left half
    (r"", _PART),
    # left of; "what is left of the cake" is none
    (
      r"(?<!\bwhat is )(?<!\bwhat's )(?<!\bwhat was )(?<!\ball that is )(?<!\ball that's )(?<!thing )"
      r"(?<!\bany )(?<!\bsome )(?<!\bmuch )(?<!\bmore )(?<!\bmany )",
      r"\s+of\b",
    ),
    # left or right, left and above
    (r"", rf",?\s+(?:or|and)\s+(?:to the |on the |in the )?{_OTHER}\b"),
    (rf"\b{_OTHER},?\s+(?:or|and)\s+(?:to the |on the |in the )?", r"\s*(?:$|[\n.,;:!?)\]/])|\s+of\b"),
    # 0.5 m right
    (r"\d\s?(?:m|cm|metres|meters|centimetres|centimeters|feet|inches)\s+", r""),
  )
]
# An order along the picture's width, which a mirror turns round as a whole.
_ACROSS = re.compile(r"\b(left|right)[- ]to[- ](?:the )?(?!\1)(?:left|right)\b", re.IGNORECASE)
# What a mirrored picture makes wrong, or what depends on who looks.
_UNSAFE = [
  re.compile(pattern, re.IGNORECASE)
  for pattern in (
    r"\b(?:his|her|hers|their|theirs|its|your|yours|my|our|whose|one's|\w+'s|\w+s')\s+(?:own\s+)?(?:left|right)\b",
    r"\b(?:left|right)[- ]?(?:hand(?:ed|er)?(?![ -]side)|arm|leg|foot|eye|ear|shoulder|knee|wing|paw)s?\b",
    r"\b(?:anti|counter)?-?clockwise\b",
    r"\b(?:north|south)?(?:east|west)(?:ern|wards?)?\b",
    r"\b(?:turn|turns|turned|turning|rotat\w+|facing|faces|mirror\w*|reflect\w*|flipped|port|starboard)\b",
    r"\b(?:point of view|perspective of|viewpoint|stage (?:left|right)|driver|from the \w+'s)\b",
    r"\b(?:texts?|words?|letters?|reads?|reading|writ(?:e|es|ten|ing)|says?|spell\w*|signs?|caption\w*|labell?ed"
    r"|label|titles?|logos?|brands?|(?:number|name|licen[cs]e)[ -]?plates?|watermarks?|subtitles?|digits?|ocr"
    r"|jerseys?|clocks?|o'clock)\b",
    # other languages' sides
    r"\b(?:links|rechts|linke\w*|rechte\w*|gauche|droite?|izquierd[ao]|derech[ao]|sinistr[ao]|destr[ao]|esquerd[ao]"
    r"|direit[ao]|lewo|prawo|lewej|prawej|lev[áaoyé]\w*|prav[áaoyé]\w*|venstre|højre|vänster|höger)\b",
    r"лев|прав|左|右|왼|오른|يسار|يمين|बाएं|दाएं|בשמאל|בימין",
  )
]
# Places in an answer, in numbers.
_PLACES = re.compile(
  r"<(?:loc|box|bbox|ref|quad|point|coord)\w*>|[\[(]\s*\d+(?:\.\d+)?\s*(?:,\s*\d+(?:\.\d+)?\s*){1,7}[\])]"
  r"|\b[xy]_?(?:min|max|[0-3])?\s*[:=]\s*\d",
  re.IGNORECASE,
)
# Words that speak of the picture's frame, which another window on the scene moves.
_FRAME = re.compile(
  r"\b(?:corners?|edges?|borders?|half|halves|quadrants?|thirds?|cent(?:er|re)d?|middle|top|bottom|upper"
  r"|lower|(?:left|right)-?most|foreground|background|pixels?|percent(?:age)?|cropped|cut off|partially"
  r"|fully visible|(?:left|right) (?:side|part|edge))\b|%",
  re.IGNORECASE,
)
_DIRECTION = re.compile(
  r"\b(?:left|right|above|below|over|under|behind|in front|on top|higher|lower|beneath|underneath)\b",
  re.IGNORECASE,
)


def unsure(text: str) -> str:
  """The words that leave open what a text says of the mirrored picture; empty where that is plain.

  An order "from left to right" counts as unsure: `reversed_list` is for it.
  """
  for pattern in (*_UNSAFE, _ACROSS):
    if found := pattern.search(text):
      return found.group()
  for found in _SIDE.finditer(text):
    before, behind = text[: found.start()], text[found.end() :]
    # "leftmost" and "rightward" are sides wherever they stand.
    whole = found.end() - found.start() > len(found.group(1))
    if not whole and not any(b.search(before) and a.match(behind) for b, a in _PLAIN):
      return " ".join([*before.split()[-2:], found.group(), *behind.split()[:2]])
  return ""


def swapped(text: str) -> str:
  """The text with left for right and right for left, all at once, as capital as they stand."""

  def other(found: re.Match[str]) -> str:
    word, rest = found.group(1), found.group()[len(found.group(1)) :]
    side = "right" if word.lower() == "left" else "left"
    side = side.upper() if word.isupper() else side.capitalize() if word[0].isupper() else side
    return side + rest

  return _SIDE.sub(other, text)


def reversed_list(prompt: str, answer: str, count: int) -> str | None:
  """The answer to the same question of the mirrored picture, where it lists things from left to right.

  Their order is turned round, and sides of which the members speak are swapped.

  Args:
    count: members that the list must have.

  Returns:
    None where it is no such list, where the question speaks of sides beside, or where a member is `unsure`.
  """
  separator = ";" if ";" in answer else ","
  members = [member.strip() for member in answer.split(separator)]
  asks = _ACROSS.sub("", prompt)
  if not _ACROSS.search(prompt) or len(members) != count or any(map(unsure, (asks, *members))):
    return None
  if _SIDE.search(asks):
    return None
  return f"{separator} ".join(map(swapped, reversed(members)))


def places(texts: Iterable[str]) -> str:
  """Coordinates that a text holds; empty for none."""
  return next((found.group() for text in texts if (found := _PLACES.search(text))), "")


def framed(texts: Iterable[str]) -> str:
  """Words of a text that speak of the picture's frame; empty for none."""
  return next((found.group() for text in texts if (found := _FRAME.search(text))), "")


def direction(texts: Iterable[str]) -> bool:
  """Whether a text speaks of a direction in words that are known here."""
  return any(_DIRECTION.search(text) for text in texts)
