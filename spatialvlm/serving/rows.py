"""Rows on the device: requests' keys and values side by side, all moved on by one program.

Each row is filled to a length of its own. A program of a fixed number of rows says the next tokens of all of
them; a request is read into a row that is free, and leaves it when it ends, without a word to its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import generation
from spatialvlm.core.attention import KVCache
from spatialvlm.models.vlm import Vlm
from spatialvlm.serving.scorer import Graph, Prefixes
from spatialvlm.types import Batch

# How many of the likeliest tokens are told of each token that is said.
TOPS = 20
# Lengths of the pieces in which texts are read; a longer text is read in several.
PIECES = (16, 64, 256)
_LEAST_SPAN = 256


@dataclasses.dataclass(frozen=True)
class Draw:
  """How the tokens of one row are chosen.

  Attributes:
    temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
    top_p: only the likeliest tokens whose probabilities first reach this sum are drawn from.
    seed: in [0, 2**32).
    said: tokens that were said before.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0
  said: int = 0


class Said(NamedTuple):
  """Tokens (B, T) int32 that were said, `generation.BROKEN` where the logits were not finite.

  Where they were asked for, else all zero: the tokens' log-probabilities over the whole vocabulary in
  float32, before any temperature, and the ids and log-probabilities (B, T, `TOPS`) of the likeliest, falling.
  """

  tokens_BT: Any
  logprobs_BT: Any
  top_ids_BTK: Any
  top_logprobs_BTK: Any


class _Choice(NamedTuple):
  """`Draw`s as arrays (B,), and whether log-probabilities are wanted, a bool."""

  temperature_B: Any
  top_p_B: Any
  seed_B: Any
  said_B: Any
  tells: Any


def span(columns: int) -> int:
  """The next of few sizes: powers of two and one and a half times these."""
  size = _LEAST_SPAN
  while size < columns:
    size *= 2
  return size * 3 // 4 if size > _LEAST_SPAN and size * 3 // 4 >= columns else size


def piece(count: int) -> int:
  """The piece in which `count` tokens, or the first of them, are read."""
  return next((size for size in PIECES if size >= count), PIECES[-1])


