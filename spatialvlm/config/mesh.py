"""On which devices a run computes."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the device mesh's axes; -1 in one of them takes the devices that remain.

  Attributes:
    data: devices that take a share of each batch and hold the whole model.
    fsdp: devices that take a share of each batch and of every weight, which is gathered where it is needed.
    tensor: devices that share a layer's heads and hidden units, and compute their parts of each example.
    cpu_devices: devices that this computer's processor counts as, for a run without an accelerator; 0 for as
      many as `XLA_FLAGS` says, otherwise one. A small model's steps are too small for one device to fill two
      cores; two devices fill them.
    whole: parts of the model, of "vision", "connector" and "decoder", whose weights each device holds whole
      along `fsdp` all the same: nothing of them is gathered in a pass, for the memory that they take.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  cpu_devices: int = 0
  whole: tuple[Literal["vision", "connector", "decoder"], ...] = ()
