"""The table of priors, and the priors of a config."""

from __future__ import annotations

import re
from collections.abc import Mapping

from spatialvlm.config import PriorConfig, from_config_dict, nearest
from spatialvlm.priors.depth_map import DepthMap
from spatialvlm.priors.normal_map import NormalMap
from spatialvlm.priors.positions import Positions
from spatialvlm.priors.prior import Prior
from spatialvlm.priors.rays import Rays
from spatialvlm.types import UserError

PRIORS: dict[str, type[Prior]] = {
  "rays": Rays,
  "depth_map": DepthMap,
  "normal_map": NormalMap,
  "positions": Positions,
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def make_priors(configs: Mapping[str, PriorConfig], where: str = "config.priors") -> dict[str, Prior]:
  """The priors of a config by name, in the order of their names.

  Raises:
    UserError: an unknown kind, a setting that the kind does not have or that makes no sense, or a name that
      cannot stand in the names of arrays.
  """
  return {name: make_prior(config, f"{where}.{name}") for name, config in sorted(configs.items())}


def make_prior(config: PriorConfig, where: str) -> Prior:
  """One prior; `where` is what messages call it, and ends in its name.

  Raises:
    UserError: as `make_priors`.
  """
  name = where.rpartition(".")[2]
  if not _NAME.fullmatch(name):
    raise UserError(f"{where}: the name stands in the names of arrays; small letters, digits and _ do")
  if config.kind not in PRIORS:
    raise UserError(f"{where}.kind: unknown {config.kind!r}; {nearest(config.kind, PRIORS)}")
  try:
    return from_config_dict(dict(config.kwargs), PRIORS[config.kind], f"{where}.kwargs")
  except UserError as error:
    said = str(error)
    raise UserError(said if said.startswith(where) else f"{where}.kwargs: {said}") from None
