"""Executes docs/tour.ipynb from its beginning and keeps what it shows: `python -m tests.tour`.

Without Jupyter: cells are plain Python, which share their names; what a cell prints is its stream, and the
value of its last line is shown as Jupyter would, a picture (`_repr_png_`) as PNG.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import pathlib
import tempfile
import traceback
from collections.abc import Mapping
from typing import Any

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "docs" / "tour.ipynb"


def execute(notebook: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """The notebook with the outputs of its code cells, run in order in `folder`.

  Raises:
    RuntimeError: a cell that fails, with its source.
  """
  names: dict[str, Any] = {"__name__": "__main__"}
  cells, count = [], 0
  before = pathlib.Path.cwd()
  os.chdir(folder)
  try:
    for cell in notebook["cells"]:
      if cell["cell_type"] == "code":
        count += 1
        source = "".join(cell["source"])
        try:
          cell = {**cell, "execution_count": count, "outputs": _outputs(source, names, count)}
        except Exception as error:
          raise RuntimeError(f"cell {count} fails:\n{source}\n{traceback.format_exc()}") from error
      cells.append(cell)
  finally:
    os.chdir(before)
  return {**notebook, "cells": cells}


def _outputs(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
  tree = ast.parse(source)
  last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
  said, value = io.StringIO(), None
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
    exec(compile(tree, f"<cell {count}>", "exec"), names)
    if last is not None:
      value = eval(compile(ast.Expression(last.value), f"<cell {count}>", "eval"), names)
  found: list[dict[str, Any]] = []
  if said.getvalue():
    found.append({"output_type": "stream", "name": "stdout", "text": _lines(said.getvalue())})
  if value is not None:
    data: dict[str, Any] = {"text/plain": _lines(f"<{type(value).__name__}>")}
    if hasattr(value, "_repr_png_"):
      data["image/png"] = base64.b64encode(value._repr_png_()).decode()
    else:
      data["text/plain"] = _lines(repr(value))
    found.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
  return found


def _lines(text: str) -> list[str]:
  return text.splitlines(keepends=True)


def main() -> None:
  notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
  with tempfile.TemporaryDirectory() as folder:
    found = execute(notebook, pathlib.Path(folder))
  NOTEBOOK.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
