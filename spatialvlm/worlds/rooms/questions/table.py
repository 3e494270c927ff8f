"""The table of all kinds of question about rooms: a new one is a file and a line here."""

from __future__ import annotations

from spatialvlm.worlds.rooms.questions import attribute, benchmark, facing, metric, pairs
from spatialvlm.worlds.rooms.questions.kind import Kind

TABLE: dict[str, Kind] = {
  kind.name: kind
  for kind in (
    benchmark.COUNT_KIND,
    benchmark.RELATION,
    benchmark.DEPTH,
    benchmark.DISTANCE,
    facing.FACING,
    pairs.SIZE_KIND,
    pairs.HEIGHT_KIND,
    pairs.OCCLUSION_KIND,
    pairs.REACH_KIND,
    attribute.ATTRIBUTE,
    metric.METRIC,
  )
}
