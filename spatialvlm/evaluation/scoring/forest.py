"""What a random forest knows of the answers from the text alone: the strongest of the prior baselines.

After TsT-RF (Brown et al., "Benchmark Designers Should 'Train on the Test Set' to Expose Exploitable
Non-Visual Shortcuts", 2025), which reaches about 56 % on CV-Bench without a look at any image: a model below
that has not shown that it sees. The features here are our own: place and value of an option, and how often
options like it are right in the other folds. It asks of each option whether it is the right one, and the
likeliest is chosen.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.scoring import baselines
from spatialvlm.types import LETTERS, UserError

LEAF = 5
# Of the features in `_features`, those that may only raise the chance: rates (1), not counts and numbers (0).
DIRECTIONS = [1] * 5 + [0] * 5 + [1] * 2 + [1] * 5 + [0] * 9
# Weight of guessing in a rate, in questions: what was seldom seen says little.
PRIOR = 2.0
_WORD = re.compile(r"[a-z]+")


def text_forest(rows: Sequence[Prediction], seed: int = 0, trees: int = 100) -> np.ndarray:
  """The chance of being right of a forest fitted on the folds that it is not asked about, float64 (N,).

  A question's image, and so all of its questions, are in one fold (`baselines.folds`); rates that serve as
  features leave the question's own image out, in fitting too: the forest learns how far to trust them.

  Raises:
    UserError: scikit-learn is not installed.
  """
  # Loading scikit-learn takes a second, which only those pay who ask for this.
  try:
    from sklearn.ensemble import RandomForestClassifier
  except ImportError as e:
    raise UserError(
      "score.text_forest needs scikit-learn: pip install scikit-learn, or set --config.score.text_forest=0"
    ) from e
  items = [_Item(row) for row in rows]
  fold_N = baselines.folds(rows, seed)
  right = baselines.guessing(rows)
  for fold in sorted(set(fold_N)):
    fitted = [item for item, f in zip(items, fold_N, strict=True) if f != fold]
    if not fitted:
      continue
    rates = _Rates(fitted)
    labels = np.concatenate([item.labels for item in fitted])
    # On questions that are balanced exactly, what is rarer among the rest is what was held out: a forest free
    # to learn that would be right far above guessing, of nothing that texts say. What was right oftener may
    # only be likelier.
    model = RandomForestClassifier(
      trees, min_samples_leaf=LEAF, random_state=seed, n_jobs=1, monotonic_cst=DIRECTIONS
    )
    model.fit(np.concatenate([_features(item, rates) for item in fitted]), labels)
    places = np.flatnonzero(fold_N == fold)
    chance = model.predict_proba(np.concatenate([_features(items[i], rates) for i in places]))[:, 1]
    start = 0
    for i in places:
      own = chance[start : start + len(items[i].labels)]
      start += len(own)
      best = own >= own.max() - 1e-12
      right[i] = best[items[i].labels.argmax()] / best.sum()
  return right


class _Item:
  """A question as the forest reads it: keys whose rates are asked for, and plain numbers, of each option."""

  def __init__(self, row: Prediction):
    self.image = row.image
    count = len(row.choices)
    self.even = 1 / count
    self.labels = np.arange(count) == LETTERS.index(row.gold)
    lower = row.question.lower()
    words = sorted(set(_WORD.findall(lower)))
    options = tuple(sorted(row.choices))
    self.keys: list[list[Hashable]] = []
    self.word_keys: list[list[Hashable]] = []
    for k, option in enumerate(row.choices):
      self.keys.append(
        [
          ("letter", row.task, count, k),
          ("text", row.task, option),
          ("source", row.task, row.source_dataset or row.source, option),
          ("rival", row.task, options, option),
          ("question", row.question, option),
        ]
      )
      self.word_keys.append([("word", row.task, word, option) for word in words])
    self.numbers = _numbers(row, lower)


def _numbers(row: Prediction, text: str) -> np.ndarray:
  """Place, value among the options, mention in the question, length, and the question's kind: (K, 9)."""
  count = len(row.choices)
  values = np.array([_value(option) for option in row.choices])
  known = not np.isnan(values).any()
  rank = values.argsort().argsort() / max(count - 1, 1) if known else np.full(count, -1.0)
  centred = values - values.mean() if known else np.zeros(count)
  mention = np.array([text.find(option.lower()) for option in row.choices])
  order = np.where(mention >= 0, mention.argsort().argsort(), -1)
  length = np.array([len(option) for option in row.choices])
  kind = [_stable(row.task), _stable(row.source), _stable(row.source_dataset)]
  columns = [np.arange(count), np.full(count, count), rank, centred, order, length]
  return np.stack([*columns, *(np.full(count, k) for k in kind)], axis=1).astype(float)


def _value(option: str) -> float:
  try:
    return float(option)
  except ValueError:
    return float("nan")


def _stable(name: str) -> float:
  """A number for a name, the same in every process (`hash` is not)."""
  return float(sum(ord(c) * (i + 1) for i, c in enumerate(name)) % 997)


class _Rates:
  """How often options with a key were right, and were there, over the questions of other images."""

  def __init__(self, items: Sequence[_Item]):
    self._seen: collections.Counter = collections.Counter()
    self._right: collections.Counter = collections.Counter()
    self._own_seen: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    self._own_right: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for item in items:
      for key, right in _keys(item):
        self._seen[key] += 1
        self._own_seen[item.image][key] += 1
        if right:
          self._right[key] += 1
          self._own_right[item.image][key] += 1

  def __call__(self, item: _Item, key: Hashable) -> tuple[float, int]:
    """Rate and count without the item's own image."""
    seen, right = self._seen[key], self._right[key]
    if item.image in self._own_seen:
      seen -= self._own_seen[item.image][key]
      right -= self._own_right[item.image][key]
    return (right + PRIOR * item.even) / (seen + PRIOR), seen


def _keys(item: _Item) -> Iterator[tuple[Hashable, bool]]:
  for keys, words, right in zip(item.keys, item.word_keys, item.labels, strict=True):
    for key in (*keys, *words):
      yield key, bool(right)


def _features(item: _Item, rates: _Rates) -> np.ndarray:
  """(K, features) of one question's options."""
  found = []
  for keys, words in zip(item.keys, item.word_keys, strict=True):
    known = [rates(item, key) for key in keys]
    of_words = [rate for rate, _ in (rates(item, key) for key in words)] or [item.even]
    found.append(
      [*(rate for rate, _ in known), *(seen for _, seen in known), np.mean(of_words), np.max(of_words)]
    )
  rate_KF = np.array(found)
  # A rate says more beside those of its rivals.
  relative_KF = rate_KF[:, :5] - rate_KF[:, :5].mean(0)
  return np.concatenate([rate_KF, relative_KF, item.numbers], axis=1)
