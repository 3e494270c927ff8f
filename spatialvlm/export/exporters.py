"""The table of exporters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from spatialvlm import hub, peft, priors
from spatialvlm.config import nearest
from spatialvlm.core.quantised import formats
from spatialvlm.hub import contents
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Exportable:
  """A model with what an exporter needs to know of its origin.

  Attributes:
    vlm: with or without an adapter.
    base: hub id or path of the base, as others should find it.
    folder: the base's local folder, with the files of its processor.
  """

  vlm: Vlm
  base: str
  folder: Path


@dataclasses.dataclass(frozen=True)
class Exporter:
  """One form of a model; the contract stands at the head of this room.

  Attributes:
    what: the form in a few words, for help and errors.
  """

  what: str
  why_not: Callable[[Vlm], str | None]
  write: Callable[[Exportable, Path], Path]


def _no_adapter(vlm: Vlm) -> str | None:
  return None if peft.carries(vlm) else "the model carries no adapter; --to=merged writes the whole model"


def _no_merging(vlm: Vlm) -> str | None:
  names = [name for name in peft.carries(vlm) if not peft.METHODS[name].mergeable]
  return f"an adapter of method {names[0]!r} cannot be merged; --to=adapter writes it" if names else None


def _merged(model: Exportable, folder: Path) -> Path:
  if kinds := ", ".join(formats(model.vlm)):
    contents.note(
      f"{folder}: the base is kept in {kinds}; what is written are its decoded weights, in"
      f" {model.vlm.config.dtype}, and the adapter merged into these, not into {model.base} as it is"
    )
  merged = peft.merge(priors.without(model.vlm))
  priors.save(model.vlm, folder)
  return hub.save_model(merged, folder, model.folder)


def _adapter(model: Exportable, folder: Path, plain: Callable[[Vlm], Vlm] = lambda vlm: vlm) -> Path:
  vlm = plain(priors.without(model.vlm))
  if peft.carries(vlm):  # what is none is refused below, with nothing written
    priors.save(model.vlm, folder)
  return peft.save_adapter(vlm, folder, model.base)


def _no_plain_lora(vlm: Vlm) -> str | None:
  names = [name for name in peft.carries(vlm) if name != "lora"]
  return _no_adapter(vlm) or (f"the adapter is one of method {names[0]!r}, not LoRA" if names else None)


EXPORTERS: dict[str, Exporter] = {
  "adapter": Exporter(
    "a PEFT folder, which Hugging Face peft loads",
    _no_adapter,
    _adapter,
  ),
  "plain-lora": Exporter(
    "a PEFT folder in which PiSSA and OLoRA are ordinary LoRA, of twice the rank",
    _no_plain_lora,
    lambda model, folder: _adapter(model, folder, peft.as_plain_lora),
  ),
  "merged": Exporter(
    "a checkpoint with adapters merged, which transformers loads",
    _no_merging,
    _merged,
  ),
}
# Exporter -> its folder in the workdir of a run.
AFTER_TRAINING = {"adapter": "adapter", "merged": "model"}


def named(name: str) -> Exporter:
  """The exporter of a name.

  Raises:
    UserError: there is none; the nearest is named.
  """
  if name not in EXPORTERS:
    raise UserError(f"--to={name}: no such form; {nearest(name, EXPORTERS)}")
  return EXPORTERS[name]


def check_empty(folder: Path) -> None:
  """Raises a UserError where a new folder would be laid over something."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder}: already holds something; name a new folder")


def export(model: Exportable, name: str, folder: str | Path) -> Path:
  """Writes one form of a model into a folder that is not there yet, or empty.

  Raises:
    UserError: an unknown form, one that this model does not have, a folder that holds something, or a full
      disk; nothing half-written stays.
  """
  exporter, folder = named(name), Path(folder).expanduser()
  check_empty(folder)
  if why := exporter.why_not(model.vlm):
    raise UserError(why)
  return exporter.write(model, folder)
