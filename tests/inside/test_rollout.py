"""Rows carried through layers, against products of whole matrices."""

import numpy as np

from spatialvlm.inside import rollout


def attention(L=4, T=6, seed=0):
  p = np.tril(np.random.default_rng(seed).random((L, T, T))).astype(np.float32)
  return p / p.sum(-1, keepdims=True)


def test_rollout_is_the_product_of_layers():
  p_LTT, rows = attention(), np.array([2, 5])
  found = rollout.rollout(p_LTT, rows)
  whole = np.eye(6)
  for layer, p_TT in enumerate(p_LTT):
    whole = (0.5 * p_TT + 0.5 * np.eye(6)) @ whole
    np.testing.assert_allclose(found[layer], whole[rows], atol=1e-6)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_relevance_is_chefers_recursion():
  a_LTT, rows = attention(seed=1), np.array([0, 4])
  whole = np.eye(6)
  for a_TT in a_LTT:
    whole = whole + a_TT @ whole
  np.testing.assert_allclose(rollout.relevance(a_LTT, rows), whole[rows], rtol=1e-5)
