"""What a score, or a difference of two, can be trusted to say.

Intervals come from a bootstrap that resamples images, not questions, within each source.

Questions on one image share its difficulty, so they are drawn together (cluster bootstrap: Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8); the official formula fixes the sources'
weights, so each source is resampled within itself (stratified). Percentile intervals.

Two runs are also held against each other question by question (exact McNemar test), which takes the questions
for independent; where images have several questions, the interval is the more careful of the two.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.scoring.aggregation import Aggregation, aggregation
from spatialvlm.types import UserError

# Bounds the memory of one block of resamples: about 40 MB of float64.
BLOCK = 5_000_000


def intervals(
  rows: Sequence[Prediction], correct_N: np.ndarray, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
  """The interval of each score of `aggregation(rows)`, by its name.

  A score that rests on one image alone could be anything: 0 to 1.
  """
  table = aggregation(rows)
  drawn = _resample(rows, table, np.asarray(correct_N, float)[:, None], resamples, seed)
  found = {name: _percentiles(values[:, 0], level) for name, values in drawn.items()}
  return found | dict.fromkeys(_of_one_image(rows, table), (0.0, 1.0))


def paired(
  before: Sequence[Prediction],
  after: Sequence[Prediction],
  *,
  resamples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, dict[str, float]]:
  """What changed between two runs on the same questions: both drawn with the same resampled images.

  Returns, by the name of the score: before, after, difference, low, high (of the difference) and n;
  `answered_before` and `answered_after`, the shares of questions with an answer;
  `detectable`, the true difference that these questions would show with 80 % power (`minimum_detectable`),
  from the bootstrap's standard error, 0 where the runs are alike; for plain means over questions also
  `gained` and `lost` (questions that only one of the runs has right) and `p`, McNemar's; for tasks `p_holm`,
  corrected for their number.

  Raises:
    UserError: the runs are not of the same questions.
  """
  _, second = _of_same_questions(before, after)
  rows = list(before)
  correct_N2 = np.array([[row.correct, second[row.idx].correct] for row in rows], float)
  table = aggregation(rows)
  was, now = (table.values(correct_N2[:, i]) for i in range(2))
  answered_N2 = np.array([[row.choice != "", second[row.idx].choice != ""] for row in rows], float)
  spoke = [table.values(answered_N2[:, i]) for i in range(2)]
  counts = table.counts()
  found, alone = {}, _of_one_image(rows, table)
  for name, values in _resample(rows, table, correct_N2, resamples, seed).items():
    low, high = (-1.0, 1.0) if name in alone else _percentiles(values[:, 1] - values[:, 0], level)
    found[name] = {
      "before": was[name],
      "after": now[name],
      "difference": now[name] - was[name],
      "low": low,
      "high": high,
      "n": counts[name],
      "answered_before": spoke[0][name],
      "answered_after": spoke[1][name],
      "detectable": minimum_detectable(float(np.nanstd(values[:, 1] - values[:, 0])), level=level),
    }
    if name in table.groups:
      was_N, now_N = correct_N2[table.groups[name]].T > 0
      found[name] |= mcnemar(was_N, now_N)
  tasks = [name for name in found if name.startswith("task/")]
  for name, p in holm({name: found[name]["p"] for name in tasks}).items():
    found[name]["p_holm"] = p
  return found


def paired_mean(
  before: Sequence[Sequence[Prediction]],
  after: Sequence[Sequence[Prediction]],
  *,
  resamples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, dict[str, float]]:
  """What changed on average of several runs on the same questions, e.g. of one method with several seeds.

  All are drawn with the same resampled images, so the interval is of the mean of these very runs over other
  questions. What further runs would give it does not say; how far these lie apart tells.

  Args:
    before: one run that all of `after` are held against, or as many, each of which is held against its own.

  Returns, by the name of the score: before and after (means of the runs), difference, low, high (of the
  difference), n, and `lowest` and `highest`, the differences of the single runs at their ends. Of one run
  each, before, after, difference, low and high are those of `paired`.

  Raises:
    UserError: a run is not of the same questions.
  """
  if len(before) not in (1, len(after)):
    raise ValueError(f"{len(before)} runs before, {len(after)} after")
  rows, first = list(before[0]), len(before)
  answers = [_of_same_questions(rows, other)[1] for other in (*before, *after)]
  correct_NS = np.array([[by[row.idx].correct for by in answers] for row in rows], float)
  table = aggregation(rows)
  values = [table.values(correct_N) for correct_N in correct_NS.T]
  counts, found, alone = table.counts(), {}, _of_one_image(rows, table)
  for name, drawn_RS in _resample(rows, table, correct_NS, resamples, seed).items():
    change_R = drawn_RS[:, first:].mean(axis=1) - drawn_RS[:, :first].mean(axis=1)
    low, high = (-1.0, 1.0) if name in alone else _percentiles(change_R, level)
    value_S = np.array([value[name] for value in values])
    single = value_S[first:] - value_S[:first]
    found[name] = {
      "before": float(value_S[:first].mean()),
      "after": float(value_S[first:].mean()),
      "difference": float(single.mean()),
      "low": low,
      "high": high,
      "n": counts[name],
      "lowest": float(single.min()),
      "highest": float(single.max()),
    }
  return found


def unpaired(
  before: Sequence[Prediction],
  after: Sequence[Prediction],
  *,
  resamples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, dict[str, float]]:
  """How the scores of two runs differ whose questions are on different images: each is drawn by itself.

  Returns, by the name of each score that both have: before, after, difference, low, high (of the difference)
  and n (of `after`).
  """
  drawn, scores, alone = [], [], set()
  for number, rows in enumerate((before, after)):
    table = aggregation(rows)
    correct_N = np.array([row.correct for row in rows], float)
    drawn.append(_resample(rows, table, correct_N[:, None], resamples, seed + number))
    scores.append(table.values(correct_N))
    alone |= _of_one_image(rows, table)
  counts, found = table.counts(), {}
  for name in (name for name in scores[1] if name in scores[0]):
    difference_R = drawn[1][name][:, 0] - drawn[0][name][:, 0]
    low, high = (-1.0, 1.0) if name in alone else _percentiles(difference_R, level)
    was, now = scores[0][name], scores[1][name]
    found[name] = dict(before=was, after=now, difference=now - was, low=low, high=high, n=counts[name])
  return found


def mcnemar(before_N: np.ndarray, after_N: np.ndarray) -> dict[str, float]:
  """McNemar's exact test of two runs on the same questions (McNemar, Psychometrika 12, 1947).

  Where the runs are equally good, a question that only one of them has right is as likely either's: `lost` is
  binomial with chance 1/2 of all that differ. `p` is two-sided, twice the smaller tail.

  Args:
    before_N, after_N: bool, whether each question was right.

  Returns:
    gained, lost (int) and p.
  """
  gained = int(np.sum(~before_N & after_N))
  lost = int(np.sum(before_N & ~after_N))
  p = _binomial(gained, gained + lost).pvalue if gained + lost else 1.0
  return {"gained": gained, "lost": lost, "p": float(p)}


def wilson(right: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
  """Wilson's score interval of the share `right / count` (JASA 22, 1927), for questions that are independent.

  Where several questions share a picture, `intervals` is the one to take.
  """
  low, high = _binomial(right, count).proportion_ci(level, method="wilson")
  return float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
  """Holm's step-down correction for several tests (Scandinavian Journal of Statistics 6, 1979), by name."""
  adjusted, highest = {}, 0.0
  for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
    highest = max(highest, min(1.0, (len(p_values) - rank) * p))
    adjusted[name] = highest
  return {name: adjusted[name] for name in p_values}


