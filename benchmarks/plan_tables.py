"""The tables of docs/scale.md: compiles cell after cell, keeps each, and writes the tables anew.

  python benchmarks/plan_tables.py [--only=PART] [--most=N] [--shallow] [--tables]

Each cell is one program of one model for one kind of device (`launch/plan.py` compiles the same). What is
done is kept in benchmarks/plan.jsonl, a line a program, and is not compiled again unless its line is taken
out; so the script may be stopped at any moment and called again. `--only` takes the cells whose names hold a
text, `--most` that many of them, `--tables` none: it only writes the tables of what is there.

A whole model compiles in one to ten minutes of a core. `--shallow` compiles the same program with 2 and 4
blocks in place of all, and the tables then say, behind a `~`, what follows for the whole depth: memory,
arithmetic and messages of equal blocks grow by the same from each to the next. Cells of neither are counted
below the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spatialvlm import hub  # noqa: E402
from spatialvlm.config import MeshConfig, PeftConfig, RunConfig  # noqa: E402
from spatialvlm.configs import lora  # noqa: E402
from spatialvlm.core import axes  # noqa: E402
from spatialvlm.plan import abstract, compiled, programs, run, targets  # noqa: E402
from spatialvlm.plan.compiled import Plan  # noqa: E402
from spatialvlm.reporting import tables  # noqa: E402
from spatialvlm.types import UserError  # noqa: E402

KEPT = ROOT / "benchmarks" / "plan.jsonl"
PAGE = ROOT / "docs" / "scale.md"
GIB = 2**30
MODELS = {
  "256M": "HuggingFaceTB/SmolVLM-256M-Instruct",
  "500M": "HuggingFaceTB/SmolVLM-500M-Instruct",
  "2.2B": "HuggingFaceTB/SmolVLM-Instruct",
}
# Tokens of a row with so many tiles (81 a tile of the 2.2B model, 64 of the others) and a question.
TOKENS = {1: 192, 5: 512, 17: 1280}
TOKENS_2B = {1: 192, 5: 512, 17: 1536}
# Rows that a card takes at a time (`train.accumulation` makes larger steps of them).
ROWS = {1: 8, 5: 2, 17: 1}
# Compiled for this card; those beside it hold the same programs (compute capability 8.9), or larger ones.
CARD = "rtx4060"
HOLDING = {"8 GB": "rtx4060", "24 GB": "rtx4090", "80 GB": "h100"}
METHODS = {
  "LoRA": {},
  "QLoRA": {"quantize": "nf4"},
  "full": {"full": r".*"},
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One program.

  Attributes:
    rows: of a step, over all devices.
  """

  model: str
  method: str
  tiles: int
  rows: int
  topology: str
  program: str = "train"
  remat: bool = False
  scan: bool = False
  attention: str = "xla"
  data: int = -1
  fsdp: int = 1

  @property
  def name(self) -> str:
    mesh = f" data={self.data} fsdp={self.fsdp}" if self.fsdp > 1 else ""
    remat = " remat" if self.remat else ""
    what = f"{self.program} {self.model} {self.method} {self.tiles} tiles {self.rows} rows{remat}"
    attention = f" {self.attention}" if self.attention != "xla" else ""
    return f"{self.topology}{mesh} {what}{attention}{' scan' * self.scan}"

  @property
  def config(self) -> RunConfig:
    """configs/lora.py with this cell's model, method and sizes."""
    config, method = lora.get_config(), METHODS[self.method]
    model = dataclasses.replace(
      config.model,
      path=MODELS[self.model],
      max_tiles=self.tiles,
      quantize=method.get("quantize"),
      scan_layers=self.scan,
      attention=self.attention,
    )
    peft = PeftConfig("none", full=method["full"]) if "full" in method else config.peft
    return dataclasses.replace(
      config,
      model=model,
      peft=peft,
      train=dataclasses.replace(config.train, batch_size=self.rows, remat=self.remat),
      mesh=MeshConfig(data=self.data, fsdp=self.fsdp),
    )

  @property
  def tokens(self) -> int:
    return (TOKENS_2B if self.model == "2.2B" else TOKENS)[self.tiles]


