"""Which room may import what (docs/architecture.md): allow-lists, read off the imports of every file."""

import ast
import dataclasses
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Room:
  """What the files of a room may import beside the standard library: rooms of ours, other packages."""

  ours: frozenset[str]
  packages: frozenset[str]


def room(ours: str = "", packages: str = "") -> Room:
  return Room(frozenset(ours.split()), frozenset(packages.split()))


GROUND = "types config agreed workdir mixture"
MODEL = "types config core models"
EVALUATION = "evaluation evaluation.records evaluation.asking evaluation.scoring evaluation.report"
# A file is of the room with the longest name that fits its place: `evaluation/records.py` is a room of its
# own, `evaluation/run.py` is of `evaluation`. To import a room is not to import the rooms in it.
ROOMS = {
  "types": room(packages="jax numpy"),
  "once": room(),
  "mixture": room("types", "numpy"),
  "shipped": room(),
  "caches": room("types"),
  "config": room("types"),
  "agreed": room("types", "jax"),
  "workdir": room("types config agreed", "jax"),
  "reporting": room("types workdir", "PIL matplotlib numpy"),
  "reporting.terminal": room("reporting types workdir", "jax rich"),
  "core": room("types config", "jax flax"),
  "models": room("types core", "jax flax numpy einops"),
  "generation": room("types core models", "jax flax numpy"),
  # The tokenizer and prompts that an assembled model gets are written by who reads them.
  "hub": room(f"{MODEL} shipped caches workdir processing", "jax flax numpy ml_dtypes huggingface_hub gguf"),
  "peft": room(f"{MODEL} hub", "jax flax numpy"),
  "shots": room("types", "numpy"),
  "priors": room(f"{MODEL} hub peft shots workdir", "jax flax numpy"),
  "quantise": room(f"{MODEL} hub peft", "jax flax numpy"),
  "processing": room("types config core", "jax numpy PIL jinja2 tokenizers"),
  "worlds": room("types config mixture once", "jax numpy scipy tokenizers"),
  "worlds.rooms": room("types config mixture once worlds", "jax numpy scipy"),
  "data.sources": room(
    "types config mixture once caches processing worlds worlds.rooms fields fields.posed shots",
    "numpy PIL datasets huggingface_hub pyarrow h5py",
  ),
  "data.augment": room("types config shots", "numpy PIL"),
  "data": room(
    "types config mixture processing worlds worlds.rooms data.sources data.augment",
    "jax numpy PIL grain datasets",
  ),
  "export": room(
    f"{MODEL} hub peft priors processing", "jax flax numpy onnx litert_converter ai_edge_quantizer"
  ),
  "loading": room(f"{MODEL} hub peft priors quantise", "jax"),
  "serving": room(f"{MODEL} once workdir generation hub", "jax flax numpy"),
  "server": room(
    "types models generation once processing serving", "numpy PIL starlette uvicorn prometheus_client"
  ),
  "wheels": room("types workdir hub", "numpy onnx"),
  "encoder": room(f"{MODEL} hub processing", "jax flax numpy"),
  "evaluation.records": room("types config workdir", "numpy"),
  "evaluation.asking": room("types config processing serving shots evaluation.records", "numpy"),
  "evaluation.scoring": room(
    "types config workdir worlds data.sources evaluation.records evaluation.asking", "numpy scipy sklearn"
  ),
  "evaluation.report": room(
    f"{GROUND} reporting data.sources evaluation.records evaluation.asking evaluation.scoring",
    "jax numpy matplotlib",
  ),
  "evaluation": room(
    f"{GROUND} {MODEL} {EVALUATION} reporting reporting.terminal generation hub"
    " processing worlds data data.sources loading priors serving",
    "jax numpy PIL",
  ),
  "training": room(
    f"{GROUND} {MODEL} {EVALUATION} reporting reporting.terminal hub peft export"
    " processing data data.sources data.augment loading priors serving",
    "jax flax numpy optax orbax tensorstore matplotlib tensorboardX wandb",
  ),
  "deployed": room(
    f"{GROUND} {MODEL} {EVALUATION} reporting reporting.terminal hub peft export processing data.sources"
    " loading",
    "numpy PIL matplotlib xllamacpp onnxruntime torch transformers",
  ),
  "depth": room(
    "types workdir models processing worlds reporting training training.objectives",
    "jax flax numpy PIL matplotlib",
  ),
  "inside": room(
    f"{GROUND} {MODEL} {EVALUATION} reporting generation hub processing data.sources loading priors",
    "jax flax numpy optax PIL matplotlib",
  ),
  "study": room(
    f"{GROUND} {EVALUATION} core reporting reporting.terminal processing worlds priors training",
    "jax numpy matplotlib",
  ),
  "probing": room(
    f"{GROUND} {MODEL} reporting reporting.terminal hub processing worlds encoder",
    "jax flax numpy scipy PIL matplotlib sklearn",
  ),
  "causes": room(
    "types config workdir models loading processing worlds priors serving probing inside"
    " reporting reporting.terminal",
    "jax flax numpy scipy PIL matplotlib",
  ),
  "fields.posed": room("types config workdir", "numpy scipy PIL"),
  "fields": room(
    "types config workdir reporting reporting.terminal worlds fields.posed",
    "jax numpy scipy optax safetensors PIL matplotlib",
  ),
  "plan": room(
    "types config core models generation hub peft quantise serving training reporting", "jax flax numpy"
  ),
  "contrib": room("types api processing server serving", "numpy PIL lmms_eval vlmeval"),
  "api": room(
    f"{MODEL} caches generation hub peft export processing data loading priors serving encoder training"
    " depth",
    "jax flax numpy",
  ),
}
ROOMS["cli"] = room("types config shipped caches", "absl jax")
PARTS = frozenset(ROOMS)
ROOMS["launch"] = Room(PARTS | {"launch", "configs"}, frozenset({"absl"}))
ROOMS["configs"] = room("types config worlds")
ROOMS["benchmarks"] = Room(
  PARTS | {"launch", "configs", "benchmarks"},
  room(
    packages="benchmarks shaped jax flax optax numpy safetensors ml_dtypes PIL matplotlib torch torchvision"
    " nerf transformers peft mujoco"
  ).packages,
)
# The most that one room may be of the package.
LARGEST = 0.2


