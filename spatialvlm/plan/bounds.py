"""How long a program takes at least, by what its devices could do at best."""

from __future__ import annotations

import dataclasses

from spatialvlm.plan.targets import Chip


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Seconds that one run of a program takes at least, of each kind of work alone; of one device.

  Attributes:
    arithmetic: products (counted) by the chip's rate of bfloat16 products.
    memory: bytes that the compiler accounts for by the memory's bandwidth.
    links: bytes that a device must be sent by what all its links bring in.
  """

  arithmetic: float
  memory: float
  links: float

  @property
  def longest(self) -> tuple[str, float]:
    """Which of them bounds the program, where all overlap, and its seconds."""
    return max(dataclasses.asdict(self).items(), key=lambda item: item[1])


def bounds(chip: Chip, flops: float, moved: float, received: float) -> Bounds:
  """Of what one device computes, moves in its memory and is sent; 0 where a rate is not published."""
  least = lambda amount, rate: amount / rate if rate else 0.0
  return Bounds(least(flops, chip.flops), least(moved, chip.bandwidth), least(received, chip.links))
