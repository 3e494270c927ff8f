"""What devices send each other, read out of a compiled program's text.

An operation is told by its channel: compilers write one operation several times, fused or split into a start
and an end, and the copies share its channel. What stands in the body of a loop is sent in every turn of it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

# Bits of a number.
_BITS = {
  **{
    "pred": 8,
    "s2": 2,
    "u2": 2,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "s32": 32,
    "u32": 32,
  },
  **{"s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}
KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
)
# What a TPU's compiler calls a fusion of products with a part of an operation between devices.
_BESIDE = "async_collective_fusion"
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\([^\n]*\) -> [^\n]*)?\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_WHILE = " while("
_LIMIT = re.compile(r"compare\(.*direction=LT")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"n":"?(\d+)')
_SHAPE = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
# Sizes of a mesh, and after the order of its devices the axes, or parts of axes, that a group goes along.
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation between devices.

  Attributes:
    kind: of `KINDS`.
    shape: of what one device has afterwards, with its type; of several arrays in one operation, all of them.
    bytes: of that.
    group: how many devices take part in one exchange.
    times: how often it is done in one run of the program.
    overlapped: whether the compiler has it run beside other work: in a fusion with products (TPU), or between
      a start and an end.
  """

  kind: str
  shape: str
  bytes: int
  group: int
  times: int = 1
  overlapped: bool = False

  @property
  def received(self) -> float:
    """Bytes that one device must at least be sent, over all turns, whatever the algorithm."""
    others = (self.group - 1) / self.group if self.group else 0.0
    factor = {
      "all-reduce": 2 * others,
      "reduce-scatter": others * self.group,
      "collective-permute": 1.0,
    }.get(self.kind, others)
    return factor * self.bytes * self.times


def read(text: str, devices: int) -> list[Collective]:
  """The collectives of an optimised program, in HLO's text form, each channel once.

  Args:
    devices: of the whole program, the group of an operation that names none.
  """
  computations = _computations(text)
  turns = _turns(computations)
  found: dict[object, Collective] = {}
  beside: set[object] = set()
  for name, lines in computations.items():
    for line in lines:
      match = _OPERATION.match(line)
      kind = match and match[3].removesuffix("-start")
      if kind not in KINDS:
        continue
      shapes = _results(match[2], match[3].endswith("-start"), kind)
      channel = re.search(r"channel_id=(\d+)", line)
      key = int(channel[1]) if channel else (name, match[1])
      if match[3].endswith("-start") or name.startswith(_BESIDE):
        beside.add(key)
      size = sum(map(_bytes, shapes))
      made = Collective(kind, " ".join(shapes), size, _group(line, devices), turns.get(name, 1))
      # Of copies the one that says most: a fused one may be split in parts.
      if key not in found or found[key].bytes < made.bytes:
        found[key] = made
  whole = {key: dataclasses.replace(one, overlapped=key in beside) for key, one in found.items()}
  return [one for one in whole.values() if one.group > 1]


def summed(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
  """By kind: how many operations, how often they are done, how many of these overlap with other work, bytes
  of their results, bytes received."""
  out: dict[str, dict[str, float]] = {}
  for one in found:
    row = out.setdefault(
      one.kind, {"operations": 0, "times": 0, "overlapped": 0, "bytes": 0, "received": 0.0}
    )
    row["operations"] += 1
    row["times"] += one.times
    row["overlapped"] += one.times * one.overlapped
    row["bytes"] += one.bytes * one.times
    row["received"] += one.received
  return {kind: out[kind] for kind in KINDS if kind in out}


def commonest(found: Iterable[Collective], count: int = 16) -> list[tuple[Collective, int]]:
  """Equal operations together with their number, those first that send most."""
  numbers = collections.Counter(found)
  return sorted(numbers.items(), key=lambda item: -item[0].received * item[1])[:count]


def loops(text: str) -> int:
  """How many loops turn more often than once, so that a count of each operation once says too little."""
  computations = _computations(text)
  return sum(
    _trips(line, computations) != 1 for lines in computations.values() for line in lines if _WHILE in line
  )


def _computations(text: str) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  current: list[str] | None = None
  for line in text.splitlines():
    if current is None and line.rstrip().endswith("{") and (match := _COMPUTATION.match(line.rstrip())):
      current = found.setdefault(match[1], [])
    elif line.startswith("}"):
      current = None
    elif current is not None:
      current.append(line)
  return found


def _turns(computations: Mapping[str, list[str]]) -> dict[str, int]:
  """How often each computation runs in one run of the program."""
  callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
  for name, lines in computations.items():
    for line in lines:
      trips = (_trips(line, computations) or 1) if _WHILE in line else 1
      for callee in _callees(line):
        callers[callee].append((name, trips))
  known: dict[str, int] = {}

  def turns(name: str) -> int:
    if name not in known:
      known[name] = 1  # of a program's entry; and against circles, which HLO does not have
      above = [turns(caller) * trips for caller, trips in callers[name]]
      known[name] = max(above, default=1)
    return known[name]

  return {name: turns(name) for name in computations}


def _trips(line: str, computations: Mapping[str, list[str]]) -> int | None:
  """How often a loop turns; None where it does not say.

  Compilers for GPUs and CPUs write it beside the loop. That for TPUs does not, but there is the loop's
  condition: a counter, which jax begins at zero, that is less than a constant.
  """
  if match := _TRIPS.search(line):
    return int(match[1])
  condition = computations.get(match[1], []) if (match := _CONDITION.search(line)) else []
  compared = next((said for said in condition if _LIMIT.search(said)), "")
  constants = [match for said in condition if (match := _CONSTANT.search(said))]
  limits = [int(match[2]) for match in constants if f"%{match[1]})" in compared]
  return limits[0] if len(limits) == 1 else None


def _callees(line: str) -> Iterator[str]:
  for match in itertools.chain(_CALLED.finditer(line), _BRANCHES.finditer(line)):
    yield from (name.strip(" %") for name in (match[1] or match[2]).split(","))


def _results(said: str, start: bool, kind: str) -> list[str]:
  """The shapes of an operation's result; of a start, which gives its operands too, of the results alone."""
  parts = _parts(said)
  if start and kind in ("all-gather", "collective-permute") and len(parts) > 1:
    parts = _parts(parts[1])
  return [f"{kind_}[{sizes}]" for part in parts for kind_, sizes in _SHAPE.findall(_bare(part))]


def _bare(part: str) -> str:
  """Without layouts, whose tiles look like shapes."""
  return re.sub(r"\{[^{}]*\}", "", part)


def _parts(said: str) -> list[str]:
  """The members of a tuple's type, its outermost brackets taken off; of another type itself alone."""
  said = said.strip()
  if not said.startswith("("):
    return [said]
  depth, parts, begin = 0, [], 1
  for place, letter in enumerate(said):
    if letter in "({[":
      depth += 1
    elif letter in ")}]":
      depth -= 1
    if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
      parts.append(said[begin:place].strip())
      begin = place + 1
  return [re.sub(r"/\*.*?\*/", "", part).strip() for part in parts if part]


def _bytes(shape: str) -> int:
  kind, sizes = _SHAPE.match(shape).groups()
  bits = _BITS.get(kind, 8)  # all other types are of 8 bits
  return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _group(line: str, devices: int) -> int:
  if match := _IOTA.search(line):
    return int(match[2])
  if match := _LISTED.search(line):
    return len(match[1].split(","))
  if match := _MESH.search(line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    along = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part or sizes[axis]) for axis, part in along)
  if "source_target_pairs" in line:
    return 2
  return devices