def room_of(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return room_of_module(".".join(parts[1:]) if parts[0] == "spatialvlm" else parts[0])


def room_of_module(name: str) -> str:
  """The room of a dotted name below `spatialvlm`: the longest that it begins with, else its first part."""
  parts = name.split(".")
  if name in ("", "__init__"):
    return "api"
  below = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
  return next((room for room in below if room in ROOMS), parts[0])


def imports(path: pathlib.Path) -> list[tuple[int, str]]:
  """(line, full dotted name) of everything that a file imports, also within functions."""
  package = path.relative_to(ROOT).with_suffix("").parts
  found = []
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        base = ".".join([*package[: len(package) - node.level], *filter(None, [base])])
      found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
  return found


def files(*parts: str) -> list[pathlib.Path]:
  return sorted(p for part in parts for p in (ROOT / part).rglob("*.py"))


ALL = files("spatialvlm", "launch", "configs", "benchmarks")


def wrong(room: str, name: str) -> str:
  """Why `room` may not import `name`; empty where it may."""
  first, _, rest = name.partition(".")
  if first in sys.stdlib_module_names:
    return ""
  if first in ("launch", "configs"):
    return f"import spatialvlm.{first} instead"
  if first == "tests":
    return "" if room == "benchmarks" else "nothing imports it"
  if first != "spatialvlm":
    return "" if first in ROOMS[room].packages else f"{room} knows {sorted(ROOMS[room].packages)} alone"
  target = room_of_module(rest)
  if target == room or target in ROOMS[room].ours:
    return ""
  return f"{room} may not import {target}"


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_are_allowed(path):
  room = room_of(path)
  assert room in ROOMS, f"{room} has no list of what it may import"
  bad = [f"line {line}: {name}: {why}" for line, name in imports(path) if (why := wrong(room, name))]
  assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
  ("room", "name", "allowed"),
  [
    ("core", "spatialvlm.types.Batch", True),
    ("core", "spatialvlm.models.vlm", False),
    ("core", "transformers.x", False),
    ("core", "scipy.special", False),
    ("core", "matplotlib.pyplot", False),
    ("core", "json", True),
    ("models", "spatialvlm.core.axes", True),
    ("models", "transformers.AutoConfig", False),
    ("models", "spatialvlm.data.batch", False),
    ("hub", "spatialvlm.generation.generate", False),
    ("evaluation", "spatialvlm.training.one_run", False),
    ("evaluation", "rich.table.Table", False),
    ("evaluation.scoring", "rich.table.Table", False),
    ("evaluation.scoring", "spatialvlm.reporting.terminal", False),
    ("evaluation.scoring", "spatialvlm.evaluation.report.run_tables", False),
    ("evaluation.report", "rich.table.Table", False),
    ("reporting", "rich.table.Table", False),
    ("reporting", "spatialvlm.evaluation.records", False),
    ("serving", "spatialvlm.evaluation.records.Prediction", False),
    ("serving", "spatialvlm.evaluation.asking", False),
    ("training", "spatialvlm.evaluation.evaluate", True),
    ("training", "absl.flags", False),
    ("data", "spatialvlm.models.vlm", False),
    ("data", "torch", False),
    ("data", "spatialvlm.evaluation", False),
    ("data.sources", "spatialvlm.data.pipeline", False),
    ("data.augment", "spatialvlm.worlds.world", False),
    ("launch", "launch._main", False),
    ("configs", "spatialvlm.core.axes", False),
    ("api", "spatialvlm.generation.generate", True),
    ("fields", "spatialvlm.worlds.world", True),
    ("fields", "spatialvlm.training.checkpoint", False),
    ("benchmarks", "sklearn", False),
  ],
)
def test_the_rule_itself(room, name, allowed):
  assert (wrong(room, name) == "") is allowed


