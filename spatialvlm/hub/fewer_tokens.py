"""A SmolVLM with fewer image tokens: its connector joins larger squares of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.hub import bases, contents, rules
from spatialvlm.hub.load import read_config
from spatialvlm.hub.resolve import read_json, resolve
from spatialvlm.hub.save import write_folder
from spatialvlm.hub.tensors import Lazy
from spatialvlm.types import UserError

_KERNEL = "connector.proj.kernel"
# What the processor's files call the image tokens of a tile.
_TOKENS = ("image_seq_len", "image_seq_length")


def fewer_tokens(model: str | Path, by: int, folder: str | Path) -> Path:
  """Writes a model's folder again with by x by image tokens joined into one.

  A joined token is the mean of those that it stands for: the projection's weights are repeated for each of
  them and divided by their number (SmolVLM's pixel shuffle orders a square's patches row by row). The model
  must then be trained a little to read such tokens.

  Args:
    model: folder or hub id of a SmolVLM or Idefics3, without adapters or priors.
    by: how many tokens along a side become one, at least 2.

  Raises:
    UserError: another kind of model, a number that does not divide the tokens of a side, or a full disk.
  """
  root = resolve(str(model))
  contents.refuse_priors(root)
  source, config = contents.model_json(root), read_config(root)
  connector, vision = config.connector, config.vision
  if not config.family.startswith(("smolvlm", "idefics3")) or connector.norm or connector.activation:
    raise UserError(
      f"{model}: of the family {config.family!r}; only a connector of a single layer, SmolVLM's, is rewritten"
    )
  side = vision.grid // connector.factor
  if by < 2 or side % by:
    fits = [number for number in range(2, side + 1) if not side % number]
    raise UserError(f"--by={by}: a tile has {side} x {side} image tokens; take one of {fits}")
  tensors = {name: bases.lazy(entry) for name, entry in bases.entries_of(root, config.family).items()}
  name = rules.to_hf(_KERNEL, config.family)
  tensors[name] = _joined(tensors[name], connector.factor, by)
  files = _companions(root, (side // by) ** 2)
  return write_folder(dict(source) | {"scale_factor": connector.factor * by}, tensors, folder, root, files)


def _joined(kernel: Lazy, factor: int, by: int) -> Lazy:
  """The projection (d_out, d_in) for by x by times the patches; d_in runs over rows, columns, channels."""
  d_out, d_in = kernel.shape

  def make() -> np.ndarray:
    square = kernel.make().astype(np.float32).reshape(d_out, factor, factor, -1)
    return (np.tile(square, (1, by, by, 1)) / by**2).reshape(d_out, -1).astype(kernel.dtype)

  return Lazy(kernel.dtype, (d_out, d_in * by**2), make)


def _companions(root: Path, tokens: int) -> dict[str, dict[str, Any]]:
  found = {}
  for file in ("preprocessor_config.json", "processor_config.json"):
    if (root / file).is_file():
      said = read_json(root / file)
      found[file] = said | {key: tokens for key in _TOKENS if key in said}
  return found
