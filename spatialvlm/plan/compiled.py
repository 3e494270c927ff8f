"""What a compiler says of one program, and what we count of it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

from jax.errors import JaxRuntimeError

from spatialvlm.plan import collectives
from spatialvlm.plan.bounds import Bounds, bounds
from spatialvlm.plan.programs import Traced, device_bytes
from spatialvlm.plan.targets import Target
from spatialvlm.training import flops
from spatialvlm.training.step import program_bytes
from spatialvlm.types import UserError

# Of temporaries alone, where these by themselves are too much.
_USED = re.compile(r"(?:Used |required for HLO temporaries \()([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
  """One program on one target; bytes, operations and seconds are of one device and one run of the program.

  Attributes:
    program: of `programs.PROGRAMS`; `target`: a name of `targets`; `mesh`: sizes by axis.
    rows: rows (of `vision` and `encode` tiles) that one run takes, over all devices; of `vision` one round.
    rounds: runs, or turns of its loop, for one batch.
    held: bytes by what they are, counted: weights, trained, optimizer, batch, cache. They stay while it runs,
      also where this program reads only a part of them.
    temporaries: compiled; 0 where the compiler refused the program for its memory.
    needed: bytes at the peak: held, results that take no argument's place, and temporaries; `memory`: bytes
      that the device offers. Where the compiler refused, what it says that it needs.
    donated: bytes of results that take the place of an argument, compiled.
    flops: of matrix products, counted; `compiled_flops`: the compiler's own count.
    moved: bytes that operations read and write, compiled; `loops`: how many loops' bodies are in it once.
    collectives: by kind, `collectives.summed`; `commonest`: of `collectives.commonest`.
    bounds: at least so many seconds, of each kind of work.
    seconds: that compiling took, measured here.
  """

  program: str
  target: str
  device: str
  devices: int
  mesh: Mapping[str, int]
  shapes: Mapping[str, int]
  rows: int
  rounds: int
  held: Mapping[str, int]
  temporaries: int
  needed: int
  memory: int
  donated: int
  flops: float
  compiled_flops: float
  moved: float
  loops: int
  collectives: Mapping[str, Mapping[str, float]]
  commonest: list[Mapping[str, Any]]
  bounds: Bounds
  seconds: float

  @property
  def fits(self) -> bool:
    """Whether it runs there; of a processor, whose memory is not asked for, always."""
    return self.needed <= self.memory or not self.memory


def compile_for(name: str, made: Traced, target: Target, mesh: Any, shapes: Any, dump: Any = None) -> Plan:
  """Compiles a program for the devices of a mesh.

  Args:
    dump: folder in which the optimised program is left as text; None for nowhere.

  Raises:
    UserError: the compiler fails, for anything but memory.
  """
  held = {group: device_bytes(tree) for group, tree in made.groups.items()}
  counted = flops.count(made.traced.jaxpr) / mesh.size
  started = time.perf_counter()
  try:
    compiled = made.traced.lower().compile()
  except JaxRuntimeError as error:
    needed = refused(str(error))
    if needed is None:
      why = " ".join(str(error).split())[:300]
      raise UserError(f"{name} for {target.name}: the compiler fails: {why}") from None
    compiled = None
  seconds = time.perf_counter() - started
  common = dict(
    program=name,
    target=target.name,
    device=target.chip.what,
    devices=mesh.size,
    mesh={axis: int(size) for axis, size in mesh.shape.items()},
    shapes=dataclasses.asdict(shapes),
    rows=made.rows,
    rounds=made.rounds,
    held=held,
    memory=target.chip.usable,
    flops=counted,
    seconds=seconds,
  )
  if compiled is None:
    nothing = dict(temporaries=0, donated=0, compiled_flops=0.0, moved=0.0, loops=0)
    made_of = dict(collectives={}, commonest=[], bounds=bounds(target.chip, counted, 0.0, 0.0))
    return Plan(needed=needed, **common, **nothing, **made_of)
  memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
  if dump is not None:
    (dump / f"{name}.{target.name.replace(':', '-')}.hlo.txt").write_text(text)
  found = collectives.read(text, mesh.size)
  moved = float(cost.get("bytes accessed", 0.0))
  # Arguments that the program does not read are no part of its own account, and lie there all the same.
  unread = max(0, sum(held.values()) - int(memory.argument_size_in_bytes))
  return Plan(
    temporaries=int(memory.temp_size_in_bytes),
    needed=program_bytes(compiled) + unread,
    donated=int(memory.alias_size_in_bytes),
    compiled_flops=max(0.0, float(cost.get("flops", 0.0))),
    moved=moved,
    loops=collectives.loops(text),
    collectives=collectives.summed(found),
    commonest=[dataclasses.asdict(one) | {"number": n} for one, n in collectives.commonest(found)],
    bounds=bounds(target.chip, counted, moved, sum(one.received for one in found)),
    **common,
  )


def refused(message: str) -> int | None:
  """Bytes that a program needs whose compiler refuses it for want of memory; None of another error."""
  if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
    return None
  found = _USED.search(message)
  return int(float(found[1]) * _UNITS[found[2]]) if found else None


def to_json(plan: Plan) -> dict[str, Any]:
  """As JSON values."""
  return dataclasses.asdict(plan) | {"fits": plan.fits}


def from_json(said: Mapping[str, Any]) -> Plan:
  """What `to_json` gave."""
  fields = {name: value for name, value in said.items() if name != "fits"}
  return Plan(**fields | {"bounds": Bounds(**said["bounds"])})
