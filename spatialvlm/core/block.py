"""The one transformer block that encoders and decoders share, and a stack of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core import scan
from spatialvlm.core.attention import Attention, AttentionConfig, KVCache, Look, Read, at_places
from spatialvlm.core.axes import constrain, logical
from spatialvlm.core.mlp import Mlp
from spatialvlm.core.norm import NORMS
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """A pre-norm transformer block.

  Attributes:
    attention: sizes and parts of the attention; the residual stream's width is its.
    mlp_width: hidden units of the feed-forward network.
    norm: "layer" or "rms", with `eps` inside the root.
    activation: a key of `core.mlp.ACTIVATIONS`; `gated` multiplies it with a second projection.
    mlp_bias: whether its linear layers have biases.
    layer_scale: each branch is multiplied by a learned vector (CaiT, Touvron et al., 2021).
    out_norms: each branch ends in a norm of its own.
  """

  attention: AttentionConfig
  mlp_width: int
  norm: str
  eps: float
  activation: str
  gated: bool
  mlp_bias: bool
  layer_scale: bool = False
  out_norms: bool = False

  @property
  def width(self) -> int:
    """Width of the residual stream."""
    return self.attention.width


class Block(nnx.Module):
  """x + attn(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: BlockConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, out_scale: float = 1.0):
    norm = lambda: NORMS[config.norm](config.width, config.eps, dtype=dtype, rngs=rngs)
    self.attn_norm = norm()
    self.attn = Attention(config.attention, dtype=dtype, rngs=rngs, out_scale=out_scale)
    self.mlp_norm = norm()
    self.mlp = Mlp(
      config.width,
      config.mlp_width,
      activation=config.activation,
      gated=config.gated,
      bias=config.mlp_bias,
      dtype=dtype,
      rngs=rngs,
      out_scale=out_scale,
    )
    scale = lambda: nnx.Param(jnp.ones((config.width,), dtype), **logical("embed"))
    self.attn_scale, self.mlp_scale = (scale(), scale()) if config.layer_scale else (None, None)
    self.attn_out_norm, self.mlp_out_norm = (norm(), norm()) if config.out_norms else (None, None)

  def __call__(
    self, x_BTD, mask_BTS=None, angles=None, past=None, look: Look | None = None, at_BQ=None, change=None
  ) -> tuple[jax.Array, Read]:
    """Arguments as of `Attention`; returns the residual stream (B, T, D) and what the attention read.

    With `at_BQ` the stream is (B, Q, D), at these places alone: all that nothing reads is left out.
    """
    out_BTD, read = self.attn(self.attn_norm(x_BTD), mask_BTS, angles, past, look, at_BQ, change)
    x_BTD = x_BTD if at_BQ is None else at_places(x_BTD, at_BQ)
    x_BTD = x_BTD + _finished(out_BTD, self.attn_out_norm, self.attn_scale)
    out_BTD = self.mlp(self.mlp_norm(x_BTD))
    return x_BTD + _finished(out_BTD, self.mlp_out_norm, self.mlp_scale), read