def cells() -> Iterator[Cell]:
  """All that the tables hold, the most wanted first."""
  # Of TPUs the layers run as a loop (`model.scan_layers`): their compiler takes minutes for unrolled ones.
  slices = functools.partial(Cell, scan=True)
  for model in ("500M", "256M", "2.2B"):
    for program in ("train", "prefix"):
      yield slices(model, "LoRA", 1, 32, "v5e-8", program, data=4, fsdp=2)
  for model, remat in (("500M", False), ("2.2B", True)):
    yield slices(model, "LoRA", 17, 8, "v5e-8", remat=remat, data=4, fsdp=2)
    yield slices(model, "full", 1, 32, "v5e-8", remat=remat, data=1, fsdp=8)
  yield slices("500M", "LoRA", 17, 8, "v5e-8", data=4, fsdp=2, attention="splash")
  yield slices("500M", "LoRA", 1, 32, "v6e-8", data=4, fsdp=2)
  yield slices("500M", "LoRA", 1, 64, "v5p-128", data=32, fsdp=2)
  yield slices("500M", "LoRA", 1, 256, "v5e-256", data=128, fsdp=2)
  for model in ("500M", "2.2B", "256M"):
    for tiles, rows in ((1, 32), (17, 4)):
      for method in ("LoRA", "full"):
        yield Cell(model, method, tiles, rows, "h100")
  for tiles, program in ((1, "prefix"), (1, "decode"), (17, "prefix"), (17, "decode")):
    yield Cell("500M", "LoRA", tiles, 32, "h100", program)
  # What a card can train.
  for model in ("500M", "256M", "2.2B"):
    for method, remat in (("LoRA", False), ("QLoRA", False), ("full", False), ("LoRA", True), ("full", True)):
      for tiles, rows in ROWS.items():
        yield Cell(model, method, tiles, rows, CARD, remat=remat)


def kept() -> dict[str, Plan]:
  """Name -> plan of what was compiled."""
  if not KEPT.exists():
    return {}
  lines = map(json.loads, KEPT.read_text().splitlines())
  return {line["cell"]: compiled.from_json(line["plan"]) for line in lines}


def depths(cell: Cell, shallow: bool) -> list[tuple[int, int] | None]:
  """(blocks of the decoder, of the tower) of each program that a cell is made of; None for all of them.

  The tower of a frozen vision model is no part of its step.
  """
  if not shallow:
    return [None]
  return [(2, 2), (4, 2), *([(2, 4)] if cell.method == "full" else [])]


def name_at(cell: Cell, depth: tuple[int, int] | None) -> str:
  return cell.name + (f" at {depth[0]}+{depth[1]} blocks" if depth else "")


def folder_at(cell: Cell, depth: tuple[int, int], folder: Path) -> Path:
  """The cell's model with fewer blocks, as a folder of its config.json alone."""
  source = dict(hub.read_shape(MODELS[cell.model]).source)
  text = {**source["text_config"], "num_hidden_layers": depth[0]}
  vision = {**source["vision_config"], "num_hidden_layers": depth[1]}
  (folder / "config.json").write_text(json.dumps({**source, "text_config": text, "vision_config": vision}))
  return folder


def compile_cells(only: str, most: int, shallow: bool) -> None:
  done = kept()
  wanted = [(cell, depth) for cell in dict.fromkeys(cells()) for depth in depths(cell, shallow)]
  wanted = [(c, d) for c, d in wanted if only in c.name and not {c.name, name_at(c, d)} & done.keys()][:most]
  for number, (cell, depth) in enumerate(wanted, 1):
    name, began = name_at(cell, depth), time.perf_counter()
    try:
      with tempfile.TemporaryDirectory() as folder:
        plan = compiled_at(cell, depth, Path(folder))
    except UserError as error:
      print(f"{number}/{len(wanted)} {name}: {error}", flush=True)
      continue
    with KEPT.open("a") as file:
      file.write(json.dumps({"cell": name, "plan": compiled.to_json(plan)}) + "\n")
    said = f"{plan.needed / GIB:.2f} GiB of {plan.memory / GIB:.1f}, compiled in {plan.seconds:.0f} s"
    print(f"{number}/{len(wanted)} {name}: {said}, {time.perf_counter() - began:.0f} s", flush=True)


