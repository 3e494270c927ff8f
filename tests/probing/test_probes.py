"""Probes on features of which one knows what they hold."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.preprocessing import StandardScaler

from spatialvlm.probing import probes, similarity
from tests.probing.support import numbers

PENALTIES = (1e-6, 1e-3, 1e-1, 10.0)


@pytest.fixture(scope="module")
def worlds():
  return numbers()


@pytest.fixture(scope="module")
def guessing(worlds):
  return probes.summaries(probes.guessing(worlds), 200, 0)


def measure(cells, worlds):
  return probes.summaries(probes.run(cells.astype(np.float32), worlds, PENALTIES), 200, 0)


def test_features_that_hold_everything(worlds):
  rng = np.random.default_rng(1)
  known = np.concatenate([np.nan_to_num(worlds.depth_NC)[..., None], worlds.names_NCZ], -1)
  mixed = known @ rng.normal(size=(known.shape[-1], 40)) + 3
  found = measure(mixed, worlds)
  assert found["rmse"]["value"] < 0.01 and found["delta"]["value"] == 1
  assert found["place"]["value"] < 0.01 and found["relation"]["value"] == 1
  assert found["nearer"]["value"] > 0.95


def test_features_that_hold_nothing(worlds, guessing):
  noise = np.random.default_rng(2).normal(size=(*worlds.depth_NC.shape, 6))
  found = measure(noise, worlds)
  for name in ("rmse", "place", "relation", "nearer"):
    assert found[name]["low"] <= guessing[name]["value"] <= found[name]["high"], name


def test_guessing(worlds, guessing):
  test = worlds.depth_NC[worlds.part_N == 2]
  fit = worlds.depth_NC[worlds.part_N == 0]
  wanted = np.sqrt(np.nanmean((test - np.nanmean(fit)) ** 2))
  assert guessing["rmse"]["value"] == pytest.approx(wanted, rel=1e-5)
  assert guessing["relation"]["value"] == guessing["nearer"]["value"] == 0.5
  assert guessing["relation"]["low"] == guessing["relation"]["high"] == 0.5
  assert guessing["rmse"]["images"] == (worlds.part_N == 2).sum()


def test_the_test_part_does_not_teach(worlds):
  """Other truths in the test change no prediction: what a probe makes of the rest stays as it is."""
  known = np.nan_to_num(worlds.depth_NC)[..., None]
  before = probes.depth(known, worlds, PENALTIES)[0].sums_NS
  worlds.depth_NC[worlds.part_N == 2] += 1
  after = probes.depth(known, worlds, PENALTIES)[0].sums_NS
  worlds.depth_NC[worlds.part_N == 2] -= 1
  np.testing.assert_allclose(after[:, 0] / after[:, 1], 1, atol=0.02)
  assert before[:, 0].max() < 0.01


def test_ridge_is_scikit_learns():
  rng = np.random.default_rng(3)
  x, y = rng.normal(2, 3, (50, 7)) * np.arange(1, 8), rng.normal(size=(50, 2))
  scaled = StandardScaler().fit(x)
  for penalty in (1e-3, 0.5):
    wanted = TheirRidge(alpha=penalty * len(x)).fit(scaled.transform(x), y).predict(scaled.transform(x))
    np.testing.assert_allclose(probes.Ridge(x, y).solve(penalty)(x), wanted, atol=1e-4)


def test_ridge_leaves_out_what_never_varies():
  x = np.concatenate([np.random.default_rng(4).normal(size=(30, 2)), np.full((30, 1), 5.0)], 1)
  found = probes.Ridge(x, x[:, :1]).solve(1e-6)(x + np.array([0, 0, 1e9]))
  np.testing.assert_allclose(found, x[:, :1], atol=1e-3)


def test_intervals_are_by_image():
  """A hundred questions on one of ten images weigh like one image, not like a hundred."""
  sums = np.array([[1.0, 1.0]] * 5 + [[0.0, 1.0]] * 5)
  one = probes.Measured(sums, lambda s: s[..., 0] / s[..., 1]).summary(2000, 0)
  many = probes.Measured(100 * sums, lambda s: s[..., 0] / s[..., 1]).summary(2000, 0)
  assert one == many and one["value"] == 0.5
  assert 0.1 <= one["low"] <= 0.3 and 0.7 <= one["high"] <= 0.9
  nothing = probes.Measured(sums[:0], lambda s: s[..., 0] / s[..., 1]).summary(10, 0)
  assert nothing == {"value": None, "low": None, "high": None, "images": 0}


def test_cka():
  rng = np.random.default_rng(5)
  x, y = rng.normal(size=(400, 5)), rng.normal(size=(400, 8))
  turned = 3 * x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 7
  assert similarity.linear_cka(x, turned) == pytest.approx(1)
  assert similarity.linear_cka(x, y) < 0.1
  # The same from the images' side: alignment of centred Gram matrices (Kornblith et al., equation 3).
  centre = np.eye(400) - 1 / 400
  ours, theirs = (centre @ f @ f.T @ centre for f in (x[:, :3], turned))
  wanted = np.sum(ours * theirs) / np.linalg.norm(ours) / np.linalg.norm(theirs)
  assert similarity.linear_cka(x[:, :3], turned) == pytest.approx(wanted)
  assert similarity.debiased_cka(x, turned) == pytest.approx(1)
  # Few rows and many columns: the plain estimate is high for what is unrelated.
  wide, other = rng.normal(size=(2, 40, 300))
  assert similarity.linear_cka(wide, other) > 0.8 and abs(similarity.debiased_cka(wide, other)) < 0.15
  table = similarity.table([x, y, turned])
  assert table[0][2] == table[2][0] == pytest.approx(1) and table[1][1] == 1
  assert similarity.linear_cka(x[:1], y[:1]) is None and similarity.linear_cka(0 * x, x) is None
  assert similarity.debiased_cka(x[:3], x[:3]) is None and similarity.debiased_cka(0 * x, x) is None