class Rows:
  """A fixed number of rows of one model, on one device. Belongs to one thread.

  Attributes:
    count: B, how many rows there are.
    together: how many texts are read at once; a single one is read alone.
  """

  def __init__(self, vlm: Vlm, count: int, together: int, stop_ids: Sequence[int], steps: int):
    """`steps`: how many tokens each row says in one `turn` at most."""
    graphdef, self._state = nnx.split(vlm)
    self._graph = Graph.of(graphdef)
    self.count, self.together, self._steps = count, min(together, count), steps
    self._sizes = [size for size in (1, 4, 16, 64) if size < count] + [count]
    self._bidirectional = vlm.config.prefix_lm
    self._stop_ids_K = generation.padded_stops(stop_ids)
    self._held: Any = None

  @property
  def columns(self) -> int:
    """S, tokens that a row has room for now; 0 before the first `place`, and behind `clear`."""
    return 0 if self._held is None else jax.tree.leaves(self._held)[0].shape[1]

  def clear(self) -> None:
    """Forgets all rows, and gives their memory back."""
    self._held = None

  def fit(self, columns: int) -> None:
    """Makes room for so many tokens in every row, or takes back what has become much too large."""
    wanted, now = span(columns), self.columns
    if not now or now >= wanted > now // 4:
      return
    more = max(wanted - now, 0)
    resized = lambda x: jnp.pad(x[:, :wanted], ((0, 0), (0, more), (0, 0), (0, 0)))
    self._held = jax.tree.map(resized, self._held)

  def place(self, row: int, prefix: Prefixes, columns: int) -> None:
    """Lays a prefix, one row of keys and values, at the beginning of a row.

    Args:
      columns: that are needed beside those of the rows that are taken; `fit` made room for theirs.
    """
    rows = prefix.keys, prefix.values
    wanted = max(columns, prefix.valid_BS.shape[1])
    if self._held is None:
      empty = lambda x: jnp.zeros((self.count, span(wanted), *x.shape[2:]), x.dtype)
      self._held = jax.tree.map(empty, rows)
    elif self.columns < wanted:
      self.fit(wanted)
    self._held = _placed(self._held, rows, np.int32(row))

  def read(
    self,
    rows: Sequence[int],
    texts: Sequence[np.ndarray],
    lengths: Sequence[int],
    draws: Sequence[Draw],
    tells: bool,
  ) -> Said:
    """Reads a text into each row behind its `lengths` tokens, and says the first token, T = 1.

    Texts are no longer than the longest piece, and at most `together`; there is room for a whole piece.
    """
    size = 1 if len(rows) == 1 else self.together
    length = piece(max(map(len, texts)))
    row_R = self._padded_rows(rows, size)
    tokens_RT, count_R, length_R = np.zeros((size, length), np.int32), np.ones(size, np.int32), 0 * row_R
    for i, text in enumerate(texts):
      tokens_RT[i, : len(text)] = text
      count_R[i], length_R[i] = len(text), lengths[i]
    choice = _choice(draws, size, tells)
    self._held, said = _read(
      self._graph, self._state, self._held, row_R, tokens_RT, count_R, length_R, choice, self._bidirectional
    )
    return Said(*(np.asarray(x)[: len(rows)] for x in said))

  def turn(
    self,
    rows: Sequence[int],
    tokens: Sequence[int],
    lengths: Sequence[int],
    left: Sequence[int],
    draws: Sequence[Draw],
    tells: bool,
  ) -> Said:
    """Says on: up to `steps` tokens of each row, fewer where all have ended before.

    Args:
      tokens: the one that each row has said last, which is not read yet.
      lengths: tokens that each row holds.
      left: tokens that each may still say, at least 1.

    Returns:
      Of each row as many tokens as the longest one says; what stands behind a row's own end is of no meaning.
    """
    size = next(size for size in self._sizes if size >= len(rows))
    whole = size == self.count
    # Few rows are taken out for the turn, so that one request by itself costs no more than it must.
    at = list(rows) if whole else list(range(len(rows)))
    row_R = None if whole else self._padded_rows(rows, size)
    token_R, length_R, left_R = (np.zeros(size, np.int32) for _ in range(3))
    token_R[at], length_R[at], left_R[at] = tokens, lengths, left
    spread = [Draw()] * size
    for place, draw in zip(at, draws, strict=True):
      spread[place] = draw
    choice = _choice(spread, size, tells)
    arrays = row_R, token_R, length_R, left_R, self._stop_ids_K, choice
    self._held, count, said = _turn(self._graph, self._state, self._held, *arrays, room=self._steps)
    return Said(*(np.asarray(x)[at, : int(count)] for x in said))

  def _padded_rows(self, rows: Sequence[int], size: int) -> np.ndarray:
    """int32 (size,): rows, and behind them what no row is, which is written past the end."""
    row_R = np.full(size, self.count, np.int32)
    row_R[: len(rows)] = rows
    return row_R


def _choice(draws: Sequence[Draw], size: int, tells: bool) -> _Choice:
  """The draws as arrays of `size` rows; those behind them take the likeliest token."""
  rows = zip(*map(dataclasses.astuple, [*draws, *[Draw()] * (size - len(draws))]), strict=True)
  dtypes = (np.float32, np.float32, np.uint32, np.int32)
  return _Choice(*map(np.array, rows, dtypes), np.bool_(tells))


@functools.partial(jax.jit, donate_argnums=0)
def _placed(held, rows, row):
  put = lambda all_BSKH, new_1SKH: jax.lax.dynamic_update_slice(all_BSKH, new_1SKH, (row, 0, 0, 0))
  return jax.tree.map(put, held, rows)


@functools.partial(jax.jit, static_argnums=(0, 8), donate_argnums=2)
def _read(graph, state, held, row_R, tokens_RT, count_R, length_R, choice, bidirectional):
  vlm = nnx.merge(graph.graphdef, state)
  T = tokens_RT.shape[1]

  def one(row, tokens_T, count, length):
    batch = Batch(tokens_BT=tokens_T[None], valid_BT=(jnp.arange(T) < count)[None])
    if bidirectional:  # the prefix's last token is read again, in its own place
      batch = dataclasses.replace(batch, mask_ar_BT=(jnp.arange(T) > 0)[None])
    hidden_1D, cache = vlm.prefill(batch, _cache(row, length))
    return hidden_1D[0], _row(cache)

  hidden_RD, rows = jax.vmap(one)(_taken(held, row_R), tokens_RT, count_R, length_R)
  held = _put_back(held, row_R, rows)
  chosen = _chosen(vlm.unembed(hidden_RD), choice, jnp.int32(0))
  return held, Said(*(x[:, None] for x in chosen))


