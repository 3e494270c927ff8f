"""What can be said of changes of place before a run: data that none is legal for, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spatialvlm.data.augment import legality
from spatialvlm.types import Example, UserError

# Examples of each source that are looked at.
LOOKED_AT = 32


def check_source(name: str, examples: Sequence[Example], moves: Sequence[str]) -> list[str]:
  """Looks at the first examples of a source.

  Args:
    moves: settings of `AugmentConfig` that move pictures.

  Returns:
    Notes, a line for each change that leaves some of them as they are.

  Raises:
    UserError: a change that can be made of none of them.
  """
  notes = []
  for change in moves if examples else ():
    reasons = Counter(filter(None, (legality.obstacle(example, change) for example in examples)))
    if reasons.total() == len(examples):
      raise UserError(
        f"data source {name!r}: config.data.augment.{change}: none of {len(examples)} examples can be changed"
        f" so, since {reasons.most_common(1)[0][0]} (docs/geometry.md); set it to 0, or name other sources in"
        " config.data.augment.sources"
      )
    if reasons:
      said = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
      notes.append(
        f"data source {name!r}: augment.{change} leaves {reasons.total()} of {len(examples)} examples as they"
        f" are: {said}"
      )
  return notes
