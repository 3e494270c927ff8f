"""Greedy and sampled decoding, jitted, with a key-value cache of fixed size.

`generate` continues a batch of prompts in one compiled loop, `stream` yields the same tokens one by one, and
`decode` goes on from prompts that are read already. All give the tokens that a plain forward of the whole
sequence would give, whatever a prompt's padding or neighbours. Lengths come in the sizes of `bucket`, so that
few programs are compiled. Logits that are not finite end in a `UserError`, never in tokens.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm.types import Batch, UserError

if TYPE_CHECKING:
  from spatialvlm.core.attention import KVCache
  from spatialvlm.models.vlm import Vlm


# A token that is none: the logits that should have chosen it are not finite.
BROKEN = -1
NOT_FINITE = "the logits are not finite: the numbers overflow (try dtype float32), or the weights are damaged"


def bucket(size: int, least: int = 1) -> int:
  """The next of few sizes, at most an eighth above `size`, so that few shapes are ever compiled.

  Multiples of `least`, or from 16 * `least` on of an eighth of the power of two below.
  """
  step = max(least, 2 ** (size.bit_length() - 1) // 8)
  return -(-size // step) * step


def generate(
  vlm: Vlm,
  batch: Batch,
  *,
  max_new_tokens: int,
  stop_ids: Sequence[int] = (),
  pad_id: int = 0,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
  stop: bool = True,
  mesh: Mesh | None = None,
) -> np.ndarray:
  """Continues each prompt of a batch, all in one compiled loop.

  Args:
    batch: prompts, padded on either side.
    stop_ids: tokens that end an answer.
    pad_id: what stands after an answer's stop token.
    temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
    top_p: only the likeliest tokens whose probabilities first reach this sum are drawn from (nucleus
      sampling, Holtzman et al. 2020, arXiv:1904.09751), after the temperature as in transformers.
    stop: false decodes the full number of tokens, whatever they are.
    mesh: of a sharded model.

  Returns:
    int32 (B, max_new_tokens): the new tokens, the stop token included. The same seed gives the same tokens.

  Raises:
    UserError: an argument out of its range, or a prompt that leaves no room in the context, or
      logits that are not finite.
  """
  _check(vlm, batch, max_new_tokens, temperature, top_p)
  length = bucket(batch.tokens_BT.shape[1] + max_new_tokens, 16)
  graphdef, state = nnx.split(vlm)
  stop_ids_K = padded_stops(stop_ids if stop else ())
  with _context(mesh):
    logits_BV, cache = _prefill(graphdef, state, batch, length)
    _check_finite(logits_BV)
    new_BT, _ = _decode(
      graphdef,
      state,
      logits_BV,
      cache,
      np.int32(max_new_tokens),
      _finished(batch),
      stop_ids_K,
      np.int32(pad_id),
      np.float32(temperature or 1.0),
      np.float32(top_p),
      jax.random.key(seed),
      room=length - batch.tokens_BT.shape[1],
      sampled=temperature > 0,
      nucleus=top_p < 1,
    )
  new_BT = np.asarray(new_BT)[:, :max_new_tokens]
  if (new_BT == BROKEN).any():
    raise UserError(NOT_FINITE)
  return new_BT


def stream(
  vlm: Vlm,
  batch: Batch,
  *,
  max_new_tokens: int,
  stop_ids: Sequence[int] = (),
  pad_id: int = 0,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Iterator[np.ndarray]:
  """`generate` token by token: yields int32 (B,), the same tokens, until all samples have stopped."""
  _check(vlm, batch, max_new_tokens, temperature, top_p)
  graphdef, state = nnx.split(vlm)
  stop_ids_K, done_B = padded_stops(stop_ids), _finished(batch)
  key = jax.random.key(seed)
  with _context(mesh):
    logits_BV, cache = _prefill(graphdef, state, batch, bucket(batch.tokens_BT.shape[1] + max_new_tokens, 16))
    _check_finite(logits_BV)
  for index in range(max_new_tokens):
    with _context(mesh):
      tokens_B = np.array(
        _choose_jit(
          logits_BV,
          np.float32(temperature or 1.0),
          np.float32(top_p),
          jax.random.fold_in(key, index),
          sampled=temperature > 0,
          nucleus=top_p < 1,
        )
      )
    tokens_B[done_B] = pad_id
    yield tokens_B
    done_B = done_B | np.isin(tokens_B, stop_ids_K)
    if done_B.all() or index == max_new_tokens - 1:
      return
    with _context(mesh):
      logits_BV, cache = step(graphdef, state, tokens_B, cache)


def decode(
  graphdef: Any,
  state: Any,
  logits_BV: jax.Array,
  cache: KVCache,
  *,
  room: int,
  limit: int,
  done_B: Any,
  stop_ids: Sequence[int],
  pad_id: int,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed_B: Any = None,
  said_B: Any = None,
) -> jax.Array:
  """Goes on from prompts that are read already; the cache is used up.

  Args:
    graphdef, state: of the `Vlm`, as `nnx.split` gives them.
    logits_BV: of the first new token.
    room: free slots of the cache; new tokens fit into them.
    limit: most new tokens.
    done_B: bool, rows that are not waited for.
    temperature, top_p: as of `generate`; 0 goes on greedily.
    seed_B, said_B: uint32 and int32, with a temperature above 0: what each row draws follows from its seed
      and from how many tokens were said before, not from its neighbours, nor from its place among them.

  Returns:
    int32 (B, room) on the device: new tokens, the stop token included, then pads. `BROKEN` stands where the
    logits were not finite, and ends the row.
  """
  new_BT, _ = _decode(
    graphdef,
    state,
    logits_BV,
    cache,
    np.int32(min(limit, room)),
    done_B,
    padded_stops(stop_ids),
    np.int32(pad_id),
    np.float32(temperature or 1.0),
    np.float32(top_p),
    jax.random.key(0) if temperature == 0 else (seed_B, said_B),
    room=room,
    sampled=temperature > 0,
    nucleus=temperature > 0 and top_p < 1,
  )
  return new_BT


@functools.partial(jax.jit, static_argnames=("graphdef", "length"))
def _prefill(graphdef, state, batch: Batch, length: int) -> tuple[jax.Array, KVCache]:
  vlm = nnx.merge(graphdef, state)
  hidden_BD, cache = vlm.prefill(batch, vlm.init_cache(batch.tokens_BT.shape[0], length))
  return vlm.unembed(hidden_BD), cache


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="cache")
def step(graphdef, state, tokens_B, cache) -> tuple[jax.Array, KVCache]:
  """Reads one more token of each row: float32 logits (B, V) of the next, and the longer cache, in place."""
  vlm = nnx.merge(graphdef, state)
  hidden_BD, cache = vlm.decode_step(tokens_B, cache)
  return vlm.unembed(hidden_BD), cache


@functools.partial(
  jax.jit, static_argnames=("graphdef", "room", "sampled", "nucleus"), donate_argnames="cache"
)
def _decode(
  graphdef,
  state,
  logits_BV,
  cache,
  limit,
  done_B,
  stop_ids_K,
  pad_id,
  temperature,
  top_p,
  key,
  *,
  room: int,
  sampled: bool,
  nucleus: bool,
) -> tuple[jax.Array, KVCache]:
  """(B, room): up to `limit` new tokens, pads behind them; and the cache, so that it is updated in place.

  `key` is one for all rows, or a pair (seeds, tokens that were said before) by row.
  """
  vlm = nnx.merge(graphdef, state)
  B = logits_BV.shape[0]
  of_rows = isinstance(key, tuple)

  def choose(logits_BV, index, done_B):
    keys = row_keys(*key, index) if of_rows else jax.random.fold_in(key, index)
    chosen_B = _choose(logits_BV, temperature, top_p, keys, sampled=sampled, nucleus=nucleus)
    finite_B = jnp.isfinite(logits_BV).all(axis=-1)
    tokens_B = jnp.where(done_B, pad_id, jnp.where(finite_B, chosen_B, BROKEN))
    return tokens_B, done_B | ~finite_B | (tokens_B[:, None] == stop_ids_K).any(axis=1)

  def unfinished(carry):
    index, _, done_B, _, _ = carry
    return (index < limit) & ~done_B.all()

  def advance(carry):
    index, tokens_B, done_B, new_BT, cache = carry
    hidden_BD, cache = vlm.decode_step(tokens_B, cache)
    tokens_B, done_B = choose(vlm.unembed(hidden_BD), index, done_B)
    return index + 1, tokens_B, done_B, new_BT.at[:, index].set(tokens_B), cache

  tokens_B, done_B = choose(logits_BV, jnp.int32(0), done_B)
  new_BT = jnp.full((B, room), pad_id, jnp.int32).at[:, 0].set(tokens_B)
  carry = (jnp.int32(1), tokens_B, done_B, new_BT, cache)
  _, _, _, new_BT, cache = jax.lax.while_loop(unfinished, advance, carry)
  return new_BT, cache


def row_keys(seed_B: jax.Array, said_B: jax.Array, index: jax.Array) -> jax.Array:
  """The key (B,) by which each row draws a token: of its seed, uint32, and how many tokens were said before,
  `said_B` + `index`, int32."""
  key_of = lambda seed, said: jax.random.fold_in(jax.random.key(seed), said + index)
  return jax.vmap(key_of)(seed_B, said_B)


def _choose(logits_BV, temperature, top_p, key, *, sampled: bool, nucleus: bool) -> jax.Array:
  """The next token (B,) of each sample; `key` is one for all of them, or (B,) of theirs."""
  if not sampled:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / temperature
  if nucleus:
    logits_BV = in_nucleus(logits_BV, top_p)
  draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
  return draw(key, logits_BV).astype(jnp.int32)


def in_nucleus(logits_BV: jax.Array, top_p: jax.Array) -> jax.Array:
  """Logits with -inf for all but the likeliest tokens whose probabilities first reach `top_p`, one number or
  one a row, (B, 1)."""
  sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
  # A token stays if those before it have not reached top_p yet: the first always does.
  kept_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV < top_p
  least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


_choose_jit = jax.jit(_choose, static_argnames=("sampled", "nucleus"))


def padded_stops(stop_ids: Sequence[int]) -> np.ndarray:
  """Stop tokens in an array of one usual shape, filled up with what no token is."""
  return np.array([*stop_ids, *[-2] * (-len(stop_ids) % 4 or 4 * (not stop_ids))], np.int32)


def _check_finite(logits_BV: jax.Array) -> None:
  """The likeliest of numbers that are none would be a token all the same, and the answer nonsense."""
  if not bool(jnp.isfinite(logits_BV).all()):
    raise UserError(NOT_FINITE)


def _finished(batch: Batch) -> np.ndarray:
  """Samples that only fill the batch are not waited for."""
  if batch.example_mask_B is None:
    return np.zeros(batch.tokens_BT.shape[0], bool)
  return ~np.asarray(batch.example_mask_B, bool)


def _context(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  return jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext()


def _check(vlm: Vlm, batch: Batch, max_new_tokens: int, temperature: float, top_p: float) -> None:
  if max_new_tokens < 1:
    raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
  if not temperature >= 0:
    raise UserError(f"temperature must be 0 (greedy) or above, got {temperature}")
  if not 0 < top_p <= 1:
    raise UserError(f"top_p must lie above 0 and at most at 1, got {top_p}")
  longest = int(np.asarray(batch.valid_BT).sum(axis=1).max())
  most = vlm.max_length
  if longest + max_new_tokens > most:
    raise UserError(
      f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {most};"
      " shorten the prompt, lower max_tiles, or lower max_new_tokens"
    )
