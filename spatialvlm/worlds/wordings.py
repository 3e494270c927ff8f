"""How CV-Bench's four kinds of question are worded: its own template first, and others that say the same.

A model that learned from one wording may have learned that wording. `ScenesConfig.wordings` says how many are
asked in turn; 1 is CV-Bench's own alone, which is what benchmarks ask. All others are made of words that the
templates and skills have, so that the small tokenizers know them.

A further wording is one more line below. Names in braces are those of the kind's first line.
"""

from __future__ import annotations

from spatialvlm.types import UserError

COUNT = "How many {x} are in the image?"
RELATION_MARK = " (annotated by the {A} box)"
WORDINGS: dict[str, tuple[str, ...]] = {
  "Count": (
    COUNT,
    "How many {x} can you see in this picture?",
    "What is the number of {x} in the photo?",
    "How many {x} are there in this photo?",
  ),
  "Relation": (
    "Considering the relative positions of the {a}{mark} and the {b} in the image provided, where is the {a} "
    "located with respect to the {b}?",
    "Where is the {a}{mark} in the picture, with respect to the {b}?",
    "In this photo, where is the {a}{mark} relative to the {b}?",
    "There are a {b} and a {a}{mark} in the image. From the {b}, where is the {a}?",
  ),
  "Depth": (
    "Which object is closer to the camera taking this photo, the {a} (highlighted by a {A} box) or the {b} "
    "(highlighted by a {B} box)?",
    "Which is nearer, the {a} in the {A} box or the {b} in the {B} box?",
    "Of the {a} ({A} box) and the {b} ({B} box), which object is closer to the camera?",
    "This picture is of a {a} in a {A} box and a {b} in a {B} box. What is nearest to the camera?",
  ),
  "Distance": (
    "Estimate the real-world distances between objects in this image. Which object is closer to the {r} "
    "(highlighted by a {R} box), the {a} (highlighted by a {A} box) or the {b} (highlighted by a {B} box)?",
    "Which is nearer to the {r} in the {R} box, the {a} in the {A} box or the {b} in the {B} box?",
    "Of the {a} ({A} box) and the {b} ({B} box), which object is closer to the {r} ({R} box)?",
    "There is a {r} in the {R} box. What is nearest to the {r}, the {a} ({A} box) or the {b} ({B} box)?",
  ),
}
MOST = min(map(len, WORDINGS.values()))
# So many groups of one text come before the next wording: what else runs through the groups (`questions`)
# runs through each wording.
_GROUPS = 4


def check(count: int) -> None:
  """Raises a UserError where there are not so many wordings."""
  if not 1 <= count <= MOST:
    raise UserError(
      f"wordings: {count}: there are {MOST} of each kind (worlds/wordings.py); 1 is CV-Bench's own alone"
    )


def turn(group: int, count: int) -> int:
  """Which of `count` wordings a group of questions has, whose text is one."""
  return group // _GROUPS % count