@functools.partial(jax.jit, static_argnums=0, static_argnames="room", donate_argnums=2)
def _turn(graph, state, held, row_R, token_R, length_R, left_R, stop_ids_K, choice, *, room: int):
  vlm = nnx.merge(graph.graphdef, state)

  def one(row, token, length):
    hidden_1D, cache = vlm.decode_step(token[None], _cache(row, length))
    return hidden_1D[0], _row(cache)

  def unfinished(carry):
    index, _, _, done_R, _ = carry
    return (index < room) & ~done_R.all()

  def advance(carry):
    index, rows, token_R, done_R, said = carry
    hidden_RD, rows = jax.vmap(one)(rows, token_R, length_R + index)
    chosen = _chosen(vlm.unembed(hidden_RD), choice, index)
    said = jax.tree.map(lambda out, new: out.at[:, index].set(new), said, chosen)
    token_R = chosen.tokens_BT
    ended_R = (token_R[:, None] == stop_ids_K).any(axis=1) | (token_R == generation.BROKEN)
    done_R = done_R | ended_R | (index + 1 >= left_R)
    return index + 1, rows, jnp.maximum(token_R, 0), done_R, said

  tops = min(TOPS, vlm.config.text.vocab_size)
  blank = lambda dtype, *more: jnp.zeros((*token_R.shape, room, *more), dtype)
  said = Said(blank(jnp.int32), blank(jnp.float32), blank(jnp.int32, tops), blank(jnp.float32, tops))
  rows = held if row_R is None else _taken(held, row_R)
  carry = (jnp.int32(0), rows, token_R, left_R < 1, said)
  index, rows, _, _, said = jax.lax.while_loop(unfinished, advance, carry)
  return rows if row_R is None else _put_back(held, row_R, rows), index, said


def _taken(held, row_R):
  return jax.tree.map(lambda x: x.at[row_R].get(mode="clip"), held)


def _put_back(held, row_R, rows):
  """Rows past the end are dropped."""
  return jax.tree.map(lambda x, new: x.at[row_R].set(new, mode="drop"), held, rows)


def _cache(row, length) -> KVCache:
  """One row as a cache of its own, filled to `length`."""
  keys, values = jax.tree.map(lambda x_SKH: x_SKH[None], row)
  valid_1S = (jnp.arange(keys[0].shape[1]) < length)[None]
  return KVCache(tuple(keys), tuple(values), valid_1S, length)


def _row(cache: KVCache):
  """What `_cache` takes, back again."""
  return jax.tree.map(lambda x_1SKH: x_1SKH[0], (tuple(cache.keys), tuple(cache.values)))


def _chosen(logits_BV, choice: _Choice, index) -> Said:
  """The next token of each row, `index` behind those that were said before; without the axis T."""
  logits_BV = logits_BV.astype(jnp.float32)
  drawn_B = choice.temperature_B > 0

  def draw():
    scaled_BV = logits_BV / jnp.where(drawn_B, choice.temperature_B, 1.0)[:, None]
    top_p_B1 = choice.top_p_B[:, None]
    # Rows without a bound draw from the very numbers that they have beside neighbours without one.
    within = lambda: jnp.where(top_p_B1 < 1, generation.in_nucleus(scaled_BV, top_p_B1), scaled_BV)
    scaled_BV = jax.lax.cond((choice.top_p_B < 1).any(), within, lambda: scaled_BV)
    keys_B = generation.row_keys(choice.seed_B, choice.said_B, index)
    return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)

  likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  tokens_B = jnp.where(drawn_B, jax.lax.cond(drawn_B.any(), draw, lambda: likeliest_B), likeliest_B)

  def tell():
    logprob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    own_B = jnp.take_along_axis(logprob_BV, tokens_B[:, None], axis=1)[:, 0]
    most_BK, ids_BK = jax.lax.top_k(logprob_BV, tops)
    return own_B, ids_BK.astype(jnp.int32), most_BK

  B, tops = tokens_B.shape[0], min(TOPS, logits_BV.shape[1])
  silent = lambda: (jnp.zeros(B), jnp.zeros((B, tops), jnp.int32), jnp.zeros((B, tops)))
  told = jax.lax.cond(choice.tells, tell, silent)
  finite_B = jnp.isfinite(logits_BV).all(axis=-1)
  return Said(jnp.where(finite_B, tokens_B, generation.BROKEN), *told)
