"""The table of what can be measured over a benchmark: a part is a file and a line here."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spatialvlm.causes import edges, greyed, heads, layers, maps, present, tables
from spatialvlm.causes.reader import Reader
from spatialvlm.config import ExplainConfig
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.reporting.tables import Table


@dataclasses.dataclass(frozen=True)
class Part:
  """One thing that is measured.

  Attributes:
    measure: (reader, folder of a model, config, progress): writes files there, and goes on with those it
      finds.
    collect: (folders by model, config): what summary.json holds of it, as JSON values.
    tables: of what `collect` gave.
    asked: whether a config's tasks leave it anything to ask.
    check: (name of a model, its sizes, config): raises a UserError where it cannot be asked so; before
      anything is loaded or written.
  """

  measure: Callable[[Reader, pathlib.Path, ExplainConfig, Any], None]
  collect: Callable[[Mapping[str, pathlib.Path], ExplainConfig], dict[str, Any]]
  tables: Callable[[Mapping[str, Any]], Iterator[Table]]
  asked: Callable[[tuple[str, ...]], bool] = lambda tasks: True
  check: Callable[[str, VlmConfig, ExplainConfig], None] = lambda name, model, config: None


PARTS: dict[str, Part] = {
  "regions": Part(greyed.measure, greyed.collect, tables.regions),
  "edges": Part(edges.measure, edges.collect, tables.edges, edges.asked, edges.check),
  "maps": Part(maps.measure, maps.collect, tables.maps),
  "layers": Part(layers.measure, layers.collect, tables.layers),
  "heads": Part(heads.measure, heads.collect, tables.heads, check=heads.check),
  "probes": Part(present.measure, present.collect, tables.probes),
}
