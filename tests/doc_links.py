"""Links of the docs to lines of the code: [`Class.method`](../spatialvlm/file.py#L12).

`python -m tests.doc_links` writes the lines anew where the code has moved; a test holds that they are right.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[`([\w.]+)`\]\(([^)#\s]+\.py)#L(\d+)\)")


def definitions(file: pathlib.Path) -> dict[str, int]:
  """Line of each function, class, constant and field of a file by name: `f`, `Class.method`, `f.inner`."""
  found: dict[str, int] = {}

  def walk(node: ast.AST, above: str) -> None:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.FunctionDef | ast.ClassDef):
        found.setdefault(above + child.name, child.lineno)
        walk(child, f"{above}{child.name}.")
      elif isinstance(child, ast.Assign | ast.AnnAssign):
        targets = child.targets if isinstance(child, ast.Assign) else [child.target]
        for target in targets:
          if isinstance(target, ast.Name):
            found.setdefault(above + target.id, child.lineno)
      else:
        walk(child, above)

  walk(ast.parse(file.read_text(encoding="utf-8")), "")
  return found


def renewed(page: pathlib.Path) -> str:
  """The text of a page with the lines that its links should have.

  Raises:
    LookupError: a linked file does not exist, or does not define what the link names.
  """

  def link(match: re.Match) -> str:
    name, target, _ = match.groups()
    file = page.parent / target
    line = definitions(file).get(name) if file.is_file() else None
    if line is None:
      raise LookupError(f"{page.name}: {target} defines no {name}")
    return f"[`{name}`]({target}#L{line})"

  return LINK.sub(link, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
  for each in sorted((ROOT / "docs").glob("*.md")):
    each.write_text(renewed(each), encoding="utf-8")
