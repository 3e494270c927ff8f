"""How a model computes, apart from what: settings that are put on a model after it was built or loaded.

None of them changes what a model stands for; numbers agree to rounding. They are static attributes of its
modules, so a model that was split by `nnx.split` before keeps those that it had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from flax import nnx
from jax.sharding import Mesh

from spatialvlm.core import axes, scan
from spatialvlm.core.attention import IMPLEMENTATIONS, Attention
from spatialvlm.core.block import Stack
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import UserError

Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Execution:
  """Settings of all blocks of a model.

  Attributes:
    attention: a key of `core.attention.IMPLEMENTATIONS`: "xla", "blocked", "whole", "cudnn" or "splash".
    remat: recompute activations in the backward pass instead of keeping them.
    scan: neighbouring blocks of one kind run as a loop (`core.scan`), which the compiler sees once.
  """

  attention: str = "xla"
  remat: bool = False
  scan: bool = False

  def check(self, dtype: str, softcap: float | None = None) -> None:
    """Raises a UserError where a model of this dtype, with this bound on scores, cannot run so here.

    Callers that are about to load weights ask first, so that a wrong word does not cost a long load.
    """
    if self.attention not in IMPLEMENTATIONS:
      *names, last = IMPLEMENTATIONS
      raise UserError(f"attention {self.attention!r}: expected {', '.join(names)} or {last}")
    if why := IMPLEMENTATIONS[self.attention].refuses(dtype, softcap):
      raise UserError(f"attention {self.attention}: {why}; use xla")


def apply(model: Model, execution: Execution) -> Model:
  """Sets a model's blocks, in place, and returns it. Adapters on their layers do not matter.

  Args:
    model: a `Vlm`, a vision encoder, or any module with blocks.

  Raises:
    UserError: as `Execution.check`, or a loop over blocks no two of which stand beside another of their kind;
      the model is left as it was.
  """
  modules = [module for _, module in nnx.iter_modules(model)]
  attentions = [module for module in modules if isinstance(module, Attention)]
  for attention in attentions:
    execution.check(attention.q_proj.kernel.dtype.name, attention.config.softcap)
  stacks = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, Stack)}
  if execution.scan:
    for path, stack in stacks.items():
      _check_loop(".".join(map(str, path)), stack)
  for attention in attentions:
    attention.implementation = execution.attention
  for stack in stacks.values():
    stack.remat, stack.scan = execution.remat, execution.scan
  return model


def keep_whole(vlm: Vlm, parts: Sequence[str], mesh: Mesh) -> Vlm:
  """Has each device hold these parts of a model whole, in place, and returns it (`MeshConfig.whole`).

  Raises:
    UserError: the model has no such part; it is left as it was.
  """
  found = {name: getattr(vlm, name, None) for name in parts}
  if absent := [name for name, part in found.items() if part is None]:
    raise UserError(f"config.mesh.whole: {', '.join(absent)}: the model has none; leave it out")
  for part in found.values():
    axes.keep_whole(part, mesh)
  return vlm


def _check_loop(name: str, stack: Stack) -> None:
  depth = len(stack.layers)
  if depth > 1 and len(list(scan.runs([scan.parts(layer) for layer in stack.layers]))) == depth:
    raise UserError(
      f"model.scan_layers: of the {depth} blocks of {name} no two neighbours are of one kind, so there is"
      " nothing to loop over; adapt neighbouring blocks alike, or leave it off"
    )
