"""What was found of one question, as NumPy arrays, and the file that it is kept in."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from spatialvlm.inside import kept
from spatialvlm.inside.places import Canvas
from spatialvlm.types import LETTERS, UserError

FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
  """What the residual stream says, read by the model's own head at each layer.

  Attributes:
    layers: int32 (l,), layers of which the patches were read; 0 is what the first block reads.
    patch_ids, patch_shares: int32 and float32 (l, M, 3), the likeliest tokens of each image token, falling.
    answer_ids, answer_shares: (L + 1, 5), those at the answer's place, of every layer.
    options: float32 (L + 1, K), log-probability of each option's token there.
  """

  layers: np.ndarray
  patch_ids: np.ndarray
  patch_shares: np.ndarray
  answer_ids: np.ndarray
  answer_shares: np.ndarray
  options: np.ndarray

  @property
  def log_odds(self) -> np.ndarray:
    """float32 (L + 1, K): of each option against the others together, log p_k - log sum of the others."""
    top = self.options.max(axis=1, keepdims=True)
    share = np.exp(self.options - top).astype(np.float64)
    rest = share.sum(axis=1, keepdims=True) - share
    with np.errstate(divide="ignore"):
      return (self.options - top - np.log(np.maximum(rest, 1e-300))).astype(np.float32)

  def overtakes(self, option: int) -> int | None:
    """The first layer from which on an option is the likeliest of all, up to the last; None: it never is."""
    leads = self.options.argmax(axis=1) == option
    if not leads[-1]:
      return None
    behind = np.flatnonzero(~leads)
    return int(behind[-1]) + 1 if len(behind) else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Vision:
  """Where the vision tower looks, within each of N tiles of P' patches, `side` along an edge.

  Attributes:
    received: float32 (Lv, heads, N, P'): the share of attention that each patch gets, the mean over all
      patches that look. What a class token or registers get is missing from the sums.
    rollout: float32 (N, P, P'): for each image token, the mean over its patches, how its content goes back to
      the patches of the first layer (Abnar and Zuidema).
    gradient: float32 (N, P'), the gradient-weighted relevance of each patch for the answer, through both
      towers; empty where it was not asked for.
  """

  side: int
  received: np.ndarray
  rollout: np.ndarray
  gradient: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One question from inside. Q rows are places that look, M image tokens what they look at.

  Attributes:
    model: name of the model.
    question, options, right, name: as of `asked.Asked`.
    free: whether the question had no options; `options` are then the tokens that are likeliest in the end.
    chosen: the place of the likeliest option.
    said: what the model answers: the option's letter, or its words.
    pictures: uint8 (H, W, 3) each; `canvases` say where image tokens stand in them.
    tokens: int32 (T,); `image_at`: int32 (M,), positions of the image tokens.
    words, word_rows: the words of the text, and of each the numbers of its rows; the last row is the answer's
      place, the prompt's last token.
    rows: int32 (Q,), their positions.
    layers: int32 (l,), the decoder's layers of `attention`, from 1 on: layer i is the block that makes it.
    attention: float32 (l, heads, Q, M), the probabilities; one head, their mean, where no more was asked for.
    rollout: float32 (L, Q, M), attention rollout from each row down from each layer; empty without.
    gradient: float32 (Q, M), gradient-weighted relevance of image tokens for the chosen token; empty without.
    vision: of the vision tower; None where it was not asked for.
    lens, tuned: of the logit lens, and of the tuned lens where there are translators.
    vocabulary: texts of tokens that a lens names, by their ids.
  """

  model: str
  question: str
  name: str
  free: bool
  options: tuple[str, ...]
  right: int
  chosen: int
  said: str
  pictures: tuple[np.ndarray, ...]
  canvases: tuple[Canvas, ...]
  tokens: np.ndarray
  image_at: np.ndarray
  words: tuple[str, ...]
  word_rows: tuple[tuple[int, ...], ...]
  rows: np.ndarray
  layers: np.ndarray
  attention: np.ndarray
  rollout: np.ndarray
  gradient: np.ndarray
  vision: Vision | None
  lens: Lens
  tuned: Lens | None
  vocabulary: dict[str, str]

  @property
  def curves(self) -> tuple[str, ...]:
    """What curves call the options: their letters with them; of a free question the tokens alone."""
    if self.free:
      return self.options
    return tuple(f"{letter} {text}" for letter, text in zip(LETTERS, self.options, strict=False))

  @property
  def looked(self) -> np.ndarray:
    """float32 (l, Q, M), the mean of `attention` over heads."""
    return self.attention.mean(axis=1)

  def of_words(self, values: np.ndarray) -> np.ndarray:
    """(..., W + 1, M) of values (..., Q, M): the mean over each word's rows, and behind them the answer's."""
    groups = [*self.word_rows, (len(self.rows) - 1,)]
    return np.stack([values[..., list(rows), :].mean(axis=-2) for rows in groups], axis=-2)

  def through_vision(self, values: np.ndarray) -> np.ndarray:
    """(..., N * P') of values (..., M) of image tokens: what they stand for in patches, by the tower's
    rollout.

    Raises:
      UserError: the vision tower was not asked.
    """
    if self.vision is None:
      raise UserError("the record holds nothing of the vision tower; explain the question with --vision")
    count, each, _ = self.vision.rollout.shape
    parts = np.moveaxis(values.reshape(*values.shape[:-1], count, each), -2, 0)
    found = np.stack([part @ rows for part, rows in zip(parts, self.vision.rollout, strict=True)], axis=-2)
    return found.reshape(*values.shape[:-1], -1)

  def word(self, index: int) -> str:
    """The text of a token that a lens names."""
    return self.vocabulary[str(int(index))]


def write(record: Record, path: pathlib.Path) -> None:
  """Writes the file. Raises as `kept.write`."""
  kept.write(record, path, FORMAT)


def read(path: pathlib.Path) -> Record:
  """Reads what `write` has written. Raises as `kept.read`."""
  return kept.read(Record, path, FORMAT, "record")