def minimum_detectable(deviation: float, *, level: float = 0.95, power: float = 0.8) -> float:
  """The smallest true difference that a two-sided test at `level` finds with this power.

  Args:
    deviation: standard error of the difference, e.g. the bootstrap's.
  """
  normal = statistics.NormalDist()
  return (normal.inv_cdf(0.5 + level / 2) + normal.inv_cdf(power)) * deviation


def at_chance(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
  """The scores (`summary["scores"]`) that do not lie above their interval of guessing, by name.

  Low ones count as well: a run far below guessing does not answer, or answers in a form that nobody reads.
  """
  return [name for name, score in scores.items() if score["low"] <= score["guessing"]]


def _of_same_questions(
  before: Sequence[Prediction], after: Sequence[Prediction]
) -> tuple[dict[int, Prediction], dict[int, Prediction]]:
  first, second = ({row.idx: row for row in rows} for rows in (before, after))
  if first.keys() != second.keys():
    odd = min(first.keys() ^ second.keys())
    raise UserError(f"the two runs are not of the same questions: number {odd} is in one of them only")
  return first, second


def _binomial(hits: int, count: int):
  """The exact test of a fair coin, from which both `mcnemar` and `wilson` read."""
  # Loading scipy's statistics takes a second, which a command that compares nothing need not wait.
  from scipy.stats import binomtest

  return binomtest(hits, count)


def _of_one_image(rows: Sequence[Prediction], table: Aggregation) -> set[str]:
  """Scores of questions that all show one image: drawing images anew says nothing of them."""
  images = np.array([f"{row.source}\n{row.image}" for row in rows])
  groups = [name for name in table.scores if name in table.groups]
  return {name for name in groups if len(np.unique(images[table.groups[name]])) == 1}


def _resample(
  rows: Sequence[Prediction], table: Aggregation, correct_NS: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
  """Scores of `resamples` draws (R, S), for S vectors of correctness drawn alike."""
  keys = [(row.source, row.image) for row in rows]
  clusters = {key: i for i, key in enumerate(sorted(set(keys)))}
  cluster_N = np.array([clusters[key] for key in keys])
  names = list(table.groups)
  size_CG = np.zeros((len(clusters), len(names)))
  right_CGS = np.zeros((len(clusters), len(names), correct_NS.shape[1]))
  for g, name in enumerate(names):
    mask = table.groups[name]
    np.add.at(size_CG[:, g], cluster_N[mask], 1.0)
    np.add.at(right_CGS[:, g], cluster_N[mask], correct_NS[mask])
  strata = np.array([key[0] for key in sorted(clusters, key=clusters.get)], dtype=object)
  blocks = []
  for weight_RC in _weights(strata, resamples, seed):
    right_RGS = np.einsum("rc,cgs->rgs", weight_RC, right_CGS, optimize=True)
    blocks.append(right_RGS / _positive(weight_RC @ size_CG)[..., None])
  means_RGS = np.concatenate(blocks)
  column = {name: g for g, name in enumerate(names)}
  return {
    score: sum(w * means_RGS[:, column[group]] for group, w in parts.items())
    for score, parts in table.scores.items()
  }


def _weights(strata: np.ndarray, resamples: int, seed: int):
  """Blocks (r, C) of how often each cluster is drawn; a stratum keeps its number of clusters."""
  rng = np.random.default_rng(seed)
  step = max(1, BLOCK // len(strata))
  for start in range(0, resamples, step):
    weight_RC = np.zeros((min(step, resamples - start), len(strata)))
    for stratum in sorted(set(strata)):
      (members,) = np.nonzero(strata == stratum)
      even = np.full(len(members), 1.0 / len(members))
      weight_RC[:, members] = rng.multinomial(len(members), even, size=len(weight_RC))
    yield weight_RC


def _positive(count: np.ndarray) -> np.ndarray:
  """A draw without any question of a group says nothing on it: NaN, left out of the percentiles."""
  return np.where(count > 0, count, np.nan)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
  tail = 50.0 * (1.0 - level)
  low, high = np.nanpercentile(values, [tail, 100.0 - tail])
  return float(low), float(high)
