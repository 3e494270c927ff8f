"""Which layers: regexes over Hugging Face module names, or lists of their ends, as PEFT has them."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flax import nnx

from spatialvlm.hub import rules
from spatialvlm.peft.variables import AdapterParam
from spatialvlm.types import UserError

Path = tuple[Any, ...]


def parameter_paths(vlm: nnx.Module) -> dict[str, Path]:
  """Hugging Face name -> path of every base parameter, adapters left out.

  A parameter that checkpoints of the family do not hold, or hold in one tensor with another (SwiGLU's
  `weights_in`), goes by its own dotted path.
  """
  named: dict[str, list[Path]] = {}
  for path, variable in nnx.iter_graph(vlm):
    if isinstance(variable, nnx.Param) and not isinstance(variable, AdapterParam):
      dotted = ".".join(map(str, path))
      named.setdefault(rules.to_module(dotted, vlm.config.family) or dotted, []).append(path)
  return {
    name if len(paths) == 1 else ".".join(map(str, path)): path
    for name, paths in named.items()
    for path in paths
  }


def linear_paths(vlm: nnx.Module) -> dict[str, Path]:
  """Hugging Face module name -> path of every linear layer that is one there too, adapted ones included."""
  linears = {path for path, module in nnx.iter_modules(vlm) if isinstance(module, nnx.Linear)}
  named = ((name, path[:-1]) for name, path in parameter_paths(vlm).items() if path[-1] == "kernel")
  return {
    name.removesuffix(".weight"): path for name, path in named if path in linears and name.endswith(".weight")
  }


def older(vlm: nnx.Module) -> Callable[[str], Iterable[str]]:
  """Other spellings of a layer's name, in the model's family."""
  return lambda name: rules.older_names(name, vlm.config.family)


def get(root: Any, path: Path) -> Any:
  """The object at `path` below `root`, through attributes and list places."""
  for part in path:
    root = root[part] if isinstance(part, int) else getattr(root, part)
  return root


def put(root: Any, path: Path, value: Any) -> None:
  """Replaces the object at `path` below `root`."""
  parent = get(root, path[:-1])
  if isinstance(path[-1], int):
    parent[path[-1]] = value
  else:
    setattr(parent, path[-1], value)


def match(
  pattern: str | Sequence[str],
  names: Iterable[str],
  where: str,
  older: Callable[[str], Iterable[str]] = lambda name: (),
) -> list[str]:
  """The names that a regex matches in full; for a list, those that end as one of it says, as in PEFT.

  Args:
    pattern: a regex, a list, or a text that writes a list (`"['q_proj', 'v_proj']"`).
    older: other spellings of a name, which count where no name of today matches.

  Raises:
    UserError: the pattern is no regex, or it or an end of the list matches none; the nearest names are shown.
      An empty list.
  """
  names, ends = list(names), _listed(pattern)
  if ends is not None:
    if not ends:
      raise UserError(f"{where}: an empty list names no layer; leave it out for the default")
    matching = {
      end: [n for n in names if any(f".{s}".endswith(f".{end}") for s in (n, *older(n)))] for end in ends
    }
    for end, found in matching.items():
      if not found:
        raise UserError(
          f"{where}: no layer's name ends in {end!r}; {near_misses(re.compile(re.escape(end)), names)}"
        )
    return [name for name in names if any(name in found for found in matching.values())]
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}") from None
  found = [name for name in names if compiled.fullmatch(name)]
  if not found:
    found = [name for name in names if any(map(compiled.fullmatch, older(name)))]
  if not found:
    raise UserError(f"{where}: {pattern!r} matches no layer in full; {_meant(pattern, names)}")
  return found


def _meant(pattern: str, names: Sequence[str]) -> str:
  """What may have been meant by a regex that matches nothing: a list whose quotes a shell took, or a name."""
  ends = [end.strip(" '\"") for end in pattern.strip("[]()").split(",")]
  if len(ends) > 1 and all(re.fullmatch(r"[\w.]+", end) for end in ends):
    return f'a list is written "{ends}", in double quotes'
  return near_misses(re.compile(pattern), names)


def _listed(pattern: str | Sequence[str]) -> list[str] | None:
  """The names of a list, or of a text that writes one, which matches nothing as a regex; None for a regex."""
  if not isinstance(pattern, str):
    return list(pattern)
  try:
    found = ast.literal_eval(pattern)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None
  listed = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
  return list(found) if listed else None


def match_parameters(pattern: str | Sequence[str], names: Iterable[str], where: str) -> list[str]:
  """The parameter names that `pattern` matches in full, or of which it matches a module (at any height)."""
  enclosing = {name: ["", name] for name in names}
  for name, above in enclosing.items():
    parts = name.split(".")
    above[:] = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
  found = set(match(pattern, dict.fromkeys(a for above in enclosing.values() for a in above), where))
  return [name for name, above in enclosing.items() if found.intersection(above)]


def lookup(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
  """The value of the first pattern that matches `name` in full, else `default`."""
  return next((value for pattern, value in patterns.items() if re.fullmatch(pattern, name)), default)


def near_misses(pattern: re.Pattern, names: list[str]) -> str:
  """What the writer of a pattern without a match may have meant."""
  inside = [name for name in names if pattern.search(name)]
  if inside:
    return (
      f"names are matched as a whole: '.*{pattern.pattern}.*' would find {len(inside)}, such as {inside[0]!r}"
    )
  # one name stands for all layers of a stack
  kinds = {re.sub(r"\.\d+\.", ".0.", name): name for name in reversed(names)}
  plain = re.sub(r"\.\d+\.|\\d\+", ".0.", pattern.pattern).replace("\\", "").replace(".*", "")
  words = [word for word in re.split(r"[^A-Za-z0-9_]+", plain) if len(word) > 2]
  tails = {kind.rsplit(".", 1)[-1]: kind for kind in reversed(kinds)}
  near = [tails[t] for word in words for t in difflib.get_close_matches(word, tails, n=2, cutoff=0.6)]
  near += difflib.get_close_matches(plain, kinds, n=3, cutoff=0.3)
  near = list(dict.fromkeys(near))[:4] or list(kinds)[:4]
  return "did you mean " + " or ".join(repr(kinds.get(n, n)) for n in near) + "?"
