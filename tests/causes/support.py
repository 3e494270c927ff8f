"""A reader whose answers are made of pixels by a rule of the test's, in the place of a model."""

import numpy as np

from spatialvlm.causes.reader import Prompt
from spatialvlm.priors.prior import Tokens, windows

GREY = 128


class RuleReader:
  """Reads 8 x 8 image tokens of 12 pixels; the log-odds of the first choice are `rule(picture, row)`."""

  depth, heads, rows, name, length = 2, 2, 32, "rule", 96

  def __init__(self, rule):
    self._rule = rule

  def prompt(self, case):
    count = len(case.choices)
    slots = np.concatenate([np.arange(64), np.full(6, -1)]).astype(np.int32)
    words = ("<image>",) * 64 + ("which", " red", " or", " blue", " box", ":")
    places = Tokens(windows(0, 0), 8)
    return Prompt(np.zeros(70, np.int32), slots, 0, np.arange(count, dtype=np.int32), words, places)

  def cut(self, image):
    return image[None]

  def fit(self, prompts):
    pass

  def pad(self, x, fill=0):
    return np.pad(x, (0, self.length - len(x)), constant_values=fill)

  def ask(self, rows, changes=None):
    odds = np.array([self._rule(row.tiles[0], row) for row in rows], float)
    return np.stack([-np.log1p(np.exp(-odds)), -np.log1p(np.exp(odds))], 1)


def greyed_share(mask):
  """How much of a mask is not grey in a picture."""
  return lambda picture: float((picture[mask] != GREY).any(-1).mean())
