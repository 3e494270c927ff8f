"""Plans as tables."""

from __future__ import annotations

from collections.abc import Sequence

from spatialvlm.plan.compiled import Plan
from spatialvlm.reporting import tables

GIB, MIB = 2**30, 2**20
NOTE = (
  "Of one device and one run of a program. Memory, bytes moved and messages are the compiler's account,"
  " FLOPs are counted from shapes, compile seconds measured here; bounds are what each kind of work takes at"
  " least, at the chip's published rates. Nothing was run."
)


def table(plans: Sequence[Plan]) -> tables.Table:
  """Programs of one target, a row each."""
  first = plans[0]
  mesh = " x ".join(f"{axis}={size}" for axis, size in first.mesh.items() if size > 1) or "one device"
  size = first.shapes
  title = (
    f"{first.target}: {first.devices} x {first.device}, {mesh}; rows of {size['tokens']} tokens with"
    f" {size['tiles']} tile(s), {size['batch']} a step, {size['asked']} asked together"
  )
  columns = (
    "program", "weights", "optimizer", "other", "temporaries", "peak", "of", "fits", "TFLOP", "GB moved",
    "messages", "MB received", "arithmetic ms", "memory ms", "links ms", "compiled in",
  )  # fmt: skip
  return tables.make("plan", title, columns, [_row(plan) for plan in plans], note=NOTE)


def _row(plan: Plan) -> list[str | tables.Cell]:
  gib = lambda count: f"{count / GIB:.2f} GiB"
  trained = plan.held.get("trained", 0) + plan.held.get("optimizer", 0)
  weights = plan.held.get("weights", 0)
  other = sum(plan.held.values()) - weights - trained
  fits = tables.Cell("yes", "good") if plan.fits else tables.Cell("no", "bad")
  limit = gib(plan.memory) if plan.memory else ""
  head = [_name(plan), gib(weights), gib(trained), gib(other)]
  tail = [f"{plan.seconds:.0f} s"]
  if not plan.collectives and not plan.moved:  # refused for its memory
    empty = ["", gib(plan.needed), limit, fits, _short(plan.flops / 1e12), "", "", ""]
    return [*head, *empty, _ms(plan.bounds.arithmetic), "", "", *tail]
  sent = plan.collectives.values()
  received = sum(kind["received"] for kind in sent)
  middle = [gib(plan.temporaries), gib(plan.needed), limit, fits]
  work = [_short(plan.flops / 1e12), ("≥ " if plan.loops else "") + _short(plan.moved / 1e9)]
  links = [str(int(sum(kind["times"] for kind in sent))), _short(received / 1e6)]
  bounds = [_ms(plan.bounds.arithmetic), _ms(plan.bounds.memory), _ms(plan.bounds.links)]
  return [*head, *middle, *work, *links, *bounds, *tail]


def messages(plan: Plan) -> tables.Table:
  """What devices send each other in one run of a program: by kind, then the operations that send most."""
  rows = [
    [
      kind,
      str(int(row["operations"])),
      str(int(row["times"])),
      str(int(row["overlapped"])),
      _short(row["bytes"] / 1e6),
      _short(row["received"] / 1e6),
    ]
    for kind, row in plan.collectives.items()
  ]
  rules = (len(rows) - 1,)
  rows += [
    [
      f"{one['kind']} {one['shape'][:60]} of {one['group']}",
      str(one["number"]),
      str(one["number"] * one["times"]),
      str(one["number"] * one["times"] * one["overlapped"]),
      _short(one["number"] * one["times"] * one["bytes"] / 1e6),
      "",
    ]
    for one in plan.commonest
  ]
  columns = ("between devices", "operations", "times", "overlapped", "MB of results", "MB received")
  return tables.make("messages", f"{plan.program}, {plan.target}: what devices send", columns, rows, rules)


def _name(plan: Plan) -> str:
  """The program, with how often it runs for one batch."""
  return plan.program + (f" (x {plan.rounds} a step)" if plan.rounds > 1 else "")


def _ms(seconds: float) -> str:
  return _short(1e3 * seconds)


def _short(value: float) -> str:
  """Three digits that count."""
  if not value:
    return "0"
  return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
