"""The tables of docs/scale.md: compiles cell after cell, keeps each, and writes the tables anew.

  python benchmarks/plan_tables.py [--only=PART] [--most=N] [--tables]

Each cell is one program of one model for one kind of device (`launch/plan.py` compiles the same). What is
done is kept in benchmarks/plan.jsonl, a line a cell, and is not compiled again unless its line is taken out;
so the script may be stopped at any moment and called again. `--only` takes the cells whose names hold a text,
`--most` that many of them, `--tables` none: it only writes the tables of what is there. A cell that was not
compiled stands in its table as such. Compiling takes one to ten minutes a cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spatialvlm.config import MeshConfig, PeftConfig, RunConfig  # noqa: E402
from spatialvlm.configs import lora  # noqa: E402
from spatialvlm.plan import compiled, run, targets  # noqa: E402
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
  data: int = -1
  fsdp: int = 1

  @property
  def name(self) -> str:
    mesh = f" data={self.data} fsdp={self.fsdp}" if self.fsdp > 1 else ""
    remat = " remat" if self.remat else ""
    rows = f" {self.rows} rows"
    return f"{self.topology}{mesh} {self.program} {self.model} {self.method} {self.tiles} tiles{rows}{remat}"

  @property
  def config(self) -> RunConfig:
    """configs/lora.py with this cell's model, method and sizes."""
    config, method = lora.get_config(), METHODS[self.method]
    model = dataclasses.replace(
      config.model, path=MODELS[self.model], max_tiles=self.tiles, quantize=method.get("quantize")
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
  for model in ("500M", "256M", "2.2B"):
    for program in ("train", "prefix", "decode"):
      yield Cell(model, "LoRA", 1, 32, "v5e-8", program, data=4, fsdp=2)
  for model in ("500M", "2.2B", "256M"):
    for tiles, rows in ((1, 32), (17, 4)):
      for method in ("LoRA", "full"):
        yield Cell(model, method, tiles, rows, "h100")
  for model in ("500M", "2.2B"):
    yield Cell(model, "full", 1, 32, "v5e-8", data=1, fsdp=8)
    yield Cell(model, "LoRA", 17, 8, "v5e-8", data=4, fsdp=2)
  yield Cell("500M", "LoRA", 1, 32, "v6e-8", data=4, fsdp=2)
  yield Cell("500M", "LoRA", 1, 64, "v5p-128", data=32, fsdp=2)
  yield Cell("500M", "LoRA", 1, 256, "v5e-256", data=128, fsdp=2)
  # What a card can train: the least, one row at a time, and how much each further row takes.
  for topology in ("rtx4060", "rtx4090"):
    for model in ("500M", "256M", "2.2B"):
      for tiles in (1, 5, 17):
        for method in ("LoRA", "QLoRA", "full"):
          for remat in (False, True):
            for rows in (1, 2):
              yield Cell(model, method, tiles, rows, topology, remat=remat)


def kept() -> dict[str, Plan]:
  """Name -> plan of what was compiled."""
  if not KEPT.exists():
    return {}
  lines = map(json.loads, KEPT.read_text().splitlines())
  return {line["cell"]: compiled.from_json(line["plan"]) for line in lines}


def compile_cells(only: str, most: int) -> None:
  done = kept()
  wanted = [cell for cell in dict.fromkeys(cells()) if only in cell.name and cell.name not in done][:most]
  for number, cell in enumerate(wanted, 1):
    began = time.perf_counter()
    try:
      found = list(
        run.plan(
          cell.config, targets.find(cell.topology), [cell.program], tiles=cell.tiles, tokens=cell.tokens
        )
      )
    except UserError as error:
      print(f"{number}/{len(wanted)} {cell.name}: {error}", flush=True)
      continue
    with KEPT.open("a") as file:
      for plan in found:
        file.write(json.dumps({"cell": cell.name, "plan": compiled.to_json(plan)}) + "\n")
        said = f"{plan.needed / GIB:.2f} GiB of {plan.memory / GIB:.1f}, compiled in {plan.seconds:.0f} s"
        print(f"{number}/{len(wanted)} {cell.name}: {said}, {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--only", default="", help="cells whose names hold this")
  parser.add_argument("--most", type=int, default=10_000)
  parser.add_argument("--tables", action="store_true", help="compile nothing")
  asked = parser.parse_args()
  if not asked.tables:
    compile_cells(asked.only, asked.most)
  write(kept())


def write(done: Mapping[str, Plan]) -> None:
  """Puts the tables between their marks in docs/scale.md."""
  text = PAGE.read_text()
  for name, table in (("slices", slices(done)), ("cards", cards(done))):
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, _, rest = text.partition(first)
    text = head + first + tables.to_markdown(table) + last + rest.partition(last)[2]
  PAGE.write_text(text)


def slices(done: Mapping[str, Plan]) -> tables.Table:
  """One row a program on a slice or a large card."""
  columns = (
    "program", "devices", "weights", "optimizer", "temporaries", "peak of memory", "TFLOP", "arithmetic",
    "memory", "links", "messages", "compiled in",
  )  # fmt: skip
  rows = []
  for cell in dict.fromkeys(cells()):
    if cell.topology.startswith("rtx"):
      continue
    mesh = f", fsdp={cell.fsdp}" if cell.fsdp > 1 else ""
    of = {
      "train": f"step of {cell.rows} rows",
      "prefix": "prefill of 32 prompts",
      "decode": "32 rows a token",
    }
    what = f"{cell.model} {cell.method}, {cell.tiles} tile{'s' * (cell.tiles > 1)}: {of[cell.program]}"
    head = [what, cell.topology + mesh]
    plan = done.get(cell.name)
    rows.append([*head, *(_figures(plan) if plan else ["not compiled", *[""] * 9])])
  return tables.make("slices", "Programs on slices and on one H100, of one device", columns, rows)


def _figures(plan: Plan) -> list[str]:
  gib = lambda size: f"{size / GIB:.2f}"
  ms = lambda seconds: f"{1e3 * seconds:.3g} ms"
  trained = plan.held.get("trained", 0) + plan.held.get("optimizer", 0)
  sent = sum(kind["times"] for kind in plan.collectives.values())
  fits = f"{gib(plan.needed)} of {gib(plan.memory)} GiB" + ("" if plan.fits else ": too little")
  kinds = ", ".join(f"{int(kind['times'])} {name}" for name, kind in plan.collectives.items())
  return [
    gib(plan.held["weights"]),
    gib(trained),
    gib(plan.temporaries) if plan.temporaries else "",
    fits,
    f"{plan.flops / 1e12:.3g}",
    ms(plan.bounds.arithmetic),
    ms(plan.bounds.memory) if plan.moved else "",
    ms(plan.bounds.links) if sent else "",
    kinds,
    f"{plan.seconds:.0f} s",
  ]


def cards(done: Mapping[str, Plan]) -> tables.Table:
  """What fits a card: memory at one row, and how many rows of a step fit at a time."""
  wanted = [cell for cell in dict.fromkeys(cells()) if cell.topology.startswith("rtx")]
  columns = ("model", "card", "method", *(f"{t} tile{'s' * (t > 1)}" for t in TOKENS))
  rows = []
  for cell in dict.fromkeys(dataclasses.replace(c, tiles=0, rows=0) for c in wanted):
    found = [_fits(done, dataclasses.replace(cell, tiles=tiles)) for tiles in TOKENS]
    method = cell.method + (", remat" if cell.remat else "")
    rows.append([cell.model, targets.find(cell.topology).chip.what, method, *found])
  return tables.make("cards", "What a card can train: peak of one row, and how many rows fit", columns, rows)


def _fits(done: Mapping[str, Plan], cell: Cell) -> str:
  one, two = (done.get(dataclasses.replace(cell, rows=rows).name) for rows in (1, 2))
  if one is None:
    return "not compiled"
  said = f"{one.needed / GIB:.1f} GiB"
  if not one.fits:
    return f"no: {said}"
  if two is None or two.needed <= one.needed:
    return f"{said}: 1 row"
  most = 1 + int((one.memory - one.needed) // (two.needed - one.needed))
  return f"{said}: {most} row{'s' * (most > 1)}"


if __name__ == "__main__":
  main()