def compiled_at(cell: Cell, depth: tuple[int, int] | None, folder: Path) -> Plan:
  config = cell.config
  if depth:
    model = dataclasses.replace(config.model, path=str(folder_at(cell, depth, folder)))
    config = dataclasses.replace(config, model=model)
  target, sizes = targets.find(cell.topology), dict(tiles=cell.tiles, tokens=cell.tokens)
  (plan,) = run.plan(config, target, [cell.program], **sizes)
  return plan


def found(done: Mapping[str, Plan], cell: Cell) -> tuple[Plan | None, str]:
  """A cell's plan, and what stands before its numbers: "~" where they follow from fewer blocks."""
  if cell.name in done:
    return done[cell.name], ""
  parts = [done.get(name_at(cell, depth)) for depth in depths(cell, shallow=True)]
  if not all(parts):
    return None, ""
  shape = hub.read_shape(MODELS[cell.model])
  more = [(shape.text.depth - 2) / 2, (shape.vision.depth - 2) / 2][: len(parts) - 1]
  return grown(parts[0], list(zip(parts[1:], more, strict=True))), "~"


def grown(first: Plan, others: list[tuple[Plan, float]]) -> Plan:
  """A plan of more blocks: `first`, and so many times what each other one has more than it."""
  number = lambda get: get(first) + sum(times * (get(other) - get(first)) for other, times in others)
  names = ("temporaries", "needed", "donated", "flops", "compiled_flops", "moved", "seconds")
  values = {name: number(lambda plan, name=name: getattr(plan, name)) for name in names}
  held = {name: number(lambda plan, name=name: plan.held[name]) for name in first.held}
  kinds = {
    kind: {key: number(lambda plan, k=kind, key=key: plan.collectives.get(k, {}).get(key, 0)) for key in row}
    for kind, row in first.collectives.items()
  }
  of = lambda name: number(lambda plan: getattr(plan.bounds, name))
  least = dataclasses.replace(first.bounds, **{name: of(name) for name in ("arithmetic", "memory", "links")})
  return dataclasses.replace(first, **values, held=held, collectives=kinds, bounds=least, commonest=[])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--only", default="", help="cells whose names hold this")
  parser.add_argument("--most", type=int, default=10_000)
  parser.add_argument("--shallow", action="store_true", help="with 2 and 4 blocks in place of all")
  parser.add_argument("--tables", action="store_true", help="compile nothing")
  asked = parser.parse_args()
  if not asked.tables:
    compile_cells(asked.only, asked.most, asked.shallow)
  write(kept())


def write(done: Mapping[str, Plan]) -> None:
  """Puts the tables between their marks in docs/scale.md."""
  text = PAGE.read_text()
  for name, table in (("least", least()), ("slices", slices(done)), ("cards", cards(done))):
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, _, rest = text.partition(first)
    text = head + first + tables.to_markdown(table) + last + rest.partition(last)[2]
  PAGE.write_text(text)


def least() -> tables.Table:
  """What stays in memory through every step, counted from shapes: it is there before any activation."""
  import jax

  mesh = axes.make_mesh({}, jax.devices()[:1])
  names = tuple(HOLDING.values())
  held = [f"held by {targets.CHIPS[name].usable / GIB:.1f} GiB ({name})" for name in names]
  lines = []
  for model in MODELS:
    for method in METHODS:
      described = abstract.describe(Cell(model, method, 1, 8, "h100").config, mesh)
      weights, trained = map(programs.device_bytes, (described.split.frozen, described.state.params))
      moments = programs.device_bytes(described.state.opt_state)
      # All gradients are there at once, in float32, before their norm is known.
      total = weights + trained + moments + trained
      sizes = [f"{size / GIB:.2f}" for size in (weights, trained, moments, trained, total)]
      fits = ["yes" if total <= targets.CHIPS[name].usable else "no" for name in names]
      lines.append([f"{model} {method}", *sizes, *fits])
  columns = ("of one device, GiB", "frozen", "trained", "moments", "gradients", "together", *held)
  return tables.make("least", "What a step holds before any activation, bfloat16, AdamW", columns, lines)


