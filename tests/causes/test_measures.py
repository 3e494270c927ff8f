"""What parts say of answers that follow a known rule."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from spatialvlm.causes import cases, edges, greyed, intervals, kept, maps, regions
from spatialvlm.causes.run import check
from spatialvlm.config import ExplainConfig
from spatialvlm.priors.prior import Tokens, windows
from spatialvlm.types import UserError
from tests.causes.support import RuleReader, greyed_share

CONFIG = ExplainConfig(
  models={"rule": ""}, bootstrap=200, tasks=("Depth",), questions=16, edge_questions=64, map_questions=6
)


@pytest.fixture(scope="module")
def some():
  return cases.make("Depth", 5, 16, 96)


@contextlib.contextmanager
def quiet(what):
  yield lambda done, total: None


def scores(some, rule_of):
  """Means of `greyed.per_case` of answers by a rule of each case."""
  lines = []
  for case in some:
    reader = RuleReader(rule_of(case))
    lines.append(json.loads(json.dumps(kept._plain(greyed.of_case(reader, case, 0)))))
  values = greyed.per_case(lines)
  return {key: intervals.mean(x, values["scene"], CONFIG) for key, x in values.items() if key != "scene"}


def shows(mask):
  share = greyed_share(mask)
  return lambda picture, row: 4 * share(picture) - 2


def test_answers_that_hang_on_named_objects_point_at_them(some):
  found = scores(some, lambda case: shows(np.isin(case.instance, case.named)))
  assert found["pointing"]["low"] > 0.95 and found["pointing_moved"]["low"] > 0.95
  assert found["size/named"]["low"] > found["size/other"]["high"] and found["size/frame"]["high"] < 0.1
  assert found["lower_more"]["value"] == pytest.approx(0.5, abs=0.1)


def test_answers_that_hang_on_other_things_do_not(some):
  found = scores(some, lambda case: shows((case.instance >= 0) & ~np.isin(case.instance, case.named)))
  assert found["pointing"]["high"] < 0.05
  nothing = scores(some, lambda case: lambda picture, row: 1.0)
  assert nothing["pointing"]["value"] == nothing["pointing_moved"]["value"] == 0.5
  assert nothing["size/all"]["value"] == 0 and nothing["flips/all"]["value"] == 0


def test_answers_that_hang_on_lower_edges_show_it(some):
  def rule(case):
    lower = [r.mask for r in regions.of_case(case, 0) if r.kind == "lower"]
    return shows(np.any(lower, axis=0))

  found = scores(some, rule)
  assert found["lower_more"]["low"] > 0.9


def test_exchanged_tokens_are_told_from_exchanged_floor(some):
  def rule(case):
    own = greyed.exchanges(case, RuleReader(None).prompt(case), 0)["named"]
    return lambda picture, row: -2.0 if row.order is not None and (row.order == own).all() else 2.0

  found = scores(some, rule)
  assert found["swap_flips"]["value"] == 1 and found["swap_elsewhere_flips"]["value"] == 0


def test_what_answers_about_depth_follow(tmp_path):
  some = {case.id: case for case in cases.make("Depth", CONFIG.seed, CONFIG.edge_questions, 96)}
  by_picture = {case.image.tobytes(): case for case in some.values()}

  def follow(weights):
    rule = lambda picture, row: float(np.dot(weights, edges.cues(by_picture[picture.tobytes()])))
    folder = tmp_path / str(weights)
    edges.measure(RuleReader(rule), folder, CONFIG, quiet)
    return edges.collect({"rule": folder}, CONFIG)["rule"]

  depth = follow((3, 0, 0, 0))
  assert depth["weights"]["nearer"]["low"] > 0.5 and abs(depth["weights"]["lower edge"]["value"]) < 1e-6
  assert depth["scores"]["accuracy"]["value"] > 0.9
  edge = follow((0, 9, 0, 0))
  assert edge["weights"]["lower edge"]["low"] > 0.5 and abs(edge["weights"]["nearer"]["value"]) < 1e-6
  assert edge["scores"]["accuracy where lower edge agrees"]["value"] == 1
  assert edge["scores"]["accuracy where lower edge disagrees"]["value"] == 0


def test_maps_are_told_from_each_other(some, monkeypatch):
  for name in ("attention", "rollout", "gradient"):  # of a model alone
    monkeypatch.delitem(maps.MAPS, name)
  totals = {}
  for case in some[:6]:
    mask = np.isin(case.instance, case.named)
    line = maps.of_case(RuleReader(shows(mask)), case, CONFIG)
    for name, found in line["maps"].items():
      totals.setdefault(name, []).append([float(found[score]) for score in maps.SCORES])
  means = {name: np.mean(values, axis=0) for name, values in totals.items()}
  for name in ("truth", "occlusion"):
    assert means[name][0] == 1 and means[name][1] < means["random"][1] and means[name][2] > means["random"][2]
  assert means["random"][0] < 1


def test_numbers_of_tokens_are_spread_over_what_they_show():
  values = np.arange(64.0)
  np.testing.assert_allclose(maps.of_tokens(values, Tokens(windows(0, 0), 8), 8), values.reshape(8, 8))
  np.testing.assert_allclose(maps.of_tokens(values, Tokens(windows(0, 0), 8), 4).sum(), values.sum())
  many = maps.of_tokens(np.repeat([1.0, 0, 0, 0, 0], 16), Tokens(windows(2, 2), 4), 8)
  assert many[:4, :4].sum() == pytest.approx(16) and many.sum() == pytest.approx(16)


# What is kept.


def test_a_stopped_part_goes_on_where_it_was(tmp_path, some):
  path, calls = tmp_path / "a" / "x.jsonl", []

  def measure(block):
    calls.append(len(block))
    return [{"id": case.id, "x": np.float32(0.5), "none": np.nan} for case in block]

  kept.measured(path, some[:7], 3, measure)
  whole = path.read_bytes()
  assert calls == [3, 3, 1] and kept.read(path)[0] == {"id": some[0].id, "x": 0.5, "none": None}
  kept.measured(path, some[:7], 3, measure)
  assert calls == [3, 3, 1]
  cut = whole.index(b"\n", len(whole) // 2) + 5
  path.write_bytes(whole[:cut])
  kept.measured(path, some[:7], 3, measure)
  assert path.read_bytes() == whole and calls[3:] == [3, 1]
  with pytest.raises(UserError, match="other questions"):
    kept.measured(path, some[1:8], 3, measure)
  path.write_text("{\n")
  with pytest.raises(UserError, match="damaged"):
    kept.read(path)


def test_intervals_resample_scenes():
  rng = np.random.default_rng(0)
  values = rng.normal(1, 1, 400)
  alone = intervals.mean(values, [str(i) for i in range(400)], CONFIG)
  together = intervals.mean(np.repeat(values[:40], 10), [str(i // 10) for i in range(400)], CONFIG)
  width = lambda score: score["high"] - score["low"]
  assert alone["low"] < 1 < alone["high"] and width(together) > 2 * width(alone) and alone["n"] == 400
  assert intervals.mean([np.nan, 2.0], ["a", "b"], CONFIG)["value"] == 2
  assert intervals.mean([np.nan], ["a"], CONFIG)["value"] is None
  scenes = [str(i) for i in range(400)]
  same = intervals.change(values, values + 0.5, scenes, CONFIG)
  assert same["low"] == pytest.approx(0.5) == pytest.approx(same["high"])
  assert intervals.ratio(values, values - 1, scenes, CONFIG)["value"] is None
  assert intervals.ratio(2 * values, values, scenes, CONFIG)["value"] == pytest.approx(2)


def test_settings_that_cannot_work_are_refused():
  good = dataclasses.replace(CONFIG, models={"a": "x"})
  check(good)
  for change, message in (
    ({"models": {}}, "there are none"),
    ({"models": {"a b": "x"}}, "cannot be a name"),
    ({"parts": ("region",)}, "regions"),
    ({"tasks": ("depth",)}, "Depth"),
    ({"tasks": ()}, "must name some"),
    ({"head_blocks": (2,), "parts": ("edges",)}, "config.head_blocks: nothing reads it without 'heads'"),
    ({"head_blocks": (2, 2)}, r"config.head_blocks: \(2, 2\) must name each once"),
    ({"questions": 0}, "at least 1"),
    ({"image_size": 100}, "no multiple"),
    ({"dtype": "float16"}, "config.dtype"),
    ({"tasks": ("letters",), "parts": ("regions",)}, "none of them shows a picture"),
  ):
    with pytest.raises(UserError, match=message):
      check(dataclasses.replace(good, **change))
