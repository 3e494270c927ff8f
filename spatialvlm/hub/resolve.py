"""From what a user names, a folder or a hub id, to a local folder, and what that folder's weights are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialvlm import config, shipped
from spatialvlm.hub import foreign
from spatialvlm.hub.gguf import folder as gguf_folder
from spatialvlm.hub.tensors import Entry, read_header
from spatialvlm.types import UserError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_GGUF = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([\w.-][\w./-]*\.gguf)")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
  """A local folder: the named one, a model that ships with the project, or a hub repository's snapshot.

  A GGUF file, or a folder with one (or one and its eyes) and no other weights, becomes a folder
  (`gguf.folder`). A folder that is there comes first. Then those that ship with the project, from anywhere:
  by the path that they have in a checkout (`checkpoints/smolvlm-tiny`), or by name alone (`smolvlm-tiny`).
  Anything else is a hub id, downloaded where it is not cached; only safetensors, JSON, text and chat
  templates are fetched: no pickle, no code. Of a repository of GGUF files one is named behind the id:
  `owner/name/file.gguf`.

  Raises:
    UserError: neither a folder nor a hub id that can be reached (or is cached).
  """
  name = str(path_or_id)
  folder = Path(name).expanduser()
  if folder.is_dir():
    inside = gguf_folder.lies_in(folder)
    return gguf_folder.folder_of(inside, gguf_folder.eyes_beside(inside)) if inside else folder
  if folder.is_file() and folder.suffix == ".gguf":
    return gguf_folder.folder_of(folder)
  if folder.exists():
    raise UserError(
      f"{name}: a file, where a folder with config.json and safetensors, or a GGUF file, is wanted"
    )
  ours = shipped.checkpoints()
  if len(folder.parts) == 1 and name in ours:
    return ours[name]
  if len(folder.parts) == 2 and folder.parts[0] == shipped.CHECKPOINTS:
    if folder.name in ours:
      return ours[folder.name]
    known = ", ".join(ours) or "none: this install is not whole"
    raise UserError(f"{name}: no such folder; models that ship with the project: {known}")
  if found := _HUB_GGUF.fullmatch(name):
    return gguf_folder.folder_of(_fetched(name, revision, *found.groups()))
  if not _HUB_ID.fullmatch(name):
    raise UserError(f"{name}: no such {'file' if folder.suffix == '.gguf' else 'folder'}")
  return _fetched(name, revision, name)


def _fetched(name: str, revision: str | None, repository: str, file: str | None = None) -> Path:
  """A repository's snapshot, or one file of it, from the hub or its cache.

  Raises:
    UserError: it cannot be had; `name` is what the user called it.
  """
  import huggingface_hub
  from huggingface_hub import errors

  try:
    if file:
      return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    patterns = list(PATTERNS)
    return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
  except errors.RevisionNotFoundError:
    raise UserError(f"{name}: the hub has no revision {revision!r} of it") from None
  except errors.GatedRepoError:
    raise UserError(
      f"{name}: access is restricted; ask for it on its hub page, then `hf auth login`"
    ) from None
  except errors.RepositoryNotFoundError:
    raise UserError(
      f"{name}: no such folder, and the hub has no such repository (or it is private)"
    ) from None
  except errors.LocalEntryNotFoundError:
    raise UserError(
      f"{name}: no such folder, not in the hub's cache, and no network to fetch it (or offline mode); "
      "download it where there is a network, then pass its folder"
    ) from None
  except errors.EntryNotFoundError:
    raise UserError(f"{name}: the hub's repository {repository} holds no such file") from None
  except Exception as error:  # whatever the network and its libraries can raise
    why = " ".join(str(error).split())[:120]
    raise UserError(
      f"{name}: no such folder, and the hub gave no such model ({type(error).__name__}: {why}); "
      "download it where there is a network, then pass its folder"
    ) from None


def read_json(file: Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    UserError: the file is missing or holds no JSON object.
  """
  return config.read_json(file, missing="a model folder needs it")


def weight_files(folder: Path) -> list[Path]:
  """The files that hold the model: a single file of safetensors, else the shards of the index, else GGUF.

  Where both are there, the single file counts, as in transformers: shards are what an older save has left.

  Raises:
    UserError: there are none, only files of other formats, shards are missing, or the weights are quantised.
  """
  if kind := foreign.quantised(folder):
    raise UserError(foreign.refusal(folder, kind))
  single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
  if single.is_file():
    return [single]
  if index.is_file():
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
      raise UserError(f"{index}: no weight_map of tensor names to file names; download it again")
    names = sorted(set(places.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
      raise UserError(f"{index}: names shards that are not there: {', '.join(missing) or 'none at all'}")
    return [folder / name for name in names]
  if (folder / gguf_folder.LINK).is_file():
    links = (folder / gguf_folder.LINK, folder / gguf_folder.EYES_LINK)
    return [link for link in links if link.is_file()]
  pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
  if pickles:
    raise UserError(
      f"{folder}: holds only pickle files ({', '.join(pickles)}), which can run code when they are read; "
      "convert them to safetensors with transformers' save_pretrained"
    )
  others = sorted(file.name for pattern in ("*.safetensors", "*.gguf") for file in folder.glob(pattern))
  hint = f"; what lies there has other names: {', '.join(others[:4])}" if others else ""
  hint += foreign.other_format(folder)
  if folder.parent.name == "snapshots":  # of the hub, from which pickles are never fetched
    hint += (
      "; if its repository holds pickles alone, download a revision that has safetensors (often refs/pr/N),"
      " or convert it with transformers' save_pretrained, and pass that folder"
    )
  raise UserError(f"{folder}: no weights (neither model.safetensors nor model.safetensors.index.json){hint}")


def read_entries(files: list[Path]) -> tuple[dict[str, Entry], list[str]]:
  """All tensors of some files by name, and the names that stand in more than one."""
  entries: dict[str, Entry] = {}
  doubled = []
  for file in files:
    gguf = file.suffix == ".gguf"
    found = gguf_folder.entries(file) if gguf else read_header(file)
    for name, entry in found.items():
      if name in entries:
        doubled.append(name)
      entries[name] = entry
  return entries, doubled


def identity(path_or_id: str | Path, revision: str | None = None) -> Mapping[str, str | None]:
  """What a run must remember of its base model: id, revision, and sha256 over its weight files.

  The hash covers the files' bytes in the order of their names. It is that of config.json, marked so, where
  the folder has no weights (a model that is drawn from a seed).
  """
  folder = resolve(path_or_id, revision)
  try:
    files, mark = weight_files(folder), ""
  except UserError:
    files, mark = [folder / "config.json"], "config:"
  digest = hashlib.sha256()
  for file in files:
    with open(file, "rb") as stream:
      while block := stream.read(1 << 22):
        digest.update(block)
  if revision is None and folder.parent.name == "snapshots":
    revision = folder.name
  return {"id": str(path_or_id), "revision": revision, "sha256": mark + digest.hexdigest()}
