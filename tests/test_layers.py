"""The order of the rooms (docs/architecture.md), read off the imports."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A room may import rooms of a smaller number, and its own.
ORDER = {
  "types": 0,
  "config": 1,
  "workdir": 2,
  "core": 3,
  "models": 4,
  "generation": 5,
  "hub": 5,
  "peft": 6,
  "evaluation": 7,
  "training": 8,
  "probing": 8,
  "encoder": 6,
  "api": 9,
  "launch": 10,
}
# `data` is apart: it knows these alone, and the rooms below `encoder` do not know it.
DATA_KNOWS = {"types", "config", "data"}
DATA_KNOWN_BY = {"data", "encoder", "evaluation", "training", "probing", "api", "launch"}
RECIPES_KNOW = {"types", "config", "data"}
# Libraries that only some rooms may import.
ONLY_IN = {
  "absl": {"launch"},
  "ml_collections": {"launch", "configs"},
  "orbax": {"training"},
  "tensorboardX": {"training"},
  "wandb": {"training"},
  "grain": {"data", "training"},
  "datasets": {"data"},
  "torch": set(),
  "peft": set(),
}
CORE_KNOWS = {"jax", "flax", "numpy", "einops"}


def room_of(path: pathlib.Path) -> str:
  first = path.relative_to(ROOT).parts
  if first[0] in ("launch", "configs"):
    return first[0]
  if len(first) == 2:
    return "api" if first[1] == "__init__.py" else path.stem
  return first[1]


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


def files() -> list[pathlib.Path]:
  return sorted(p for part in ("spatialvlm", "launch", "configs") for p in (ROOT / part).rglob("*.py"))


def wrong(room: str, name: str) -> str:
  """Why `room` may not import `name`; empty where it may."""
  parts = name.split(".")
  if parts[0] in ("launch", "configs", "tests", "benchmarks"):
    return "import spatialvlm.launch instead" if parts[0] == "launch" else "nothing imports it"
  if parts[0] != "spatialvlm":
    allowed = ONLY_IN.get(parts[0])
    if allowed is not None and room not in allowed:
      return f"{parts[0]} belongs to {sorted(allowed) or 'tests'}"
    outside = parts[0] in {"transformers", "optax", "PIL", "tokenizers", "pyarrow", "safetensors", "rich"}
    return "core knows jax and flax only" if room == "core" and (outside or allowed is not None) else ""
  target = parts[1] if len(parts) > 1 else "api"
  if target == room:
    return ""
  if room == "configs":
    return "" if target in RECIPES_KNOW else "recipes know types, config and data"
  if room == "data":
    return "" if target in DATA_KNOWS else "data knows types and config"
  if target == "data":
    return "" if room in DATA_KNOWN_BY else "the rooms below `encoder` do not know data"
  if target not in ORDER:
    return f"{target} has no place in the order of the rooms"
  return "" if ORDER[target] < ORDER[room] else f"{target} does not stand below {room}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  room = room_of(path)
  assert room in ORDER or room in ("data", "configs"), f"{room} has no place in the order of the rooms"
  bad = [f"line {line}: {name}: {why}" for line, name in imports(path) if (why := wrong(room, name))]
  assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
  ("room", "name", "allowed"),
  [
    ("core", "spatialvlm.types.Batch", True),
    ("core", "spatialvlm.models.vlm", False),
    ("core", "transformers.x", False),
    ("models", "spatialvlm.core.axes", True),
    ("hub", "spatialvlm.generation.generate", False),
    ("evaluation", "spatialvlm.training.train", False),
    ("training", "spatialvlm.evaluation.evaluate", True),
    ("data", "spatialvlm.models.vlm", False),
    ("models", "spatialvlm.data.batch", False),
    ("training", "absl.flags", False),
    ("launch", "launch._main", False),
    ("configs", "spatialvlm.core.axes", False),
    ("data", "torch", False),
    ("data", "spatialvlm.evaluation", False),
    ("api", "spatialvlm.generation.generate", True),
  ],
)
def test_the_rule_itself(room, name, allowed):
  assert (wrong(room, name) == "") is allowed


def test_files_are_short():
  long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > 450}
  assert not long
