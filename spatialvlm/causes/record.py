"""What an answer to one question hangs on, as NumPy arrays, and the file that it is kept in."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from spatialvlm.causes.reader import log_odds
from spatialvlm.inside import kept

FORMAT, FILE = 1, "causes.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Causes:
  """One question under all interventions. R regions, G groups of places, L blocks, K options.

  Attributes:
    question, options: as they were asked.
    right: place of the right option, -1 where nobody knows. chosen: of the likeliest.
    picture: uint8 (H, W, 3).
    regions, kinds: names of the regions, and of what kind each is (`regions.KINDS`).
    masks: bool (R, H, W).
    logprobs: float32 (K,), log-probabilities of the options over the whole vocabulary; blind: (K,), of a grey
      picture of the same size.
    grey: (R, K), with each region grey.
    swaps: names of what changes places, and swapped: (S, K).
    cut_groups, cut: (G, L + 1, K), attention cut from the words to the image tokens that show a group, in
      each block, and in all of them last.
    patch_groups, patched: (G', L + 1, K), a reading of `opposite` with states of the picture at a group, in
      each layer, 0 being what the first block reads.
    opposite: (K,), of the picture that was patched into: one for which another option is right, or a grey
      one.
  """

  question: str
  options: tuple[str, ...]
  right: int
  chosen: int
  picture: np.ndarray
  regions: tuple[str, ...]
  kinds: tuple[str, ...]
  masks: np.ndarray
  logprobs: np.ndarray
  blind: np.ndarray
  grey: np.ndarray
  swaps: tuple[str, ...]
  swapped: np.ndarray
  cut_groups: tuple[str, ...]
  cut: np.ndarray
  patch_groups: tuple[str, ...]
  patched: np.ndarray
  opposite: np.ndarray

  def log_odds(self, logprobs: np.ndarray) -> np.ndarray:
    """Of log-probabilities (..., K): the log-odds (...) of the chosen option against all others."""
    return log_odds(np.asarray(logprobs, np.float64), self.chosen)

  def change(self, logprobs: np.ndarray) -> np.ndarray:
    """How far these log-odds are from those of the picture as it is."""
    return self.log_odds(logprobs) - self.log_odds(self.logprobs)

  def restored(self) -> np.ndarray:
    """(G', L + 1): the share of the difference between `opposite` and the picture that patching brings back.

    NaN where there is hardly any difference.
    """
    whole = self.log_odds(self.logprobs) - self.log_odds(self.opposite)
    with np.errstate(divide="ignore", invalid="ignore"):
      share = (self.log_odds(self.patched) - self.log_odds(self.opposite)) / whole
    return share if abs(whole) > 0.05 else np.full_like(share, np.nan)


def write(causes: Causes, path: pathlib.Path) -> None:
  """Writes the file. Raises as `kept.write`."""
  kept.write(causes, path, FORMAT)


def read(path: pathlib.Path) -> Causes:
  """Reads what `write` has written. Raises as `kept.read`."""
  return kept.read(Causes, path, FORMAT, "record of causes")
