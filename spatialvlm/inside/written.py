"""The files of an explained question: page, record, drawings, in one folder."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from spatialvlm import workdir
from spatialvlm.inside import drawing, page, record
from spatialvlm.types import UserError

PAGE, RECORD, MAPS, LENS = "explain.html", "record.npz", "attention.png", "lens.png"


def check(folder: pathlib.Path) -> None:
  """Raises a UserError where a folder holds other things, which nothing here may overwrite."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder}: is a file; name a folder with --out")
  foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists()
  if foreign:
    raise UserError(
      f"{folder}: not empty, and it holds no explained question; name another folder with --out"
    )


def write(found: record.Record, folder: pathlib.Path, panels: Sequence[page.Panel] = ()) -> pathlib.Path:
  """Writes all of them; gives the page's path.

  Args:
    panels: further sections of the page.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  html = page.page(found, panels)
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  record.write(found, folder / RECORD)
  drawing.maps(found, folder / MAPS)
  drawing.lens(found, folder / LENS)
  workdir.write_text(folder / PAGE, html)
  return folder / PAGE