def slices(done: Mapping[str, Plan]) -> tables.Table:
  """One row a program on a slice or a large card."""
  columns = (
    "program", "devices", "weights", "optimizer", "temporaries", "peak of memory", "TFLOP", "arithmetic",
    "memory", "links", "messages",
  )  # fmt: skip
  rows, left = [], 0
  for cell in dict.fromkeys(cells()):
    if cell.topology == CARD:
      continue
    mesh = f", fsdp={cell.fsdp}" if cell.fsdp > 1 else ""
    of = {
      "train": f"step of {cell.rows} rows",
      "prefix": "prefill of 32 prompts",
      "decode": "32 rows a token",
    }
    more = ", remat" * cell.remat + f", {cell.attention}" * (cell.attention != "xla")
    what = f"{cell.model} {cell.method}{more}, {cell.tiles} tile{'s' * (cell.tiles > 1)}: {of[cell.program]}"
    head = [what, cell.topology + mesh + ", loop" * cell.scan]
    plan, about = found(done, cell)
    if plan:
      rows.append([*head, *_figures(plan, about)])
    else:
      left += 1
  title = "Programs on slices and on one H100, of one device"
  return tables.make("slices", title, columns, rows, note=_left(left))


def _left(count: int) -> str:
  return f"Not compiled yet: {count} more rows that the script lists." if count else ""


def _figures(plan: Plan, about: str) -> list[str]:
  gib = lambda size: f"{about}{size / GIB:.2f} GiB"
  ms = lambda seconds: f"{about}{1e3 * seconds:.3g} ms"
  trained = plan.held.get("trained", 0) + plan.held.get("optimizer", 0)
  sent = sum(kind["times"] for kind in plan.collectives.values())
  kinds = ", ".join(f"{about}{round(kind['times'])} {name}" for name, kind in plan.collectives.items())
  return [
    gib(plan.held["weights"]),
    gib(trained),
    gib(plan.temporaries) if plan.temporaries else "",
    _peak(plan, about),
    f"{about}{plan.flops / 1e12:.3g}",
    ms(plan.bounds.arithmetic),
    ("≥ " if plan.loops else "") + ms(plan.bounds.memory) if plan.moved else "",
    ms(plan.bounds.links) if sent else "",
    kinds,
  ]


def _peak(plan: Plan, about: str) -> str:
  said = f"{about}{plan.needed / GIB:.2f} of {plan.memory / GIB:.1f} GiB"
  return said if plan.fits else f"{said}: does not fit"


def cards(done: Mapping[str, Plan]) -> tables.Table:
  """What a card can train: the peak of a step of a few rows, and the smallest card that holds it."""
  wanted = [cell for cell in dict.fromkeys(cells()) if cell.topology == CARD]
  heads = [f"{rows} row{'s' * (rows > 1)} of {tiles} tile{'s' * (tiles > 1)}" for tiles, rows in ROWS.items()]
  lines, left = [], 0
  for cell in dict.fromkeys(dataclasses.replace(c, tiles=0, rows=0) for c in wanted):
    plans = [found(done, dataclasses.replace(cell, tiles=t, rows=r)) for t, r in ROWS.items()]
    if not any(plan for plan, _ in plans):
      left += 1
      continue
    method = cell.method + (", remat" if cell.remat else "")
    lines.append(
      [cell.model, method, *(_card(plan, about) if plan else "not compiled" for plan, about in plans)]
    )
  title = "What a card can train: peak of memory of one step, and the smallest card that holds it"
  return tables.make("cards", title, ("model", "method", *heads), lines, note=_left(left))


def _card(plan: Plan, about: str) -> str:
  holding = [size for size, name in HOLDING.items() if plan.needed <= targets.CHIPS[name].usable]
  return f"{about}{plan.needed / GIB:.2f} GiB: {holding[0] if holding else 'none'}"


if __name__ == "__main__":
  main()
