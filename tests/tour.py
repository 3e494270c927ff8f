"""docs/tour.ipynb, executed: `python -m tests.tour` runs it from top to bottom and keeps its output.

The kernel is this Python, in a folder that is gone afterwards. Pictures are kept in 256 colours, half of
their bytes; what a kernel says of itself is left out.
"""

from __future__ import annotations

import base64
import io
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
# The cell with this tag assigns the numbers that a shorter run changes.
PARAMETERS = "parameters"
PNG = "image/png"


def read() -> nbformat.NotebookNode:
  return nbformat.read(NOTEBOOK, as_version=4)


def executed(
  notebook: nbformat.NotebookNode, folder: pathlib.Path, settings: Mapping[str, Any] | None = None
) -> nbformat.NotebookNode:
  """A copy of a notebook with the output of its cells; the first error is raised.

  The kernel begins in `folder`, which is its place for temporary files too. How many devices the processor is
  the notebook says itself, whatever this process was started with.

  Args:
    settings: names of the parameters' cell and their values; a name that it does not assign is an error.
  """
  found = nbformat.from_dict(notebook)
  for name, value in (settings or {}).items():
    (cell,) = (cell for cell in found.cells if PARAMETERS in cell.metadata.get("tags", ()))
    lines = cell.source.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
    lines[place] = f"{name} = {value!r}"
    cell.source = "\n".join(lines)
  resources = {"metadata": {"path": str(folder)}}
  flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
  env = {**os.environ, "TMPDIR": str(folder), "XLA_FLAGS": " ".join(flags)}
  options = {"timeout": 3600, "record_timing": False, "coalesce_streams": True, "resources": resources}
  NotebookClient(found, kernel_name="python3", **options).execute(env=env)
  return found


def text(cell: nbformat.NotebookNode) -> str:
  """All that a cell's outputs say as text, drawings left out."""
  parts = []
  for output in cell.get("outputs", ()):
    parts.append(output.get("text", ""))
    parts += [said for kind, said in output.get("data", {}).items() if kind.startswith("text/")]
    parts += output.get("traceback", ())
  return "\n".join("".join(part) for part in parts)


def _small(picture: str) -> str:
  """A PNG in base64, in 256 colours on white."""
  shown = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGBA")
  shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
  buffer = io.BytesIO()
  shown.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
  return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    found = executed(read(), pathlib.Path(folder))
  for cell in found.cells:
    for output in cell.get("outputs", ()):
      if PNG in output.get("data", {}):
        output.data[PNG] = _small(output.data[PNG])
    cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
  found.metadata = {key: found.metadata[key] for key in ("kernelspec", "language_info")}
  found.metadata["language_info"] = {"name": "python"}
  nbformat.write(found, NOTEBOOK)
  print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