def arrows() -> dict[str, set[str]]:
  """The rooms that each room imports, as the files have it."""
  found: dict[str, set[str]] = {name: set() for name in ROOMS}
  for path in ALL:
    own = room_of(path)
    targets = {room_of_module(n.partition(".")[2]) for _, n in imports(path) if n.startswith("spatialvlm")}
    # `from spatialvlm import hub` reads like an import of what stands in __init__
    found[own] |= targets & set(ROOMS) - {own, "api"}
  return found


def test_no_arrow_runs_in_a_circle():
  """Rooms can be built one after the other: an order exists in which each imports earlier ones alone."""
  below_of, placed = arrows(), set()
  while ready := {name for name, below in below_of.items() if name not in placed and below <= placed}:
    placed |= ready
  assert placed == set(ROOMS), f"in a circle: {sorted(set(ROOMS) - placed)}"


def test_no_room_is_more_than_a_fifth_of_the_package():
  lines: dict[str, int] = {}
  for path in files("spatialvlm"):
    top = path.relative_to(ROOT).parts[1]
    lines[top] = lines.get(top, 0) + len(path.read_text(encoding="utf-8").splitlines())
  most = LARGEST * sum(lines.values())
  assert not {name: count for name, count in lines.items() if count > most}


def test_every_room_says_what_belongs_there():
  silent = [p for p in files("spatialvlm", "launch", "configs") if p.name == "__init__.py"]
  silent = [str(p.relative_to(ROOT)) for p in silent if not ast.get_docstring(ast.parse(p.read_text()))]
  assert not silent


def test_files_are_short():
  long = {str(p.relative_to(ROOT)): n for p in ALL if (n := len(p.read_text().splitlines())) > 450}
  assert not long