def _finished(x_BTD: jax.Array, norm: nnx.Module | None, scale: nnx.Param | None) -> jax.Array:
  """What a branch adds to the residual stream."""
  x_BTD = x_BTD if norm is None else norm(x_BTD)
  return x_BTD if scale is None else x_BTD * scale[...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackOutput:
  """What went through a stack of blocks.

  Attributes:
    x_BTD: the residual stream after the last block that ran.
    layers: by number, the residual stream (B, T, D) after so many blocks; 0 is what the first one reads.
    attention: by number, the attention's probabilities (B, N, T, S) in float32 in the block that makes the
      layer of this number, from 1 on; (B, N, Q, S) of the rows that were asked for.
    attention_mean: by number, their means over heads (B, T, S) in float32.
  """

  x_BTD: jax.Array
  layers: dict[int, jax.Array]
  attention: dict[int, jax.Array]
  attention_mean: dict[int, jax.Array]


class Hooks(Protocol):
  """What is done to a stack while it reads, block by block: the first is number 1."""

  def mask(self, number: int, mask_BTS: jax.Array) -> jax.Array:
    """What the queries of a block see, of what they would see."""

  def heads(self, number: int, out_BTNH: jax.Array) -> jax.Array:
    """What becomes of the outputs of a block's heads before they are joined."""

  def stream(self, number: int, x_BTD: jax.Array) -> jax.Array:
    """What becomes of the residual stream behind a block; 0 is what the first one reads."""


def layer_numbers(asked: Iterable[int], depth: int, what: str, first: int = 0) -> dict[int, int]:
  """Numbers from 0 to `depth` by what was asked for, which may count from the end: -1 is `depth`.

  Args:
    what: whose layers they are, for the message.
    first: least number that there is.

  Raises:
    UserError: a layer that is not there.
  """
  numbers = {layer: layer if layer >= 0 else layer + depth + 1 for layer in asked}
  for layer, number in numbers.items():
    if not first <= number <= depth:
      raise UserError(
        f"layer {layer}: this {what} has layers {first} to {depth}, or {first - depth - 1} to -1"
      )
  return numbers


def looks(
  heads: Iterable[int],
  mean: Iterable[int] = (),
  rows_BQ: jax.Array | None = None,
  traces: Mapping[int, jax.Array] | None = None,
) -> dict[int, Look]:
  """What is asked of each block, by the number of its layer: probabilities by head, of all queries or of the
  rows alone; their means; their gradient. Arguments as of `core.attention.Look`."""
  heads, mean, traces = set(heads), set(mean), traces or {}
  return {
    number: Look(number in heads, number in mean, rows_BQ, traces.get(number))
    for number in sorted(heads.union(mean, traces))
  }


class Stack(nnx.Module):
  """`depth` blocks, of which three settings may be put later: how they run changes no number beyond rounding.

  Attributes:
    remat: activations are computed again in the backward pass.
    scan: neighbours of one kind run as a loop over their weights (`core.scan`), so that a program of many
      layers compiles as one of few does. A block whose attention is wanted, and the last one with `at_BQ`,
      stand outside; the loop ends where a layer's stream is wanted; with `hooks` or `apart`, and for single
      tokens of a generation, there is none.
    apart: each block is a program of its own, which is compiled once for all that are alike: for who reads a
      model outside of any `jax.jit`, one question with much to be given, where one program of all of them
      would take longer to compile than to run.

  The layers that write into the residual stream start smaller by sqrt(2 depth) (GPT-2), so that the
  stream's variance at the top does not grow with depth.
  """

  def __init__(self, config: BlockConfig, depth: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    out_scale = (2 * depth) ** -0.5
    self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs, out_scale=out_scale) for _ in range(depth)])
    self.remat = self.apart = self.scan = False

  def __call__(self, x_BTD: jax.Array, mask_BTS=None, angles=None) -> jax.Array:
    """The residual stream (B, T, D) after the last block, without a cache. Arguments as of `read`."""
    return self.read(x_BTD, mask_BTS, angles).x_BTD

  def read(
    self,
    x_BTD: jax.Array,
    mask_BTS=None,
    angles=None,
    *,
    layers: Collection[int] = (),
    attention: Mapping[int, Look] | None = None,
    stop: int | None = None,
    past: Sequence[tuple[jax.Array, jax.Array, jax.Array]] | None = None,
    at_BQ: jax.Array | None = None,
    hooks: Hooks | None = None,
  ) -> StackOutput:
    """Runs the blocks, without a cache, and keeps what is asked for on the way.

    Args:
      mask_BTS: as of `Attention`, or a tuple of them, one a layer.
      layers: numbers as of `StackOutput`, none negative (`layer_numbers` makes them so).
      attention: by such a number, what of its probabilities is wanted (`looks`).
      stop: after so many blocks; None for all.
      past: as of `Attention`, one a layer; None where nothing stands before.
      at_BQ: places that the last block's stream is wanted of, which is then (B, Q, D): of the others it makes
        keys and values alone. None for all.
      hooks: change what is read on the way, and need masks; None: nothing does.
    """
    x_BTD = x_BTD if hooks is None else hooks.stream(0, x_BTD)
    streams, attended, means = ({0: x_BTD} if 0 in layers else {}), {}, {}
    attention = attention or {}
    blocks = list(self.layers)[:stop]
    masks = self._masks(mask_BTS)[: len(blocks)]
    past = (past or (None,) * len(self.layers))[: len(blocks)]
    last = {len(blocks) - 1} if at_BQ is not None else set()
    alone = (
      {number - 1 for number in attention} | last | (set() if hooks is None else set(range(len(blocks))))
    )
    for first, number, parts in self._runs(blocks, masks, past, layers, alone):
      x_BTD = constrain(x_BTD, "batch", None, None)
      if parts is not None:
        x_BTD, _ = scan.loop(parts, masks[first:number], _reading(self.remat, angles), x_BTD)
      else:
        mask, look, change = masks[first], attention.get(number), None
        if hooks is not None:
          mask, change = hooks.mask(number, mask), functools.partial(hooks.heads, number)
        at = at_BQ if first in last else None
        run = _remat if self.remat else _run
        if self.apart and hooks is None:
          run = functools.partial(_apart, self.remat)
        x_BTD, found_BNTS, mean_BTS = run(blocks[first], x_BTD, mask, angles, past[first], look, at, change)
        x_BTD = x_BTD if hooks is None else hooks.stream(number, x_BTD)
        if found_BNTS is not None:
          attended[number] = found_BNTS
        if mean_BTS is not None:
          means[number] = mean_BTS
      if number in layers:
        streams[number] = x_BTD
    return StackOutput(x_BTD, streams, attended, means)

  def extend(self, x_BTD: jax.Array, mask_BTS, angles, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Runs T new tokens whose slots `cache.extend` has marked, and writes their keys and values.

    A single token goes block by block whatever `scan` says: a loop copies all of the cache, which is then
    most of the work.
    """
    start = cache.length - x_BTD.shape[1]
    blocks, masks = list(self.layers), self._masks(mask_BTS)
    past = [(k, v, start) for k, v in zip(cache.keys, cache.values, strict=True)]
    alone = range(len(blocks)) if x_BTD.shape[1] == 1 else ()
    keys, values = [], []
    for first, end, parts in self._runs(blocks, masks, past, alone=alone):
      x_BTD = constrain(x_BTD, "batch", None, None)
      if parts is not None:
        x_BTD, (k_LBSKH, v_LBSKH) = scan.loop(parts, masks[first:end], _extending(angles), x_BTD)
        keys += list(k_LBSKH)
        values += list(v_LBSKH)
      else:
        x_BTD, read = blocks[first](x_BTD, masks[first], angles, past[first])
        keys.append(read.keys)
        values.append(read.values)
    return x_BTD, dataclasses.replace(cache, keys=tuple(keys), values=tuple(values))

  def _runs(
    self, blocks: Sequence[Block], masks, past, ends: Collection[int] = (), alone: Collection[int] = ()
  ) -> Iterator[tuple[int, int, Sequence[scan.Parts] | None]]:
    """(first, last + 1, parts) of neighbours that run as a loop; parts are None where one runs by itself."""
    if not self.scan or self.apart:
      yield from ((number, number + 1, None) for number in range(len(blocks)))
      return
    parts = list(map(scan.parts, blocks, masks, past))
    for first, end in scan.runs(parts, ends, alone):
      yield first, end, parts[first:end] if end - first > 1 else None

  def _masks(self, mask_BTS) -> tuple[Any, ...]:
    return mask_BTS if isinstance(mask_BTS, tuple) else (mask_BTS,) * len(self.layers)


_Found = tuple[jax.Array, jax.Array | None, jax.Array | None]


def _run(
  layer: Block, x_BTD, mask_BTS, angles, past, look: Look | None = None, at_BQ=None, change=None
) -> _Found:
  x_BTD, read = layer(x_BTD, mask_BTS, angles, past, look=look, at_BQ=at_BQ, change=change)
  return x_BTD, read.probabilities, read.mean


def _remat(
  layer: Block,
  x_BTD,
  mask_BTS,
  angles,
  past,
  look: Look | None = None,
  at_BQ=None,
  change=None,
  in_loop: bool = False,
) -> _Found:
  # jax.checkpoint over split state, since nnx.remat tracks graph updates, which fail inside a gradient
  # that is taken over a part of the parameters only.
  graphdef, state = nnx.split(layer)
  run = lambda state, *inputs: _run(nnx.merge(graphdef, state), *inputs, at_BQ, change)
  # The two passes of a loop are apart anyhow; elsewhere a compiler would merge what they both compute.
  return jax.checkpoint(run, prevent_cse=not in_loop)(state, x_BTD, mask_BTS, angles, past, look)


def _apart(remat: bool, layer: Block, *inputs) -> _Found:
  *inputs, change = inputs
  assert change is None  # a closure, which no other call's program could be shared with
  return _program(*nnx.split(layer), *inputs, remat=remat)


@functools.partial(jax.jit, static_argnames=("graphdef", "remat"))
def _program(graphdef, state, x_BTD, mask_BTS, angles, past, look, at_BQ, *, remat: bool) -> _Found:
  def run(state, *inputs):
    return _run(nnx.merge(graphdef, state), *inputs, None)

  return (jax.checkpoint(run) if remat else run)(state, x_BTD, mask_BTS, angles, past, look, at_BQ)


def _reading(remat: bool, angles):
  """What a loop does with a block in `Stack.read`; arguments as of `scan.loop`."""
  run = functools.partial(_remat, in_loop=True) if remat else _run

  def read(layer: Block, x_BTD, mask_BTS, past) -> tuple[jax.Array, None]:
    x_BTD, *_ = run(layer, constrain(x_BTD, "batch", None, None), mask_BTS, angles, past)
    return x_BTD, None

  return read


def _extending(angles):
  """Likewise in `Stack.extend`: keys and values are kept."""

  def extend(layer: Block, x_BTD, mask_BTS, past) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x_BTD, read = layer(constrain(x_BTD, "batch", None, None), mask_BTS, angles, past)
    return x_BTD, (read.keys, read.values)

  return extend
