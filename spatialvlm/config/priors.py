"""What a model is told of pictures beside their pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class PriorConfig:
  """What is known of pictures beside their pixels, added to their image tokens (`docs/priors.md`).

  Attributes:
    kind: a key of `priors.PRIORS`: "rays", "depth_map", "normal_map", "positions".
    missing: of a picture that lacks what the prior needs: "refuse" ends a run by its name; "without" leaves
      its tokens as they are without the prior.
    kwargs: settings of the kind, e.g. those of `priors.positions.Positions`.
  """

  kind: str = ""
  missing: Literal["refuse", "without"] = "refuse"
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
