"""A frozen dataclass of arrays, texts and others like it, as one npz file."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import types
import typing
import zipfile
from typing import Any, TypeVar

import numpy as np

from spatialvlm import workdir
from spatialvlm.types import UserError

Kept = TypeVar("Kept")


def write(value: Any, path: pathlib.Path, version: int) -> None:
  """Writes an npz, whole or not at all; what is no array is one JSON string in it, `about`.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  arrays: dict[str, np.ndarray] = {}
  about = _apart(value, "", arrays)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, about=np.array(json.dumps({"format": version, **about})), **arrays)
  workdir.write_bytes(path, buffer.getvalue())


def read(kind: type[Kept], path: pathlib.Path, version: int, what: str) -> Kept:
  """Reads what `write` has written of a value of type `kind`, which users know as `what`.

  Raises:
    UserError: the file is missing, damaged, or of another version.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      about = json.loads(str(file["about"]))
      if about.get("format") != version:
        raise UserError(f"{path}: a {what} of another version; explain the question again")
      return _joined(kind, about, {name: file[name] for name in file.files}, "")
  except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: no whole {what} ({error}); explain the question again") from error


def _apart(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
  """What JSON can say of a value; its arrays go into `arrays`, each under its place."""
  if isinstance(value, np.ndarray):
    arrays[where] = value
    return None
  if dataclasses.is_dataclass(value):
    inner = lambda name: f"{where}.{name}" if where else name
    return {f.name: _apart(getattr(value, f.name), inner(f.name), arrays) for f in dataclasses.fields(value)}
  if isinstance(value, tuple):
    return [_apart(item, f"{where}.{number}", arrays) for number, item in enumerate(value)]
  return value


def _joined(kind: Any, about: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
  """The value of a type, of what `_apart` has made of it."""
  if where in arrays:
    return arrays[where]
  if isinstance(kind, types.UnionType):
    if about is None:
      return None
    (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
  if dataclasses.is_dataclass(kind):
    hints = typing.get_type_hints(kind)
    inner = lambda name: f"{where}.{name}" if where else name
    names = [f.name for f in dataclasses.fields(kind)]
    return kind(**{name: _joined(hints[name], about[name], arrays, inner(name)) for name in names})
  if typing.get_origin(kind) is tuple:
    of = typing.get_args(kind)[0]
    return tuple(_joined(of, item, arrays, f"{where}.{number}") for number, item in enumerate(about))
  return about
