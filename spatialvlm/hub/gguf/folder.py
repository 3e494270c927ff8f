"""A GGUF file as a folder: what describes the model is written into the user's cache, the weights stay.

`folder_of(file) -> Path` is all that others need: such a folder is read, asked, trained and saved like any
other. It holds config.json, tokenizer.json, tokenizer_config.json (with the chat template),
generation_config.json, and `model.gguf`, a link to the file (of a model with eyes also `mmproj.gguf`, and the
image processor's files), whose tensors `resolve.read_entries` gives by
their Hugging Face names, one at a time. Nothing of a file's weights is copied.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from spatialvlm import caches
from spatialvlm.hub.gguf import models, sight, words
from spatialvlm.hub.gguf.file import GgufEntry, read_header
from spatialvlm.types import UserError

LINK, EYES_LINK = "model.gguf", "mmproj.gguf"
# Folders that this process has found, by their files as they were: a header of many words takes a while.
_FOUND: dict[tuple[Path, int, int, Path], Path] = {}
# Part of every folder's name: to be raised when what is written into one changes.
_VERSION = 1


def lies_in(folder: Path) -> Path | None:
  """The language model's GGUF file of a folder that holds no other weights; None where there is none.

  Eyes may lie beside it (`eyes_beside`).

  Raises:
    UserError: there are several.
  """
  if folder.parent == _cache() or any(
    (folder / name).exists() for name in ("adapter_config.json", "identity.json")
  ):
    return None
  found = sorted(folder.glob("*.gguf"))
  others = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json"), *folder.glob("*.bin")]
  if not found or others:
    return None
  if len(found) == 2:
    languages = [file for file in found if not _sees(file)]
    if len(languages) == 1:
      return languages[0]
  if len(found) > 1:
    names = ", ".join(file.name for file in found[:6])
    raise UserError(f"{folder}: holds several GGUF files ({names}); name one of them")
  return found[0]


def eyes_beside(file: Path) -> Path | None:
  """The only other GGUF file in a language model's folder, where it holds eyes."""
  others = [other for other in file.parent.glob("*.gguf") if other != file]
  return others[0] if len(others) == 1 and _sees(others[0]) else None


def _sees(file: Path) -> bool:
  """Whether a file holds eyes; a file that is not read holds none."""
  try:
    return sight.is_sight(read_header(file))
  except UserError:
    return False


def entries(file: Path) -> dict[str, GgufEntry]:
  """The tensors of a file of such a folder by their Hugging Face names, none of them read yet.

  Raises:
    UserError: tensors that its model does not have.
  """
  header, eyes = read_header(file), file.with_name(EYES_LINK)
  if sight.is_sight(header):
    return sight.entries(header)
  found = models.entries(header)
  return sight.beside(found, read_header(eyes)) if file.name == LINK and eyes.is_file() else found


def folder_of(file: Path, eyes: Path | None = None) -> Path:
  """The folder that stands for a GGUF file, made where it is not there yet.

  Its name comes from the files' places and headers, so a file that is replaced gets another.

  Args:
    eyes: the file of its eyes (mmproj), None for a language model by itself.

  Raises:
    UserError: a file that is not read (see `file`, `models`, `words`), or a full disk; nothing
      is left then.
  """
  parts = [file] if eyes is None else [file, eyes]
  key = (*((part.resolve(), part.stat().st_size, part.stat().st_mtime_ns) for part in parts), _cache())
  if key not in _FOUND or not (_FOUND[key] / "config.json").is_file():
    _FOUND[key] = _made(file, eyes)
  return _FOUND[key]


def _made(file: Path, eyes: Path | None) -> Path:
  headers = [read_header(part) for part in (file, eyes) if part is not None]
  header, digest = headers[0], hashlib.sha256(f"{_VERSION}".encode())
  for found in headers:
    place, start = found.file.resolve(), min((t.start for t in found.tensors.values()), default=0)
    with open(found.file, "rb") as stream:
      digest.update(f" {place} {found.file.stat().st_size} ".encode() + stream.read(start))
  folder = _cache() / f"{file.stem}-{digest.hexdigest()[:16]}"
  if (folder / "config.json").is_file():
    return folder
  config = models.config_json(header)
  models.entries(header)
  written = words.files(header, config["max_position_embeddings"])
  ids = written["generation_config.json"]
  written["config.json"] = config | {key: value for key, value in ids.items()}
  links = {LINK: file.resolve()}
  if eyes is not None:
    sight.entries(headers[1])
    written |= sight.files(headers[1], config, written)
    links[EYES_LINK] = eyes.resolve()
  _write(folder, written, links)
  return folder


def _write(folder: Path, written: dict[str, dict], links: dict[str, Path]) -> None:
  """All files or none; another process may be doing the same."""
  scratch = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    for name, value in written.items():
      (scratch / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, file in links.items():
      (scratch / name).symlink_to(file)
    scratch.chmod(0o755)
    if not folder.exists():
      scratch.rename(folder)
  except OSError as error:
    if not (folder / "config.json").is_file():
      raise UserError(f"{folder}: could not be written ({error.strerror or error})") from None
  finally:
    if scratch is not None:
      shutil.rmtree(scratch, ignore_errors=True)


def _cache() -> Path:
  return caches.folder() / "spatialvlm" / "gguf"
