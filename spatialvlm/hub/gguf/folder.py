"""A GGUF file as a folder: what describes the model is written into the user's cache, the weights stay.

`folder_of(file) -> Path` is all that others need: such a folder is read, asked, trained and saved like any
other. It holds config.json, tokenizer.json, tokenizer_config.json (with the chat template),
generation_config.json, and `model.gguf`, a link to the file, whose tensors `resolve.read_entries` gives by
their Hugging Face names, one at a time. Nothing of a file's weights is copied.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from spatialvlm import caches
from spatialvlm.hub.gguf import models, words
from spatialvlm.hub.gguf.file import read_header
from spatialvlm.types import UserError

LINK = "model.gguf"
# Folders that this process has found, by their files as they were: a header of many words takes a while.
_FOUND: dict[tuple[Path, int, int, Path], Path] = {}
# Part of every folder's name: to be raised when what is written into one changes.
_VERSION = 1


def lies_in(folder: Path) -> Path | None:
  """The GGUF file of a folder that holds no other weights; None where there is none.

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
  if len(found) > 1:
    names = ", ".join(file.name for file in found[:6])
    raise UserError(f"{folder}: holds several GGUF files ({names}); name one of them")
  return found[0]


def folder_of(file: Path) -> Path:
  """The folder that stands for a GGUF file, made where it is not there yet.

  Its name comes from the file's place and header, so a file that is replaced gets another.

  Raises:
    UserError: a file that is not read (see `file`, `models`, `words`), or a full disk; nothing
      is left then.
  """
  stat = file.stat()
  key = (file.resolve(), stat.st_size, stat.st_mtime_ns, _cache())
  if key not in _FOUND or not (_FOUND[key] / "config.json").is_file():
    _FOUND[key] = _made(file)
  return _FOUND[key]


def _made(file: Path) -> Path:
  header, place = read_header(file), file.resolve()
  start = min((tensor.start for tensor in header.tensors.values()), default=0)
  with open(file, "rb") as stream:
    digest = hashlib.sha256(f"{_VERSION} {place} {file.stat().st_size} ".encode() + stream.read(start))
  folder = _cache() / f"{file.stem}-{digest.hexdigest()[:16]}"
  if (folder / "config.json").is_file():
    return folder
  config = models.config_json(header)
  models.entries(header)
  written = words.files(header, config["max_position_embeddings"])
  ids = written["generation_config.json"]
  written["config.json"] = config | {key: value for key, value in ids.items()}
  _write(folder, written, place)
  return folder


def _write(folder: Path, written: dict[str, dict], file: Path) -> None:
  """All files or none; another process may be doing the same."""
  scratch = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    for name, value in written.items():
      (scratch / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (scratch / LINK).symlink_to(file)
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
